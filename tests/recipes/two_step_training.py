"""Trains a recipe for two steps without evaluation and pictures; a request to stop at a chosen moment."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from modbalance import BalancedOptimizer
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.shared import Settings
from recipe_common.training.interrupt import StopRequest
from recipe_common.training.settings import options_of
from recipe_common.training.suitability import unsuited_methods


class StopAtLook(StopRequest):
    """True when it is looked at for the ``look``-th time."""

    def __init__(self, look: int) -> None:
        super().__init__()
        self.looks_left = look

    def __bool__(self) -> bool:
        self.looks_left -= 1
        return self.looks_left == 0


def batches(data: Data, size: int = 8) -> DataLoader[Any]:
    """Return the first two batches of the training samples."""
    keys = [[(0, index) for index in range(start, start + size)] for start in (0, size)]
    return DataLoader(data.train, batch_sampler=keys, collate_fn=data.collate)


def suits(recipe: Recipe, settings: Settings[Any], data: Data, method: str) -> bool:
    """Return whether the model of a recipe can be trained with a method."""
    return method not in unsuited_methods(recipe, settings, data, [method])


def train(recipe: Recipe, settings: Settings[Any], data: Data, method: str) -> nn.Module:
    """Take two steps and end the epoch; fail unless losses and weights stay finite and weights move."""
    torch.manual_seed(0)
    model = recipe.build_model(settings, data)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    options = recipe.with_values(method, options_of(method, settings, recipe))
    described = {**recipe.balance(settings), **options}
    optimizer = BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), method, model=model, **described)
    criterion = optimizer.criterion(data.task.loss(), score=data.task.score)
    loader = batches(data)
    optimizer.begin(train=loader, val=loader)
    for *inputs, target in loader:
        optimizer.zero_grad()
        loss = criterion(model(*inputs), target)
        loss.backward()
        optimizer.step()
        assert math.isfinite(loss.item())
    optimizer.end_epoch(train=loader, val=loader)
    after: Sequence[torch.Tensor] = list(model.parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))
    return model
