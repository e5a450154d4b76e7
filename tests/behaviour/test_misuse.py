"""Misuse that would silently train something else is an error or one warning that names the fix."""

from __future__ import annotations

import copy
from collections import UserDict
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from modbalance import BalancedOptimizer, Batch, ConfigError, ModbalanceWarning, ObservationError
from modbalance.context import default_forward
from support.batch_spy import look_once
from support.models import Multimodal
from support.training import assert_same, balanced, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()


def gradients_of(model: nn.Module, optimizer: BalancedOptimizer) -> dict[str, Tensor]:
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# An earlier optimizer on the same model


@pytest.mark.parametrize("method", ["dgl", "ogm", "none"])
def test_an_earlier_optimizer_that_replaces_features_is_taken_off(method: str) -> None:
    model, alone = multimodal(), multimodal()
    balanced(model, "dgl")
    with pytest.warns(ModbalanceWarning, match=r"earlier BalancedOptimizer.*`\.remove\(\)`"):
        later = balanced(model, method)

    found, expected = gradients_of(model, later), gradients_of(alone, balanced(alone, method))

    assert_same(found, expected)
    assert any(value.any() for name, value in found.items() if name.startswith("encoders"))


def test_an_earlier_optimizer_that_only_looks_may_stay() -> None:
    model = multimodal()
    encoders, head = sgd(model.encoders), sgd(model.fusion)
    first, second = balanced(model, inner=encoders), balanced(model, "agm", inner=head)
    inputs, target = batches(model, 1)[0]
    output = model(*inputs)

    (first.criterion(LOSS)(output, target) + second.criterion(LOSS)(output, target)).backward()
    first.step()
    second.step()

    assert first.metrics()["ogm/ratio/a"] > 0
    assert second.metrics()["agm/kappa/a"] > 0


def test_an_optimizer_that_cannot_be_built_leaves_no_hooks_and_the_earlier_one_alone() -> None:
    model, alone = multimodal(), multimodal()
    optimizer = balanced(model, "dgl")
    with pytest.raises(ConfigError, match="fusion"):
        BalancedOptimizer(sgd(model), "dgl", model=model, modalities=model.paths)

    assert_same(gradients_of(model, optimizer), gradients_of(alone, balanced(alone, "dgl")))
    optimizer.remove()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


# Forwards and criterion calls that do not belong together


def test_a_criterion_call_after_two_forwards_is_warned_of_once() -> None:
    model = multimodal()
    criterion = balanced(model).criterion(LOSS)
    (one, target), (other, _) = batches(model, 2)
    logits, more = model(*one), model(*other)

    with pytest.warns(ModbalanceWarning, match=r"ran twice in training mode.*after each forward"):
        criterion(logits, target)
    criterion(more, target)
    model(*one)
    criterion(model(*one), target)  # given once


def test_a_model_that_calls_itself_runs_once() -> None:
    class Redirected(Multimodal):
        """Lightning runs `training_step` in the place of the forward, inside of a call of the module."""

        def forward(self, *inputs: Tensor) -> Tensor:
            if len(inputs) == 1:
                logits: Tensor = self(*inputs[0])
                return logits
            return super().forward(*inputs)

    model = Redirected(("a", "b"), "concat")
    alone = copy.deepcopy(model)
    inputs, target = batches(model, 1)[0]
    balanced(model).criterion(LOSS)(model(inputs), target).backward()
    balanced(alone).criterion(LOSS)(alone(*inputs), target).backward()

    for mine, theirs in zip(model.parameters(), alone.parameters(), strict=True):
        assert torch.equal(mine.grad, theirs.grad)  # type: ignore[arg-type]


def test_forwards_that_are_not_for_training_are_not_warned_of() -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    for _ in range(2):
        with torch.no_grad():
            model(*inputs)
        model.eval()
        model(*inputs)
        model.train()
        logits = model(*inputs)
        (criterion(logits, target) + criterion(2 * logits, target)).backward()
        optimizer.step()
        optimizer.end_epoch()
    assert optimizer.metrics()["ogm/ratio/a"] > 0


def test_a_batch_that_was_left_out_is_not_held_against_a_checkpoint() -> None:
    model, alone = multimodal(), multimodal()
    optimizer, other = balanced(model), balanced(alone)
    inputs, target = batches(model, 1, seed=5)[0]
    criterion = optimizer.criterion(LOSS)

    criterion(model(*inputs), target)  # no backward: the loss was not finite, say
    optimizer.state_dict()
    criterion(model(*inputs), target).backward()
    optimizer.zero_grad()
    optimizer.state_dict()

    data = batches(model, 2)
    assert_same(train(model, optimizer, data), train(alone, other, data))


# What the default score cannot score


