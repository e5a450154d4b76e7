"""Trains the model of a recipe on one batch, twice, without files and pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import default_collate

from modbalance import BalancedOptimizer, list_methods
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.shared import Settings


def all_methods() -> list[str]:
    """Names of all installed methods, and `none`."""
    return ["none", *(each.name for each in list_methods() if each.method is not None)]


def train_briefly(recipe: Recipe, settings: Settings[Any], data: Data, method: str, **changes: Any) -> list[float]:
    """Take two optimizer steps and end an epoch; return the losses.

    Args:
        recipe: Its model and its options of the method are taken.
        settings: Those of the model.
        data: The first 16 training samples are the batch.
        method: Name of the method.
        **changes: Options that differ from those of the recipe.
    """
    torch.manual_seed(0)
    *inputs, target = batch = default_collate([data.train[0, index] for index in range(16)])
    model = recipe.build_model(settings, data)
    described = {**recipe.balance(settings), **recipe.method_options.get(method, {}), **changes}
    optimizer = BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-2), method, model=model, **described)
    criterion = optimizer.criterion(data.task.loss(), score=data.task.score)
    optimizer.begin(train=[batch], val=[batch])
    losses = []
    for _ in range(2):
        optimizer.zero_grad()
        loss = criterion(model(*inputs), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    optimizer.end_epoch(train=[batch], val=[batch])
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    return losses
