"""The ways to obtain the logits of one modality alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, ConfigError, ObservationError
from support.batch_spy import Spy, look_once, spy_on
from support.models import HEADS, ConcatFusion, Multimodal, SumFusion
from support.reference import ogm_ge
from support.training import assert_same, audio_visual, balanced, batches, multimodal, sgd, train, weights


def unimodal(batch: Batch) -> dict[str, Tensor]:
    return dict(batch.unimodal_logits)


def features_of(model: Multimodal, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return [encoder(x).detach() for encoder, x in zip(model.encoders.values(), inputs, strict=True)]


def assert_logits(found: Mapping[str, Tensor], expected: list[Tensor], names: str = "ab") -> None:
    assert list(found) == list(names)
    for logits, other in zip(found.values(), expected, strict=True):
        assert not logits.requires_grad
        torch.testing.assert_close(logits, other)


def kind(optimizer: BalancedOptimizer) -> str:
    return str(optimizer.state_dict()["modbalance"]["unimodal"])


def with_head(head: nn.Module, names: str = "ab") -> Multimodal:
    model = multimodal(names)
    model.fusion = head
    return model


@pytest.mark.parametrize("names", ["ab", "abc"])
def test_slices_of_a_linear_head(names: str) -> None:
    model = multimodal(names)
    assert isinstance(model.fusion, ConcatFusion)
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target, unimodal="slice")
    head = model.fusion.fc_out
    assert_logits(found, ogm_ge.sliced(features_of(model, inputs), head.weight, head.bias), names)
    torch.testing.assert_close(torch.stack(list(found.values())).sum(0), model(*inputs))


def test_slices_have_the_widths_of_their_features() -> None:
    model = multimodal()
    model.encoders["b"] = nn.Linear(5, 7)
    model.fusion = ConcatFusion((4, 7), 3)
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target, unimodal="slice")
    head = model.fusion.fc_out
    assert_logits(found, ogm_ge.sliced(features_of(model, inputs), head.weight, head.bias))


def test_slices_of_a_head_without_bias() -> None:
    model = multimodal()
    assert isinstance(model.fusion, ConcatFusion)
    model.fusion.fc_out = nn.Linear(8, 3, bias=False)
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target, unimodal="slice")
    assert_logits(found, ogm_ge.sliced(features_of(model, inputs), model.fusion.fc_out.weight, torch.zeros(3)))


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"concat"}))
def test_slices_of_another_head_are_refused(head: str) -> None:
    model = multimodal(head=head)
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match=r"slice.*Linear"):
        look_once(model, unimodal, inputs, target, unimodal="slice")


@pytest.mark.parametrize("head", sorted(HEADS))
def test_the_fusion_with_the_other_features_zeroed(head: str) -> None:
    model = multimodal("abc", head)
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target, unimodal="zero")
    assert_logits(found, ogm_ge.zeroed(features_of(model, inputs), model.fusion), "abc")


@pytest.mark.parametrize("given_as", ["path", "module"])
def test_own_heads_with_their_full_bias(given_as: str) -> None:
    model = audio_visual(SumFusion)
    head = model.fusion_module
    assert isinstance(head, SumFusion)
    inputs, target = batches(model, 1)[0]
    spec: Any = {"visual": head.fc_y, "audio": head.fc_x}
    if given_as == "path":
        spec = {"visual": "fusion_module.fc_y", "audio": "fusion_module.fc_x"}

    def both(batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return dict(batch.features), dict(batch.unimodal_logits)

    features, found = look_once(
        model,
        both,
        inputs,
        target,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module",
        unimodal=spec,
    )
    z = [features["audio"].detach(), features["visual"].detach()]
    expected = ogm_ge.own(z, [head.fc_x, head.fc_y])
    torch.testing.assert_close(found["audio"], expected[0].detach())
    torch.testing.assert_close(found["visual"], expected[1].detach())


def test_own_heads_must_name_each_modality() -> None:
    model = audio_visual(SumFusion)
    with pytest.raises(ConfigError, match=r"audio.*visual"):
        balanced(model, unimodal={"audio": "fusion_module.fc_x"})


def test_a_callable_from_features_to_logits() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    def doubled(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: 2 * feature[:, :3] for name, feature in features.items()}

    found = look_once(model, unimodal, inputs, target, unimodal=doubled)
    assert_logits(found, [2 * z[:, :3] for z in features_of(model, inputs)])


def test_given_logits_are_taken_and_no_features_are_needed() -> None:
    model = multimodal()
    optimizer, seen = spy_on(model, unimodal)
    given = {"b": torch.ones(6, 3), "a": torch.zeros(6, 3)}
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    optimizer.criterion(nn.CrossEntropyLoss())(logits, target, unimodal_logits=given)
    assert_logits(seen[0], [given["a"], given["b"]])


def test_given_features_replace_those_that_were_seen() -> None:
    model = multimodal()
    optimizer, seen = spy_on(model, unimodal, unimodal="zero")
    inputs, target = batches(model, 1)[0]
    features = {name: torch.randn(6, 4) for name in "ab"}
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target, features=features)
    assert_logits(seen[0], ogm_ge.zeroed([features["a"], features["b"]], model.fusion))


@pytest.mark.parametrize("what", ["features", "unimodal_logits"])
def test_given_tensors_must_cover_all_modalities(what: str) -> None:
    model = multimodal()
    optimizer = balanced(model)
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ObservationError, match=what):
        optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target, **{what: {"a": torch.zeros(6, 3)}})


# What "auto" decides


class Scaled(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return 3 * super().forward(*features)


class Dropped(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(*features), 0.5, self.training)


class InputDropped(ConcatFusion):
    def __init__(self) -> None:
        super().__init__((4, 4), 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, *features: Tensor) -> Tensor:
        return self.fc_out(self.dropout(torch.cat(features, -1)))


class Normalized(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(*[nn.functional.normalize(f, dim=-1) for f in features])


class Swapped(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(*reversed(features))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_auto_takes_the_slice_for_a_linear_head_only(head: str) -> None:
    model = multimodal(head=head)
    optimizer = balanced(model)
    assert kind(optimizer) == "auto"
    train(model, optimizer, batches(model, 1))
    assert kind(optimizer) == ("slice" if head == "concat" else "zero")


@pytest.mark.parametrize("head", [Scaled, Dropped, Normalized, Swapped])
def test_auto_takes_no_slice_that_does_not_add_up(head: Callable[..., nn.Module]) -> None:
    model = with_head(head((4, 4), 3))
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))
    assert kind(optimizer) == "zero"


def test_auto_takes_no_slice_of_a_head_behind_dropout() -> None:
    model = with_head(InputDropped())
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))
    assert kind(optimizer) == "zero"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_auto_allows_for_rounding(dtype: torch.dtype) -> None:
    model = multimodal("abc", dtype=dtype)
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1, dtype=dtype))
    assert kind(optimizer) == "slice"


def test_auto_decides_under_autocast() -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    inputs, target = batches(model, 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        criterion(model(*inputs), target).backward()
    optimizer.step()
    assert kind(optimizer) == "slice"


def test_auto_puts_the_decision_off_where_a_batch_shows_nothing() -> None:
    """Logits of a head that starts at zero add up to zero, whatever is done to them."""
    model = with_head(Scaled((4, 4), 3))
    for parameter in model.fusion.parameters():
        nn.init.zeros_(parameter)
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))
    assert kind(optimizer) == "auto"
    train(model, optimizer, batches(model, 1))
    assert kind(optimizer) == "zero"


def test_auto_keeps_its_decision() -> None:
    model = with_head(Scaled((4, 4), 3))
    optimizer = balanced(model)
    data = batches(model, 2)
    train(model, optimizer, data[:1])
    model.fusion.forward = lambda *f: ConcatFusion.forward(model.fusion, *f)  # type: ignore[arg-type]
    train(model, optimizer, data[1:])
    assert kind(optimizer) == "zero"


def saved_state(**arguments: Any) -> dict[str, Any]:
    model = multimodal()
    optimizer = balanced(model, **arguments)
    train(model, optimizer, batches(model, 1))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def first_half(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: feature[:, :3] for name, feature in features.items()}


@pytest.mark.parametrize("saved", ["auto", "zero", first_half])
@pytest.mark.parametrize("chosen", ["slice", "zero", first_half])
def test_what_the_user_asks_for_wins_over_a_checkpoint(saved: Any, chosen: Any) -> None:
    model, fresh = multimodal(), multimodal()
    state = saved_state(unimodal=saved)
    resumed, expected = balanced(model, unimodal=chosen), balanced(fresh, unimodal=chosen)
    resumed.load_state_dict(state)
    data = batches(model, 1, seed=4)
    train(model, resumed, data)
    train(fresh, expected, data)
    for key, value in expected.metrics().items():
        if "/ratio/" in key:
            assert resumed.metrics()[key] == value


@pytest.mark.parametrize("saved", ["slice", "zero", first_half])
def test_auto_stays_auto_unless_a_checkpoint_holds_its_decision(saved: Any) -> None:
    model = multimodal()
    optimizer = balanced(model)
    optimizer.load_state_dict(saved_state(unimodal=saved))
    train(model, optimizer, batches(model, 1))
    assert set(optimizer.metrics()) >= {"ogm/coefficient/a", "ogm/coefficient/b"}


# Nothing but the logits comes of it


class Noisy(nn.Module):
    """A head with BatchNorm, dropout and a buffer that is replaced, not written to."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(8, 3)
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, *features: Tensor) -> Tensor:
        hidden = self.norm(torch.cat(features, -1))
        if self.training:
            self.count += 1
            self.mean = 0.9 * self.mean + 0.1 * hidden.detach().mean(0)
        return self.out(self.dropout(hidden) + self.mean)


