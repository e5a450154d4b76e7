"""IEMOCAP features by dialogue, as code for emotions in conversations passes them on, in the forms of its forks."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import iemocap
from recipe_common.cli import main
from recipe_common.data.datasets.iemocap_dialogues import read_dialogues
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.training.settings import resolve
from recipes.without_pictures import without_pictures

SIZES = {"text": 5, "audio": 7, "vision": 3}
TRAIN, TEST, LENGTH = 10, 3, 6
NAMES = {0: "happy", 1: "sad", 2: "neutral", 3: "angry", 4: "happy"}
Content = list[Any]


def content(versions: int = 1) -> Content:
    """Entries of a file: labels of every dialogue go round from 0, happiness, to 5, frustration."""
    random = np.random.default_rng(0)
    dialogues = [f"Ses{1 + number % 5:02d}F_impro{number:02d}" for number in range(TRAIN + TEST)]
    ids = {name: [f"{name}_F{number:03d}" for number in range(LENGTH)] for name in dialogues}

    def vectors(size: int) -> dict[str, list[Any]]:
        return {name: list(random.standard_normal((LENGTH, size))) for name in dialogues}

    text, audio, vision = (vectors(size) for size in SIZES.values())
    others = [vectors(9) for _ in range(versions - 1)]
    return [
        ids,
        {name: ["F", "M"] * (LENGTH // 2) for name in dialogues},
        {name: list(range(LENGTH)) for name in dialogues},
        *(text, *others),
        *(audio, vision),
        {name: ["hello"] * LENGTH for name in dialogues},
        set(dialogues[:TRAIN]),
        set(dialogues[TRAIN:]),
    ]


def write(path: Path, entries: Content, protocol: int = 4, kind: Callable[[Content], Any] = tuple) -> Path:
    path.write_bytes(pickle.dumps(kind(entries), protocol))
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "IEMOCAP_features.pkl"


def load(path: Path, **changes: Any) -> Data:
    return iemocap.load(resolve({"data_root": path, **changes}, iemocap.RECIPE))


@pytest.mark.parametrize("versions", [1, 4])
@pytest.mark.parametrize(("protocol", "kind"), [(2, tuple), (4, tuple), (4, list)])
def test_each_fork_gives_the_same_four_classes(
    path: Path, versions: int, protocol: int, kind: Callable[[Content], Any]
) -> None:
    entries = content(versions)
    data: Any = load(write(path, entries, protocol, kind))
    assert [len(part.samples) for part in (data.train, data.val, data.test)] == [9 * 5, 1 * 5, 3 * 5]
    assert "utterances of other classes, which are left out: 13" in data.summary
    for part in (data.train, data.val, data.test):
        for index, sample in enumerate(part.samples):
            dialogue, number = sample.name[:-5], int(sample.name[-3:])
            *inputs, label = part[0, index]
            assert data.classes[label] == NAMES[number]
            for found, modality, entry in zip(inputs, SIZES, (3, versions + 3, versions + 4), strict=True):
                assert found.shape == (1, SIZES[modality])
                torch.testing.assert_close(found[0], torch.tensor(entries[entry][dialogue][number]).float())


def test_dialogues_are_in_one_part_and_the_test_part_is_that_of_the_file(path: Path) -> None:
    data: Any = load(write(path, content()))
    dialogues = [{sample.name[:-5] for sample in part.samples} for part in (data.train, data.val, data.test)]
    assert dialogues[2] == content()[-1]
    assert dialogues[0] | dialogues[1] == content()[-2]
    assert not dialogues[0] & dialogues[1]
    again: Any = load(path, seed=5)
    assert [sample.name for sample in again.val.samples] == [sample.name for sample in data.val.samples]
    whole: Any = load(path, validation=False, select="test")
    assert len(whole.train.samples) == 10 * 5


def broken(change: Callable[[Content], object]) -> Content:
    entries = content()
    change(entries)
    return entries


def set_label(entries: Content, label: Any) -> None:
    entries[2]["Ses01F_impro00"][0] = label


@pytest.mark.parametrize("kind", [float, np.int64, np.float32])
def test_labels_may_be_whole_numbers_of_any_type(path: Path, kind: Callable[[int], Any]) -> None:
    entries = content()
    entries[2] = {dialogue: [kind(label) for label in labels] for dialogue, labels in entries[2].items()}
    data: Any = load(write(path, entries))
    assert len(data.test.samples) == 3 * 5


@pytest.mark.parametrize(
    ("entries", "match"),
    [
        (content()[:6], r"a tuple of 9 or 12 entries.*Found 6 entries: .*labels alone, as of GCNet"),
        (broken(lambda e: e[4].pop("Ses01F_impro00")), r"features of every dialogue. Found KeyError.*Ses01F_impro00"),
        (broken(lambda e: e[2]["Ses01F_impro00"].append(7)), r"labels from 0 to 5.*Ses01F_impro00"),
        (broken(lambda e: e[2]["Ses01F_impro00"].append(1)), r"Found 6 ids, 7 labels, 6 text.* in Ses01F_impro00"),
        (broken(lambda e: e[5].update(Ses01F_impro00=[np.full(3, np.nan)] * 6)), r"finite.*vision of Ses01F_impro00"),
        (broken(lambda e: e[5].update(Ses01F_impro00=[np.zeros(4)] * 6)), r"vision vectors of one size. Found 3, 4"),
        (broken(lambda e: e.__setitem__(8, set())), r"should list the dialogues of test"),
        (broken(lambda e: set_label(e, -2)), r"labels from 0 to 5 .*Found ValueError: label -2 in Ses01F_impro00"),
        (broken(lambda e: set_label(e, 1.9)), r"labels from 0 to 5 .*label 1\.9 in Ses01F_impro00"),
        (broken(lambda e: set_label(e, float("nan"))), r"labels from 0 to 5 .*in Ses01F_impro00"),
        (broken(lambda e: set_label(e, float("inf"))), r"labels from 0 to 5 .*in Ses01F_impro00"),
        (broken(lambda e: set_label(e, True)), r"labels from 0 to 5 .*label True in Ses01F_impro00"),
        (
            broken(lambda e: e[8].add("Ses01F_impro00")),
            r"lists of .* should have no common dialogue\. Found 1, such as Ses01F_impro00",
        ),
        (
            broken(lambda e: e[0]["Ses02F_impro01"].__setitem__(3, "Ses01F_impro00_F003")),
            r"every utterance once\. Found Ses01F_impro00_F003 in Ses0\dF_impro0\d and in Ses0\dF_impro0\d",
        ),
        (
            broken(lambda e: e[0]["Ses02F_impro01"].__setitem__(3, "Ses02F_impro01_F002")),
            r"every utterance once\. Found Ses02F_impro01_F002 in Ses02F_impro01 and in Ses02F_impro01",
        ),
    ],
)
def test_other_files_are_explained(path: Path, entries: Content, match: str) -> None:
    write(path, entries)
    with pytest.raises(RecipeError, match=match):
        read_dialogues(path, tuple(SIZES), 0)


def test_a_fold_is_refused(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`--fold` should be left out for IEMOCAP_features\.pkl"):
        load(write(path, content()), fold=3)


@pytest.mark.parametrize("modality", list(SIZES))
def test_numbers_of_steps_are_refused(path: Path, modality: str) -> None:
    match = rf"`--{modality}-length` should be left out for IEMOCAP_features.*Found --{modality}-length 5: leave it"
    with pytest.raises(RecipeError, match=match):
        load(write(path, content()), **{f"{modality}_length": 5})


def test_all_flags_without_effect_are_named(path: Path) -> None:
    with pytest.raises(RecipeError, match=r"`--fold`, `--text-length` .*--fold 2 --text-length 9: leave them out"):
        load(write(path, content()), fold=2, text_length=9)


def test_a_pickle_that_would_run_code_is_refused(path: Path) -> None:
    path.write_bytes(b"cos\nsystem\n(S'echo'\ntR.")
    with pytest.raises(RecipeError, match=r"`os\.system`, which may run code"):
        load(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # what scaling means to Adam
def test_methods_train_on_vectors(path: Path, tmp_path: Path) -> None:
    flags = ["--data-root", str(write(path, content())), "--epochs", "1", "--batch-size", "16", "--layers", "1"]
    with without_pictures():
        assert main(iemocap.RECIPE, [*flags, "--methods", "none", "cggm", "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "cggm" / "result.json").is_file()
