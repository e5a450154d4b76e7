"""Logits of coalitions: the modalities outside are removed, and the passes leave no trace."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import Batch, ModbalanceWarning, ObservationError
from support.batch_spy import coalition, look_once, spy_on
from support.models import Multimodal, Recording
from support.training import assert_same, balanced, batches, multimodal, weights


def recording() -> Multimodal:
    torch.manual_seed(2)
    model = Multimodal()
    model.encoders["a"] = Recording(5, 4)
    model.fusion = Recording(8, 3)
    model.encoders["b"].eval()  # a frozen part of a model in training
    return model


@pytest.mark.parametrize("head", ["concat", "film", "attention"])
@pytest.mark.parametrize("subset", ["", "a", "bc", "abc"])
@pytest.mark.parametrize("remove", ["inputs", "features"])
def test_the_others_are_removed(head: str, subset: str, remove: str) -> None:
    model = multimodal("abc", head)
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition(*subset, remove=remove), inputs, target)
    kept = dict(zip("abc", inputs, strict=True))
    if remove == "inputs":
        expected = model(*[x if name in subset else 0 * x for name, x in kept.items()])
    else:
        z = {name: model.encoders[name](x) for name, x in kept.items()}
        expected = model.fusion(*[f if name in subset else 0 * f for name, f in z.items()])
    torch.testing.assert_close(found, expected)
    assert found.requires_grad


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("remove", ["inputs", "features"])
def test_a_coalition_leaves_no_trace(training: bool, remove: Any) -> None:
    model, untouched = recording(), recording()
    assert isinstance(model.fusion, Recording)
    modes = model.fusion.modes
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> None:
        modes.clear()
        before, flags = weights(model), [m.training for m in model.modules()]
        state = torch.get_rng_state()
        batch.coalition_logits({"a"}, remove=remove, training=training)
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(model, before)
        assert flags == [m.training for m in model.modules()]

    torch.manual_seed(3)
    look_once(model, look, inputs, target)
    assert modes == [training]
    torch.manual_seed(3)
    untouched(*inputs)
    assert_same(model, untouched)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("remove", ["inputs", "features"])
def test_backward_goes_through_the_forward_and_a_coalition(training: bool, remove: str) -> None:
    """Both graphs live until backward, and neither pass may disturb what the other one keeps for it."""
    model, other = recording(), recording()
    inputs, target = batches(model, 1)[0]
    optimizer, seen = spy_on(model, coalition("a", remove=remove, training=training))
    torch.manual_seed(3)
    logits = model(*inputs)
    loss = optimizer.criterion(nn.CrossEntropyLoss())(logits, target)
    loss.backward(retain_graph=True)
    torch.manual_seed(3)
    nn.functional.cross_entropy(other(*inputs), target).backward()
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        assert torch.equal(p.grad, q.grad), name
    optimizer.zero_grad()
    seen[0].sum().backward()
    assert model.get_parameter("encoders.a.out.weight").grad is not None


def test_eval_by_default_and_the_same_twice() -> None:
    model = recording()
    inputs, target = batches(model, 1)[0]
    logits = look_once(model, lambda batch: [batch.coalition_logits({"a"}) for _ in range(2)], inputs, target)
    assert torch.equal(*logits)
    model.eval()
    torch.testing.assert_close(logits[0], model(inputs[0], 0 * inputs[1]))


def test_a_failing_pass_restores_everything_too() -> None:
    model = recording()
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> None:
        before, flags = weights(model), [m.training for m in model.modules()]
        handle = model.fusion.register_forward_hook(_fail)
        with pytest.raises(ZeroDivisionError):
            batch.coalition_logits({"a"}, training=True)
        handle.remove()
        assert_same(model, before)
        assert flags == [m.training for m in model.modules()]
        assert not batch.run._training.watch.is_paused

    look_once(model, look, inputs, target)


def _fail(*call: Any) -> None:
    raise ZeroDivisionError


def test_a_coalition_is_no_forward_of_its_own() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    def look(batch: Batch) -> tuple[Any, Any]:
        before = batch.run._training.structure, dict(batch.features)
        batch.coalition_logits({"a"}, training=True)
        return before[1], dict(batch.features)

    before, after = look_once(model, look, inputs, target)
    assert all(before[name] is after[name] for name in "ab")


def test_a_coalition_runs_under_the_autocast_of_the_forward() -> None:
    model = multimodal()
    optimizer, seen = spy_on(model, lambda batch: [coalition("a", remove=r)(batch) for r in ("inputs", "features")])
    inputs, target = batches(model, 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*inputs)
    optimizer.criterion(nn.CrossEntropyLoss())(logits.float(), target)
    assert [found.dtype for found in seen[0]] == [torch.bfloat16] * 2


class Unhooked(Multimodal):
    """In eval mode no hook on the fusion fires, as in code that was compiled before the hooks."""

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.training:
            return super().forward(*inputs)
        z = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        fused: Tensor = self.fusion.forward(*z)
        return fused


@pytest.mark.parametrize("form", ["auto", "factored"])
def test_features_that_no_hook_saw_in_eval_mode_are_noticed(form: str) -> None:
    model = Unhooked()
    optimizer = balanced(model, "agm", coalitions=form)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    (first, second) = batches(model, 2)
    if form == "factored":
        with pytest.raises(ObservationError, match="needs the features of each modality"):
            criterion(model(*first[0]), first[1])
        return
    with pytest.warns(ModbalanceWarning, match="computed by the whole model"):
        criterion(model(*first[0]), first[1]).backward()
    criterion(model(*second[0]), second[1]).backward()
    optimizer.step()