def own_noisy_heads(model: Multimodal) -> dict[str, Any]:
    model.heads = nn.ModuleDict(
        {name: nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)) for name in "ab"}
    )
    return {"unimodal": {name: f"heads.{name}" for name in "ab"}}


def own_callable(model: Multimodal) -> dict[str, Any]:
    own_noisy_heads(model)
    return {
        "unimodal": lambda features: {name: model.get_submodule(f"heads.{name}")(z) for name, z in features.items()}
    }


def fusion_callable(model: Multimodal) -> dict[str, Any]:
    return {"unimodal": "zero", "fusion": lambda *features: model.fusion(*features)}


WAYS: dict[str, Callable[[Multimodal], dict[str, Any]]] = {
    "zero": lambda model: {"unimodal": "zero"},
    "auto": lambda model: {},
    "heads": own_noisy_heads,
    "callable": own_callable,
    "fusion callable": fusion_callable,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [True, False])
def test_buffers_flags_and_random_numbers_stay_as_without_it(way: str, training: bool) -> None:
    """A dry run computes unimodal logits and must leave everything else bitwise alone."""

    def start() -> tuple[Multimodal, dict[str, Any]]:
        torch.manual_seed(5)
        model = with_head(Noisy())
        arguments = WAYS[way](model)
        model.fusion.train(training)
        return model, arguments

    model, arguments = start()
    other, _ = start()
    optimizer = balanced(model, dry_run=True, **arguments)
    data = batches(model, 3)
    torch.manual_seed(6)
    train(model, optimizer, data)
    state = torch.get_rng_state()
    torch.manual_seed(6)
    train(other, sgd(other), data)
    assert "ogm/coefficient/a" in optimizer.metrics()
    assert_same(model, other)
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in model.modules()] == [m.training for m in other.modules()]


