"""Resolution of settings from flags, checkpoints and defaults; identity of a run; choice of methods and options."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from modbalance import Method, list_methods
from recipe_common.data.cache.feed import CACHE_SIZE
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import build, to_json, walk
from recipe_common.settings.shared import FAIR, Settings

_NEEDED = {
    "classes": "one class per sample",
    "categories": "classes or labels",
    "accuracy": "the accuracy of each modality",
    "validation": "samples that are held out to validate",
}
"""Descriptions of needs of methods that some data do not meet."""


def resolve(given: Mapping[str, Any], recipe: Recipe, saved: Mapping[str, Any] | None = None) -> Settings[Any]:
    """Return the settings of a call, complete.

    Args:
        given: Values of the flags that are given, by name; None means not given.
        recipe: Recipe with the defaults.
        saved: Settings of a checkpoint, as JSON has them; they precede the defaults of the recipe.

    Returns:
        The settings. Precedence: flag, ``saved``, the values of the recipe for synthetic data and for its protocol, its
        defaults, those of the declaration.

    Raises:
        RecipeError: If flags contradict each other, or a saved value is of another type or out of bounds.
    """
    given = {name: value for name, value in given.items() if value is not None}
    before = _identity_from_json(recipe, saved or {})
    is_real = (given.get("data_root") or before.get("data_root")) is not None
    protocol = given.get("protocol", before.get("protocol", FAIR))
    defaults = {"output": Path("runs") / recipe.name, **recipe.defaults, **recipe.protocols.get(protocol, {})}
    if not is_real:
        defaults |= recipe.synthetic_defaults
    if given.keys() & {"seeds", "jobs"}:
        # Numbers depend on it in their last digits, and a comparison should not depend on the number of jobs.
        defaults["threads"] = 1
    values = defaults | before | given
    if "cache" in recipe.flags:
        # A cache may hold smaller pictures: with and without it are two runs, whichever folder it is in.
        size = values.get("cache_size") or CACHE_SIZE
        values["cache_size"] = None if values.get("cache") is None else size
    resolved = from_values(recipe, values)
    if not resolved.data.validation and resolved.data.select == "val":
        raise RecipeError(
            "`--select` should name a split that has samples",
            found="`val`, which `--no-validation` leaves empty",
            fix="add `--select test`",
        )
    return resolved


def from_values(recipe: Recipe, values: Mapping[str, Any]) -> Settings[Any]:
    """Return the settings of a recipe with typed values by name.

    Raises:
        TypeError: If a name is that of no setting.
        RecipeError: If a value is of another type or out of bounds.
    """
    if unknown := values.keys() - recipe.flags.keys():
        raise TypeError(f"Recipe `{recipe.name}` has no setting {', '.join(sorted(unknown))}.")
    return build(Settings, values, own=build(recipe.settings, values))


def as_json(settings: Settings[Any]) -> dict[str, Any]:
    """Return all settings by name, as values for JSON."""
    return {flag.name: to_json(value) for flag, value in walk(settings)}


def from_json(recipe: Recipe, content: Mapping[str, Any]) -> Settings[Any]:
    """Return the settings that `as_json` has written.

    Raises:
        KeyError: If a name is that of no setting.
        RecipeError: If a value is of another type or out of bounds.
    """
    flags = recipe.flags
    return from_values(recipe, {name: flags[name].from_json(value) for name, value in content.items()})


def _identity_from_json(recipe: Recipe, saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that `identity` has written, typed; names that the recipe does not have are left out."""
    flags = {name: flag for name, flag in recipe.flags.items() if flag.declaration.is_identity}
    return {name: flags[name].from_json(value) for name, value in saved.items() if name in flags}


def identity(settings: Settings[Any], method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that identify a run, as values for JSON; runs that differ in one of them are two runs."""
    own = {flag.name: to_json(value) for flag, value in walk(settings) if flag.declaration.is_identity}
    if settings.optimisation.schedule == "cosine":
        own["epochs"] = settings.optimisation.epochs  # its learning rates depend on the last epoch
    if settings.optimisation.apply != "gradient":
        own["apply"] = settings.optimisation.apply  # not in runs from before there was a choice
    if settings.data.data_root is not None:
        own["data_root"] = str(settings.data.data_root.resolve())
    return {**own, "method": method, "options": dict(options)}


def installed_methods() -> dict[str, type[Method]]:
    """Return all methods that can be trained, by name."""
    return {each.name: each.method for each in list_methods() if each.method is not None}


def excluded_methods(settings: Settings[Any], data: Data) -> dict[str, str]:
    """Return the installed methods that do not apply to the data, and why: a need that they declare is not met."""
    lacks = dict(data.task.lacks)
    if not settings.data.validation:
        lacks["validation"] = "--no-validation leaves none"
    found = {}
    for name, method in installed_methods().items():
        reasons = [
            f"{_NEEDED.get(need, need)}, and {lacks[need]}"
            for need in sorted(getattr(method, "needs", ()))
            if need in lacks
        ]
        if reasons:
            found[name] = f"it needs {'; '.join(reasons)}"
    return {**found, **data.excluded}


def choose_methods(names: Sequence[str], excluded: Mapping[str, str]) -> tuple[tuple[str, ...], list[str]]:
    """Return the methods to train, and a line for each one that ``all`` leaves out.

    Args:
        names: Value of ``--methods``.
        excluded: Methods that do not apply to the data, and why.

    Raises:
        RecipeError: If a method that does not apply is named.
    """
    if "all" in names:
        known = ["none", *installed_methods()]
        left_out = [f"left out: {name}: {excluded[name]}" for name in known if name in excluded]
        return tuple(name for name in known if name not in excluded), left_out
    for name in names:
        if name in excluded:
            raise RecipeError(
                "`--methods` should name methods that apply to these data",
                found=f"{name} ({excluded[name]})",
                fix="leave it out",
            )
    return tuple(names), []


def options_of(method: str, settings: Settings[Any], recipe: Recipe) -> dict[str, Any]:
    """Return the options of ``method``: those of the recipe, overridden by ``--option [method.]name=value``.

    Raises:
        RecipeError: If ``--option`` names a method that is not trained.
    """
    options = dict(recipe.method_options.get(method, {}))
    if settings.data.is_synthetic:
        options |= {**_short_options(method), **recipe.synthetic_options.get(method, {})}
    for given in settings.run.option:
        if given.method is not None and given.method not in settings.run.methods:
            raise RecipeError(
                "`--option` should name a method of `--methods`",
                found=f"`{given}`, and {given.method} is not trained",
                fix=f"add {given.method} to `--methods`, or leave the option out",
            )
        if given.method == method or (given.method is None and method != "none"):
            options[given.name] = given.value
    return options


def _short_options(method: str) -> dict[str, Any]:
    """Return the options of a method that have another value in a training of a few epochs."""
    kind = installed_methods().get(method)
    if kind is None:
        return {}
    return {name: field.metadata["short"] for name, field in kind.options().items() if "short" in field.metadata}
