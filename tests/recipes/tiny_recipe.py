"""A recipe that trains in a blink: two small convolutions on made-up tensors. As a script it draws no pictures."""

from __future__ import annotations

import argparse
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
from recipes.without_pictures import without_pictures

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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delay", type=float, help="seconds to load a sample")
    parser.add_argument("--bad-seed", type=int, help="seed with which loading a sample fails")
    parser.add_argument("--greedy-seed", type=int, help="seed with which there is not enough memory")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, help="no batch norm and no dropout")
    parser.add_argument("--bad", action=argparse.BooleanOptionalAction, help="let the data be unreadable")


def load(args: argparse.Namespace) -> Data:
    if args.bad:
        raise RecipeError("Expected wav files in nowhere. Found none. Fix: --data-root DIR")
    special = {args.bad_seed: BadDataset(22), args.greedy_seed: GreedyDataset(22)}
    return Data(
        train=special.get(args.seed, TinyDataset(22, args.delay)),
        val=TinyDataset(12),
        test=TinyDataset(12),
        classes=CLASSES,
        modalities=("audio", "visual"),
        generated=args.data_root is None,
        summary=("train 22, val 12, test 12",),
    )


def balance(args: argparse.Namespace) -> Mapping[str, Any]:
    return {"modalities": {"audio": "audio_net", "visual": "visual_net"}, "fusion": "head"}


def hello(arguments: list[str]) -> int:
    print("hello", *arguments)
    return 7


RECIPE = Recipe(
    name="tiny",
    title="Tiny: three constants",
    add_arguments=add_arguments,
    defaults={
        "epochs": 9,
        "batch_size": 4,
        "lr": 0.05,
        "delay": 0.0,
        "bad": False,
        "bad_seed": -1,
        "greedy_seed": -1,
        "plain": False,
    },
    generated_defaults={"epochs": 3, "log_every": 2},
    method_options={"ogm_ge": {"alpha": 0.8}},
    load=load,
    build_model=lambda args, data: TinyNet(args.plain),
    balance=balance,
    commands={"hello": hello},
)

if __name__ == "__main__":
    with without_pictures():
        sys.exit(main(RECIPE))
