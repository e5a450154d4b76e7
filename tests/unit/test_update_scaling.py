"""`apply="update"`: what it leaves alone, what it refuses, and what a step with it costs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import attrs
import pytest
import schedulefree
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.amp.grad_scaler import GradScaler
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer, RMSprop

from modbalance import BalancedOptimizer, Batch, ConfigError, Method, Step, hookimpl
from modbalance._decay import DECLARED, is_decoupled
from modbalance._reporting import SCALE_INVARIANCE
from support.live_bytes import LiveBytes
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.optimizers import assert_same_state
from support.training import (
    assert_same,
    audio_visual,
    balanced,
    batches,
    multimodal,
    steps_on_fake_tensors,
    train,
    weights,
)
from support.two_passes import SAM

LR, WD = 0.01, 0.3


@attrs.define(eq=False, kw_only=True)
class Constant(Method):
    """Scales each encoder by a number."""

    name: ClassVar[str] = "constant"

    values: dict[str, float] = attrs.field(factory=dict)

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return the numbers."""
        return {name: torch.tensor(value) for name, value in self.values.items()}


@attrs.define(eq=False, kw_only=True)
class Other(Constant):
    """The same once more."""

    name: ClassVar[str] = "other"


@attrs.define(eq=False, kw_only=True)
class Term(Constant):
    """Adds a term to the loss as well."""

    name: ClassVar[str] = "term"

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return a term."""
        return {"term": batch.logits.sum()}


class Skipping(AdamW):
    """Leaves steps out by itself, as some do where gradients are not finite."""

    skips = False

    def step(self, closure: Any = None) -> Any:
        """Take a step, or none."""
        return None if self.skips else super().step(closure)


class SlowWeights(SGD):
    """Keeps weights in its state, to which it returns half of the way."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step; every fifth one leads to the slow weights."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter].setdefault("slow", parameter.clone())
        super().step()
        self.count = getattr(self, "count", 0) + 1
        for parameter, state in self.state.items():
            if self.count % 5 == 0:
                parameter.copy_(state["slow"].lerp_(parameter, 0.5))


class OfAModel(Optimizer):
    """Cannot be built from parameters and settings alone; its decay is decoupled."""

    def __init__(self, params: Iterable[Any], model: nn.Module, **declared: Any) -> None:
        super().__init__(params, {"lr": LR, "weight_decay": WD, **declared})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        for parameter in self.param_groups[0]["params"]:
            parameter.mul_(1 - LR * WD).sub_(LR * parameter.grad.sign())


class Twice(SGD):
    """Evaluates its closure twice in a step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take two small steps."""
        for _ in range(2):
            super().step(closure)


def adamw(model: nn.Module, kind: type[AdamW] = AdamW, **settings: Any) -> AdamW:
    return kind(model.parameters(), lr=LR, weight_decay=WD, **settings)


def constant(a: float = 1.0, b: float = 1.0) -> Constant:
    return Constant(values={"a": a, "b": b})


def updating(model: nn.Module, method: Any = "ogm", inner: Any = None, **arguments: Any) -> BalancedOptimizer:
    return balanced(model, method, inner or adamw(model), apply="update", **arguments)


def encoder(model: Multimodal, name: str) -> dict[str, Tensor]:
    return {key: value for key, value in weights(model).items() if key.startswith(f"encoders.{name}.")}


# What it leaves alone


@pytest.mark.parametrize("settings", [{}, {"foreach": True}, {"fused": True}, {"lr": torch.tensor(LR)}])
def test_with_coefficients_of_1_it_is_bitwise_the_inner_optimizer(settings: dict[str, Any]) -> None:
    plain, ours = multimodal(), multimodal()
    data = batches(plain, 4)
    train(plain, AdamW(plain.parameters(), **({"lr": LR} | settings)), data)
    train(ours, updating(ours, constant(), AdamW(ours.parameters(), **({"lr": LR} | settings))), data)
    assert_same(ours, plain)


