"""The model seen as encoders and fusion: who owns a parameter, and running parts of the model again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, ConfigError, ObservationError
from support.models import Multimodal
from support.spy import look_once, spy_on
from support.training import assert_same, balanced, batches, multimodal, sgd, weights


def owned(optimizer: BalancedOptimizer, modality: str) -> list[str]:
    return [name for name, _ in optimizer._lifecycle.run.parameters(modality)]


# Who owns a parameter


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


# Coalitions


class Recording(nn.Module):
    """Batch norm, dropout and a buffer that is replaced; and records in which mode it ran."""

    seen: Tensor

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(size, out)
        self.register_buffer("seen", torch.zeros(()))
        self.modes: list[bool] = []

    def forward(self, *xs: Tensor) -> Tensor:
        self.modes.append(self.training)
        if self.training:
            self.seen = self.seen + len(xs[0])
        return self.out(self.dropout(self.norm(torch.cat(xs, -1))))


def recording() -> Multimodal:
    torch.manual_seed(2)
    model = Multimodal()
    model.encoders["a"] = Recording(5, 4)
    model.fusion = Recording(8, 3)
    model.encoders["b"].eval()  # a frozen part of a model in training
    return model


def coalition(*subset: str, **options: Any) -> Callable[[Batch], Tensor]:
    return lambda batch: batch.coalition_logits(subset, **options)


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


# Which inputs belong to a modality


class Talking(Multimodal):
    """A modality with two arguments, one of them boolean, and keyword arguments."""

    def forward(self, flag: str, mask: Tensor, sound: Tensor, text: Tensor) -> Tensor:  # type: ignore[override]
        assert flag == "flag"
        return self.fusion(self.encoders["a"](sound), self.encoders["b"](text) * mask.unsqueeze(1))


@pytest.mark.parametrize("mask_value", [0.0, 2.0, {"b": 3.0}])
@pytest.mark.parametrize("stay", ["a", "b"])
def test_inputs_by_position_and_name(mask_value: Any, stay: str) -> None:
    torch.manual_seed(0)
    model = Talking()
    (sound, text), target = batches(model, 1)[0]
    mask = torch.tensor([1, 0, 1, 1, 0, 1])
    places = {"a": "sound", "b": ("mask", "text")}
    keywords = {"mask": mask, "sound": sound, "text": text}
    found = look_once(
        model, coalition(stay), ("flag",), target, keywords=keywords, inputs=places, mask_value=mask_value
    )
    value = mask_value if isinstance(mask_value, float) else mask_value.get("b" if stay == "a" else "a", 0.0)
    if stay == "a":
        expected = model("flag", torch.full_like(mask, value), sound, torch.full_like(text, value))
    else:
        expected = model("flag", mask, torch.full_like(sound, value), text)
    torch.testing.assert_close(found, expected)


def test_inputs_by_position_behind_other_arguments() -> None:
    torch.manual_seed(0)
    model = Talking()
    (sound, text), target = batches(model, 1)[0]
    mask = torch.ones(6)
    places = {"a": 2, "b": (1, 3)}
    found = look_once(model, coalition("b"), ("flag", mask, sound, text), target, inputs=places)
    torch.testing.assert_close(found, model("flag", mask, 0 * sound, text))


def test_keyword_inputs_named_as_the_modalities_need_no_places() -> None:
    class Named(Multimodal):
        def forward(self, *, b: Tensor, a: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(a, b)

    torch.manual_seed(0)
    model = Named()
    (a, b), target = batches(model, 1)[0]
    found = look_once(model, coalition("b"), (), target, keywords={"a": a, "b": b})
    torch.testing.assert_close(found, model(a=0 * a, b=b))


def test_an_optional_input_may_be_none() -> None:
    class Optional(Multimodal):
        def forward(self, a: Tensor, b: Tensor, mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
            assert mask is None
            return super().forward(a, b)

    torch.manual_seed(0)
    model = Optional()
    (a, b), target = batches(model, 1)[0]
    places: dict[str, Any] = {"a": 0, "b": (1, "mask")}
    found = look_once(model, coalition("a"), (a, b), target, keywords={"mask": None}, inputs=places)
    torch.testing.assert_close(found, model(a, 0 * b))


def test_places_that_do_not_exist_are_named() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="'sound'"):
        look_once(model, coalition("a"), inputs, target, inputs={"a": 0, "b": "sound"})


def test_removing_inputs_of_an_unseen_forward_says_what_is_missing() -> None:
    model = multimodal()
    optimizer, _ = spy_on(model, coalition("a"))
    inputs, target = batches(model, 1)[0]
    features = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    with pytest.raises(ObservationError, match="model="):
        optimizer.criterion(nn.CrossEntropyLoss())(model.fusion(*features), target)


# How the fusion is named


class TwoParts(Multimodal):
    """The head is two modules, run one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.fusion = Recording(8, 6)
        self.out_layer = nn.Linear(6, 3)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.out_layer(super().forward(*inputs).relu())


def test_a_list_of_modules_is_run_in_sequence() -> None:
    torch.manual_seed(0)
    model = TwoParts()
    model.fusion.eval()
    relu = nn.ReLU()
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("a", remove="features"), inputs, target, fusion=["fusion", relu, "out_layer"])
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.out_layer(model.fusion(z[0], 0 * z[1]).relu()))


def test_a_callable_fusion_takes_the_outputs_of_the_encoders() -> None:
    model = multimodal(head="film")
    inputs, target = batches(model, 1)[0]
    found = look_once(model, coalition("b", remove="features"), inputs, target, fusion=lambda a, b: model.fusion(a, b))
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    torch.testing.assert_close(found, model.fusion(0 * z[0], z[1]))


def test_without_a_fusion_it_is_said_what_to_pass() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="fusion="):
        look_once(model, coalition("b", remove="features"), inputs, target, fusion=None)


def test_a_fusion_that_returns_no_tensor_is_refused() -> None:
    class Pair(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*inputs)[0]

    torch.manual_seed(0)
    model = Pair(head="mlp")
    model.fusion.register_forward_hook(lambda *call: (call[2], None))
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="tuple"):
        look_once(model, coalition("b", remove="features"), inputs, target)
