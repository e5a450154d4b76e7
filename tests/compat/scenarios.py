"""Short trainings that are recorded once and repeated by the tests; through the public API and command lines only.

Weights and samples are drawn as integers and divided by powers of two, so that they are equal on every machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam

import modbalance
from modbalance import BalancedOptimizer

DATA = Path(__file__).parent / "data"
ARITHMETIC = DATA / "arithmetic.pt"

# Checkpoints

METHODS: dict[str, dict[str, Any]] = {
    "none": {},
    "ogm": {"alpha": 2.0},
    "ogm_ge": {"alpha": 0.5, "noise_scale": 0.5, "seed": 3},
    "agm": {"end_epoch": 2, "after_window": "freeze"},
    "cggm": {"lam": 0.5, "metric_ema": 0.25, "coeff_clip": (-2.0, 2.0)},
    "dgl": {"alpha": 2.0},
    "inforeg": {},
    "lfm": {"alpha_epochs": 4},
    "mla": {"projection": "rls", "steps_per_epoch": 4},
    "mmcosine": {"scale": 4.0, "nce": 0.25},
    "mmpareto": {},
    "mslr": {"memory": 1},
    "mses": {"patience": 0},
    "opm": {"start_epoch": 0},
    "pmr": {"fraction": 1.0},
    "relearning": {"period": 1, "count": 3},
}
"""Built-in methods, with options with which each acts before and after the checkpoint."""

SHARED = ("mla",)
"""Methods that need one head for both modalities."""

STEPS = 4
"""Steps per epoch."""
SAVED, END = 2 * STEPS + 2, 4 * STEPS
"""Steps before the checkpoint, in the middle of the third epoch, and in all."""

REORDERED = {"agm", "mmcosine"}
"""Methods equal to their recorded trainings but for rounding: sums run in another order, in the contrast of MMCosine
cosines are taken from distances."""

LOSSES = (
    {"audio": 1.0, "visual": 1.0},
    {"audio": 2.0, "visual": 0.5},
    {"audio": 2.0, "visual": 4.0},
    {"audio": 2.0, "visual": 4.0},
)
"""Validation losses by epoch: MSES stops the audio at the end of the second epoch, the visual at that of the third."""


class Net(nn.Module):
    """Two convolutional encoders and a linear head: audio and visual (B, 1, 4, 4) -> logits (B, 3)."""

    def __init__(self, head: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.audio_net = _encoder()
        self.visual_net = _encoder()
        self.head = head()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(_eighths(parameter.shape, generator) / 2)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.head(self.audio_net(audio), self.visual_net(visual))


class OneHead(nn.Module):
    """One head for both modalities."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return (self.linear(audio) + self.linear(visual)) / 2


class Concatenation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.linear(torch.cat([audio, visual], 1))


def _encoder() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 4))


