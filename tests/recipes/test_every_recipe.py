"""Rules for every recipe: flags with values, known methods, an official protocol, a page."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import attrs
import pytest

import av_mnist
import ave
import brats
import ch_sims
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
from recipe_common.recipe import Recipe
from recipe_common.settings.declaration import changed, flags_of
from recipe_common.training.settings import as_json, from_json
from recipes.call import settings_of

ROOT = Path(__file__).parents[2]
MODULES = (
    *(av_mnist, ave, brats, ch_sims, cmu_mosei, cmu_mosi, cremad),
    *(food101, iemocap, kinetics_sounds, ucf101, ur_funny, vggsound),
)
RECIPES = [*(module.RECIPE for module in MODULES), ave.EVENTS]

every_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)


def test_the_list_is_whole() -> None:
    assert {module.__name__ for module in MODULES} == {path.stem for path in (ROOT / "recipes").glob("*.py")}
    assert len({recipe.name for recipe in RECIPES}) == len(RECIPES)


@every_recipe
def test_every_setting_has_a_value_that_is_declared_once(recipe: Recipe) -> None:
    own = flags_of(recipe.settings)
    assert all(flag.default is not attrs.NOTHING for flag in own.values())
    again = {name for name, flag in own.items() if recipe.defaults.get(name, attrs.NOTHING) == flag.default}
    assert again <= {"frames"}, "these are declared with that value"


@every_recipe
def test_the_settings_come_back_from_json(recipe: Recipe) -> None:
    for protocol in ("fair", *recipe.protocols):
        settings = settings_of(recipe, "--protocol", protocol, "--option", "ogm_ge.alpha=0.5", "--seeds", "2")
        assert from_json(recipe, json.loads(json.dumps(as_json(settings)))) == settings


@every_recipe
def test_flags_that_are_not_given_are_none(recipe: Recipe) -> None:
    assert not {name: value for name, value in vars(build_parser(recipe).parse_args([])).items() if value is not None}


@every_recipe
def test_methods_with_values_are_installed(recipe: Recipe) -> None:
    installed = {each.name for each in list_methods()}
    for table in (recipe.method_options, recipe.synthetic_options):
        assert set(table) <= installed


@every_recipe
def test_the_official_protocol_is_that_of_a_paper(recipe: Recipe) -> None:
    assert "official" in recipe.protocols
    fair = settings_of(recipe)
    assert (fair.data.protocol, fair.data.select, fair.data.validation) == ("fair", "val", True)
    assert fair.data.drop_last != "both"
    official = settings_of(recipe, "--protocol", "official")
    assert official != changed(fair, protocol="official")


@every_recipe
def test_modalities_and_fusion_are_described_as_the_evaluation_needs_them(recipe: Recipe) -> None:
    description = recipe.balance(settings_of(recipe))
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
