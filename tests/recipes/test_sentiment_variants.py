"""Folders that people have instead of the packed files of sentiment and humour: one message each, nothing written."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import ch_sims
import cmu_mosei
import cmu_mosi
import ur_funny
from recipe_common.cli import main

from .mmsa_files import mmsa_content, write


def dump(name: str, content: Any) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(pickle.dumps(content))


def text(*names: str, content: bytes = b"x") -> Callable[[Path], object]:
    return lambda root: [(root / name).write_bytes(content) for name in names]


WORDS = {split: [((["a"], np.zeros((1, 20)), np.zeros((1, 5))), np.ones((1, 1)), "id")] for split in ("train", "test")}
HDF5 = b"\x89HDF\r\n\x1a\n"
ANOTHER_NAME = "or point --data-root at it if it has another name."

FOLDERS: dict[str, tuple[ModuleType, Callable[[Path], object], str]] = {
    "words and features, MOSI": (cmu_mosi, dump("mosi.pkl", WORDS), "mosi.pkl has words and features of BERT_multi"),
    "words and features, MOSEI": (cmu_mosei, dump("mosei.pkl", WORDS), "mosei.pkl has words and features of BERT_mul"),
    "MISA": (cmu_mosi, text("train.pkl", "dev.pkl", "test.pkl", "embedding_and_mapping.pt"), "and features of MISA"),
    "MISA, parts alone": (
        cmu_mosei,
        text("train.pkl", "dev.pkl", "test.pkl"),
        "train.pkl, dev.pkl, test.pkl have words and features of one part, as those of MISA",
    ),
    "HDF5 of MultiBench": (cmu_mosi, text("mosi.hdf5", content=HDF5), "mosi.hdf5 has sequences by segment, without"),
    "CMU SDK": (cmu_mosei, text("CMU_MOSEI_COVAREP.csd", content=HDF5), "computational sequences of the CMU SDK"),
    "labels and videos": (
        cmu_mosei,
        text("label.csv"),
        "label.csv has labels without features: download one",
    ),
    "CH-SIMS videos": (ch_sims, text("label.csv"), "labels without features: download one of unaligned_39.pkl, ch-"),
    "CH-SIMS v2(u)": (ch_sims, dump("ch-simsv2u.pkl", {"text": [1]}), "ch-simsv2u.pkl has segments without labels"),
    "HKT": (ur_funny, dump("ur_funny.pkl", WORDS), "ur_funny.pkl has words and features of HKT: download the missing"),
}


@pytest.mark.parametrize("name", list(FOLDERS))
def test_a_folder_of_other_files(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, fill, found = FOLDERS[name]
    root = tmp_path / "data"
    root.mkdir()
    fill(root)
    before = sorted(root.iterdir())
    assert main(module.RECIPE, ["--data-root", str(root), "--output", str(tmp_path / "out")]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert found in message
    assert message.count("error:") == 1
    assert (ANOTHER_NAME in message) == (module is not ur_funny)
    assert sorted(root.iterdir()) == before
    assert not (tmp_path / "out").exists()


FILES: dict[str, tuple[ModuleType, Callable[[Path], object], str, str]] = {
    "words and features": (cmu_mosi, dump("mosi.pkl", WORDS), "mosi.pkl", "keys train, valid, test. Found ['test', "),
    "HDF5": (cmu_mosi, text("a.hdf5", content=HDF5), "a.hdf5", "Found an HDF5 file: download the pickle file."),
    "without text": (
        cmu_mosi,
        lambda root: without_text(root / "a.pkl"),
        "a.pkl",
        "should have the keys text, audio, vision, regression_labels under train. Found ['annotations', 'audio'",
    ),
    "features of MMSA-FET": (
        ch_sims,
        lambda root: write(root / "a.pkl", mmsa_content((50, 25), (50, 171), text=(39, 768), bound=1)),
        "a.pkl",
        "Found text (6, 39, 768), audio (6, 50, 25), vision (6, 50, 171) in train",
    ),
    "MOSI for CH-SIMS": (
        ch_sims,
        lambda root: write(root / "a.pkl", mmsa_content((375, 5), (500, 20))),
        "a.pkl",
        "Found text (6, 50, 768), audio (6, 375, 5), vision (6, 500, 20) in train",
    ),
}


def without_text(path: Path) -> Path:
    content = mmsa_content((50, 5), (50, 20), aligned=True)
    for part in content.values():
        del part["text"], part["text_bert"]
    return write(path, content)


@pytest.mark.parametrize("name", list(FILES))
def test_another_file(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module, fill, file, found = FILES[name]
    fill(tmp_path)
    given = ["--features", "mmsa_aligned"] if name == "without text" else []
    assert main(module.RECIPE, ["--data-root", str(tmp_path / file), "--output", str(tmp_path / "out"), *given]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert found in message
    assert message.count("error:") == 1
    assert not (tmp_path / "out").exists()