@pytest.mark.parametrize(
    "arguments", [{"method": "none"}, {"dry_run": True}, {"start_epoch": 3}, {"method": "relearning"}]
)
def test_where_no_coefficient_acts_it_is_bitwise_the_inner_optimizer(arguments: dict[str, Any]) -> None:
    plain, ours = multimodal(), multimodal()
    data = batches(plain, 4)
    train(plain, adamw(plain), data)
    train(ours, updating(ours, **({"method": "ogm"} | arguments)), data)
    assert_same(ours, plain)


def test_remove_leaves_the_inner_optimizer() -> None:
    plain, ours = multimodal(), multimodal()
    data = batches(plain, 4)
    optimizer = updating(ours)
    optimizer.remove()
    train(plain, adamw(plain), data)
    train(ours, optimizer, data)
    assert_same(ours, plain)


def test_a_coefficient_of_0_leaves_weights_that_decay() -> None:
    model = multimodal()
    before = weights(model)
    train(model, updating(model, constant(a=0.0)), batches(model, 1))
    for key, value in encoder(model, "a").items():
        assert torch.equal(value, before[key].mul(1 - LR * WD))


def test_without_decay_a_coefficient_of_0_leaves_weights_bitwise() -> None:
    model = multimodal()
    before = encoder(model, "a")
    train(model, updating(model, constant(a=0.0), Adam(model.parameters(), lr=LR, weight_decay=WD)), batches(model, 3))
    assert_same(encoder(model, "a"), before)


def test_the_state_of_the_inner_optimizer_is_that_of_unmodulated_gradients() -> None:
    """In a first step; later ones begin at other weights."""
    plain, ours = multimodal(), multimodal()
    inner, wrapped = adamw(plain), updating(ours, constant(a=0.1))
    for model, optimizer in ((plain, inner), (ours, wrapped)):
        train(model, optimizer, batches(model, 1))
    assert_same_state(wrapped._inner.state_dict(), inner.state_dict())


def test_coefficients_of_several_methods_multiply() -> None:
    models = multimodal(), multimodal()
    product, several = [Constant(values={"a": 0.125})], [Constant(values={"a": 0.25}), Other(values={"a": 0.5})]
    for model, methods in zip(models, (product, several), strict=True):
        train(model, updating(model, methods), batches(model, 4))
    assert_same(*models)


def test_a_coefficient_that_is_not_finite_acts_as_1() -> None:
    plain, ours = multimodal(), multimodal()
    optimizer = updating(ours, constant(a=float("nan"), b=float("inf")))
    train(plain, adamw(plain), batches(plain, 2))
    train(ours, optimizer, batches(ours, 2))
    assert_same(ours, plain)
    assert optimizer.metrics()["constant/nonfinite/a"] == 2


def test_half_precision_rounds_the_weights_and_not_the_coefficient() -> None:
    model = multimodal(dtype=torch.bfloat16)
    before = encoder(model, "a")
    full = copy.deepcopy(model)
    coefficient = 0.998  # 1 in bfloat16
    data = batches(model, 1, dtype=torch.bfloat16)
    for each, factor in ((model, coefficient), (full, 1.0)):
        train(each, updating(each, constant(a=factor), SGD(each.parameters(), lr=100.0)), data)
    for key, old in before.items():
        update = encoder(full, "a")[key].float() - old.float()
        expected = (old.float() + coefficient * update).bfloat16()
        torch.testing.assert_close(encoder(model, "a")[key], expected, rtol=0, atol=0)


# Steps that do not happen


