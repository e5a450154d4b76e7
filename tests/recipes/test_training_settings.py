"""Flags get their values from the right place."""

from __future__ import annotations

import argparse

import pytest
import torch

from recipe_common.cli import build_parser
from recipe_common.errors import RecipeError
from recipe_common.training.precision import set_up
from recipe_common.training.settings import identity, options_of, resolve
from recipes.tiny_recipe import RECIPE


def _args(*flags: str) -> argparse.Namespace:
    return resolve(build_parser(RECIPE).parse_args(flags), RECIPE)


def test_synthetic_defaults_count_without_data_root() -> None:
    assert _args().epochs == 3
    assert _args("--data-root", "somewhere").epochs == 9


def test_recipe_defaults_come_before_the_common_ones() -> None:
    assert _args().batch_size == 4
    assert _args().momentum == 0.9


def test_a_flag_comes_first() -> None:
    assert _args("--epochs", "5", "--no-deterministic").epochs == 5
    assert _args("--no-deterministic").deterministic is False


def test_settings_of_a_checkpoint_come_between_flag_and_defaults() -> None:
    given = build_parser(RECIPE).parse_args(["--batch-size", "2"])
    args = resolve(given, RECIPE, saved={"batch_size": 7, "lr": 0.5, "epochs": 80, "unknown": 1})
    assert (args.batch_size, args.lr, args.epochs) == (2, 0.5, 3)
    assert not hasattr(args, "unknown")


def test_output_is_named_after_the_recipe() -> None:
    assert _args().output == "runs/tiny"


def test_options_are_literals_and_override_the_recipe() -> None:
    args = _args("--methods", "none", "ogm_ge", "ogm", "--option", "alpha=0.5", "ogm_ge.tie=none")
    assert options_of("none", args, RECIPE) == {}
    assert options_of("ogm_ge", args, RECIPE) == {"alpha": 0.5, "tie": "none"}
    assert options_of("ogm", args, RECIPE) == {"alpha": 0.5}


@pytest.mark.parametrize("text", ["alpha", "=3"])
def test_an_option_without_name_or_value_is_an_error(text: str) -> None:
    with pytest.raises(RecipeError, match="name=value"):
        options_of("ogm_ge", _args("--methods", "ogm_ge", "--option", text), RECIPE)


def test_an_option_of_a_method_that_is_not_trained_is_an_error() -> None:
    with pytest.raises(RecipeError, match="ogm is not trained"):
        options_of("ogm_ge", _args("--methods", "ogm_ge", "--option", "ogm.alpha=1"), RECIPE)


def test_identity_leaves_out_where_and_how_far() -> None:
    here = identity(_args("--epochs", "4", "--output", "a", "--workers", "2"), "ogm_ge", {"alpha": 1})
    there = identity(_args("--epochs", "8", "--output", "b", "--resume"), "ogm_ge", {"alpha": 1})
    assert here == there
    assert here != identity(_args("--lr", "1"), "ogm_ge", {"alpha": 1})
    assert here != identity(_args(), "ogm_ge", {"alpha": 2})


def test_fp16_needs_cuda() -> None:
    with pytest.raises(RecipeError, match=r"CUDA device.*--amp bf16"):
        set_up(_args("--amp", "fp16", "--device", "cpu"))


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=name):
        set_up(_args("--device", name))


def test_bf16_runs_under_autocast() -> None:
    precision = set_up(_args("--amp", "bf16", "--device", "cpu"))
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is torch.bfloat16
    assert not precision.scaler().is_enabled()
