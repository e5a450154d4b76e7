"""The noise of OGM-GE: which tensors get it, how much, and where its numbers come from."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer, Method, ModbalanceWarning, Step, gradients, hookimpl
from modbalance_ogm_ge import OGMGE
from support.models import AudioVisual, Multimodal
from support.training import Batch, assert_same, audio_visual, balanced, batches, multimodal, sgd, train, weights

Draws = dict[str, list[tuple[Tensor, float, float]]]
ALL: dict[str, Any] = {"param_filter": "all"}


def wide() -> Multimodal:
    """Encoders with many elements, so that few steps show a distribution."""
    torch.manual_seed(0)
    return Multimodal(size=16)


def still(model: nn.Module) -> SGD:
    """An optimizer that leaves the weights where they are."""
    return SGD(model.parameters(), lr=0.0)


def modality_of(name: str) -> str | None:
    if name.startswith("encoders."):
        return name.split(".")[1]
    return {"audio_net": "audio", "visual_net": "visual"}.get(name.split(".")[0])


def record(model: nn.Module, data: list[Batch], **options: Any) -> Draws:
    """Return by parameter and step: what was added to k * gradient, the raw gradient's spread, and k."""
    optimizer = balanced(model, "ogm_ge", still(model), **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    draws: Draws = {name: [] for name, _ in model.named_parameters()}
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        raw = {name: p.grad.double().clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.modulate()
        metrics = optimizer.metrics()
        for name, p in model.named_parameters():
            modality = modality_of(name)
            k = metrics[f"ogm_ge/coefficient/{modality}"] if modality else 1.0
            assert p.grad is not None
            spread = raw[name].std().item() if p.numel() > 1 else 0.0
            draws[name].append((p.grad.double() - k * raw[name], spread + 1e-8, k))
        optimizer.step()
    return draws


def noise_of(draws: Draws) -> dict[str, list[Tensor]]:
    return {name: [noise for noise, _, _ in steps] for name, steps in draws.items()}


def assert_standard_normal(z: Tensor, what: str) -> None:
    """Assert mean 0 and standard deviation 1 to three standard errors."""
    n = z.numel()
    assert abs(z.mean().item()) <= 3 / math.sqrt(n), what
    assert abs(z.std().item() - 1) <= 3 / math.sqrt(2 * n), what


@pytest.mark.parametrize("options", [{}, {"noise_scale": 0.3}, {"noise_source": "modulated"}])
def test_mean_zero_and_the_spread_of_the_gradient(options: dict[str, Any]) -> None:
    model = wide()
    draws = record(model, batches(model, 60), **ALL, **options)
    scale = options.get("noise_scale", 1.0)
    for name, steps in draws.items():
        if modality_of(name) is None:
            continue
        spreads = [s * k if options.get("noise_source") == "modulated" else s for _, s, k in steps]
        z = torch.stack([noise / (scale * s) for (noise, _, _), s in zip(steps, spreads, strict=True)])
        assert_standard_normal(z, name)
        assert min(k for _, _, k in steps) < 0.7, "no step tells raw from modulated"


def test_spread_is_measured_per_tensor() -> None:
    model = audio_visual()
    with torch.no_grad():
        model.get_parameter("audio_net.0.weight").mul_(
            100
        )  # before a BatchNorm: its gradient shrinks by 100, all else stays
    draws = record(model, batches(model, 60))
    first, second = draws["audio_net.0.weight"], draws["audio_net.3.weight"]
    assert max(s for _, s, _ in first) * 5 < min(s for _, s, _ in second)
    for name, steps in {"first": first, "second": second}.items():
        assert_standard_normal(torch.cat([(noise / s).flatten() for noise, s, _ in steps]), name)


def test_noise_on_the_suppressed_modality_only() -> None:
    model = multimodal()
    data = batches(model, 40)
    suppressed_only, both = record(model, data, noise_on="suppressed", **ALL), record(model, data, **ALL)
    kept = added = 0
    for name in suppressed_only:
        if modality_of(name) is None:
            continue
        for (noise, spread, k), (other, _, _) in zip(suppressed_only[name], both[name], strict=True):
            assert (noise.abs().max() > 1e-3 * spread) == (k < 1)
            assert other.abs().max() > 1e-3 * spread, "by default the other modality gets noise too"
            kept, added = kept + (k == 1), added + (k < 1)
    assert kept > 20
    assert added > 20


def test_only_convolutions_of_the_encoders_by_default() -> None:
    model = audio_visual()
    optimizer = balanced(model, "ogm_ge")
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    raw = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.modulate()
    changed = {
        name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(p.grad, raw[name])
    }
    assert changed == {
        "audio_net.0.weight",
        "audio_net.3.weight",
        "visual_net.body.0.weight",
        "visual_net.body.3.weight",
    }


def run(model: nn.Module, data: list[Batch], **options: Any) -> dict[str, Tensor]:
    arguments = {"method": "ogm_ge"} | options
    return weights(train(model, balanced(model, **arguments), data))


def test_another_seed_is_another_run() -> None:
    data = batches(audio_visual(), 1)
    first, second = (run(audio_visual(), data, seed=seed) for seed in (3, 4))
    for name in ("audio_net.0.weight", "visual_net.body.3.weight"):
        assert not torch.equal(first[name], second[name])


@pytest.mark.parametrize("other_seed", [0, 1])
def test_steps_seeds_and_tensors_are_uncorrelated(other_seed: int) -> None:
    model = wide()
    data = batches(model, 40)
    here = record(model, data, **ALL)
    there = record(model, data, seed=other_seed, **ALL)
    for name in ("encoders.a.0.weight", "encoders.b.2.weight"):
        z = torch.stack([noise / spread for noise, spread, _ in here[name]]).flatten(1)
        other = torch.stack([noise / spread for noise, spread, _ in there[name]]).flatten(1)
        n = z[1:].numel()
        # Lag 1 within a seed, and step by step between two seeds and between two tensors.
        assert abs((z[1:] * other[:-1]).mean().item()) <= 3 / math.sqrt(n)
        if other_seed:
            assert abs((z * other).mean().item()) <= 3 / math.sqrt(n)
    first, second = (
        torch.stack([noise / spread for noise, spread, _ in here[name]]).flatten(1)
        for name in ("encoders.a.0.weight", "encoders.b.0.weight")
    )
    assert abs((first * second).mean().item()) <= 3 / math.sqrt(first.numel())


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_skipped_step_takes_no_numbers_away(by_hand: bool) -> None:
    model = multimodal()
    first, overflowing, last = batches(model, 3)

    def scaled(data: list[Batch]) -> tuple[Multimodal, int]:
        model = multimodal()
        optimizer = balanced(model, "ogm_ge", sgd(model))
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        scaler = torch.amp.grad_scaler.GradScaler("cpu", init_scale=2.0)
        skipped = 0
        for inputs, target in data:
            optimizer.zero_grad()
            scaler.scale(criterion(model(*inputs), target)).backward()
            if inputs is overflowing[0]:
                gradient = model.get_parameter("encoders.a.0.weight").grad
                assert gradient is not None
                gradient.data.fill_(math.inf)
            if by_hand:
                scaler.unscale_(optimizer)
                optimizer.modulate()
            before = scaler.get_scale()
            scaler.step(optimizer)
            scaler.update()
            skipped += scaler.get_scale() < before
        return model, skipped

    with_skip, skipped = scaled([first, overflowing, last])
    without, none = scaled([first, last])
    assert (skipped, none) == (1, 0)
    assert_same(with_skip, without)


def test_dry_run_draws_nothing_into_the_gradients() -> None:
    data = batches(audio_visual(), 3)
    dry = run(audio_visual(), data, dry_run=True)
    bare: AudioVisual = audio_visual()
    assert_same(dry, train(bare, sgd(bare), data))


def test_a_single_element_has_no_spread_and_no_nan() -> None:
    parameters = [nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in ((), (1,))]
    groups = [{"params": [p], "modality": name} for name, p in zip("ab", parameters, strict=True)]
    optimizer = BalancedOptimizer(SGD(groups, lr=0.1), "ogm_ge", **ALL)
    logits = torch.stack([parameters[0], parameters[1][0]]).unsqueeze(0)
    unimodal = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]])}
    optimizer.criterion(nn.CrossEntropyLoss())(logits, torch.tensor([0]), unimodal_logits=unimodal).backward()
    raw = parameters[1].grad
    assert raw is not None
    expected = raw.clone()
    optimizer.modulate()
    assert parameters[1].grad is not None
    assert 0 < (parameters[1].grad - expected).abs().item() < 1e-6


