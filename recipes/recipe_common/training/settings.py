"""How flags that were not given get their values."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modbalance import list_methods
from recipe_common.data.cache.feed import CACHE_SIZE
from recipe_common.errors import RecipeError
from recipe_common.recipe import Recipe

FAIR = "fair"

BUILTIN: dict[str, Any] = {
    "methods": ["none"],
    "option": [],
    "epochs": 100,
    "batch_size": 64,
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "step",
    "step_size": 70,
    "milestones": [],
    "gamma": 0.1,
    "patience": 10,
    "warmup_epochs": 0,
    "warmup_lr": 0.0,
    "final_lr": 0.0,
    "drop_last": "none",
    "seed": 0,
    "workers": 0,
    "device": "auto",
    "amp": "off",
    "channels_last": False,
    "compile": False,
    "deterministic": True,
    "accumulate": 1,
    "protocol": FAIR,
    "select": "val",
    "validation": True,
    "strict": False,
    "skip_bad": False,
    "log_every": 10,
    "save_every": 0,
    "resume": False,
    "overwrite": False,
    "update": False,
    "ceilings": False,
    "child": None,
}
"""Values of the common flags where a recipe says nothing."""

SYNTHETIC_OPTIONS: dict[str, dict[str, Any]] = {"relearning": {"period": 3, "count": 2}, "mses": {"patience": 3}}
"""Options where a recipe says nothing of its synthetic set, on which training takes a few epochs."""

# Where and how far a run goes, not which run it is: these may differ between a run and its continuation.
NOT_IDENTITY = frozenset(
    {
        *("epochs", "workers", "device", "output", "resume", "overwrite", "update", "eval", "methods", "option"),
        *("save_every", "strict", "seeds", "jobs", "ceilings", "child", "cache", "cache_workers"),
    }
)


def resolve(args: argparse.Namespace, recipe: Recipe, saved: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Fill every flag that was not given.

    Args:
        args: Parsed flags; None means not given.
        recipe: Whose defaults count.
        saved: Settings of a checkpoint, which come before the recipe's defaults.

    Returns:
        A new namespace. Precedence: flag, ``saved``, the recipe's values for synthetic data and for its protocol, its
        defaults, `BUILTIN`.

    Raises:
        RecipeError: If flags contradict each other.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    unset = dict.fromkeys(vars(args))
    saved = {name: value for name, value in (saved or {}).items() if name in unset and name not in NOT_IDENTITY}
    is_real = (given.get("data_root") or saved.get("data_root")) is not None
    protocol = given.get("protocol", saved.get("protocol", FAIR))
    defaults = {**BUILTIN, "output": f"runs/{recipe.name}", **recipe.defaults, **recipe.protocols.get(protocol, {})}
    if not is_real:
        defaults |= recipe.synthetic_defaults
    if given.keys() & {"seeds", "jobs"}:
        # Numbers depend on it in their last digits, and those of a comparison not on how many runs go at a time.
        defaults["threads"] = 1
    resolved = argparse.Namespace(**(unset | defaults | saved | given))
    if "cache" in unset:
        # A cache may hold smaller pictures: with and without are two runs, but where it lies makes no difference.
        resolved.cache_size = None if resolved.cache is None else resolved.cache_size or CACHE_SIZE
    if not resolved.validation and resolved.select == "val":
        raise RecipeError(
            "Expected a split to select the best epoch with. Found --no-validation, which leaves none. "
            "Fix: add --select test."
        )
    return resolved


def choose_methods(names: Sequence[str], excluded: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the methods to train, and a line for each one that ``all`` leaves out.

    Args:
        names: Value of ``--methods``.
        excluded: Methods that do not apply to the data, and why.

    Raises:
        RecipeError: If a method that does not apply is named.
    """
    if "all" in names:
        known = ["none", *(each.name for each in list_methods() if each.method is not None)]
        left_out = [f"left out: {name}: {excluded[name]}" for name in known if name in excluded]
        return [name for name in known if name not in excluded], left_out
    for name in names:
        if name in excluded:
            raise RecipeError(
                f"Expected methods that apply to these data. Found {name}: {excluded[name]}. Fix: leave it out."
            )
    return list(names), []


def identity(args: argparse.Namespace, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make a run this run and no other, ready for JSON."""
    settings = {name: value for name, value in vars(args).items() if name not in NOT_IDENTITY}
    if args.schedule == "cosine":
        settings["epochs"] = args.epochs  # its learning rates depend on how far it goes
    if settings.get("data_root") is not None:
        settings["data_root"] = str(Path(settings["data_root"]).resolve())
    return {**settings, "method": method, "options": dict(options)}


def options_of(method: str, args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Return the options of ``method``: the recipe's, overridden by ``--option [method.]name=value``."""
    options = dict(recipe.method_options.get(method, {}))
    if args.data_root is None:
        options |= {**SYNTHETIC_OPTIONS.get(method, {}), **recipe.synthetic_options.get(method, {})}
    for text in args.option:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise RecipeError(f"Expected `--option` like name=value. Found `{text}`. Fix: --option alpha=0.5")
        target, dot, short = name.rpartition(".")
        if dot and target not in args.methods:
            raise RecipeError(
                f"Expected `--option` to name a method of `--methods`. Found `{text}`, and {target} is not trained. "
                f"Fix: add {target} to `--methods`, or leave the option out."
            )
        if target == method or (not dot and method != "none"):
            options[short] = _literal(value)
    return options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
