"""Errors and warnings in a step: each names the fix, and nothing is lost by it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning
from support.models import Multimodal
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


# A step without the criterion


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
