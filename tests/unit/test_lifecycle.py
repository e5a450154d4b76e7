"""The life of a step, from the criterion to the commit, line by line."""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from modbalance import BalancedOptimizer, ModbalanceWarning, WindowedMethod, hookimpl, state
from support.training import (
    Batch,
    assert_close,
    assert_same,
    audio_visual,
    balanced,
    batches,
    multimodal,
    train,
    weights,
)

LOSS = nn.CrossEntropyLoss()


def backward(model: nn.Module, criterion: Any, batch: Batch, scale: float = 1.0) -> Tensor:
    inputs, target = batch
    loss: Tensor = criterion(model(*inputs), target)
    (loss * scale).backward()
    return loss


def coefficients(optimizer: BalancedOptimizer) -> list[float]:
    return [value for key, value in optimizer.metrics().items() if "/coefficient/" in key]


def test_micro_batches_make_one_step() -> None:
    whole, parts = multimodal(dtype=torch.float64), multimodal(dtype=torch.float64)
    micro = batches(whole, 3, size=4, dtype=torch.float64)
    joined = tuple(torch.cat(x) for x in zip(*[inputs for inputs, _ in micro], strict=True))
    target = torch.cat([y for _, y in micro])
    train(whole, balanced(whole), [(joined, target)])

    optimizer = balanced(parts)
    criterion = optimizer.criterion(LOSS)
    for batch in micro:
        backward(parts, criterion, batch, scale=1 / 3)
    optimizer.step()

    assert_close(parts, whole, atol=1e-12)


def test_a_criterion_call_after_a_step_begins_a_new_one() -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    first, second = batches(model, 2)
    backward(model, criterion, first)
    optimizer.step()

    fresh = multimodal()
    fresh.load_state_dict(model.state_dict())
    alone = balanced(fresh)
    backward(fresh, alone.criterion(LOSS), second)
    alone.step()

    # No zero_grad in between: gradients pile up, statistics do not.
    backward(model, criterion, second)
    optimizer.step()
    assert coefficients(optimizer) == coefficients(alone)


def test_a_criterion_call_with_all_gradients_none_drops_what_was_never_committed() -> None:
    model, expected = multimodal(), multimodal()
    abandoned, used = batches(model, 2)
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    backward(model, criterion, abandoned)
    optimizer.zero_grad()
    backward(model, criterion, used)
    optimizer.step()

    assert_same(model, train(expected, balanced(expected), [used]))


def test_zero_grad_inside_the_closure_drops_nothing() -> None:
    model, expected = multimodal(), multimodal()
    data = batches(model, 3)
    optimizer = balanced(model, clip_grad_norm=0.05)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:

        def closure(inputs: tuple[Tensor, ...] = inputs, target: Tensor = target) -> Tensor:
            loss: Tensor = criterion(model(*inputs), target)
            optimizer.zero_grad()
            loss.backward()
            return loss

        with torch.no_grad():
            loss = optimizer.step(closure)
        assert isinstance(loss, Tensor)

    assert_same(model, train(expected, balanced(expected, clip_grad_norm=0.05), data))
    assert optimizer._lifecycle.training.steps == 3


def test_modulate_by_hand_then_clip_then_step() -> None:
    by_hand, expected = multimodal(), multimodal()
    data = batches(by_hand, 3)
    optimizer = balanced(by_hand)
    criterion = optimizer.criterion(LOSS)
    for batch in data:
        optimizer.zero_grad()
        backward(by_hand, criterion, batch)
        optimizer.modulate()
        optimizer.modulate()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 0.05)
        optimizer.step()

    assert_same(by_hand, train(expected, balanced(expected, clip_grad_norm=0.05), data))


def test_clip_comes_after_modulation() -> None:
    model = multimodal()
    optimizer = balanced(model, clip_grad_norm=0.01)
    criterion = optimizer.criterion(LOSS)
    (batch,) = batches(model, 1)
    backward(model, criterion, batch)
    optimizer.step()

    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.01, rel=1e-4)


def test_two_criterion_calls_on_one_forward_are_one_micro_batch() -> None:
    model, expected = multimodal(), multimodal()
    (inputs, target) = batches(model, 1)[0]
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    logits = model(*inputs)
    (criterion(logits, target) / 2 + criterion(logits, target) / 2).backward()
    optimizer.step()

    train(expected, other := balanced(expected), [(inputs, target)])
    assert coefficients(optimizer) == coefficients(other)
    assert_close(model, expected, atol=1e-7)


def test_two_criterion_calls_on_given_features_are_one_micro_batch() -> None:
    model = multimodal()
    groups = [{"params": model.encoders[name].parameters(), "modality": name} for name in ("a", "b")]
    optimizer = BalancedOptimizer(torch.optim.SGD(groups, lr=0.1), "ogm", param_filter="all")
    criterion = optimizer.criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    given = {"a": torch.randn(6, 3), "b": torch.randn(6, 3)}
    criterion(logits, target, unimodal_logits=given)
    criterion(logits, target, unimodal_logits=given).backward()
    pending = optimizer._lifecycle.pending
    assert pending is not None
    assert pending.sums["ogm"]["count"].tolist() == [6, 6]
    criterion(model(*inputs), target, unimodal_logits=given)
    assert pending.sums["ogm"]["count"].tolist() == [12, 12]


