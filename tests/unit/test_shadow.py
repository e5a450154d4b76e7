"""Copies of a module that take steps ahead of the optimizer, and losses that a method takes over."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.optim import ASGD, LBFGS, SGD, Adam, AdamW, NAdam, Optimizer, RMSprop, Rprop

from modbalance import BalancedOptimizer, Batch, ConfigError, Method, Run, Shadow, Step, hookimpl
from support.optimizers import INNER
from support.training import assert_same, balanced, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()


@attrs.define(eq=False, kw_only=True)
class Twice(Method):
    """Steps the head twice per batch, by the loss of the first modality, and encoders by the loss that is left."""

    name: ClassVar[str] = "twice"
    needs = frozenset({"model", "features"})
    keep: Tensor | None = None
    shadow: Any = attrs.field(default=None, init=False)

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        self.shadow = run.shadow(run.module("fusion.fc_out", "head"))

    @hookimpl
    def modbalance_takeover(self, batch: Batch) -> Tensor:
        assert batch.task_loss is not None
        z = batch.features["a"]
        self.shadow.begin()
        for _ in range(2):
            loss = batch.task_loss(self.shadow(z))
            self.shadow.step(self.shadow.gradients(loss), unless=self.keep)
        linked: Tensor = self.shadow.with_zero_gradients(batch.task_loss(self.shadow(z)))
        return linked

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        self.shadow.drop_gradients()

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        self.shadow.commit()


def by_hand(model: Any, optimizer: Optimizer, data: Iterable[Any]) -> Any:
    head = model.fusion.get_submodule("fc_out")
    for inputs, target in data:
        z = model.encoders["a"](inputs[0])
        for _ in range(2):
            optimizer.zero_grad()
            LOSS(head(z.detach()), target).backward()
            optimizer.step()
        optimizer.zero_grad()
        loss = LOSS(torch.func.functional_call(head, {k: p.detach() for k, p in head.named_parameters()}, (z,)), target)
        loss.backward()
        optimizer.step()
    return model


@pytest.mark.parametrize("name", [name for name in INNER if name != "AdamWScheduleFree"])
def test_a_shadow_is_stepped_as_the_optimizer_would(name: str) -> None:
    ours, theirs = multimodal("ab", "shared"), multimodal("ab", "shared")
    data = batches(ours, 4)
    optimizer = balanced(ours, Twice(), INNER[name](ours.parameters()))
    other = INNER[name](theirs.parameters())
    by_hand(theirs, other, data)
    assert_same(train(ours, optimizer, data), theirs)
    mine, hers = (each.state_dict()["state"] for each in (optimizer, other))
    assert mine.keys() == hers.keys()


def test_groups_count_as_they_are_in_a_step() -> None:
    ours, theirs = multimodal("ab", "shared"), multimodal("ab", "shared")
    data = batches(ours, 4)

    def inner(model: Any) -> SGD:
        bias = [p for name, p in model.named_parameters() if name.endswith("bias")]
        rest = [p for name, p in model.named_parameters() if not name.endswith("bias")]
        groups: list[dict[str, Any]] = [{"params": rest}, {"params": bias, "weight_decay": 0.0, "lr": 0.3}]
        return SGD(groups, lr=0.1, weight_decay=0.1)

    optimizer, other = balanced(ours, Twice(), inner(ours)), inner(theirs)
    for batch in data:
        train(ours, optimizer, [batch])
        by_hand(theirs, other, [batch])
        for each in (optimizer, other):
            each.param_groups[0]["lr"] *= 0.5
    assert_same(ours, theirs)


def test_several_optimizers_step_each_their_own() -> None:
    ours, theirs = multimodal("ab", "shared"), multimodal("ab", "shared")
    data = batches(ours, 3)

    def inner(model: Any) -> list[Optimizer]:
        head = model.fusion.get_submodule("fc_out")
        rest: list[Tensor] = [*model.encoders.parameters(), head.bias]
        return [Adam([head.weight], lr=1e-2), SGD(rest, lr=0.1, momentum=0.9)]

    class Both:
        def __init__(self, parts: list[Optimizer]) -> None:
            self.parts = parts

        def zero_grad(self) -> None:
            for part in self.parts:
                part.zero_grad()

        def step(self) -> None:
            for part in self.parts:
                part.step()

    optimizer = balanced(ours, Twice(), inner(ours))
    both: Any = Both(inner(theirs))
    assert_same(train(ours, optimizer, data), by_hand(theirs, both, data))


def test_hooks_on_steps_and_schedulers_count_the_users_steps() -> None:
    model = multimodal("ab", "shared")
    inner = sgd(model)
    seen: list[str] = []
    inner.register_step_pre_hook(lambda *args: seen.append("pre"))
    inner.register_step_post_hook(lambda *args: seen.append("post"))
    torch.optim.lr_scheduler.StepLR(inner, 1)
    train(model, balanced(model, Twice(), inner), batches(model, 3))
    assert seen == ["pre", "post"] * 3


def test_nothing_is_written_before_the_step() -> None:
    model = multimodal("ab", "shared")
    optimizer = balanced(model, Twice())
    criterion = optimizer.criterion(LOSS)
    first, (inputs, target), last = batches(model, 3)
    train(model, optimizer, [first], criterion)
    before, state = weights(model), copy.deepcopy(optimizer.state_dict())
    optimizer.zero_grad()
    criterion(model(*inputs), target).backward()
    optimizer.zero_grad()
    optimizer.step()
    assert_same(model, before)
    for key, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(entry["momentum_buffer"], state["state"][key]["momentum_buffer"])
    train(model, optimizer, [last], criterion)


def test_steps_are_kept_back_where_a_tensor_says_so() -> None:
    model = multimodal("ab", "shared")
    head = dict(model.fusion.named_parameters())
    for keep in (False, True):
        optimizer = balanced(model, Twice(keep=torch.tensor(keep)))
        before = weights(model)
        train(model, optimizer, batches(model, 2))
        moved = [name for name in head if not torch.equal(weights(model)[f"fusion.{name}"], before[f"fusion.{name}"])]
        assert bool(moved) is not keep
    buffers = [optimizer.state[p]["momentum_buffer"] for p in head.values()]
    assert not any(each.any() for each in buffers)


BEGINNINGS: dict[str, Callable[[Any], Optimizer]] = {
    "AdamW": lambda parameters: AdamW(parameters, lr=0.01),
    "Adam": lambda parameters: Adam(parameters, lr=0.01, weight_decay=0.1),
    "Rprop": lambda parameters: Rprop(parameters, lr=0.01),
    "ASGD": lambda parameters: ASGD(parameters, lr=0.01),
    "RMSprop": lambda parameters: RMSprop(parameters, lr=0.01, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("name", BEGINNINGS)
def test_a_first_step_that_is_kept_back_begins_no_other_state(name: str) -> None:
    kept, plain = multimodal("ab", "shared"), multimodal("ab", "shared")
    data = batches(kept, 2)
    optimizer = balanced(kept, Twice(keep=torch.tensor(True)), BEGINNINGS[name](kept.parameters()))
    used: Any = optimizer._lifecycle.methods[0]
    head = kept.fusion.get_submodule("fc_out")
    train(kept, optimizer, data[:1])
    assert_same(head, plain.fusion.get_submodule("fc_out"))
    inner = BEGINNINGS[name](plain.parameters())
    z = kept.encoders["a"](data[1][0][0]).detach()
    used.keep = torch.tensor(False)
    train(kept, optimizer, data[1:])
    for _ in range(2):
        inner.zero_grad()
        LOSS(plain.fusion.get_submodule("fc_out")(z), data[1][1]).backward()
        inner.step()
    for ours, theirs in zip(head.parameters(), plain.fusion.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_a_first_step_of_nadam_that_is_kept_back_leaves_a_product_of_its_own() -> None:
    model = multimodal("ab", "shared")
    optimizer = balanced(model, Twice(keep=torch.tensor(True)), NAdam(model.parameters()))
    train(model, optimizer, batches(model, 1))
    assert all(optimizer.state[p]["mu_product"] > 0 for p in model.fusion.parameters())


def test_a_dry_run_writes_nothing() -> None:
    ours, bare = multimodal("ab", "shared"), multimodal("ab", "shared")
    data = batches(ours, 3)
    train(ours, balanced(ours, Twice(), dry_run=True), data)
    assert_same(ours, train(bare, sgd(bare), data))


def test_a_copy_of_the_optimizer_goes_on_with_its_own_model() -> None:
    model = multimodal("ab", "shared")
    optimizer = balanced(model, Twice())
    data = batches(model, 4)
    train(model, optimizer, data[:2])
    other_model, other = copy.deepcopy((model, optimizer))
    assert_same(train(other_model, other, data[2:]), train(model, optimizer, data[2:]))


# Refusals


class Closing(SGD):
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        return super().step(closure)


class Holding(SGD):
    """An optimizer that keeps another one."""

    def __init__(self, parameters: Iterable[Any]) -> None:
        parameters = list(parameters)
        super().__init__(parameters, lr=0.1)
        self.base = SGD(parameters, lr=0.1)


class Broken(SGD):
    def step(self, closure: Any = None) -> Any:
        raise ValueError("no copies, please")


class Counting(SGD):
    """An optimizer that counts its steps in an attribute."""

    t = 0

    def step(self, closure: Any = None) -> Any:
        self.t += 1
        return super().step(closure)


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (lambda parameters: LBFGS(parameters), "Found LBFGS, whose step calls a closure"),
        (lambda parameters: Closing(parameters, lr=0.1), "Found Closing, whose step calls a closure"),
        (lambda parameters: Counting(parameters, lr=0.1), r"Found Counting, which counts steps in its settings \(t\)"),
        (Holding, "Found Holding, which keeps another optimizer inside"),
        (lambda parameters: Broken(parameters, lr=0.1), "whose step of copies raised ValueError: no copies, please"),
        (INNER["AdamWScheduleFree"], r"Found AdamWScheduleFree, which counts steps in its settings \(k"),
    ],
)
def test_optimizers_that_couple_parameters_are_refused(inner: Any, reason: str) -> None:
    model = multimodal("ab", "shared")
    with pytest.raises(ConfigError, match=f"{reason}.*use one such as SGD or AdamW"):
        balanced(model, Twice(), inner(model.parameters()))


def test_a_joint_clip_is_refused() -> None:
    model = multimodal("ab", "shared")
    with pytest.raises(ConfigError, match=r"without a joint clip. Found `clip_grad_norm = 0.5`: leave it out"):
        balanced(model, Twice(), clip_grad_norm=0.5)


def test_a_module_that_is_not_trained_is_refused() -> None:
    model = multimodal("ab", "shared")
    model.fusion.requires_grad_(False)
    with pytest.raises(ConfigError, match="Found none of them in the optimizer"):
        balanced(model, Twice())


# Losses that are taken over


def test_a_further_criterion_call_on_the_same_forward_is_refused() -> None:
    model = multimodal("ab", "shared")
    criterion = balanced(model, Twice()).criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    logits = model(*inputs)
    criterion(logits, target)
    with pytest.raises(ConfigError, match=r"`twice` takes over the loss of a forward, once\. Found a second criterion"):
        criterion(logits, target)


def test_a_loss_that_is_computed_already_is_refused() -> None:
    model = multimodal("ab", "shared")
    optimizer = balanced(model, Twice())
    ((inputs, target),) = batches(model, 1)
    logits = model(*inputs)
    with pytest.raises(ConfigError, match=r"`twice` computes the loss itself.*`opt.criterion\(loss_fn\)`"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)


@attrs.define(eq=False, kw_only=True)
class Other(Method):
    """Takes over the loss too."""

    name: ClassVar[str] = "other"
    value: Any = None

    @hookimpl
    def modbalance_takeover(self, batch: Batch) -> Any:
        return self.value


def test_at_most_one_method_takes_over_the_loss() -> None:
    model = multimodal("ab", "shared")
    with pytest.raises(ConfigError, match=r"At most one method should take over the loss\. Found twice and other"):
        balanced(model, [Twice(), Other()])


def test_a_method_may_leave_the_loss_as_it_is() -> None:
    ours, bare = multimodal(), multimodal()
    data = batches(ours, 2)
    assert_same(train(ours, balanced(ours, Other()), data), train(bare, sgd(bare), data))


@pytest.mark.parametrize("value", [1.0, torch.zeros(2)])
def test_what_a_method_returns_is_checked(value: Any) -> None:
    model = multimodal()
    criterion = balanced(model, Other(value=value)).criterion(LOSS)
    ((inputs, target),) = batches(model, 1)
    with pytest.raises(ConfigError, match="`modbalance_takeover` of method `other` should return 0-dim tensors"):
        criterion(model(*inputs), target)


def test_the_service_is_a_shadow() -> None:
    model = multimodal("ab", "shared")
    optimizer = BalancedOptimizer(
        sgd(model), method := Twice(), model=model, modalities=model.paths, fusion=model.fusion
    )
    used: Any = optimizer._lifecycle.methods[0]
    assert isinstance(used.shadow, Shadow)
    assert method.shadow is None
