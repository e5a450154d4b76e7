"""Flags get their values from the right place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from recipe_common.errors import RecipeError
from recipe_common.settings.declaration import flat
from recipe_common.settings.shared import Settings
from recipe_common.training.job import build_optimizer
from recipe_common.training.precision import set_up
from recipe_common.training.settings import identity, options_of, resolve
from recipes.call import settings_of, values_of
from recipes.tiny_recipe import RECIPE


def _settings(*flags: str) -> Settings[Any]:
    return settings_of(RECIPE, *flags)


def test_synthetic_defaults_count_without_data_root() -> None:
    assert _settings().optimisation.epochs == 3
    assert _settings("--data-root", "somewhere").optimisation.epochs == 9


def test_recipe_defaults_come_before_the_common_ones() -> None:
    assert _settings().optimisation.batch_size == 4
    assert _settings().optimisation.momentum == 0.9


def test_a_flag_comes_first() -> None:
    assert _settings("--epochs", "5", "--no-deterministic").optimisation.epochs == 5
    assert _settings("--no-deterministic").machine.deterministic is False


def test_settings_of_a_checkpoint_come_between_flag_and_defaults() -> None:
    settings = resolve({"batch_size": 2}, RECIPE, saved={"batch_size": 7, "lr": 0.5, "epochs": 80, "unknown": 1})
    assert values_of(settings, "batch_size", "lr", "epochs") == (2, 0.5, 3)
    assert "unknown" not in flat(settings)


def test_output_is_named_after_the_recipe() -> None:
    assert _settings().run.output == Path("runs/tiny")


def test_options_are_literals_and_override_the_recipe() -> None:
    settings = _settings("--methods", "none", "ogm_ge", "ogm", "--option", "alpha=0.5", "ogm_ge.tie=none")
    assert options_of("none", settings, RECIPE) == {}
    assert options_of("ogm_ge", settings, RECIPE) == {"alpha": 0.5, "tie": "none"}
    assert options_of("ogm", settings, RECIPE) == {"alpha": 0.5}


@pytest.mark.parametrize("text", ["alpha", "=3"])
def test_an_option_without_name_or_value_is_an_error(text: str) -> None:
    with pytest.raises(RecipeError, match="name=value"):
        options_of("ogm_ge", _settings("--methods", "ogm_ge", "--option", text), RECIPE)


def test_an_option_of_a_method_that_is_not_trained_is_an_error() -> None:
    with pytest.raises(RecipeError, match="ogm is not trained"):
        options_of("ogm_ge", _settings("--methods", "ogm_ge", "--option", "ogm.alpha=1"), RECIPE)


def test_identity_leaves_out_where_and_how_far() -> None:
    here = identity(_settings("--epochs", "4", "--output", "a", "--workers", "2"), "ogm_ge", {"alpha": 1})
    there = identity(_settings("--epochs", "8", "--output", "b", "--resume"), "ogm_ge", {"alpha": 1})
    assert here == there
    assert here != identity(_settings("--lr", "1"), "ogm_ge", {"alpha": 1})
    assert here != identity(_settings(), "ogm_ge", {"alpha": 2})


def test_coefficients_on_the_update_are_another_run_and_those_on_gradients_the_one_of_before() -> None:
    assert identity(_settings("--apply", "update"), "ogm", {})["apply"] == "update"
    assert "apply" not in identity(_settings(), "ogm", {})


@pytest.mark.parametrize("apply", ["gradient", "update"])
def test_what_coefficients_scale_reaches_the_optimizer(apply: str) -> None:
    settings = _settings("--apply", apply)
    data = RECIPE.load(settings)
    model = RECIPE.build_model(settings, data)
    optimizer = build_optimizer(RECIPE, settings, model, "ogm", {"param_filter": "all"})
    assert ("apply='update'" in optimizer.describe()) == (apply == "update")


def test_fp16_needs_cuda() -> None:
    with pytest.raises(RecipeError, match=r"CUDA device.*--amp bf16"):
        set_up(_settings("--amp", "fp16", "--device", "cpu").machine)


@pytest.mark.parametrize("name", ["cuda:99", "toaster"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(RecipeError, match=name):
        set_up(_settings("--device", name).machine)


def test_bf16_runs_under_autocast() -> None:
    precision = set_up(_settings("--amp", "bf16", "--device", "cpu").machine)
    with precision.autocast():
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype is torch.bfloat16
    assert not precision.scaler().is_enabled()