def fp16_steps(
    optimizer: BalancedOptimizer, model: nn.Module, data: list[Batch], bad: int, by_hand: bool
) -> list[float]:
    """Train with a CPU GradScaler; in step ``bad`` a gradient overflows, so the scaler skips it."""
    scaler = GradScaler("cpu", init_scale=2.0**10)
    criterion = optimizer.criterion(LOSS)
    scales = []
    for index, (inputs, target) in enumerate(data):
        optimizer.zero_grad()
        scaler.scale(criterion(model(*inputs), target)).backward()
        if index == bad:
            next(model.parameters()).grad.data.fill_(torch.inf)  # type: ignore[union-attr]
        if by_hand:
            scaler.unscale_(optimizer)
            optimizer.modulate()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_step_that_the_scaler_skips_leaves_no_trace(by_hand: bool) -> None:
    model, expected = multimodal(), multimodal()
    data = batches(model, 4)
    optimizer, other = balanced(model, "ogm_ge"), balanced(expected, "ogm_ge")
    scales = fp16_steps(optimizer, model, data, bad=1, by_hand=by_hand)
    assert scales == [1024, 512, 512, 512]

    fp16_steps(other, expected, [data[0], *data[2:]], bad=-1, by_hand=by_hand)
    assert_same(model, expected)
    assert optimizer._lifecycle.training.steps == other._lifecycle.training.steps == 3


def test_a_skipped_step_is_dropped_even_if_gradients_are_zeroed_in_place() -> None:
    model, expected = multimodal(), multimodal()
    first, second = batches(model, 2)
    optimizer, other = balanced(model), balanced(expected)
    scaler = GradScaler("cpu", init_scale=1.0)
    criterion = optimizer.criterion(LOSS)
    scaler.scale(criterion(model(*first[0]), first[1])).backward()
    next(model.parameters()).grad.data.fill_(torch.inf)  # type: ignore[union-attr]
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=False)
    backward(model, criterion, second)
    optimizer.step()

    train(expected, other, [second])
    assert_same(model, expected)


def test_saving_after_a_skipped_step_is_allowed() -> None:
    model = multimodal()
    optimizer = balanced(model)
    fp16_steps(optimizer, model, batches(model, 2), bad=1, by_hand=False)
    assert optimizer.state_dict()["modbalance"]["steps"] == 1


def test_step_before_any_forward_is_plain_and_silent() -> None:
    model, bare = multimodal(), multimodal()
    optimizer, inner = balanced(model), torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for parameter in [*model.parameters(), *bare.parameters()]:
        parameter.grad = torch.ones_like(parameter)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    inner.step()
    assert_same(model, bare)


def test_step_without_a_criterion_call_warns_once_and_is_plain() -> None:
    model, bare = multimodal(), multimodal()
    optimizer, inner = balanced(model), torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    for inputs, target in batches(model, 1):
        for each in (model, bare):
            LOSS(each(*inputs), target).backward()
    with pytest.warns(ModbalanceWarning, match=r"opt\.criterion"):
        optimizer.step()
    inner.step()
    assert_same(model, bare)
    inputs, target = batches(model, 1)[0]
    LOSS(model(*inputs), target).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()


@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_outside_its_window_a_method_is_the_inner_optimizer(method: str) -> None:
    model, bare = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = balanced(model, method, start_epoch=1, end_epoch=1)
    train(model, optimizer, data[:1])
    optimizer.epoch = 2
    train(model, optimizer, data[1:])
    assert_same(model, train(bare, torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), data))


@attrs.define(eq=False, kw_only=True)
class EndsEveryEpoch(WindowedMethod):
    name: ClassVar[str] = "ends_every_epoch"
    ended: list[int] = state([])

    def ends_epoch(self, epoch: int) -> bool:
        return epoch < 4

    @hookimpl
    def modbalance_epoch_end(self, epoch: int) -> None:
        self.ended.append(epoch)


def test_a_method_may_end_epochs_outside_of_its_window() -> None:
    windowed = WindowedMethod(start_epoch=1, end_epoch=2)
    optimizer = balanced(multimodal(), EndsEveryEpoch(start_epoch=1, end_epoch=2))
    for _ in range(5):
        optimizer.end_epoch()
    assert optimizer.state_dict()["modbalance"]["methods"]["ends_every_epoch"]["ended"] == [0, 1, 2, 3]
    assert [windowed.ends_epoch(epoch) for epoch in range(4)] == [False, True, True, False]


@pytest.mark.parametrize("arguments", [{"method": "none"}, {"method": "ogm_ge", "dry_run": True}])
def test_none_and_dry_run_are_the_inner_optimizer(arguments: dict[str, Any]) -> None:
    model, bare = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = balanced(model, **arguments)
    train(model, optimizer, data)
    assert_same(model, train(bare, torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), data))
    assert bool(optimizer.metrics()) is ("dry_run" in arguments)