def test_a_step_that_a_scaler_skips_changes_nothing() -> None:
    model = multimodal()
    optimizer, scaler = updating(model), GradScaler("cpu", init_scale=2.0)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    (inputs, target), (unseen, unseen_target) = batches(model, 2)
    twin = copy.deepcopy(model)
    scaler.scale(criterion(model(*inputs), target)).backward()
    next(model.fusion.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]
    optimizer.modulate()
    scaler.step(optimizer)
    scaler.update()
    assert_same(model, twin)
    train(model, optimizer, [(unseen, unseen_target)], criterion)
    train(twin, updating(twin), [(unseen, unseen_target)])
    assert_same(model, twin)


def test_a_step_that_the_inner_optimizer_leaves_out_changes_nothing_not_even_by_decay() -> None:
    model = multimodal()
    inner = adamw(model, Skipping)
    optimizer = updating(model, constant(a=0.0), inner)
    Skipping.skips = True
    try:
        before = weights(model)
        train(model, optimizer, batches(model, 1))
        assert_same(model, before)
    finally:
        Skipping.skips = False
    train(model, optimizer, batches(model, 1))
    for key, value in encoder(model, "a").items():
        assert torch.equal(value, before[key].mul(1 - LR * WD))


def test_a_resumed_training_is_bitwise_the_uninterrupted_one() -> None:
    whole, halved = multimodal(), multimodal()
    data = batches(whole, 6)
    train(whole, updating(whole), data)
    first = updating(halved)
    train(halved, first, data[:3])
    saved = copy.deepcopy(first.state_dict())
    again = multimodal(seed=5)
    again.load_state_dict(halved.state_dict())
    second = updating(again)
    second.load_state_dict(saved)
    train(again, second, data[3:])
    assert_same(again, whole)


# Closures


def test_a_closure_that_is_evaluated_once() -> None:
    plain, ours = multimodal(), multimodal()
    data = batches(plain, 3)
    train(plain, updating(plain), data)
    optimizer = updating(ours)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for inputs, target in data:

        def closure(inputs: Any = inputs, target: Tensor = target) -> Tensor:
            optimizer.zero_grad()
            loss = criterion(ours(*inputs), target)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert_same(ours, plain)


def test_a_closure_that_is_evaluated_again_is_an_error() -> None:
    model = multimodal()
    optimizer = updating(model, inner=Twice(model.parameters(), lr=0.1))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    ((inputs, target),) = batches(model, 1)

    def closure() -> Tensor:
        loss = criterion(model(*inputs), target)
        loss.backward()
        return loss

    with pytest.raises(ConfigError, match=r"Found that the step of Twice evaluates its closure several times: leave"):
        optimizer.step(closure)


# Refusals


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("agm", {}, "which edits gradients or the loss in `modbalance_gradients` and `modbalance_logits`: leave"),
        ("dgl", {}, "which edits gradients or the loss in `modbalance_features` and"),
        ("ogm_ge", {}, "which adds noise to modulated gradients: use `ogm`, pass `noise_scale=0`"),
        ("mslr", {"mode": "lr"}, 'which with `mode = "lr"` scales the update itself: leave `mode` out'),
        (Term(), {}, "Found `term`, which edits gradients or the loss in `modbalance_losses`: leave `apply` out"),
        ([constant(), Term()], {}, "Found `term`"),
    ],
)
def test_methods_that_edit_gradients_or_the_loss(method: Any, options: dict[str, Any], words: str) -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match="methods that give coefficients.*" + words.replace("(", r"\(")):
        updating(model, method, **options)


