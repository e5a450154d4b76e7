"""The criterion: targets, logits and masks that do not fit, and forwards that were not seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from modbalance import ConfigError, ObservationError
from support.optimizers import model_free
from support.training import assert_same, balanced, batches, multimodal, train


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

    with pytest.raises(ObservationError, match=r"no forward of the model was seen.*torch\.compiler\.reset\(\)"):
        criterion(other(*inputs), target)
