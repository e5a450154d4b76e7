"""Handwritten digits of scikit-learn with a second modality, and a small two-encoder network trained on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from recipe_common.data.synthetic.av_mnist import SyntheticDigits
from recipe_common.models.fusion import ConcatFusion, LateFusionNet
from recipe_common.models.small import SMALL_SIZE, SmallEncoder

Parts = tuple[TensorDataset, TensorDataset]


def starving_digits(folder: Path) -> Parts:
    """Return training and test part of the small set of the AV-MNIST recipe: synthetic sound, real pictures."""
    SyntheticDigits().write(folder)
    return tuple(_read(folder, part, second="audio") for part in ("train", "test"))  # type: ignore[return-value]


def balanced_digits(folder: Path) -> Parts:
    """Return pairs of two such pictures, drawn apart; the class says for each whether its digit is at least five.

    Both modalities are alike, and the class cannot be told without both: with copies of one picture a network may
    answer from one of them alone, and some do.
    """
    SyntheticDigits().write(folder)

    def paired(part: str) -> TensorDataset:
        found = _read(folder, part, second="image")
        order = torch.randperm(len(found), generator=torch.Generator().manual_seed(1))
        picture, digit = found.tensors[1], found.tensors[2]
        return TensorDataset(picture[order], picture, 2 * (digit[order] >= 5).long() + (digit >= 5).long())

    return paired("train"), paired("test")


def _read(folder: Path, part: str, second: str) -> TensorDataset:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(np.load(folder / name / f"{part}_data.npy")).float().reshape(-1, 1, 28, 28) / 255

    return TensorDataset(tensor(second), tensor("image"), torch.from_numpy(np.load(folder / f"{part}_labels.npy")))


def trained(data: TensorDataset, seed: int, epochs: int = 8, lr: float = 0.02) -> nn.Module:
    """Return the small network of the recipe, trained by SGD with its settings but for the number of epochs."""
    torch.manual_seed(seed)
    names = ("audio", "image")
    fusion = ConcatFusion(dict.fromkeys(names, SMALL_SIZE), 10)
    model = LateFusionNet({name: SmallEncoder() for name in names}, fusion)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(data, batch_size=64, shuffle=True)
    for _ in range(epochs):
        for first, second, target in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(first, second), target).backward()
            optimizer.step()
    return model
