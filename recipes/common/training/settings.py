"""The flags that all recipes share, and how flags that were not given get their values."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import RecipeError
from common.training.optimizers import OPTIMIZERS, SCHEDULES
from common.training.recipe import Recipe
from modbalance import list_methods

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
}
"""Values of the common flags where a recipe says nothing."""

# Where and how far a run goes, not which run it is: these may differ between a run and its continuation.
NOT_IDENTITY = frozenset(
    {"epochs", "workers", "device", "output", "resume", "overwrite", "eval", "methods", "option", "save_every"}
)


def add_common_arguments(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
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
    run.add_argument(
        "--protocol",
        choices=(FAIR, *recipe.protocols),
        help="fair: validation selects, the whole test split counts, once; others: what a paper did, warts included",
    )
    run.add_argument("--select", choices=("val", "test"), help="split that selects the best epoch; papers use test")
    run.add_argument("--validation", action=switch, help="hold samples out of training to select with; the default")
    run.add_argument("--strict", action=switch, help="stop if a listed sample is absent or unreadable")
    run.add_argument("--skip-bad", action=switch, help="leave unreadable files out instead of stopping")
    run.add_argument("--limit-batches", type=positive_int, metavar="N", help="at most N batches per epoch and split")
    run.add_argument("--log-every", type=positive_int, metavar="STEPS", help="steps between two looks at the loss")
    run.add_argument("--save-every", type=int, metavar="STEPS", help="steps between two checkpoints; 0: each epoch")
    optimisation = parser.add_argument_group("optimisation")
    add = optimisation.add_argument
    add("--epochs", type=positive_int)
    add("--batch-size", type=positive_int)
    add("--optimizer", choices=OPTIMIZERS)
    add("--lr", type=float, help="learning rate")
    add("--momentum", type=float, help="of SGD")
    add("--weight-decay", type=float)
    add("--schedule", choices=SCHEDULES, help="how the learning rate changes")
    add("--step-size", type=positive_int, metavar="EPOCHS", help="step: epochs between two cuts of the learning rate")
    add("--milestones", type=positive_int, nargs="+", metavar="EPOCH", help="multistep: when it is cut")
    add("--gamma", type=float, help="step, multistep, plateau: factor of such a cut")
    add("--patience", type=int, metavar="EPOCHS", help="plateau: epochs without a better score before it is cut")
    add("--warmup-epochs", type=int, metavar="EPOCHS", help="cosine: epochs of a linear rise")
    add("--warmup-lr", type=float, help="cosine: where that begins")
    add("--final-lr", type=float, help="cosine: where it ends after the last epoch")
    add(
        "--drop-last", choices=("none", "train", "both"), help="leave out a last batch that is not full; both: test too"
    )
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
        A new namespace. Precedence: flag, ``saved``, the recipe's values for its method, its data and its protocol,
        its defaults, `BUILTIN`.

    Raises:
        RecipeError: If flags contradict each other.
    """
    given = {name: value for name, value in vars(args).items() if value is not None}
    unset = dict.fromkeys(vars(args))
    saved = {name: value for name, value in (saved or {}).items() if name in unset and name not in NOT_IDENTITY}
    is_real = (given.get("data_root") or saved.get("data_root")) is not None
    protocol = given.get("protocol", saved.get("protocol", FAIR))
    defaults = {**BUILTIN, "output": f"runs/{recipe.name}", **recipe.defaults, **recipe.protocols.get(protocol, {})}
    methods = given.get("methods", [])
    if not is_real:
        defaults |= recipe.generated_defaults
    elif len(methods) == 1:
        defaults |= recipe.method_defaults.get(methods[0], {})
    resolved = argparse.Namespace(**(unset | defaults | saved | given))
    if not resolved.validation and resolved.select == "val":
        raise RecipeError("`--no-validation` leaves nothing to select the best epoch with. Fix: add --select test.")
    return resolved


def choose_methods(names: Sequence[str], excluded: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the methods to train, and a line for each one that ``all`` leaves out.

    Args:
        names: Value of ``--methods``.
        excluded: Methods that do not apply to the data, and why.

    Raises:
        RecipeError: If a method that does not apply is named.
    """
    if list(names) == ["all"]:
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
