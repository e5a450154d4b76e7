"""A recipe that trains in a blink: two small convolutions on synthetic tensors. Run as a script by one of the tests."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipe_common.cli import main
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings

if "TINY_RECIPE_PRINTS" in os.environ:
    print(os.environ["TINY_RECIPE_PRINTS"])

CLASSES = ("low", "middle", "high")
SIDE = 4


@attrs.frozen
class TinyDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Pictures of a constant plus noise that depends on (epoch, index); the audio says more than the visual."""

    size: int
    delay: float = 0.0

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        epoch, index = key
        time.sleep(self.delay)
        label = index % len(CLASSES)
        generator = torch.Generator().manual_seed(derived_seed(epoch, index))
        audio = label + 0.3 * torch.randn(1, SIDE, SIDE, generator=generator)
        visual = 0.3 * label + torch.randn(1, SIDE, SIDE, generator=generator)
        return audio, visual, label


class BadDataset(TinyDataset):
    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        raise ValueError("the seed is bad")


class GreedyDataset(TinyDataset):
    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, int]:
        raise torch.OutOfMemoryError("Tried to allocate 1.00 TiB")


class TinyEncoder(nn.Module):
    def __init__(self, plain: bool) -> None:
        super().__init__()
        norm, dropout = (nn.Identity(), nn.Identity()) if plain else (nn.BatchNorm2d(6), nn.Dropout(0.2))
        self.layers = nn.Sequential(nn.Conv2d(1, 6, 3), norm, nn.ReLU(), dropout)

    def forward(self, picture: Tensor) -> Tensor:
        maps: Tensor = self.layers(picture)
        return maps.mean(dim=(2, 3))


class TinyHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, len(CLASSES))

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.linear(torch.cat([audio, visual], dim=1))
        return logits


class TinyNet(nn.Module):
    def __init__(self, plain: bool = False) -> None:
        super().__init__()
        self.audio_net = TinyEncoder(plain)
        self.visual_net = TinyEncoder(plain)
        self.head = TinyHead()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        logits: Tensor = self.head(self.audio_net(audio), self.visual_net(visual))
        return logits


@attrs.frozen(kw_only=True)
class TinySettings:
    delay: float = flag(0.0, "seconds to load a sample")
    bad_seed: int = flag(-1, "seed with which loading a sample fails")
    greedy_seed: int = flag(-1, "seed with which there is not enough memory")
    plain: bool = flag(False, "no batch norm and no dropout")
    bad: bool = flag(False, "let the data be unreadable")


def load(settings: Settings[TinySettings]) -> Data:
    own = settings.own
    if own.bad:
        raise RecipeError("nowhere should hold wav files", found="none", fix="give `--data-root DIR`")
    special = {own.bad_seed: BadDataset(22), own.greedy_seed: GreedyDataset(22)}
    return Data(
        train=special.get(settings.optimisation.seed, TinyDataset(22, own.delay)),
        val=TinyDataset(12),
        test=TinyDataset(12),
        classes=CLASSES,
        modalities=("audio", "visual"),
        synthetic=settings.data.is_synthetic,
        summary=("train 22, val 12, test 12",),
    )


def balance(settings: Settings[TinySettings]) -> Mapping[str, Any]:
    return {"modalities": {"audio": "audio_net", "visual": "visual_net"}, "fusion": "head"}


def hello(arguments: list[str]) -> int:
    print("hello", *arguments)
    return 7


RECIPE = Recipe(
    name="tiny",
    title="Tiny: three constants",
    settings=TinySettings,
    defaults={
        "epochs": 9,
        "batch_size": 4,
        "lr": 0.05,
    },
    synthetic_defaults={"epochs": 3, "log_every": 2},
    method_options={"ogm_ge": {"alpha": 0.8}},
    load=load,
    build_model=lambda settings, data: TinyNet(settings.own.plain),
    balance=balance,
    commands={"hello": hello},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