@pytest.mark.parametrize("way", WAYS)
def test_live_logits_reach_the_encoders_and_not_the_head(way: str) -> None:
    torch.manual_seed(5)
    model = with_head(Noisy())
    arguments = WAYS[way](model)

    def live(batch: Batch) -> Any:
        return batch.unimodal_logits_live()

    inputs, target = batches(model, 1)[0]
    logits = look_once(model, live, inputs, target, **arguments)
    before = weights(model)
    logits["a"].square().sum().backward()
    grads = {name: p.grad is not None and bool(p.grad.any()) for name, p in model.named_parameters()}
    assert {name for name, has in grads.items() if has} == {n for n in grads if n.startswith("encoders.a.")}
    assert all(p.requires_grad for p in model.parameters())
    assert_same(model, before)


def test_live_logits_with_a_live_head_reach_the_head() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    logits = look_once(model, lambda batch: batch.unimodal_logits_live(frozen_head=False), inputs, target)
    logits["a"].sum().backward()
    assert isinstance(model.fusion, ConcatFusion)
    grad = model.fusion.fc_out.weight.grad
    assert grad is not None
    assert grad[:, :4].any()
    assert not grad[:, 4:].any()


def test_live_logits_equal_the_others() -> None:
    model = multimodal(head="mlp")
    inputs, target = batches(model, 1)[0]

    def both(batch: Batch) -> Any:
        return batch.unimodal_logits_live(), batch.unimodal_logits

    live, dead = look_once(model, both, inputs, target)
    for name in "ab":
        assert live[name].requires_grad
        assert torch.equal(live[name], dead[name])


# How features reach the fusion


class Sequences(Multimodal):
    """Features (B, T, D); the head sees their concatenation per time step and averages the logits over time."""

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [e(x.unsqueeze(1).expand(-1, 4, -1)) for e, x in zip(self.encoders.values(), inputs, strict=True)]
        return self.fusion(*features)