@pytest.mark.parametrize(
    ("loss_fn", "presets"),
    [
        (nn.BCEWithLogitsLoss(), "'binary' or 'multilabel'"),
        (F.binary_cross_entropy_with_logits, "'binary' or 'multilabel'"),
        (nn.MSELoss(), "'regression'"),
        (F.smooth_l1_loss, "'regression'"),
    ],
)
@pytest.mark.parametrize("method", ["ogm", "agm"])
def test_a_loss_that_is_not_of_classes_needs_a_score(method: str, loss_fn: Callable[..., Tensor], presets: str) -> None:
    model = multimodal()
    optimizer = balanced(model, method)
    inputs, _ = batches(model, 1)[0]
    target = torch.rand(6, 3)

    with pytest.raises(ConfigError, match=rf"default score.*classes.*Found the loss \w+.*`score=`.*{presets}"):
        optimizer.criterion(loss_fn)(model(*inputs), target)
    for score in ("softmax", "multilabel", "regression"):
        optimizer.criterion(loss_fn, score=score)(model(*inputs), target)


def test_one_logit_has_no_softmax() -> None:
    model = Multimodal(["a", "b"], classes=1)
    inputs, _ = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=r"C >= 2.*Found shape \(6, 1\).*`score=`"):
        balanced(model).criterion(lambda z, t: (z - t).abs().mean())(model(*inputs), torch.rand(6, 1))


def test_the_accuracy_of_probes_is_not_that_of_labels() -> None:
    model = multimodal()
    inputs, _ = batches(model, 1)[0]
    target = torch.ones(6, 3)

    with pytest.raises(ConfigError, match=r"`metric='accuracy'`.*BCEWithLogitsLoss.*'sign'"):
        balanced(model, "cggm").criterion(nn.BCEWithLogitsLoss())(model(*inputs), target)


def test_accuracies_are_not_measured_of_labels() -> None:
    model = multimodal()
    optimizer = balanced(model, "mslr")
    optimizer.criterion(nn.BCEWithLogitsLoss(), score="multilabel")
    inputs, _ = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=r"accuracy.*Found the loss BCEWithLogitsLoss.*metrics=\{'accuracy': \{"):
        optimizer.end_epoch(val=[(*inputs, torch.ones(6, 3))])


# Losses and logits of another shape


@pytest.mark.parametrize("method", ["cggm", "dgl"])
def test_a_loss_per_sample_cannot_be_differentiated(method: str) -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    with pytest.raises(ConfigError, match=r"one number.*`reduction='none'`.*'mean'"):
        balanced(model, method).criterion(nn.CrossEntropyLoss(reduction="none"))(model(*inputs), target)


def test_methods_that_do_not_differentiate_the_loss_take_one_per_sample() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    assert balanced(model).criterion(nn.CrossEntropyLoss(reduction="none"))(model(*inputs), target).shape == (6,)


@pytest.mark.parametrize("method", ["ogm", "dgl"])
def test_unimodal_logits_look_like_those_of_the_criterion(method: str) -> None:
    model = Multimodal(["a", "b"], classes=1)
    inputs, _ = batches(model, 1)[0]
    criterion = balanced(model, method).criterion(nn.MSELoss(), score="regression", logits_of=lambda z: z.squeeze(-1))

    with pytest.raises(ConfigError, match=r"those in the criterion, \(6,\). Found \(6, 1\) for 'a'.*`fusion=`"):
        criterion(model(*inputs), torch.rand(6))


def test_dgl_looks_at_no_target() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]

    def loss_fn(logits: Tensor, target: Mapping[str, Tensor]) -> Tensor:
        return F.cross_entropy(logits, target["class"])

    balanced(model, "dgl").criterion(loss_fn)(model(*inputs), {"class": target}).backward()


# Where modalities stand in calls


class ByKeyword(Multimodal):
    """Hands features to the fusion by names of its own."""

    names: dict[str, str]

    def forward(self, *inputs: Tensor) -> Tensor:
        features = {name: encoder(x) for (name, encoder), x in zip(self.encoders.items(), inputs, strict=True)}
        out: Tensor = self.fusion(**{self.names[name]: features[name] for name in reversed(self.names)})
        return out


class NamedFusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 3)

    def forward(self, **features: Tensor) -> Tensor:
        out: Tensor = self.fc(torch.cat([features[name] for name in sorted(features)], -1))
        return out


def test_names_of_features_that_fit_in_part_are_not_guessed() -> None:
    model = ByKeyword(["a", "b"])
    model.fusion, model.names = NamedFusion(), {"a": "audio", "b": "b"}

    with pytest.raises(ConfigError, match=r"all by the names \['a', 'b'\]. Found \['b', 'audio'\].*`modalities=`"):
        gradients_of(model, balanced(model))


