"""Which methods suit the model of a recipe: those that an optimizer can be built with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from modbalance import ConfigError, ModbalanceWarning
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.shared import Settings
from recipe_common.training.job import build_optimizer
from recipe_common.training.settings import installed_methods, options_of


def unsuited_methods(recipe: Recipe, settings: Settings[Any], data: Data, names: Sequence[str]) -> dict[str, str]:
    """Return those of some methods that refuse the model, and why.

    Raises:
        ConfigError: A method that the command line gives an option to refuses.
    """
    with torch.random.fork_rng():
        model = recipe.build_model(settings, data)
    found = {}
    for name in installed_methods():
        if name not in names:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ModbalanceWarning)  # given once, in the run
                optimizer = build_optimizer(recipe, settings, model, name, options_of(name, settings, recipe))
        except ConfigError as error:
            if any(given.method in (None, name) for given in settings.run.option):
                raise
            found[name] = str(error)
        else:
            optimizer.remove()
    return found
