"""The flags that all recipes share."""

from __future__ import annotations

import argparse

from recipe_common.arguments import (
    factor_float,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed_int,
    share_float,
    thread_count,
)
from recipe_common.recipe import Recipe
from recipe_common.training.optimizers import OPTIMIZERS, SCHEDULES
from recipe_common.training.settings import FAIR

SWITCH = argparse.BooleanOptionalAction


def add_common_arguments(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    """Add the flags of every recipe. Their defaults are None: `resolve` fills them in."""
    _add_run_arguments(parser)
    _add_comparison_arguments(parser)
    _add_data_arguments(parser, recipe)
    _add_optimisation_arguments(parser)
    _add_machine_arguments(parser)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("run")
    add = group.add_argument
    add("--methods", "--method", nargs="+", action="extend", metavar="NAME", help="methods to train; all: every one")
    add("--option", nargs="+", action="extend", metavar="NAME=VALUE", help="option of the methods")
    add("--output", metavar="DIR", help="folder for results; default runs/RECIPE")
    existing = group.add_mutually_exclusive_group()
    existing.add_argument("--resume", action=SWITCH, help="go on with the runs in the output folder")
    existing.add_argument("--update", action=SWITCH, help="as --resume, and train runs of other settings anew")
    existing.add_argument("--overwrite", action=SWITCH, help="throw away these runs in the output folder")
    add("--eval", metavar="CHECKPOINT", help="evaluate a checkpoint on val and test; no training")
    add("--log-every", type=positive_int, metavar="STEPS", help="steps between two looks at the loss")
    add("--save-every", type=non_negative_int, metavar="STEPS", help="steps between two checkpoints; 0: each epoch")


def _add_comparison_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("comparison").add_argument
    add("--seeds", type=positive_int, metavar="N", help="train every method N times: --seed, --seed + 1, ...")
    add("--ceilings", action=SWITCH, help="also train each modality by itself")
    add("--jobs", type=positive_int, metavar="N", help="runs at a time, each in a process of its own")


def _add_data_arguments(parser: argparse.ArgumentParser, recipe: Recipe) -> None:
    add = parser.add_argument_group("data").add_argument
    add("--data-root", metavar="DIR", help="folder of the real data; without it a small synthetic set is written")
    add(
        "--protocol",
        choices=(FAIR, *recipe.protocols),
        help="fair: validation selects, the whole test split counts, once; others: what a paper did, warts included",
    )
    add("--select", choices=("val", "test"), help="split that selects the best epoch; papers use test")
    add("--validation", action=SWITCH, help="hold samples out of training to select with; the default")
    add("--strict", action=SWITCH, help="stop if a listed sample is absent or unreadable")
    add("--skip-bad", action=SWITCH, help="leave unreadable files out instead of stopping")
    add("--limit-batches", type=positive_int, metavar="N", help="at most N batches per epoch and split")
    add("--drop-last", choices=("none", "train", "both"), help="leave out a last batch that is not full")


def _add_optimisation_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("optimisation").add_argument
    add("--epochs", type=positive_int)
    add("--batch-size", type=positive_int)
    add("--optimizer", choices=OPTIMIZERS)
    add("--lr", type=positive_float, help="learning rate")
    add("--momentum", type=share_float, help="of SGD")
    add("--weight-decay", type=non_negative_float)
    add("--schedule", choices=SCHEDULES, help="how the learning rate changes")
    add("--step-size", type=positive_int, metavar="EPOCHS", help="step: epochs between two cuts of the learning rate")
    add("--milestones", type=positive_int, nargs="+", metavar="EPOCH", help="multistep: when it is cut")
    add("--gamma", type=factor_float, help="step, multistep, plateau: factor of such a cut")
    add(
        "--patience",
        type=non_negative_int,
        metavar="EPOCHS",
        help="plateau: epochs without a better score before it is cut",
    )
    add("--warmup-epochs", type=non_negative_int, metavar="EPOCHS", help="cosine: epochs of a linear rise")
    add("--warmup-lr", type=non_negative_float, help="cosine: where that begins")
    add("--final-lr", type=non_negative_float, help="cosine: where it ends after the last epoch")
    add("--clip-grad-norm", type=positive_float, metavar="NORM", help="clip the norm of the modulated gradient")
    add("--accumulate", type=positive_int, metavar="K", help="batches per optimizer step")
    add("--seed", type=seed_int)


def _add_machine_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("machine").add_argument
    add("--device", help="cpu, cuda, cuda:1, ...; default: CUDA if there")
    add("--workers", type=non_negative_int, help="processes that load data")
    add("--threads", type=thread_count, help="threads of torch; default: all cores, 1 with --seeds or --jobs")
    add("--amp", choices=("off", "bf16", "fp16"), help="mixed precision")
    add("--channels-last", action=SWITCH)
    add("--compile", action=SWITCH, help="torch.compile the model")
    add("--deterministic", action=SWITCH, help="only deterministic convolutions on CUDA, so that --resume is exact")