class ByMapping(Multimodal):
    """Takes one mapping, as a collate function makes it."""

    def forward(self, batch: Mapping[str, Tensor]) -> Tensor:  # type: ignore[override]
        return super().forward(batch["pixels"], batch["ids"] * batch["mask"])


def test_inputs_of_a_mapping_go_by_their_keys() -> None:
    model = ByMapping(["a", "b"])
    (pixels, ids), target = batches(model, 1)[0]
    batch = {"pixels": pixels, "ids": ids, "mask": torch.ones(6, 1)}
    places: dict[str, Any] = {"a": "pixels", "b": ("ids", "mask")}

    def look(seen: Batch) -> Tensor:
        return seen.coalition_logits(("a",))

    found = look_once(model, look, (batch,), target, inputs=places)
    assert torch.equal(found, model({**batch, "ids": 0 * ids, "mask": torch.zeros(6, 1)}))
    assert batch["ids"] is ids

    with pytest.raises(ConfigError, match=r"(?s)default:.*Found 1.*names \['ids', 'mask', 'pixels'\].*`inputs="):
        look_once(model, look, (batch,), target)


class TupleEncoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.inner = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return self.inner(x), None


class TakesFirst(Multimodal):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:  # type: ignore[override]
        out: Tensor = self.fusion(self.encoders["a"](a)[0], self.encoders["b"](b))
        return out


@pytest.mark.parametrize("method", ["ogm", "cggm"])
def test_an_encoder_that_returns_a_tuple_is_named(method: str) -> None:
    model = TakesFirst(["a", "b"])
    model.encoders["a"] = TupleEncoder(model.encoders["a"])
    fusion = model.fusion
    options: dict[str, Any] = {"head": "fusion.fc_out"} if method == "cggm" else {}
    optimizer = balanced(model, method, fusion=lambda *features: fusion(*features), **options)

    with pytest.raises(ObservationError, match=r"Found none of 'a'.*one tensor.*`fusion=`"):
        gradients_of(model, optimizer)

    optimizer.remove()
    paths = {"a": "encoders.a.inner", "b": "encoders.b"}
    optimizer = balanced(model, method, modalities=paths, fusion=lambda *z: fusion(*z), **options)
    assert gradients_of(model, optimizer)


def test_a_batch_of_a_loader_that_is_a_mapping_needs_a_forward() -> None:
    model = multimodal()
    optimizer = balanced(model, "relearning", period=1, count=9, offset=-1)
    loader = [{"a": torch.zeros(6, 5), "labels": torch.zeros(6)}]

    with pytest.raises(ConfigError, match=r"tuple or list.*Found dict.*forward=lambda model, batch"):
        optimizer.end_epoch(train=loader, val=loader)


class ReturnsMore(Multimodal):
    """A model that returns its features too, as those of many papers' code."""

    def forward(self, a: Tensor, b: Tensor) -> Any:  # type: ignore[override]
        features = self.encoders["a"](a), self.encoders["b"](b)
        return *features, self.fusion(*features)


@pytest.mark.parametrize("method", ["pmr", "relearning"])
def test_a_model_that_returns_more_than_logits_needs_a_forward(method: str) -> None:
    model = ReturnsMore(["a", "b"])
    options: dict[str, Any] = {"period": 1, "count": 9, "offset": -1} if method == "relearning" else {}
    optimizer = balanced(model, method, begin=False, **options)
    optimizer.criterion(nn.CrossEntropyLoss(), logits_of=2)
    loader = [(torch.randn(6, 5), torch.randn(6, 5), torch.arange(6) % 3)]

    with pytest.raises(ConfigError, match=r"Found tuple: pass `forward=lambda model, batch"):
        optimizer.end_epoch(train=loader, val=loader)

    optimizer.end_epoch(train=loader, val=loader, forward=lambda model, batch: (model(*batch[:2])[2], batch[2]))
    assert optimizer.epoch == 1


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_what_a_batch_holds_moves_to_the_device_of_the_model() -> None:
    packed = nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    item = {"pair": Pair(torch.zeros(2), torch.ones(2)), "names": ["x", "y"]}
    seen: list[Any] = []

    class Model(nn.Linear):
        def forward(self, *inputs: Any) -> Tensor:
            seen.extend(inputs)
            return self.weight

    _, target = default_forward(Model(1, 1, device="meta"), [item, packed, torch.zeros(2)])
    mapping, sequence = seen

    assert mapping["names"] == ["x", "y"]
    assert isinstance(mapping["pair"], Pair)
    assert {t.device.type for t in (*mapping["pair"], sequence.data, target)} == {"meta"}
    assert sequence.batch_sizes.device.type == "cpu"


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_of_a_loader_have_the_type_of_a_model_in_one_precision(dtype: torch.dtype) -> None:
    model = multimodal(dtype=dtype)
    (inputs, target), *_ = batches(model, 1)
    logits, same = default_forward(model, [*inputs, target])

    assert torch.equal(logits, model(*(each.to(dtype) for each in inputs)))
    assert torch.equal(same, target)


