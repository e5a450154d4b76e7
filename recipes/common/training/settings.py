"""The flags that all recipes share, and how flags that were not given get their values."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.training.recipe import Recipe
from modbalance import list_methods

BUILTIN: dict[str, Any] = {
    "methods": ["none"],
    "option": [],
    "epochs": 100,
    "batch_size": 64,
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "step_size": 70,
    "gamma": 0.1,
    "seed": 0,
    "workers": 0,
    "device": "auto",
    "amp": "off",
    "channels_last": False,
    "compile": False,
    "deterministic": True,
    "accumulate": 1,
    "select": "val",
    "skip_bad": False,
    "log_every": 10,
    "save_every": 0,
    "resume": False,
    "overwrite": False,
}
"""Values of the common flags where a recipe says nothing."""

# Where and how far a run goes, not which run it is: these may differ between a run and its continuation.
NOT_IDENTITY = frozenset(
    {"epochs", "workers", "device", "output", "resume", "overwrite", "eval", "methods", "option", "save_every"}
)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every recipe. Their defaults are None: `resolve` fills them in."""
    switch = argparse.BooleanOptionalAction
    run = parser.add_argument_group("run")
    run.add_argument("--data-root", metavar="DIR", help="folder of the real data; without it a small set is generated")
    run.add_argument(
        "--methods", "--method", nargs="+", metavar="NAME", help="methods to train, one after the other; all: every one"
    )
    run.add_argument("--option", nargs="+", action="extend", metavar="NAME=VALUE", help="option of the methods")
    run.add_argument("--output", metavar="DIR", help="folder for results; default runs/RECIPE")
    existing = run.add_mutually_exclusive_group()
    existing.add_argument("--resume", action=switch, help="go on with the runs in the output folder")
    existing.add_argument(
        "--overwrite", action=switch, help="throw away the runs of these methods in the output folder"
    )
    run.add_argument("--eval", metavar="CHECKPOINT", help="evaluate a checkpoint on val and test; no training")
    run.add_argument("--select", choices=("val", "test"), help="split that selects the best epoch; papers use test")
    run.add_argument("--skip-bad", action=switch, help="leave unreadable files out instead of stopping")
    run.add_argument("--limit-batches", type=positive_int, metavar="N", help="at most N batches per epoch and split")
    run.add_argument("--log-every", type=positive_int, metavar="STEPS", help="steps between two looks at the loss")
    run.add_argument("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints; 0: each epoch")
    optimisation = parser.add_argument_group("optimisation")
    add = optimisation.add_argument
    add("--epochs", type=positive_int)
    add("--batch-size", type=positive_int)
    add("--lr", type=float, help="learning rate of SGD")
    add("--momentum", type=float)
    add("--weight-decay", type=float)
    add("--step-size", type=positive_int, metavar="EPOCHS", help="epochs between two cuts of the learning rate")
    add("--gamma", type=float, help="factor of such a cut")
    add("--clip-grad-norm", type=float, metavar="NORM", help="clip the norm of the modulated gradient")
    add("--accumulate", type=positive_int, metavar="K", help="batches per optimizer step")
    add("--seed", type=int)
    _add_machine_arguments(parser)


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    switch = argparse.BooleanOptionalAction
    add("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there")
    add("--workers", type=int, help="processes that load data")
    add("--amp", choices=("off", "bf16", "fp16"), help="mixed precision")
    add("--channels-last", action=switch)
    add("--compile", action=switch, help="torch.compile the model")
    add("--deterministic", action=switch, help="only deterministic convolutions on CUDA, so that --resume is exact")


def positive_int(text: str) -> int:
    """Parse an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"should be at least 1, found {value}")
    return value


def resolve(args: argparse.Namespace, recipe: Recipe, saved: Mapping[str, Any] | None = None) -> argparse.Namespace:
    """Fill every flag that was not given.

    Args:
        args: Parsed flags; None means not given.
        recipe: Whose defaults count.
        saved: Settings of a checkpoint, which come before the recipe's defaults.

    Returns:
        A new namespace. Precedence: flag, ``saved``, the recipe's values for its data, `BUILTIN`.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    unset = dict.fromkeys(vars(args))
    saved = {name: value for name, value in (saved or {}).items() if name in unset and name not in NOT_IDENTITY}
    is_real = (given.get("data_root") or saved.get("data_root")) is not None
    defaults = {**BUILTIN, "output": f"runs/{recipe.name}", **recipe.defaults}
    if given.get("methods") == ["all"]:
        given["methods"] = ["none", *(each.name for each in list_methods() if each.method is not None)]
    methods = given.get("methods", [])
    if not is_real:
        defaults |= recipe.generated_defaults
    elif len(methods) == 1:
        defaults |= recipe.method_defaults.get(methods[0], {})
    return argparse.Namespace(**(unset | defaults | saved | given))


def identity(args: argparse.Namespace, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that make a run this run and no other, ready for JSON."""
    settings = {name: value for name, value in vars(args).items() if name not in NOT_IDENTITY}
    if settings.get("data_root") is not None:
        settings["data_root"] = str(Path(settings["data_root"]).resolve())
    return {**settings, "method": method, "options": dict(options)}


def options_of(method: str, args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """Return the options of ``method``: the recipe's, overridden by ``--option [method.]name=value``."""
    options = dict(recipe.method_options.get(method, {}))
    if args.data_root is None:
        options |= recipe.generated_options.get(method, {})
    for text in args.option:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise RecipeError(f"`--option` should look like name=value. Found `{text}`. Try: --option alpha=0.5")
        target, dot, short = name.rpartition(".")
        if dot and target not in args.methods:
            raise RecipeError(f"`--option {text}` names a method that is not trained: {target}.")
        if target == method or (not dot and method != "none"):
            options[short] = _literal(value)
    return options


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
