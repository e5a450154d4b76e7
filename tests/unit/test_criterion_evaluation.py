"""Methods that replace the logits in evaluation too: what they see there, and where the replaced logits come out."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, Method, hookimpl
from support.models import AudioVisual, Multimodal
from support.training import assert_same, audio_visual, balanced, batches, multimodal, train, weights

LOSS = nn.CrossEntropyLoss()


@attrs.define(eq=False, kw_only=True)
class MeanOfUnimodal(Method):
    """Replaces the logits by the mean of those of each modality alone."""

    name: ClassVar[str] = "mean_of_unimodal"
    acts_in_eval = True

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor:
        return torch.stack([*batch.unimodal_logits_live(frozen_head=False).values()]).mean(0)


def expected(model: Multimodal | AudioVisual, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return half of the sum of two slices, which is half of the fused logits."""
    logits: Tensor = model(*inputs)
    return logits / 2


def built(model: nn.Module, **arguments: Any) -> tuple[BalancedOptimizer, Any]:
    optimizer = balanced(model, MeanOfUnimodal(), **arguments)
    return optimizer, optimizer.criterion(LOSS)


@pytest.mark.parametrize("make", [multimodal, audio_visual])
@pytest.mark.parametrize("is_eval", [True, False])
def test_loss_and_predictions_are_of_the_replaced_logits(make: Any, is_eval: bool) -> None:
    model = make()
    _, criterion = built(model)
    model.train(not is_eval)
    for inputs, target in batches(model, 2):
        with torch.no_grad():
            output = model(*inputs)
            torch.testing.assert_close(criterion.logits(output), output / 2)
            torch.testing.assert_close(criterion(output, target), LOSS(output / 2, target))


def test_evaluation_between_steps_leaves_the_training_alone() -> None:
    ends = []
    for evaluates in (False, True):
        model = multimodal()
        optimizer, criterion = built(model)
        for inputs, target in batches(model, 3):
            optimizer.zero_grad()
            output = model(*inputs)
            if evaluates:
                model.eval()
                with torch.no_grad():
                    criterion(model(*inputs), target)
                model.train()
            criterion(output, target).backward()
            optimizer.step()
        ends.append(weights(model))
    assert_same(*ends)


def test_features_come_from_encoders_without_a_fusion() -> None:
    model = multimodal()
    optimizer = BalancedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        MeanOfUnimodal(),
        model=model,
        modalities=model.paths,
        unimodal=lambda features: {name: model.fusion(*[each] * 2) for name, each in features.items()},
    )
    criterion = optimizer.criterion(LOSS)
    model.eval()
    for inputs, _ in batches(model, 2):
        z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
        found = criterion.logits(model(*inputs))
        torch.testing.assert_close(found, torch.stack([model.fusion(each, each) for each in z]).mean(0))


@pytest.mark.parametrize("method", ["none", "ogm"])
def test_other_methods_predict_by_the_output(method: str) -> None:
    model = multimodal()
    optimizer = balanced(model, method)
    criterion = optimizer.criterion(LOSS, logits_of=0)
    inputs, _ = batches(model, 1)[0]
    output = model(*inputs)
    assert criterion.logits((output,)) is output


def test_a_dry_run_replaces_nothing() -> None:
    model = multimodal()
    _, criterion = built(model, dry_run=True)
    inputs, _ = batches(model, 1)[0]
    model.eval()
    output = model(*inputs)
    assert torch.equal(criterion.logits(output), output)


def test_a_copy_of_the_model_keeps_no_evaluated_forward() -> None:
    model = multimodal()
    optimizer, criterion = built(model)
    train(model, optimizer, batches(model, 1), criterion)
    model.eval()
    inputs, _ = batches(model, 1)[0]
    criterion.logits(model(*inputs))
    assert optimizer._lifecycle.training.watch.__getstate__()["evaluated"] is None


def test_a_forward_in_training_is_not_mistaken_for_an_earlier_evaluation() -> None:
    model = multimodal()
    _, criterion = built(model)
    (seen, _), (inputs, _) = batches(model, 2)
    model.eval()
    with torch.no_grad():
        criterion.logits(model(*(x[:2] for x in seen)))
    model.train()
    output = model(*inputs)
    torch.testing.assert_close(criterion.logits(output), output / 2)
