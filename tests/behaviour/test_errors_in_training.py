"""What goes wrong in a step gets an error or one warning that names the fix, and nothing is lost by it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning, ObservationError
from support.models import Multimodal
from support.optimizers import model_free
from support.training import assert_same, balanced, batches, multimodal, sgd, train


class Concatenating(Multimodal):
    """Concatenates the features itself, and hands one tensor to the head."""

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        out: Tensor = self.fusion.fc_out(torch.cat(features, -1))  # type: ignore[operator]
        return out


def concatenating() -> Concatenating:
    model = Concatenating()
    model.load_state_dict(multimodal().state_dict())
    return model


def start(model: nn.Module, optimizer: BalancedOptimizer, **criterion: Any) -> Tensor:
    """Compute the loss of a first batch."""
    inputs, target = batches(model, 1)[0]
    return optimizer.criterion(nn.CrossEntropyLoss(), **criterion)(model(*inputs), target)


# The fusion


def test_concatenated_features_of_unknown_sizes() -> None:
    model = concatenating()
    optimizer = balanced(model, fusion="fusion.fc_out")

    with pytest.raises(
        ConfigError, match=r"shape \(6, 8\) for \['a', 'b'\].*never guessed.*`feature_sizes=`.*'a': \.\.\."
    ):
        start(model, optimizer)


def test_sizes_that_do_not_add_up() -> None:
    model = concatenating()
    optimizer = balanced(model, fusion="fusion.fc_out", feature_sizes={"a": 4, "b": 5})

    with pytest.raises(
        ConfigError, match=r"add up to the last dimension.*8. Found {'a': 4, 'b': 5}, which add up to 9"
    ):
        start(model, optimizer)


def test_sizes_that_do_add_up_give_what_single_features_give() -> None:
    model, single = concatenating(), multimodal()
    optimizer = balanced(model, fusion="fusion.fc_out", feature_sizes={"b": 4, "a": 4})

    assert_same(train(model, optimizer, batches(model, 2)), train(single, balanced(single), batches(single, 2)))


def test_a_fusion_that_receives_another_number_of_tensors() -> None:
    model = multimodal(("a", "b", "c"))
    described = {"a": "encoders.a", "b": "encoders.b"}
    optimizer = balanced(model, modalities=described)

    with pytest.raises(ConfigError, match=r"one tensor for each of \['a', 'b'\].*Found 3 tensors among 3 positional"):
        start(model, optimizer)


def test_a_slice_of_a_fusion_that_is_not_linear() -> None:
    model = multimodal(head="mlp")
    optimizer = balanced(model, unimodal="slice")

    with pytest.raises(ConfigError, match=r"one nn.Linear over the concatenated features.*MLPFusion.*use 'zero'"):
        start(model, optimizer)


def test_a_fusion_that_returns_no_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, *features: Tensor) -> tuple[Tensor, int]:
            return self.inner(*features), 1

    model = multimodal(head="film")
    model.fusion = Pair(model.fusion)
    optimizer = balanced(model)

    with pytest.raises(ConfigError, match=r"fusion should return the logits as one tensor. Found tuple"):
        start(model, optimizer, logits_of=0)


# The criterion


def test_a_step_without_a_criterion_call_is_a_plain_step_and_says_so_once() -> None:
    model, plain = multimodal(), multimodal()
    inner, loss_fn = sgd(plain), nn.CrossEntropyLoss()
    optimizer = balanced(model)
    data = batches(model, 3)

    with pytest.warns(
        ModbalanceWarning, match=r"`step\(\)` found no criterion call.*`ogm` does not act.*opt\.criterion"
    ) as w:
        train(model, optimizer, data, loss_fn)
    train(plain, inner, data, loss_fn)

    assert len(w) == 1
    assert_same(model, plain)
    assert_same(train(model, optimizer, data), _continued(plain, data, inner))


def _continued(plain: nn.Module, data: Any, inner: Any) -> nn.Module:
    """Go on by a fresh wrapper: what a step without criterion must not have spoilt."""
    return train(plain, balanced(plain, "ogm", inner), data)


def test_warnings_point_at_the_line_of_the_user() -> None:
    model = multimodal()
    inner = AdamW(model.parameters())
    with pytest.warns(ModbalanceWarning, match=r"almost no effect") as built:
        optimizer = BalancedOptimizer(
            inner, "ogm", model=model, modalities=model.paths, fusion="fusion", param_filter="all"
        )
    inputs, target = batches(model, 1)[0]
    nn.CrossEntropyLoss()(model(*inputs), target).backward()
    with pytest.warns(ModbalanceWarning, match=r"no criterion call") as stepped:
        optimizer.step()

    assert [each.filename for each in (*built, *stepped)] == [__file__, __file__]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (torch.zeros(6), r"integer of shape \(6,\).*float of shape \(6, 3\).*Found torch.float32 of shape \(6,\)"),
        (torch.zeros(6, dtype=torch.bool), r"Found torch.bool of shape \(6,\).*`score=`"),
        (torch.zeros(5, dtype=torch.long), r"Found torch.int64 of shape \(5,\)"),
        (torch.zeros(6, 1, dtype=torch.long), r"Found torch.int64 of shape \(6, 1\)"),
        (torch.zeros(6, 2), r"Found torch.float32 of shape \(6, 2\)"),
        (torch.zeros(6, dtype=torch.complex64), r"Found torch.complex64"),
        (None, r"Target should be .* Found None|Found NoneType"),
        ([0, 1, 2, 0, 1, 2], r"Target should be .* Found list"),
    ],
)
def test_a_target_that_does_not_fit(target: Any, words: str) -> None:
    model, alone = multimodal(), multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    inputs, _ = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=words):
        criterion(model(*inputs), target)

    data = batches(model, 2, seed=2)
    assert_same(train(model, optimizer, data), train(alone, balanced(alone), data))


def test_logits_without_a_class_dimension() -> None:
    model = multimodal()
    criterion = balanced(model).criterion(lambda logits, target: (logits - target).abs().mean())
    inputs, _ = batches(model, 1)[0]

    with pytest.raises(
        ConfigError, match=r"Logits should be \(B, C, \.\.\.\).*C >= 2.*Found shape \(6,\).*'regression'"
    ):
        criterion(model(*inputs)[:, 0], torch.zeros(6))


def test_a_score_of_unknown_name() -> None:
    with pytest.raises(ConfigError, match=r"Found `score = 'multi_label'`. Did you mean `multilabel`"):
        balanced(multimodal()).criterion(nn.CrossEntropyLoss(), score="multi_label")


@pytest.mark.parametrize("score", ["binary", "multilabel", "regression"])
def test_a_target_whose_shape_is_not_that_of_the_logits(score: str) -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(lambda logits, target: logits.sum(), score=score)
    inputs, target = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=r"Target should have the shape of the logits, \(6, 3\).*Found \(6,\)"):
        criterion(model(*inputs), target)


@pytest.mark.parametrize(
    ("wrap", "logits_of", "words"),
    [
        (lambda x: (x, 1), None, r"logits as a tensor. Found tuple.*logits_of=0"),
        (lambda x: {"logits": x}, None, r"Found dict.*logits_of='logits'"),
        (lambda x: {"logits": x}, "logit", r"logit"),
        (lambda x: (x, 1), 1, r"Found int"),
        (lambda x: (x,), 4, r"logits_of"),
        (lambda x: x, lambda x: None, r"Found NoneType"),
        (lambda x: {"logits": x}, 0, r"logits_of"),
    ],
)
def test_logits_that_are_not_found(wrap: Any, logits_of: Any, words: str) -> None:
    model = multimodal()
    criterion = balanced(model).criterion(nn.CrossEntropyLoss(), logits_of=logits_of)
    inputs, target = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=words):
        criterion(wrap(model(*inputs)), target)


@pytest.mark.parametrize(
    ("present", "words"),
    [
        (
            {"a": torch.ones(6)},
            r"`present\['a'\]` should be boolean of shape \(6,\).*Found torch.float32 of shape \(6,\)",
        ),
        ({"a": torch.ones(5, dtype=torch.bool)}, r"Found torch.bool of shape \(5,\)"),
        ({"a": torch.ones(6, 1, dtype=torch.bool)}, r"Found torch.bool of shape \(6, 1\)"),
        ({"aa": torch.ones(6, dtype=torch.bool)}, r"`present=` should name modalities. .*Found 'aa'"),
        ({"a": [True] * 6}, r"`present\['a'\]` should be .*Found list"),
    ],
)
def test_masks_that_do_not_fit(present: Mapping[str, Any], words: str) -> None:
    model = multimodal()
    criterion = balanced(model).criterion(nn.CrossEntropyLoss())
    inputs, target = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=words):
        criterion(model(*inputs), target, present=present)


def test_model_free_without_anything_to_observe() -> None:
    model = multimodal()
    optimizer = model_free(model)
    inputs, target = batches(model, 1)[0]
    criterion = optimizer.criterion(nn.CrossEntropyLoss())

    with pytest.raises(ObservationError, match=r"without `model=` hand them to the criterion.*features={\.\.\.}"):
        criterion(model(*inputs), target)
    with pytest.raises(
        ObservationError, match=r"`unimodal_logits=` should hold a tensor for each of \['a', 'b'\].*\['a'\]"
    ):
        criterion(model(*inputs), target, unimodal_logits={"a": model(*inputs)})
    with pytest.raises(ObservationError, match=r"`features=` should hold a tensor for each of \['a', 'b'\].*\['c'\]"):
        criterion(model(*inputs), target, features={"c": inputs[0]})
    with pytest.raises(ConfigError, match=r"Running the fusion again needs `fusion=`.*Found none"):
        criterion(model(*inputs), target, features={"a": inputs[0], "b": inputs[1]})


def test_a_forward_that_no_hook_saw() -> None:
    model, other = multimodal(), multimodal()
    criterion = balanced(model).criterion(nn.CrossEntropyLoss())
    inputs, target = batches(model, 1)[0]

    with pytest.raises(ObservationError, match=r"no forward of the model was seen.*torch\._dynamo\.reset\(\)"):
        criterion(other(*inputs), target)
