"""Every installed method in every recipe: it trains the model of the recipe, or is left out with the reason."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from recipe_common.models import resnet
from recipe_common.recipe import Recipe
from recipe_common.settings.declaration import changed, walk
from recipe_common.training.settings import choose_methods, excluded_methods, installed_methods
from recipe_common.training.suitability import unsuited_methods
from recipes.call import settings_of
from recipes.test_every_recipe import RECIPES
from recipes.two_step_training import train

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning"),  # S of CGGM may be nearly 0 in two steps
]

ONE_LAYER = ["--layers", "1", "--fusion-layers", "1", "--width", "20"]
SMALL: dict[str, list[str]] = {
    "ave": ["--image-size", "32"],
    "brats": ["--crop", "16", "--width", "1"],
    "ch_sims": ONE_LAYER,
    "cmu_mosei": ["--width", "8", "--layers", "1"],
    "cmu_mosi": ONE_LAYER,
    "cremad": ["--image-size", "32"],
    "food101": ONE_LAYER,
    "iemocap": ONE_LAYER,
    "kinetics_sounds": ["--image-size", "32"],
    "ucf101": ["--image-size", "32"],
    "ur_funny": ["--width", "8", "--layers", "1"],
    "vggsound": ["--image-size", "32"],
}
"""Flags that make the model or the pictures small."""
PAGE = Path(__file__).parents[2] / "docs" / "recipes" / "index.md"


def left_out_on_the_page(recipe: str) -> set[str]:
    """Return the methods that the page says a recipe leaves out."""
    rows = re.findall(r"^\| (`.+?) \| (`.+?) \| \w.+? \|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    recipes = [(re.findall(r"`(\w+)`", first.split(";")[0]), re.findall(r"`(\w+)`", second)) for first, second in rows]
    return {method for names, methods in recipes if recipe in names for method in methods}


class SmallTrunk(nn.Sequential):
    """Batch norm and 512 channels as in ResNet-18, in a fraction of its time."""

    def __init__(self, in_channels: int) -> None:
        layers = (nn.Conv2d(in_channels, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 512, 1))
        super().__init__(*layers)

    def forward(self, picture: Tensor) -> Tensor:
        maps: Tensor = super().forward(picture)
        return maps


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_each_method_trains_or_is_left_out_with_the_reason(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resnet, "resnet18_trunk", SmallTrunk)
    settings: Any = settings_of(recipe, "--methods", "all", *SMALL.get(recipe.name, []))
    data = recipe.load(settings)
    methods, left_out = choose_methods(["all"], excluded := excluded_methods(settings, data))
    settings = changed(settings, methods=methods)
    refused = unsuited_methods(recipe, settings, data, methods)

    assert {*methods, *excluded} == {"none", *installed_methods()}
    assert [line.split(": ")[1] for line in left_out] == [*excluded]
    assert {*excluded, *refused} == left_out_on_the_page(recipe.name), {**excluded, **refused}
    if "mla" in refused:
        heads = [flag.declaration.choices or () for flag, _ in walk(settings) if flag.name == "fusion"]
        assert refused["mla"].endswith("In this recipe: `--fusion shared`.") is any("shared" in each for each in heads)
    for method in methods:
        if method not in refused:
            train(recipe, settings, data, method)