@pytest.mark.parametrize("method", ["ogm", "ogm_ge"])
def test_an_encoder_of_which_nothing_is_modulated_is_named(method: str) -> None:
    model = multimodal()
    described: dict[str, Any] = {"model": model, "modalities": model.paths, "fusion": "fusion"}
    message = rf"'conv'` of method `{method}` selects no parameter.*'[ab]'.*'all'"
    with pytest.warns(ModbalanceWarning, match=message) as seen:
        BalancedOptimizer(sgd(model), method, **described).remove()
    assert len(seen) == 2
    BalancedOptimizer(sgd(model), method, **described, **ALL).remove()


# Gradients as lists


def one_by_one(tensors: list[Tensor], sigma: list[Tensor], generator: torch.Generator) -> None:
    for tensor, deviation in zip(tensors, sigma, strict=True):
        wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
        noise = torch.empty_like(tensor, dtype=wide).normal_(generator=generator)
        tensor.add_((noise * deviation).to(tensor.dtype))


@pytest.mark.parametrize("chunk", [1, 40, 1 << 18])
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.bfloat16, torch.float32, torch.float64)])
def test_noise_in_chunks_is_that_of_one_tensor_after_the_other(
    chunk: int, dtypes: tuple[torch.dtype, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradients, "_CHUNK", chunk)
    shapes = [(3,), (16,), (5, 7), (1,), (4, 3, 3, 3), (64,), (2, 2)]
    tensors = [torch.randn(shape).to(dtypes[i % len(dtypes)]) for i, shape in enumerate(shapes)]
    tensors[4] = tensors[4].to(memory_format=torch.channels_last)
    expected = [tensor.clone() for tensor in tensors]
    sigma = list(torch.rand(len(tensors)).unbind())

    gradients.add_noise_(tensors, sigma, torch.Generator().manual_seed(7))
    one_by_one(expected, sigma, torch.Generator().manual_seed(7))

    assert [a.equal(b) for a, b in zip(tensors, expected, strict=True)] == [True] * len(shapes)
    assert tensors[4].is_contiguous(memory_format=torch.channels_last)


def test_the_deviations_are_those_of_each_tensor() -> None:
    tensors = [torch.randn(5, 4), torch.randn(1), torch.randn(7).bfloat16()]
    found = gradients.std(tensors)
    assert found.dtype == torch.float32
    assert found.tolist() == [tensors[0].std().item(), 0.0, tensors[2].float().std().item()]


def test_a_gradient_that_another_method_takes_away_moves_no_noise() -> None:
    """Standard deviations are taken before, noise is added after the method in front has removed a gradient."""

    @attrs.define(eq=False, kw_only=True)
    class Removing(Method):
        name: ClassVar[str] = "removing"

        @hookimpl
        def modbalance_gradients(self, step: Step) -> None:
            step.parameters("a")[0].grad = None

    model = wide()
    optimizer = balanced(model, [Removing(), OGMGE(param_filter="all")])
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    first, *others = model.encoders["a"].parameters()
    assert first.grad is not None
    first.grad.data *= 1e4
    before = [p.grad.std() for p in others if p.grad is not None]
    optimizer.modulate()

    assert first.grad is None
    after = [p.grad.std() for p in others if p.grad is not None]
    assert len(before) == len(after) == 3
    assert all(new < 5 * old for new, old in zip(after, before, strict=True))