def test_inputs_of_a_loader_stay_as_they_are_where_types_are_mixed_or_fit() -> None:
    class Model(nn.Module):
        def __init__(self, *types: torch.dtype) -> None:
            super().__init__()
            self.weights = nn.ParameterList(torch.zeros(2, dtype=dtype) for dtype in types)

        def forward(self, *inputs: Any) -> Any:
            return inputs

    class Encoding(UserDict[str, Tensor]):
        """A mapping as tokenizers return it."""

        def to(self, device: torch.device) -> Encoding:
            return self

    long, half, single = torch.ones(2, dtype=torch.long), torch.ones(2, dtype=torch.half), torch.ones(2)
    mixed, _ = default_forward(Model(torch.half, torch.float32), [long, half, single, long])
    fitting, _ = default_forward(Model(torch.float32), [Encoding(ids=long, pixels=single), long])
    other, _ = default_forward(Model(torch.float32), [[long, half], {"x": half}, long])

    assert [each.dtype for each in mixed] == [torch.long, torch.half, torch.float32]
    assert isinstance(fitting[0], Encoding)
    assert [each.dtype for each in (*other[0], other[1]["x"])] == [torch.long, torch.float32, torch.float32]


# Without the criterion


def test_dgl_without_the_criterion_says_what_it_still_does() -> None:
    model = multimodal()
    optimizer = balanced(model, "dgl")
    inputs, target = batches(model, 1)[0]
    LOSS(model(*inputs), target).backward()

    with pytest.warns(ModbalanceWarning, match=r"`dgl` replaced features.*`criterion = opt.criterion"):
        optimizer.step()


# Forms of AGM


def test_a_first_batch_that_is_not_finite_settles_no_form() -> None:
    model, alone = multimodal(), multimodal()
    start = weights(model)
    optimizer = balanced(model, "agm")
    inputs, target = batches(model, 1, seed=4)[0]
    optimizer.criterion(LOSS)(model(inputs[0] * torch.nan, inputs[1]), target)
    optimizer.zero_grad()
    assert_same(model, start)

    data = batches(model, 3)
    other = balanced(alone, "agm")
    assert_same(train(model, optimizer, data), train(alone, other, data))
    forms = [each.state_dict()["modbalance"]["methods"]["agm"]["form"] for each in (optimizer, other)]
    assert forms == ["factored", "factored"]


# Parameters that the model no longer has


def step_of(model: Multimodal, optimizer: BalancedOptimizer) -> None:
    train(model, optimizer, batches(model, 1))


@pytest.mark.parametrize("method", ["none", "ogm", "mslr"])
def test_an_optimizer_of_parameters_that_were_all_replaced_is_an_error(method: str) -> None:
    model = multimodal()
    optimizer = balanced(model, method)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    with pytest.raises(ConfigError, match=r"none among the 10 that Multimodal has.*`model\.parameters\(\)`"):
        step_of(model, optimizer)


def test_an_optimizer_of_another_model_is_an_error() -> None:
    model = multimodal()
    optimizer = balanced(model, "none", sgd(multimodal(seed=1)))
    with pytest.raises(ConfigError, match="none among the 10"):
        step_of(model, optimizer)


def test_parameters_that_were_replaced_are_noticed_once_at_the_next_epoch() -> None:
    model = multimodal()
    optimizer = balanced(model, "none")
    step_of(model, optimizer)
    optimizer.end_epoch()
    model.fusion = multimodal(seed=1).fusion
    with pytest.warns(ModbalanceWarning, match=r"2 parameters .* such as 'fusion.fc_out.weight'.*`fully_shard`"):
        step_of(model, optimizer)
    step_of(model, optimizer)
    optimizer.end_epoch()
    step_of(model, optimizer)


def test_parameters_beside_the_model_and_frozen_ones_are_no_misuse() -> None:
    model = multimodal()
    model.get_parameter("encoders.a.0.weight").requires_grad_(False)
    extra = nn.Parameter(torch.zeros(1))
    optimizer = balanced(model, "ogm", SGD([*model.parameters(), extra], lr=0.1))
    step_of(model, optimizer)


def test_parameters_are_compared_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = multimodal()
    optimizer = balanced(model)
    structure = optimizer._lifecycle.training.structure
    calls: list[Optimizer] = []

    def compare(inner: Optimizer) -> list[str]:
        calls.append(inner)
        return []

    monkeypatch.setattr(structure, "replaced_parameters", compare)
    for _ in range(3):
        step_of(model, optimizer)
    assert len(calls) == 1
    optimizer.end_epoch()
    step_of(model, optimizer)
    assert len(calls) == 2