@pytest.mark.parametrize(
    ("method", "options"),
    [("ogm_ge", {"noise_scale": 0.0}), ("mslr", {"init": {"a": 0.5}}), ("cggm", {"lam": 0.0}), ("cggm", {})],
)
def test_methods_whose_coefficients_reach_the_update(method: str, options: dict[str, Any]) -> None:
    plain, ours = multimodal(), multimodal()
    data = batches(plain, 3)
    train(plain, adamw(plain), data)
    optimizer = updating(ours, method, **options)
    train(ours, optimizer, data)
    assert any(not torch.equal(encoder(ours, "a")[key], value) for key, value in encoder(plain, "a").items())


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda p: schedulefree.AdamWScheduleFree(p), "AdamWScheduleFree, which keeps weights, or an average of them"),
        (lambda p: schedulefree.SGDScheduleFree(p), "SGDScheduleFree, which keeps weights"),
        (lambda p: SlowWeights(p, lr=0.1), "SlowWeights, which keeps weights"),
        (lambda p: SAM(p), "SAM, whose step takes two, each with coefficients of its own"),
        (lambda p: LBFGS(p), "LBFGS, whose step evaluates a closure several times"),
        (lambda p: OfAModel(p, nn.Identity()), "a second one cannot be built .* set its `weight_decay` to 0"),
    ],
)
def test_optimizers_whose_step_is_no_update_to_scale(build: Callable[[Any], Optimizer], words: str) -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match=r'`apply="update"`.* Found .*' + words + r'.*leave `apply="update"` out'):
        updating(model, inner=build([*model.parameters()]))
    assert not [hook for module in model.modules() for hook in module._forward_pre_hooks]


def test_decay_that_is_declared_need_not_be_measured() -> None:
    model = multimodal()
    before = weights(model)
    inner = OfAModel(model.parameters(), nn.Identity(), **{DECLARED: True})
    train(model, updating(model, constant(a=0.0), inner), batches(model, 1))
    for key, value in encoder(model, "a").items():
        assert torch.equal(value, before[key].mul(1 - LR * WD))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda p: Adafactor(p, weight_decay=0.1), True),
        (lambda p: RMSprop(p, weight_decay=0.1), False),
        (lambda p: SGD(p, lr=0.1, weight_decay=0.1), False),
        (lambda p: SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1), False),
    ],
)
def test_undeclared_decay_is_measured(build: Callable[[Any], Optimizer], expected: bool) -> None:
    optimizer = build([nn.Parameter(torch.randn(3, 2))])
    assert is_decoupled(optimizer, optimizer.param_groups[0]) is expected


def test_what_torch_declares_is_what_is_measured() -> None:
    for kind, settings in ((AdamW, {}), (Adam, {})):
        optimizer = kind([nn.Parameter(torch.randn(3, 2))], weight_decay=0.1, **settings)
        group = {name: value for name, value in optimizer.param_groups[0].items() if name != DECLARED}
        assert is_decoupled(optimizer, group) is (kind is AdamW)


# Costs and reports


def test_it_keeps_one_copy_of_the_encoders() -> None:
    def peak(apply: Any) -> int:
        model = audio_visual()
        optimizer = balanced(model, "ogm", SGD(model.parameters(), lr=0.1), apply=apply, param_filter="all")
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        data = batches(model, 2)
        train(model, optimizer, data[:1], criterion)
        ((inputs, target),) = data[1:]
        criterion(model(*inputs), target).backward()
        with LiveBytes([*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]) as live:
            before = live.now
            optimizer.step()
        return live.peak - before

    model = audio_visual()
    sizes = [p.numel() * p.element_size() for net in (model.audio_net, model.visual_net) for p in net.parameters()]
    slack = 2048  # scalars
    assert sum(sizes) <= peak("update") <= peak("gradient") + sum(sizes) + slack


def test_no_copy_is_kept_between_steps() -> None:
    model = multimodal()
    optimizer = updating(model)
    train(model, optimizer, batches(model, 1))
    update: Any = optimizer._lifecycle.training.update
    assert (update._old, update._coefficients) == ([], {})


@pytest.mark.parametrize("inner", [AdamW, Adafactor])
def test_a_step_reads_nothing_on_the_host(inner: Any) -> None:
    def reads(apply: Any) -> int:
        model = multimodal()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*almost no effect.*")
            optimizer = balanced(model, "ogm", inner(model.parameters(), weight_decay=0.1), apply=apply)
        data = batches(model, 2)
        train(model, optimizer, data[:1])
        with CountOps() as counted:
            train(model, optimizer, data[1:])
        return sum(count for name, count in counted.ops.items() if name in READS)

    assert reads("update") == reads("gradient")


