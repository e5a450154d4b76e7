"""MMPareto: how two gradients are combined, edge cases, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import SGD
from torch.utils.checkpoint import checkpoint

from modbalance import BalancedOptimizer, ConfigError, gradients
from modbalance._plugins import load_method
from modbalance.testing._rules_state import Halving
from modbalance_mmpareto import weight
from support.operation_counts import READS, CountOps
from support.training import assert_close, assert_same, balanced, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()


def with_heads(names: str = "ab", seed: int = 0, dtype: torch.dtype = torch.float32) -> Any:
    model: Any = multimodal(names, seed=seed)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed + 1)
        model.own = nn.ModuleDict({name: nn.Linear(4, 3) for name in names})
    return model.to(dtype)


def own(model: Any) -> dict[str, str]:
    return {name: f"own.{name}" for name in model.encoders}


def beside(model: Any) -> BalancedOptimizer:
    return balanced(model, "mmpareto")


def built(model: Any, inner: Any = None, **options: Any) -> BalancedOptimizer:
    return balanced(model, "mmpareto", inner, unimodal=own(model), **options)


def gradients_of(model: Any, name: str, term: Callable[[list[Tensor]], Tensor], data: Any) -> list[Tensor]:
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), data[0], strict=True)]
    return [*torch.autograd.grad(term(z), [*model.encoders[name].parameters()])]


def own_loss(model: Any, name: str, index: int, target: Tensor, z: list[Tensor]) -> Tensor:
    return LOSS(model.own[name](z[index]), target)


def test_without_a_conflict_the_gradient_is_gamma_times_the_sum() -> None:
    model = with_heads()
    with torch.no_grad():
        for index, head in enumerate(model.own.values()):
            head.weight.copy_(model.fusion.fc_out.weight[:, 4 * index : 4 * index + 4])
    data = batches(model, 1)[0]
    expected = {}
    for index, name in enumerate(model.encoders):
        g = gradients_of(model, name, lambda z: LOSS(model.fusion(*z), data[1]), data)
        u = gradients_of(model, name, partial(own_loss, model, name, index, data[1]), data)
        expected[name] = [2.0 * (x + y) for x, y in zip(g, u, strict=True)]
    optimizer = built(model, gamma=2.0)
    optimizer.criterion(LOSS)(model(*data[0]), data[1]).backward()
    optimizer.modulate()
    for name, encoder in model.encoders.items():
        assert optimizer.metrics()[f"mmpareto/weight/{name}"] == 0.5
        for parameter, value in zip(encoder.parameters(), expected[name], strict=True):
            torch.testing.assert_close(parameter.grad, value)


@pytest.mark.parametrize(
    ("a", "b", "d", "c"),
    [
        (1.0, 0.5, 2.0, 0.5),
        (1.0, -0.5, 2.0, 2.5 / 4),
        (1.0, 0.0, 3.0, 0.75),
        (0.0, 0.0, 1.0, 0.999),
        (1.0, 0.0, 0.0, 0.001),
        (0.0, 0.0, 0.0, 0.999),
        (1.0, -1.0, 1.0, 0.5),
    ],
)
def test_weight_of_the_fused_gradient(a: float, b: float, d: float, c: float) -> None:
    assert weight(*torch.tensor([a, b, d]).unbind()).item() == pytest.approx(c)


def modulated(model: Any, optimizer: BalancedOptimizer, data: Any) -> dict[str, list[Tensor]]:
    optimizer.zero_grad()
    optimizer.criterion(LOSS)(model(*data[0]), data[1]).backward()
    before = {name: [p.grad.clone() for p in e.parameters()] for name, e in model.encoders.items()}
    optimizer.modulate()
    return before


def test_an_own_loss_without_gradient_leaves_gamma_times_the_fused_one() -> None:
    model = with_heads()
    nn.init.zeros_(model.own["a"].weight)
    optimizer = built(model)
    before = modulated(model, optimizer, batches(model, 1)[0])
    for parameter, g in zip(model.encoders["a"].parameters(), before["a"], strict=True):
        torch.testing.assert_close(parameter.grad, 1.5 * g)
    assert optimizer.metrics()["mmpareto/weight/a"] == pytest.approx(0.001)


def test_opposite_gradients_cancel_out_and_are_counted() -> None:
    model = with_heads()
    with torch.no_grad():
        for parameter in (*model.fusion.parameters(), *model.own["a"].parameters()):
            parameter.zero_()
        model.fusion.fc_out.weight[:, :4] = 1e-3 * torch.randn(3, 4)
        model.own["a"].weight.copy_(-model.fusion.fc_out.weight[:, :4])
    optimizer = built(model, SGD(model.parameters(), lr=0.1))
    data = batches(model, 1)[0]
    criterion = optimizer.criterion(lambda logits, y: (logits[:, 0]).mean())
    criterion(model(*data[0]), data[1]).backward()
    optimizer.modulate()
    assert all(not p.grad.any() for p in model.encoders["a"].parameters())
    assert optimizer.metrics()["mmpareto/cancelled/a"] == 1


@pytest.mark.parametrize("rescale", ["tensor", "encoder", "none"])
def test_an_own_gradient_that_is_not_finite_counts_as_nothing(rescale: str) -> None:
    model = with_heads()
    nn.init.constant_(model.own["a"].weight, torch.nan)
    optimizer = built(model, rescale=rescale)
    before = modulated(model, optimizer, batches(model, 1)[0])
    for parameter, g in zip(model.encoders["a"].parameters(), before["a"], strict=True):
        torch.testing.assert_close(parameter.grad, 1.5 * g)
    assert optimizer.metrics()["mmpareto/nonfinite/a"] == 1
    assert optimizer.metrics()["mmpareto/nonfinite/b"] == 0


def test_a_dead_encoder_has_a_gradient_of_zero() -> None:
    model = with_heads()
    model.encoders["a"].append(nn.Threshold(1e9, 0.0))
    optimizer = built(model)
    modulated(model, optimizer, batches(model, 1)[0])
    assert all(p.grad is not None and not p.grad.any() for p in model.encoders["a"].parameters())


def test_frozen_parameters_are_no_part_of_an_encoder() -> None:
    model = with_heads()
    model.encoders["a"][0].requires_grad_(False)
    before = weights(model.encoders["a"][0])
    optimizer = built(model)
    train(model, optimizer, batches(model, 2))
    assert_same(weights(model.encoders["a"][0]), before)
    assert optimizer.metrics()["mmpareto/nonfinite/a"] == 0


def test_samples_without_a_modality_do_not_count_in_its_loss() -> None:
    model = with_heads()
    optimizer = built(model)
    inputs, target = batches(model, 1)[0]
    present = {"a": torch.tensor([True] * 3 + [False] * 3)}
    optimizer.criterion(LOSS)(model(*inputs), target, present=present).backward()
    optimizer.modulate()
    z = model.encoders["a"](inputs[0][:3]).detach()
    (expected,) = torch.autograd.grad(LOSS(model.own["a"](z), target[:3]) / 2, model.own["a"].weight)
    torch.testing.assert_close(model.own["a"].weight.grad, expected)
    other = with_heads()
    changed = torch.cat([inputs[0][:3], inputs[0][3:] + 1]), inputs[1]
    once_more = built(other)
    weight = model.fusion.fc_out.weight
    with torch.no_grad():
        weight[:, :4] = other.fusion.fc_out.weight[:, :4] = 0  # the fused loss does not see the modality
    for trained, given, net in ((optimizer, inputs, model), (once_more, changed, other)):
        trained.zero_grad()
        trained.criterion(LOSS)(net(*given), target, present=present).backward()
        trained.modulate()
    found = [[p.grad for p in net.encoders["a"].parameters()] for net in (model, other)]
    torch.testing.assert_close(*found)
    assert all(g.any() for g in found[0])


# Scale and micro-batches


@pytest.mark.parametrize("unscales", [False, True])
@pytest.mark.parametrize("scale", [2.0**12, 1000.0])
@pytest.mark.parametrize("has_heads", [True, False])
def test_a_scaler_changes_nothing(unscales: bool, scale: float, has_heads: bool) -> None:
    plain, scaled = with_heads(), with_heads()
    data = batches(plain, 6)
    build = built if has_heads else beside
    train(plain, build(plain), data)
    optimizer, scaler = build(scaled), GradScaler("cpu", init_scale=scale)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        scaler.scale(criterion(scaled(*inputs), target)).backward()
        if unscales:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
    if scale == 2.0**12:
        assert_same(scaled, plain)
    assert_close(scaled, plain, 1e-6)


@pytest.mark.parametrize("has_heads", [True, False])
def test_micro_batches_give_what_one_batch_gives(has_heads: bool) -> None:
    whole, parts = (with_heads(dtype=torch.float64) for _ in range(2))
    data = batches(whole, 4, dtype=torch.float64)
    build = built if has_heads else beside
    train(whole, build(whole), data)
    optimizer = build(parts)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        for *xs, y in zip(*(x.chunk(3) for x in inputs), target.chunk(3), strict=True):
            (criterion(parts(*xs), y) / 3).backward()
        optimizer.step()
    assert_close(parts, whole, 1e-12)


def test_coefficients_of_another_method_scale_both_gradients() -> None:
    one, other = (with_heads(dtype=torch.float64) for _ in range(2))
    data = batches(one, 1, dtype=torch.float64)[0]
    modulated(one, built(one), data)
    model = BalancedOptimizer(
        sgd(other),
        [Halving(), load_method("mmpareto").configure()],
        model=other,
        modalities=other.paths,
        fusion="fusion",
        unimodal=own(other),
    )
    modulated(other, model, data)
    for p, q in zip(one.encoders.parameters(), other.encoders.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad / 2)


# Heads


def test_own_heads_learn_and_the_fusion_learns_by_the_fused_loss_alone() -> None:
    model = with_heads()
    inputs, target = batches(model, 1)[0]
    optimizer = built(model)
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    z = model.encoders["a"](inputs[0]).detach()
    (expected,) = torch.autograd.grad(LOSS(model.own["a"](z), target), model.own["a"].weight)
    torch.testing.assert_close(model.own["a"].weight.grad, expected)
    (fused,) = torch.autograd.grad(LOSS(model(*inputs), target), model.fusion.fc_out.weight)
    torch.testing.assert_close(model.fusion.fc_out.weight.grad, fused)


def test_heads_beside_the_model_learn() -> None:
    model = multimodal()
    optimizer = balanced(model, "mmpareto", head_optimizer=lambda parameters: SGD(parameters, lr=0.5))
    data = batches(model, 1) * 40
    criterion = optimizer.criterion(LOSS)
    train(model, optimizer, data[:1], criterion)
    first = optimizer.metrics()["mmpareto/loss/a"]
    train(model, optimizer, data[1:], criterion)
    assert optimizer.metrics()["mmpareto/loss/a"] < 0.7 * first


def test_the_loss_is_that_of_own_heads_added() -> None:
    model = with_heads()
    inputs, target = batches(model, 1)[0]
    found = built(model).criterion(LOSS)(model(*inputs), target)
    z = [encoder(x) for encoder, x in zip(model.encoders.values(), inputs, strict=True)]
    parts = [LOSS(head(z_i), target) for head, z_i in zip(model.own.values(), z, strict=True)]
    torch.testing.assert_close(found, LOSS(model.fusion(*z), target) + sum(parts))


# Cost


def test_a_step_reads_nothing_on_the_host() -> None:
    model = with_heads()
    optimizer = built(model)
    criterion = optimizer.criterion(LOSS)
    data = batches(model, 2)
    train(model, optimizer, data[:1], criterion)
    with CountOps() as ops:
        train(model, optimizer, data[1:], criterion)
    assert not READS & set(ops.ops)


def test_each_encoder_runs_forward_once_and_backward_twice() -> None:
    model = with_heads()
    optimizer = built(model)
    forwards, backwards = [0], [0]

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            forwards[0] += 1
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            backwards[0] += 1
            return gradient

    model.encoders["a"].register_forward_hook(lambda module, args, output: Counted.apply(output))
    train(model, optimizer, batches(model, 1))
    assert (forwards, backwards) == ([1], [2])


# Refusals


def test_it_does_not_go_with_dgl() -> None:
    with pytest.raises(ConfigError, match="mmpareto"):
        balanced(with_heads(), ["dgl", "mmpareto"])


def test_there_is_no_paper_preset() -> None:
    with pytest.raises(ConfigError, match="of method `mmpareto` should be 'official'"):
        balanced(with_heads(), "mmpareto", preset="paper")


def test_slices_do_not_go_with_own_heads() -> None:
    with pytest.raises(ConfigError, match="Found own heads"):
        built(with_heads(), heads="slice")


def test_a_computed_loss_is_refused() -> None:
    model = with_heads()
    optimizer = built(model)
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    with pytest.raises(ConfigError, match="calls the loss on unimodal logits"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)


def test_encoders_that_share_a_parameter_are_refused() -> None:
    model = with_heads()
    model.encoders["b"][0].weight = model.encoders["a"][0].weight
    with pytest.raises(ConfigError, match="share"):
        train(model, built(model), batches(model, 1))


class Checkpointed(nn.Module):
    def __init__(self, inner: nn.Module, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=self.reentrant)


def test_checkpointing_that_is_not_reentrant_changes_nothing() -> None:
    plain, other = with_heads(), with_heads()
    other.encoders["a"] = Checkpointed(other.encoders["a"], False)
    data = batches(plain, 3)
    train(plain, built(plain), data)
    train(other, built(other), data)
    assert_same(weights(other.encoders["a"].inner), weights(plain.encoders["a"]))


def test_reentrant_checkpointing_is_refused() -> None:
    model = with_heads()
    model.encoders["a"] = Checkpointed(model.encoders["a"], True)
    with pytest.raises(ConfigError, match="use_reentrant=False"):
        train(model, built(model), batches(model, 1))


def test_logits_that_are_maps_need_heads_of_the_model() -> None:
    model = multimodal()
    optimizer = balanced(model, "mmpareto")
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)[:, :, None].expand(-1, -1, 4)
    with pytest.raises(ConfigError, match=r"pass own heads of the model, `unimodal=\{\.\.\.\}`"):
        optimizer.criterion(LOSS)(logits, target[:, None].expand(-1, 4))


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"rescale": "layer"}, {"heads": "linear"}, {"head_optimizer": 3}])
def test_options_have_ranges(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Option `{next(iter(options))}` of method `mmpareto`"):
        balanced(multimodal(), "mmpareto", **options)


def test_a_backward_of_its_own_for_a_regularizer_does_not_change_the_scale() -> None:
    """The gradients of the head grow by it, which is no unscaling."""
    ends = []
    for together in (True, False):
        model = with_heads(dtype=torch.float64)
        optimizer = built(model)
        criterion = optimizer.criterion(LOSS)
        for inputs, target in batches(model, 3, dtype=torch.float64):
            optimizer.zero_grad()
            loss = criterion(model(*inputs), target)
            regularizer = 10 * sum(p.square().sum() for p in model.fusion.parameters())
            if together:
                (loss + regularizer).backward()
            else:
                loss.backward()
                regularizer.backward()
            optimizer.step()
        ends.append(model)
    assert_close(ends[0], ends[1], 1e-10)


class TwoBiases(nn.Module):
    """Two parameters that get the same tensor as gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.one, self.two = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.zeros(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.linear(x) + self.one + self.two
        return features


def test_parameters_whose_gradients_share_memory_are_combined_one_by_one() -> None:
    model = with_heads()
    model.encoders["a"] = TwoBiases()
    optimizer = built(model)
    train(model, optimizer, batches(multimodal(), 3))
    encoder = model.encoders["a"]
    assert encoder.one.abs().max() > 0
    assert torch.equal(encoder.one, encoder.two)
    assert_same({"grad": encoder.one.grad}, {"grad": encoder.two.grad})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_norms_of_sums(dtype: torch.dtype) -> None:
    sizes = [(3,), (700, 700), (), (40, 5), (600, 500)]
    generator = torch.Generator().manual_seed(0)
    one, other = ([torch.randn(size, generator=generator).to(dtype) for size in sizes] for _ in range(2))
    found = gradients.sum_norms(one, other)
    assert found.dtype == torch.promote_types(dtype, torch.float32)
    expected = torch.stack([(a + b).double().norm() for a, b in zip(one, other, strict=True)])
    torch.testing.assert_close(found.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=0)