def test_dry_run_logs_what_the_real_run_would_do() -> None:
    dry, real = audio_visual(), audio_visual()
    data = batches(dry, 1)
    train(dry, logging := balanced(dry, dry_run=True), data)
    train(real, acting := balanced(real), data)
    assert logging.metrics() == acting.metrics()
    assert min(coefficients(logging)) < 1


def test_evaluation_is_exactly_the_loss() -> None:
    model = multimodal()
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    with torch.no_grad():
        assert torch.equal(criterion(model(*inputs), target), LOSS(model(*inputs), target))
    model.eval()
    assert torch.equal(criterion(model(*inputs), target), LOSS(model(*inputs), target))
    assert optimizer._lifecycle.pending is None


def train_and_evaluate(optimizer: BalancedOptimizer, times: int) -> None:
    model = optimizer._lifecycle.run.model
    assert isinstance(model, nn.Module)
    data = batches(model, 1)
    for _ in range(times):
        train(model.train(), optimizer, data)
        model.eval()(*data[0][0])


@pytest.mark.parametrize(
    ("method", "window", "count"), [("ogm", {"end_epoch": 1}, 2), ("agm", {"end_epoch": 2}, 3), ("mses", {}, 2)]
)
def test_epoch_that_never_moves_is_noticed_once(method: str, window: dict[str, Any], count: int) -> None:
    optimizer = balanced(multimodal(), method, **window)

    train_and_evaluate(optimizer, count)
    with pytest.warns(ModbalanceWarning, match=rf"after {count} evaluations.*opt\.end_epoch\(\)"):
        train_and_evaluate(optimizer, 1)
    train_and_evaluate(optimizer, 2)


@pytest.mark.parametrize("window", [{}, {"end_epoch": 9}, {"start_epoch": 9}])
def test_several_validations_in_the_first_epoch_are_no_notice(window: dict[str, Any]) -> None:
    train_and_evaluate(balanced(multimodal(), "ogm", **window), 4)


def test_an_epoch_that_is_set_is_no_notice_even_if_it_is_the_first() -> None:
    optimizer = balanced(multimodal(), "ogm", end_epoch=1)
    optimizer.epoch = 0
    train_and_evaluate(optimizer, 4)


def test_epoch_that_moves_is_no_notice() -> None:
    model = multimodal()
    optimizer = balanced(model)
    data = batches(model, 1)
    for epoch in range(4):
        assert optimizer.epoch == epoch
        train(model.train(), optimizer, data)
        model.eval()(*data[0][0])
        optimizer.end_epoch()


def test_observe_equals_the_criterion() -> None:
    observed, expected = multimodal(), multimodal()
    data = batches(observed, 3)
    optimizer = balanced(observed)
    for inputs, target in data:
        optimizer.zero_grad()
        logits = observed(*inputs)
        loss = LOSS(logits, target)
        assert optimizer.observe(loss, logits=logits, target=target) is loss
        loss.backward()
        optimizer.step()
    assert_same(observed, train(expected, balanced(expected), data))


def test_check_finite_raises_before_anything_changes() -> None:
    model = multimodal()
    optimizer = balanced(model, check_finite=True)
    before = weights(model)
    inputs, target = batches(model, 1)[0]
    with pytest.raises(RuntimeError, match="should be finite"):
        optimizer.criterion(LOSS)(model(inputs[0] * torch.nan, inputs[1]), target)
    assert_same(model, before)


def test_remove_takes_all_hooks_off() -> None:
    model, bare = multimodal(), multimodal()
    data = batches(model, 2)
    optimizer = balanced(model)
    optimizer.remove()
    assert not model._forward_pre_hooks
    assert not model.fusion._forward_pre_hooks
    train(model, optimizer, data)
    assert_same(model, train(bare, torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), data))


def test_training_in_eval_mode_is_noticed() -> None:
    model = multimodal().eval()
    optimizer = balanced(model)
    criterion = optimizer.criterion(LOSS)
    backward(model, criterion, batches(model, 1)[0])
    with pytest.warns(ModbalanceWarning, match="in training mode"):
        optimizer.step()


def test_remove_keeps_the_clip_of_the_user_alone() -> None:
    model, bare = multimodal(), multimodal()
    data = batches(model, 2)
    optimizer = balanced(model, "dgl")
    assert "clip to norm 40" in optimizer.describe()
    optimizer.remove()
    assert "no clip" in optimizer.describe()
    train(model, optimizer, data)
    assert_same(model, train(bare, torch.optim.SGD(bare.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4), data))


def test_observe_leaves_the_loss_of_the_criterion_to_the_end_of_the_epoch() -> None:
    model = multimodal()
    optimizer = balanced(model)
    optimizer.criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    optimizer.observe(LOSS(logits, target), logits=logits, target=target)
    assert optimizer._lifecycle.run.loss_fn is LOSS
