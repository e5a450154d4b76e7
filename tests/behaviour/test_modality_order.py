"""Statistics belong to the modality of their name, in whatever order a model or a callable deals with them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import ModbalanceError
from support.models import Multimodal
from support.training import assert_same, balanced, batches, multimodal, train


class Backwards(Multimodal):
    """Calls its encoders from the last to the first."""

    def forward(self, *inputs: Tensor) -> Tensor:
        features = {name: self.encoders[name](x) for name, x in reversed([*zip(self.encoders, inputs, strict=True)])}
        out: Tensor = self.fusion(*(features[name] for name in self.encoders))
        return out


def backwards() -> Backwards:
    model = Backwards()
    model.load_state_dict(multimodal().state_dict())
    return model


def run(model: Multimodal, **arguments: Any) -> dict[str, float]:
    """Take three steps of OGM and return what it measured."""
    optimizer = balanced(model, **arguments)
    train(model, optimizer, batches(model, 3))
    return optimizer.metrics()


def heads(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return unimodal logits that differ by modality: three features of each."""
    return {name: feature[:, :3] for name, feature in features.items()}


def test_encoders_that_run_in_another_order_before_a_fusion_that_is_a_callable() -> None:
    forwards, reverse = multimodal(), backwards()

    expected = run(forwards, fusion=lambda a, b: forwards.fusion(a, b), unimodal="zero")
    actual = run(reverse, fusion=lambda a, b: reverse.fusion(a, b), unimodal="zero")

    assert expected["ogm/coefficient/a"] != expected["ogm/coefficient/b"]
    assert actual == expected
    assert_same(reverse, forwards)


def test_encoders_that_run_in_another_order_before_a_fusion_that_is_a_module() -> None:
    forwards, reverse = multimodal(), backwards()

    assert run(reverse) == run(forwards)
    assert_same(reverse, forwards)


def test_a_callable_that_returns_logits_in_another_order() -> None:
    one, two = multimodal(), multimodal()

    expected = run(one, unimodal=heads)
    actual = run(two, unimodal=lambda features: dict(reversed(heads(features).items())))

    assert expected["ogm/coefficient/a"] != expected["ogm/coefficient/b"]
    assert actual == expected
    assert_same(two, one)


@pytest.mark.parametrize("given", ["features", "unimodal_logits", "present"])
def test_mappings_for_the_criterion_in_another_order(given: str) -> None:
    results = []
    for names in (("a", "b"), ("b", "a")):
        model = multimodal()
        optimizer = balanced(model)
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        inputs, target = batches(model, 1)[0]
        logits = model(*inputs)
        by_name = dict(zip("ab", inputs, strict=True))
        values = {
            "features": {name: model.encoders[name](by_name[name]) for name in names},
            "unimodal_logits": {name: by_name[name][:, :3] for name in names},
            "present": {name: by_name[name][:, 0] > 0 for name in names},
        }
        criterion(logits, target, **{given: values[given]}).backward()
        optimizer.step()
        results.append(optimizer.metrics())

    assert results[0] == results[1]


def test_a_callable_that_leaves_out_a_modality() -> None:
    words = r"`unimodal` should return logits for each of \['a', 'b'\]. Found \['a'\]"
    with pytest.raises(ModbalanceError, match=words):
        run(multimodal(), unimodal=lambda features: {"a": features["a"][:, :3]})


def test_own_heads_are_matched_by_name() -> None:
    one, two = multimodal(), multimodal()
    own = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3)}

    assert run(one, unimodal=own) == run(two, unimodal=dict(reversed(own.items())))
    assert_same(one, two)


def test_the_order_of_modalities_is_that_of_the_fusion() -> None:
    """Named the wrong way round, features are those of the other modality: sizes cannot tell, so the docs must."""
    one, two = multimodal(), multimodal()

    expected = run(one)
    swapped = run(two, modalities={"b": "encoders.a", "a": "encoders.b"})

    assert swapped["ogm/coefficient/b"] == expected["ogm/coefficient/a"]
    assert swapped["ogm/coefficient/a"] == expected["ogm/coefficient/b"]


def test_a_missing_modality_counts_for_the_others_only() -> None:
    model = multimodal()
    optimizer = balanced(model)
    inputs, target = batches(model, 1)[0]
    sure = 20 * nn.functional.one_hot(target, 3).float()
    unsure = torch.zeros(6, 3)
    half = torch.tensor([True] * 3 + [False] * 3)
    given = {"a": torch.where(half.unsqueeze(1), sure, unsure), "b": unsure}

    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    criterion(model(*inputs), target, unimodal_logits=given, present={"a": half}).backward()
    optimizer.step()

    # a scores 1 where it is there, b scores 1/3 everywhere.
    assert optimizer.metrics()["ogm/ratio/a"] == pytest.approx(3.0, abs=1e-4)