def test_a_step_runs_on_fake_tensors() -> None:
    assert steps_on_fake_tensors(lambda model: updating(model, unimodal="slice")) == 2


def test_adamw_without_the_declaration_of_later_torches_is_decoupled_on_fake_tensors() -> None:
    with FakeTensorMode():
        optimizer = AdamW([nn.Parameter(torch.zeros(3))], weight_decay=0.1)
        group = {name: value for name, value in optimizer.param_groups[0].items() if name != DECLARED}
        assert is_decoupled(optimizer, group)


def test_the_account_names_it_and_coefficients_are_logged() -> None:
    model = multimodal()
    optimizer = updating(model, constant(a=0.5), clip_grad_norm=0.7)
    train(model, optimizer, batches(model, 1))
    assert "step: clip to norm 0.7, AdamW.step, coefficients times its update (apply='update')" in optimizer.describe()
    assert optimizer.metrics()["constant/coefficient/a"] == 0.5
    assert "apply='update'" not in balanced(multimodal()).describe()


def test_the_warning_of_scale_invariant_optimizers_names_it_and_is_not_given_with_it() -> None:
    assert '`apply="update"`' in SCALE_INVARIANCE
    model = multimodal()
    with pytest.warns(match='`apply="update"`'):
        balanced(model, "ogm", adamw(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        updating(multimodal())


def test_a_clip_before_the_modulation_bounds_what_the_inner_optimizer_gets_and_gives_no_warning() -> None:
    clipped, ours = multimodal(), multimodal()
    ((inputs, target),) = batches(ours, 1)
    train(clipped, updating(clipped, clip_grad_norm=0.1), [(inputs, target)])
    optimizer = updating(ours)
    optimizer.criterion(nn.CrossEntropyLoss())(ours(*inputs), target).backward()
    nn.utils.clip_grad_norm_(ours.parameters(), 0.1)
    optimizer.step()
    assert_same(ours, clipped)


# Single methods


def test_a_stopped_modality_stands_still_but_for_its_decay() -> None:
    for freeze, factor in (("official", 1 - LR * WD), ("hard", 1.0)):
        model = multimodal()
        optimizer = updating(model, "mses", patience=0, freeze=freeze, rewind="none")
        for loss in (1.0, 2.0):
            optimizer.end_epoch(metrics={"loss": {"a": loss, "b": 1 / loss}})
        before = weights(model)
        train(model, optimizer, batches(model, 1))
        for key, value in encoder(model, "a").items():
            assert torch.equal(value, before[key].mul(factor))


def test_the_direction_term_of_cggm_stays_in_the_gradient_of_the_head() -> None:
    def head_gradient(apply: Any) -> Tensor:
        model = multimodal()
        inner = SGD(model.parameters(), lr=0.0)
        optimizer = balanced(model, "cggm", inner, apply=apply, clip_grad_norm=1e9, lam=0.5)
        train(model, optimizer, batches(model, 3))
        gradient = dict(model.named_parameters())["fusion.fc_out.weight"].grad
        assert isinstance(gradient, Tensor)
        return gradient

    assert torch.equal(head_gradient("update"), head_gradient("gradient"))


def test_a_skipped_step_before_the_end_of_a_window_leaves_no_coefficient() -> None:
    model, plain = multimodal(), multimodal()
    optimizer = balanced(model, "ogm", adamw(model), apply="update", end_epoch=0)
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    optimizer.modulate()  # and then a GradScaler skips the step
    optimizer.epoch = 1
    optimizer.step()
    assert optimizer._lifecycle.training.steps == 0
    inner = adamw(plain)
    nn.CrossEntropyLoss()(plain(*inputs), target).backward()
    inner.step()
    assert_same(model, plain)
