"""Files of MMSA in the recipes of CMU-MOSI and CMU-MOSEI, as somebody has them on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import cmu_mosei
import cmu_mosi
from recipe_common.cli import main
from recipe_common.errors import RecipeError
from recipes.call import settings_of

from .mmsa_files import mmsa_content, write, write_bert

RECIPES = {"mosi": cmu_mosi, "mosei": cmu_mosei}
SIZES = {"mosi": (5, 20), "mosei": (74, 35)}
STEPS = {"mosi": (375, 500), "mosei": (500, 500)}
SMALL = {
    "mosi": ["--layers", "1", "--fusion-layers", "1", "--width", "10"],
    "mosei": ["--layers", "1", "--width", "8"],
}

each_dataset = pytest.mark.parametrize("dataset", list(RECIPES))


def content_of(dataset: str, *, aligned: bool) -> dict[str, dict[str, Any]]:
    steps = (50, 50) if aligned else STEPS[dataset]
    (audio, vision) = zip(steps, SIZES[dataset], strict=True)
    return mmsa_content(audio, vision, aligned=aligned)


def load(recipe: ModuleType, *arguments: object) -> Any:
    return recipe.load(settings_of(recipe.RECIPE, *map(str, arguments)))


@each_dataset
@pytest.mark.parametrize("folder", [".", "Processed"])
def test_both_files_are_read(tmp_path: Path, dataset: str, folder: str) -> None:
    for aligned, features, name in ((True, "mmsa_aligned", "aligned_50"), (False, "mmsa_unaligned", "unaligned_50")):
        content = content_of(dataset, aligned=aligned)
        content["train"]["audio"][0, 1, 0] = -np.inf
        path = write(tmp_path / folder / f"{name}.pkl", content)
        steps = (50, 50) if aligned else STEPS[dataset]
        for root in (tmp_path, path):
            data = load(RECIPES[dataset], "--data-root", root, "--features", features)
            text, audio, vision, _ = data.train[0, 5]
            assert text.shape == (50, 768)
            assert (audio.shape, vision.shape) == tuple(zip(steps, SIZES[dataset], strict=True))
            assert text[:8].any(dim=1).all()
            assert not text[8:].any()
            assert not audio[8:].any()
            assert [len(part) for part in (data.train, data.val, data.test)] == [6, 3, 4]
            assert any("train: 6 segments (MMSA" in line and "1 audio values" in line for line in data.summary)


@each_dataset
def test_the_flag_of_the_file_that_is_there(tmp_path: Path, dataset: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "Processed" / "aligned_50.pkl", content_of(dataset, aligned=True))
    assert main(RECIPES[dataset].RECIPE, ["--data-root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "Found mmsa_aligned (aligned_50.pkl): add --features mmsa_aligned." in message
    assert "point --data-root" not in message


@each_dataset
@pytest.mark.parametrize("given", [[], ["--features", "mmsa_unaligned"]], ids=str)
def test_the_flag_of_a_file_that_is_named(tmp_path: Path, dataset: str, given: list[str]) -> None:
    path = write(tmp_path / "anything.pkl", content_of(dataset, aligned=True))
    with pytest.raises(RecipeError, match=r"Found MMSA, aligned by token: .*: add --features mmsa_aligned\."):
        load(RECIPES[dataset], "--data-root", path, *given)


@each_dataset
def test_a_file_of_the_other_dataset(tmp_path: Path, dataset: str) -> None:
    other = {"mosi": "mosei", "mosei": "mosi"}[dataset]
    write(tmp_path / "aligned_50.pkl", content_of(other, aligned=True))
    sizes, found = SIZES[dataset], SIZES[other]
    expected = rf"audio \(N, 50, {sizes[0]}\), vision \(N, 50, {sizes[1]}\)\. Found .*audio \(6, 50, {found[0]}\)"
    with pytest.raises(RecipeError, match=expected):
        load(RECIPES[dataset], "--data-root", tmp_path, "--features", "mmsa_aligned")


@each_dataset
def test_text_by_a_local_encoder(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / "aligned_50.pkl", content_of(dataset, aligned=True))
    bert = write_bert(tmp_path / "bert")
    given = ["--data-root", tmp_path, "--features", "mmsa_aligned", "--text-model", bert]
    data = load(RECIPES[dataset], *given)
    assert data.train[0, 0][0].shape == (50, 16)
    settings = settings_of(RECIPES[dataset].RECIPE, *map(str, given), *SMALL[dataset])
    model = RECIPES[dataset].build_model(settings, data)
    assert len(model(*(values[None] for values in data.train[0, 0][:3]))) == 1


@each_dataset
def test_an_encoder_needs_token_ids(tmp_path: Path, dataset: str) -> None:
    with pytest.raises(RecipeError, match=r"go with a file of MMSA.*Found --features .*: add --features mmsa_aligned"):
        load(RECIPES[dataset], "--data-root", tmp_path, "--text-model", tmp_path)


@each_dataset
def test_an_encoder_needs_a_data_root(tmp_path: Path, dataset: str) -> None:
    found = r"Found the synthetic set: add --data-root, or leave --text-model out\.$"
    with pytest.raises(RecipeError, match=found):
        load(RECIPES[dataset], "--text-model", tmp_path)


@pytest.mark.slow
@each_dataset
def test_training_on_a_file(tmp_path: Path, dataset: str) -> None:
    write(tmp_path / "unaligned_50.pkl", content_of(dataset, aligned=False))
    given = ["--data-root", str(tmp_path), "--features", "mmsa_unaligned", "--epochs", "1", *SMALL[dataset]]
    assert main(RECIPES[dataset].RECIPE, [*given, "--output", str(tmp_path / "out")]) == 0
    assert "test" in json.loads((tmp_path / "out" / "none" / "result.json").read_text())
