"""MLA against runs of the authors' code, and against a slow twin."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, AdamW, RMSprop

from modbalance import BalancedOptimizer
from support.models import AudioVisual, Multimodal, SharedFusion
from support.reference import mla
from support.training import assert_close, balanced, batches, multimodal, train
from support.trajectories import Trajectory

NAMES = ["mla_released", "mla_projected", "mla_three"]
SIZES = {"audio": 4, "visual": 5, "text": 6}


class Three(nn.Module):
    """Three series, each averaged over time, and one head."""

    def __init__(self) -> None:
        super().__init__()
        for name, size in SIZES.items():
            layers = nn.Linear(size, 8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU()
            setattr(self, f"{name}_net", nn.Sequential(*layers))
        self.fusion_module = SharedFusion(8, 4)

    def features(self, *inputs: Tensor) -> list[Tensor]:
        return [self.get_submodule(f"{name}_net")(x.mean(1)) for name, x in zip(SIZES, inputs, strict=True)]

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.fusion_module(*self.features(*inputs))


def model_of(recorded: Trajectory) -> Any:
    model = Three() if len(recorded.meta["order"]) == 3 else AudioVisual(lambda: SharedFusion(8, 6))
    recorded.start(model)
    return model


def inner_of(model: nn.Module, meta: dict[str, Any]) -> SGD:
    return SGD(model.parameters(), lr=meta["lr"], momentum=meta["momentum"], weight_decay=meta["weight_decay"])


def options_of(meta: dict[str, Any]) -> dict[str, Any]:
    if meta["version"] == "head":
        return {"idle": meta["idle"]}
    return {"idle": meta["idle"], "projection": "elementwise", "steps_per_epoch": meta["steps"]}


def audio_visual_features(model: AudioVisual) -> Any:
    def features(audio: Tensor, visual: Tensor) -> list[Tensor]:
        return [model.audio_net(audio.unsqueeze(1)).mean((2, 3)), model.visual_net(visual).mean((1, 3, 4))]

    return features


@pytest.mark.parametrize("name", NAMES)
def test_the_twin_follows_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    model = model_of(recorded)
    head = model.fusion_module.fc_out
    features = model.features if isinstance(model, Three) else audio_visual_features(model)
    twin = mla.Twin(
        features=features, head=head, last=head, inner=inner_of(model, recorded.meta), **options_of(recorded.meta)
    )
    data = [*recorded.batches(torch.float32, tuple(recorded.meta["order"]))]
    for _ in range(recorded.meta["epochs"]):
        twin.index = 0
        for batch in data:
            twin.step(*batch)
    assert recorded.error(model) <= 1e-6
    assert twin.calls == recorded.meta["exp_count"]


def balanced_run(model: Any, meta: dict[str, Any], **options: Any) -> BalancedOptimizer:
    return BalancedOptimizer(
        inner_of(model, meta),
        "mla",
        model=model,
        modalities={name: f"{name}_net" for name in meta["order"]},
        fusion="fusion_module",
        **options_of(meta),
        **options,
    )


@pytest.mark.parametrize("name", NAMES)
def test_trajectory_of_the_authors_code(name: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = model_of(recorded)
    optimizer = balanced_run(model, meta)
    data = [*recorded.batches(torch.float32, tuple(meta["order"]))]
    for _ in range(meta["epochs"]):
        train(model, optimizer, data)
        optimizer.end_epoch()
    assert recorded.error(model) <= 1e-6
    state = optimizer.state_dict()["modbalance"]["methods"]["mla"]
    assert state["calls"] == meta["exp_count"]
    for key, expected in recorded.part("projection_final").items():
        assert key == ""
        torch.testing.assert_close(state["P"], expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("how", "recorded_as"), [("fixed", "fixed"), ("batch_entropy", "dynamic")])
@pytest.mark.parametrize("name", NAMES)
def test_evaluation_of_the_authors_code(name: str, how: str, recorded_as: str) -> None:
    recorded = Trajectory(name)
    meta = recorded.meta
    model = model_of(recorded)
    model.load_state_dict(recorded.part("final/"))
    optimizer = balanced_run(model, meta, eval_weights=how)
    seen: list[Tensor] = []

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(logits)
        return nn.functional.cross_entropy(logits, target)

    criterion = optimizer.criterion(loss)
    data = [*recorded.batches(torch.float32, tuple(meta["order"]))]
    inputs, y = data[0]
    model.eval()
    correct = 0
    with torch.no_grad():
        output = model(*inputs)
        criterion(output, y)
        torch.testing.assert_close(criterion.logits(output), seen[-1], atol=0, rtol=0)
        for batch, target in data:
            correct += int((criterion.logits(model(*batch)).argmax(1) == target).sum())
    torch.testing.assert_close(seen[-1], recorded.part("eval/")[recorded_as], atol=2e-6, rtol=1e-5)
    assert correct / (meta["b"] * meta["steps"]) == pytest.approx(meta["accuracy"][recorded_as][0])


# The slow twin

INNER: dict[str, Any] = {
    "SGD": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "plain SGD": lambda parameters: SGD(parameters, lr=0.1),
    "dampened SGD": lambda parameters: SGD(parameters, lr=0.1, momentum=0.9, dampening=0.5),
    "AdamW": lambda parameters: AdamW(parameters, lr=1e-2, weight_decay=0.1),
    "RMSprop": lambda parameters: RMSprop(parameters, lr=1e-3, momentum=0.5),
    "Adagrad": lambda parameters: Adagrad(parameters, lr=1e-2),
}


class Averaged(nn.Module):
    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack([self.head(z) for z in features]).mean(0)


def shallow(names: str) -> Multimodal:
    """Return a model whose features are above 0: near 0 the entry-by-entry projection amplifies rounding."""
    model = multimodal(names, "shared", dtype=torch.float64)
    for encoder in model.encoders.values():
        assert isinstance(encoder, nn.Sequential)
        encoder.append(nn.Softplus())
    return model


def deep(names: str) -> Multimodal:
    """Return a model whose head has two linear layers and a layer norm."""
    model = shallow(names)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Softplus(), nn.Linear(6, 3))
    model.fusion = Averaged(head.double())
    return model


def twin_of(model: Multimodal, inner: Any, **options: Any) -> mla.Twin:
    def features(*inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]

    head = model.fusion.get_submodule("head" if isinstance(model.fusion, Averaged) else "fc_out")
    last = [module for module in head.modules() if isinstance(module, nn.Linear)][-1]
    return mla.Twin(features=features, head=head, last=last, inner=inner, **options)


@pytest.mark.slow
@pytest.mark.parametrize("names", ["ab", "abc", "abcd"])
@pytest.mark.parametrize("head", ["linear", "deep"])
@pytest.mark.parametrize("idle", ["skip", "coast"])
@pytest.mark.parametrize("projection", ["off", "elementwise", "rls"])
def test_the_method_equals_the_twin(names: str, head: str, idle: str, projection: str) -> None:
    compare(names, head, INNER["SGD"], idle=idle, projection=projection, steps_per_epoch=4)


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("idle", ["skip", "coast"])
def test_the_method_equals_the_twin_with_any_optimizer(inner: str, idle: str) -> None:
    compare("ab", "linear", INNER[inner], idle=idle)


@pytest.mark.parametrize("projection", ["elementwise", "rls"])
def test_without_the_length_of_an_epoch_alpha_stays(projection: str) -> None:
    compare("ab", "linear", INNER["SGD"], projection=projection)


def compare(names: str, head: str, inner: Any, **options: Any) -> None:
    ours, theirs = ((deep if head == "deep" else shallow)(names) for _ in range(2))
    data = batches(ours, 4, 5, dtype=torch.float64)
    further: dict[str, Any] = {"head": "fusion.head"} if head == "deep" else {}
    optimizer = balanced(ours, "mla", inner(ours.parameters()), **options, **further)
    twin = twin_of(theirs, inner(theirs.parameters()), **options)
    schedules = [torch.optim.lr_scheduler.StepLR(each, 1, 0.5) for each in (optimizer, twin.inner)]
    for _ in range(3):
        train(ours, optimizer, data)
        optimizer.end_epoch()
        twin.index = 0
        for batch in data:
            twin.step(*batch)
        for schedule in schedules:
            schedule.step()
    assert_close(ours, theirs, 1e-10)


@pytest.mark.parametrize("how", ["batch_entropy", "sample_entropy"])
def test_weights_of_the_evaluation_equal_the_twin(how: str) -> None:
    model = multimodal("abc", "shared", dtype=torch.float64)
    optimizer = balanced(model, "mla", eval_weights=how)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    ((inputs, _),) = batches(model, 1, dtype=torch.float64)
    model.eval()
    output = model(*inputs)
    o = [model.fusion.get_submodule("fc_out")(phi(x)) for phi, x in zip(model.encoders.values(), inputs, strict=True)]
    w = mla.weights(o, how)
    w = w.expand(len(output), 3) if how == "batch_entropy" else w
    expected = torch.stack([(w[:, [m]] * o_m) for m, o_m in enumerate(o)]).sum(0)
    torch.testing.assert_close(criterion.logits(output), expected, atol=1e-12, rtol=1e-12)