def _eighths(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """Return multiples of 1/8 in [-1, 1]."""
    return torch.randint(-8, 9, tuple(shape), generator=generator) / 8


def batches(count: int, seed: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return batches of 8 samples; the audio shows the class more clearly than the visual."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(count):
        target = torch.randint(3, (8,), generator=generator)
        shift = (target - 1).view(-1, 1, 1, 1)
        audio, visual = (_eighths((8, 1, 4, 4), generator) for _ in range(2))
        found.append((audio + shift, visual + shift / 4, target))
    return found


class Training:
    """A training of `Net` with momentum that goes on where a checkpoint left it.

    Args:
        method: One of `METHODS`.
    """

    def __init__(self, method: str) -> None:
        self.model = Net(OneHead if method in SHARED else Concatenation)
        self.optimizer = BalancedOptimizer(
            SGD(self.model.parameters(), lr=1 / 16, momentum=0.5, weight_decay=1 / 1024),
            method,
            model=self.model,
            modalities={"audio": "audio_net", "visual": "visual_net"},
            fusion="head",
            **METHODS[method],
        )
        self.criterion = self.optimizer.criterion(nn.CrossEntropyLoss())
        self.given = LOSSES if method == "mses" else (None,) * len(LOSSES)
        self.train, self.val = batches(STEPS, seed=1), batches(2, seed=2)

    def run(self, first: int, last: int) -> None:
        """Take the steps ``first`` to ``last`` - 1, and end the epochs among them."""
        self.optimizer.begin(train=self.train, val=self.val)
        for step in range(first, last):
            epoch, index = divmod(step, STEPS)
            audio, visual, target = self.train[index]
            self.optimizer.zero_grad()
            self.criterion(self.model(audio, visual), target).backward()
            self.optimizer.step()
            if index == STEPS - 1:
                losses = self.given[epoch]
                self.optimizer.end_epoch(
                    train=self.train, val=self.val, metrics=None if losses is None else {"loss": losses}
                )

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.model.load_state_dict(saved["model"])
        self.optimizer.load_state_dict(saved["optimizer"])


# Run folders


@attrs.frozen
class Call:
    """A command line of a recipe, and where the recording of it was interrupted.

    Attributes:
        script: Path in the repository.
        flags: Without ``--output`` and ``--resume``.
        stop_after: SGD steps after which the recording was interrupted; 0: never.
    """

    script: str
    flags: tuple[str, ...]
    stop_after: int = 0


TINY = "tests/recipes/tiny_recipe.py"
_ON_CPU = ("--device", "cpu", "--threads", "1")
_RUN = (*_ON_CPU, "--epochs", "3")

RUNS: dict[str, Call] = {
    "none": Call(TINY, ("--methods", "none", *_RUN), 9),
    "ogm_ge": Call(TINY, ("--methods", "ogm_ge", *_RUN), 9),
    "cggm": Call(TINY, ("--methods", "cggm", "--option", "coeff_clip=(-2.0,2.0)", *_RUN), 9),
    "mses": Call(TINY, ("--methods", "mses", "--option", "patience=0", *_RUN), 9),
    "relearning": Call(TINY, ("--methods", "relearning", "--option", "period=1", *_RUN), 9),
}
"""Runs of 6 steps per epoch, interrupted in the second epoch."""

AV_MNIST = Call(
    "recipes/av_mnist.py",
    # Without momentum half as much is to be kept.
    ("--methods", "ogm", *_ON_CPU, *("--epochs", "2", "--limit-batches", "3", "--batch-size", "8", "--momentum", "0")),
    2,
)
"""A run of a real recipe on its synthetic set, interrupted in the first epoch."""

COMPARISON = Call(TINY, ("--methods", "none", "ogm_ge", "--seeds", "2", *_ON_CPU, "--epochs", "2"), 20)
"""Four runs of 12 steps, interrupted in the second one."""

SWEEP = Call(TINY, ("sweep", "--search", "lr=0.05,0.1,0.2", "--sampler", "grid", *_ON_CPU, "--epochs", "1"))
"""Two trials of three."""

FOLDERS = {**RUNS, "av_mnist": AV_MNIST, "comparison": COMPARISON, "sweep": SWEEP}


def recipes() -> dict[str, Any]:
    """Return all recipes by name, as those of the checkout whose code is in use."""
    scripts = sorted((Path(modbalance.__file__).parents[1] / "recipes").glob("*.py"))
    modules = [importlib.import_module(script.stem) for script in scripts]
    found = [value for module in modules for value in vars(module).values() if type(value).__name__ == "Recipe"]
    return {recipe.name: recipe for recipe in found}


def with_tiny_model(recipe: Any) -> Any:
    """Return a recipe with its own flags and settings, and data and model of the tiny one."""
    tiny = importlib.import_module("recipes.tiny_recipe")
    # The commit that recorded has the former name of this field.
    flag = "synthetic" if "synthetic" in attrs.fields_dict(tiny.Data) else "generated"
    data = tiny.Data(
        **dict.fromkeys(("train", "val", "test"), tiny.TinyDataset(4)),
        classes=tiny.CLASSES,
        modalities=("audio", "visual"),
        summary=(),
        **{flag: True},
    )
    return attrs.evolve(
        recipe, load=lambda args: data, build_model=lambda args, data: tiny.TinyNet(True), balance=tiny.balance
    )


def train_briefly(recipe: Any, output: Path, *flags: str) -> int:
    """Train a recipe with the tiny model for an epoch of one batch; return the exit code."""
    given = (*flags, "--methods", "none", *_ON_CPU, "--epochs", "1", "--limit-batches", "1", "--output", str(output))
    status: int = importlib.import_module("recipes.tiny_recipe").main(with_tiny_model(recipe), given)
    return status


# The machine


def arithmetic() -> dict[str, Tensor]:
    """Return numbers that torch alone computes, by kernels that the trainings use.

    Single precision is rounded in an order that depends on the processor and on the release of torch. Where these
    numbers are bitwise the recorded ones, the trainings have to be, too.
    """
    generator = torch.Generator().manual_seed(4)
    x = _eighths((64,), generator) * 3 + 1 / 3
    wide = x.double()
    numbers = {
        "softmax": x.view(8, 8).softmax(1),
        "log_softmax": x.view(8, 8).log_softmax(1),
        "elementary": torch.stack([x.exp(), x.tanh(), x.abs().log(), x.abs().sqrt()]),
        "elementary_wide": torch.stack([wide.exp(), wide.tanh(), wide.abs().log()]),
        "spread": torch.stack([x.std(), x.norm(), x.sum(), x.mean()]),
        "noise": torch.randn(64, generator=generator),
    }
    net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3))
    lenet = nn.Sequential(nn.Conv2d(1, 6, 5), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(864, 120), nn.Linear(120, 10))
    for name, model, side in (("net", net, 4), ("lenet", lenet, 28)):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(_eighths(parameter.shape, generator) / 3)
        inputs, target = _eighths((8, 1, side, side), generator), torch.randint(3, (8,), generator=generator)
        optimizers = [SGD(model.parameters(), lr=0.01, momentum=0.9), Adam(model.parameters(), lr=5e-4, fused=True)]
        for optimizer in optimizers * 3:
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs), target))
            optimizer.step()
        # The sums in double precision show each last digit and take no space.
        numbers |= {f"{name}.{key}": digest(parameter.detach()) for key, parameter in model.named_parameters()}
    return numbers


def digest(tensor: Tensor) -> Tensor:
    """Return a number that changes with any digit of a tensor in single precision, as far as one number can."""
    digits = tensor.flatten().view(torch.int32).long()
    return (digits * (2 * torch.arange(len(digits)) + 1)).sum()
