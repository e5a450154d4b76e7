"""What holds for every recipe: flags with values, known methods, an official protocol, a page."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import pytest

import av_mnist
import ave
import brats
import cmu_mosei
import cmu_mosi
import cremad
import food101
import iemocap
import kinetics_sounds
import ucf101
import ur_funny
import vggsound
from modbalance import list_methods
from recipe_common.cli import build_parser
from recipe_common.data.cache.feed import add_feed_arguments
from recipe_common.recipe import Recipe
from recipe_common.training.settings import BUILTIN, resolve

ROOT = Path(__file__).parents[2]
MODULES = (
    *(av_mnist, ave, brats, cmu_mosei, cmu_mosi, cremad),
    *(food101, iemocap, kinetics_sounds, ucf101, ur_funny, vggsound),
)
RECIPES = [*(module.RECIPE for module in MODULES), ave.EVENTS]
WITHOUT_VALUE = {"food101": {"features", "resnet", "text_model", "image_features", "text_features"}}
"""Folders and files that are only needed sometimes, and names that `load` fills in."""

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def flags(*adders: object) -> set[str]:
    parser = argparse.ArgumentParser()
    for add in adders:
        assert callable(add)
        add(parser)
    return set(vars(parser.parse_args([])))


def test_the_list_is_whole() -> None:
    assert {module.__name__ for module in MODULES} == {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


@every_recipe
def test_every_flag_has_a_value(recipe: Recipe) -> None:
    own = flags(recipe.add_arguments) - flags(add_feed_arguments)
    assert own - set(recipe.defaults) - set(BUILTIN) <= WITHOUT_VALUE.get(recipe.name, set())
    known = set(vars(build_parser(recipe).parse_args([])))
    chosen = (recipe.generated_defaults, *recipe.protocols.values())
    assert all(set(values) <= known for values in chosen)


@every_recipe
def test_flags_that_are_not_given_are_none(recipe: Recipe) -> None:
    assert not {name: value for name, value in vars(build_parser(recipe).parse_args([])).items() if value is not None}


@every_recipe
def test_methods_with_values_are_installed(recipe: Recipe) -> None:
    installed = {each.name for each in list_methods()}
    for table in (recipe.method_options, recipe.generated_options):
        assert set(table) <= installed


@every_recipe
def test_the_official_protocol_is_that_of_a_paper(recipe: Recipe) -> None:
    assert "official" in recipe.protocols
    fair = resolve(build_parser(recipe).parse_args([]), recipe)
    assert (fair.protocol, fair.select, fair.validation, fair.drop_last) == ("fair", "val", True, fair.drop_last)
    assert fair.drop_last != "both"
    official = resolve(build_parser(recipe).parse_args(["--protocol", "official"]), recipe)
    assert vars(official) != {**vars(fair), "protocol": "official"}


@every_recipe
def test_modalities_and_fusion_are_described_as_the_evaluation_needs_them(recipe: Recipe) -> None:
    description = recipe.balance(resolve(build_parser(recipe).parse_args([]), recipe))
    assert isinstance(description["fusion"], str)
    assert len(description["modalities"]) >= 2


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_recipe_has_a_page_that_the_others_link_to(module: object) -> None:
    name = getattr(module, "__name__", "")
    page = (ROOT / "docs" / "recipes" / f"{name}.md").read_text(encoding="utf-8")
    assert f"python recipes/{name}.py" in page
    for index in (ROOT / "docs" / "recipes" / "index.md", ROOT / "README.md"):
        assert f"{name}.md)" in index.read_text(encoding="utf-8")


@pytest.mark.slow
def test_help_needs_no_library_of_a_dataset() -> None:
    heavy = ("h5py", "transformers", "monai", "nibabel", "cv2", "av", "sklearn", "scipy", "optuna", "matplotlib")
    names = ", ".join(module.__name__ for module in MODULES)
    code = f"import sys; import {names}; print(sorted(set({heavy!r}) & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT / "recipes", capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
