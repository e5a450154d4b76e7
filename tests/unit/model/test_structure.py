"""The encoders and the fusion of a model, and which parameter belongs to which modality."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from modbalance import BalancedOptimizer, ConfigError
from support.batch_spy import spy_on
from support.models import Multimodal
from support.training import balanced, multimodal, sgd


def owned(optimizer: BalancedOptimizer, modality: str) -> list[str]:
    return [name for name, _ in optimizer._lifecycle.run.parameters(modality)]


class Misnamed(Multimodal):
    """Submodules whose names contain those of other modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.ab_norm = nn.Linear(5, 5)
        self.a_for_b = nn.Linear(5, 5)


def test_ownership_is_by_module_and_not_by_name() -> None:
    model = Misnamed()
    optimizer = balanced(model, modalities={"a": "encoders.a", "b": ["encoders.b", "a_for_b"]})
    assert owned(optimizer, "a") == [f"encoders.a.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")]
    assert owned(optimizer, "b")[-2:] == ["a_for_b.weight", "a_for_b.bias"]
    assert len(owned(optimizer, "b")) == 6


@pytest.mark.parametrize("as_modules", [False, True])
def test_an_encoder_may_be_a_list_of_paths_or_modules(as_modules: bool) -> None:
    model = multimodal()
    parts: list[Any] = ["encoders.a.0", "encoders.a.2"]
    if as_modules:
        parts = [model.get_submodule(part) for part in parts]
    optimizer = balanced(model, modalities={"a": parts, "b": "encoders.b"})
    assert owned(optimizer, "a") == [f"encoders.a.{part}" for part in ("0.weight", "0.bias", "2.weight", "2.bias")]


def test_a_module_listed_twice_counts_once() -> None:
    model = multimodal()
    optimizer = balanced(model, modalities={"a": ["encoders.a", "encoders.a.0"], "b": "encoders.b"})
    assert len(owned(optimizer, "a")) == 4


def test_a_tied_parameter_within_one_encoder_counts_once() -> None:
    model = multimodal()
    encoder = model.encoders["a"]
    assert isinstance(encoder, nn.Sequential)
    encoder.append(encoder[2])
    assert len(owned(balanced(model), "a")) == 4


def test_parameters_of_another_optimizer_are_left_out() -> None:
    model = multimodal()
    inner = sgd(model.get_submodule("encoders.a.0"))
    assert owned(balanced(model, inner=inner), "a") == ["encoders.a.0.weight", "encoders.a.0.bias"]
    assert owned(balanced(model, inner=inner), "b") == []


def test_added_groups_are_owned() -> None:
    model = multimodal()
    optimizer = balanced(model, inner=sgd(model.encoders["a"]))
    assert owned(optimizer, "b") == []
    optimizer.add_param_group({"params": list(model.encoders["b"].parameters())})
    assert len(owned(optimizer, "b")) == 4


def test_a_shared_parameter_is_an_error_for_methods_that_edit_gradients_only() -> None:
    model = multimodal()
    model.get_submodule("encoders.b.0").weight = model.get_parameter("encoders.a.0.weight")
    with pytest.raises(ConfigError, match=r"encoders\.a\.0\.weight.*'a' and 'b'"):
        balanced(model)
    spy_on(model, lambda batch: None)
    balanced(model, "none")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"modalities": {"a": "encoders.A", "b": "encoders.b"}}, r"encoders\.a"),
        ({"modalities": {"a": "", "b": "encoders.b"}}, "a"),
        ({"modalities": {"a": 3, "b": "encoders.b"}}, "path or a module"),
        ({"modalities": {}}, "encoder"),
        ({"fusion": "fusoin"}, "fusion"),
        ({"feature_sizes": [4]}, "feature_sizes"),
        ({"feature_sizes": {"a": 4, "c": 4}}, "feature_sizes"),
    ],
)
def test_what_names_nothing_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        balanced(multimodal(), **arguments)