class PerStep(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(*features).transpose(1, 2)


class Pooled(ConcatFusion):
    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(*[f.mean(1) for f in features])


@pytest.mark.parametrize("head", [PerStep, Pooled])
def test_features_of_sequences(head: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    model = Sequences()
    model.fusion = head((4, 4), 3)
    inputs, target = batches(model, 1)[0]
    steps = target.unsqueeze(1).expand(-1, 4)
    seen: dict[str, Tensor] = look_once(model, unimodal, inputs, steps if head is PerStep else target)
    z = [encoder(x).unsqueeze(1).expand(-1, 4, -1) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    expected = ogm_ge.zeroed(z, model.fusion)
    assert_logits(seen, [logits.detach() for logits in expected])


class Joined(Multimodal):
    """The fusion receives one concatenated tensor."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fusion(torch.cat([e(x) for e, x in zip(self.encoders.values(), inputs, strict=True)], -1))


@pytest.mark.parametrize("sizes", [{"a": 4, "b": 4}, [4, 4], {"b": 4, "a": 4}])
@pytest.mark.parametrize("linear", [True, False])
def test_concatenated_features_of_given_sizes(sizes: Any, linear: bool) -> None:
    model = Joined(head="concat" if linear else "mlp")
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target, feature_sizes=sizes)
    z = features_of(model, inputs)
    if isinstance(model.fusion, ConcatFusion):
        expected = ogm_ge.sliced(z, model.fusion.fc_out.weight, model.fusion.fc_out.bias)
    else:
        expected = ogm_ge.zeroed(z, model.fusion)
    assert_logits(found, [logits.detach() for logits in expected])


@pytest.mark.parametrize(("sizes", "message"), [(None, "feature_sizes"), ([4, 5], "add up"), ([1, 1], "add up")])
def test_sizes_of_concatenated_features_are_never_guessed(sizes: Any, message: str) -> None:
    model = Joined()
    balanced(model, feature_sizes=sizes)
    with pytest.raises(ConfigError, match=message):
        model(*batches(model, 1)[0][0])


class Handed(Multimodal):
    """Hands the features to the fusion in one of many ways."""

    how = "list"

    def forward(self, *inputs: Tensor) -> Tensor:
        z = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        if self.how == "list":
            return self.fusion(z)
        if self.how == "tuple":
            return self.fusion(tuple(z))
        if self.how == "dict":
            return self.fusion({"b": z[1], "a": z[0]})
        if self.how == "keywords":
            return self.fusion(b=z[1], a=z[0])
        if self.how == "other keywords":
            return self.fusion(first=z[0], second=z[1])
        if self.how == "mixed":
            return self.fusion(z[0], "a flag", second=z[1])
        return self.fusion(z[0], None, z[1])


class Taking(nn.Module):
    """Takes features in any of these ways, and tells them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(4, 3)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        values = [*args, *kwargs.values()]
        keys: list[Any] = [*range(len(args)), *kwargs]
        if isinstance(values[0], dict):
            values, keys = list(values[0].values()), list(values[0])
        elif isinstance(values[0], list | tuple):
            values, keys = list(values[0]), [0, 1]
        found = {key: value for key, value in zip(keys, values, strict=True) if isinstance(value, Tensor)}
        if "b" in found:
            a, b = found["a"], found["b"]
        else:
            a, b = found.values()
        return self.first(a).tanh() + self.second(b).sigmoid()


@pytest.mark.parametrize("how", ["list", "tuple", "dict", "keywords", "other keywords", "mixed", "with None"])
def test_arguments_of_the_fusion(how: str) -> None:
    torch.manual_seed(0)
    model = Handed()
    model.how = how
    model.fusion = Taking()
    inputs, target = batches(model, 1)[0]
    found = look_once(model, unimodal, inputs, target)
    assert_logits(found, [o.detach() for o in ogm_ge.zeroed(features_of(model, inputs), model.fusion)])


def test_two_features_for_three_modalities_are_refused() -> None:
    model = multimodal("ab")
    spy = Spy(look=lambda batch: None)
    modalities = {"a": "encoders.a", "b": "encoders.b", "c": "encoders.a.0"}
    optimizer = BalancedOptimizer(sgd(model), spy, model=model, modalities=modalities, fusion="fusion")
    assert optimizer.epoch == 0
    with pytest.raises(ConfigError, match="2 tensors"):
        model(*batches(model, 1)[0][0])
