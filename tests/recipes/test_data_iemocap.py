"""The files of MMIN: lists, h5 features, statistics, and every way in which they can be wrong."""

from __future__ import annotations

import pickle
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from recipe_common.data.datasets.iemocap import FeatureFile, find_root, read_split, read_statistics, sources
from recipe_common.data.samples.lists import Row
from recipe_common.data.synthetic.iemocap import SyntheticUtterances
from recipe_common.errors import RecipeError

from .iemocap_tree import SIZES, names, write_features, write_h5, write_list, write_tree

CLASSES = ("angry", "happy", "neutral", "sad")
LENGTHS = {"text": 4, "audio": 2, "vision": 3}


def error_of(function: Any, *arguments: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        function(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("folder", [".", "IEMOCAP_features_2021"])
def test_the_root_or_the_folder_above_it_is_found(tmp_path: Path, folder: str) -> None:
    write_tree(tmp_path / folder)
    assert find_root(tmp_path) == tmp_path / folder


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    (tmp_path / "V" / "denseface.h5").unlink()
    assert "Found all but V/denseface.h5: unpack" in error_of(find_root, tmp_path)


def test_the_corpus_as_released_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "Session1").mkdir()
    assert "the corpus as released" in error_of(find_root, tmp_path)


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("IEMOCAP_features_raw.pkl", "one vector per utterance, which is read where --data-root is the file itself"),
        ("iemocap_multimodal_features.pkl", "one vector per utterance, which is read where --data-root is the file"),
        ("IEMOCAP_features_raw_4way.pkl", "one vector per utterance, as GCNet"),
        ("features/wav2vec-large-c-UTT/Ses01F_impro01_F000.npy", "one vector per utterance, as GCNet"),
        ("iemocap_data_noalign.pkl", "the sequences of MulT"),
        ("IEMOCAP_COVAREP.csd", "computational sequences of the CMU SDK"),
    ],
)
def test_other_forms_of_the_corpus_are_named(tmp_path: Path, file: str, kind: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    assert f"; that is {kind}" in error_of(find_root, tmp_path)


def test_a_fold_has_three_parts_of_names_and_classes(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    split = read_split(tmp_path, 1, CLASSES)
    assert [row.name for row in split.train] == utterances[:8]
    assert [row.name for row in (*split.val, *split.test)] == utterances[8:]
    assert [row.label for row in split.val] == list(CLASSES)


@pytest.mark.parametrize("shape", ["flat bytes", "text"])
def test_names_and_labels_of_other_shapes(tmp_path: Path, shape: str) -> None:
    utterances = write_tree(tmp_path)
    folder = tmp_path / "target" / "1"
    np.save(folder / "val_int2name.npy", np.array(utterances[8:12], "S" if shape == "flat bytes" else None))
    np.save(folder / "val_label.npy", np.array([3, 2, 1, 0]))
    split = read_split(tmp_path, 1, CLASSES)
    assert [row.name for row in split.val] == utterances[8:12]
    assert [row.label for row in split.val] == ["sad", "neutral", "happy", "angry"]


def test_an_unknown_fold_shows_the_known_ones(tmp_path: Path) -> None:
    write_tree(tmp_path)
    for fold in (10, 2):
        (tmp_path / "target" / str(fold)).mkdir()
    assert "Found ['1', '2', '10']" in error_of(read_split, tmp_path, 3, CLASSES)


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.zeros((4, 4)), "rows without a single 1"),
        (np.full((4, 4), 0.25), "rows without a single 1"),
        (np.eye(4)[:, :3], "shape (4, 3)"),
        (np.array([0, 1, 2, 4]), "int64 of shape (4,)"),
        (np.array([0, 1, 2, -1]), "int64 of shape (4,)"),
        (np.eye(4)[:3], "val_int2name.npy should have as many names as val_label.npy has labels. Found 4 and 3"),
    ],
)
def test_bad_labels(tmp_path: Path, labels: Any, found: str) -> None:
    write_tree(tmp_path)
    np.save(tmp_path / "target" / "1" / "val_label.npy", labels)
    assert found in error_of(read_split, tmp_path, 1, CLASSES)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00", b"not numpy at all"])
def test_a_list_that_is_cut_off(tmp_path: Path, content: bytes) -> None:
    write_tree(tmp_path)
    path = tmp_path / "target" / "1" / "tst_int2name.npy"
    path.write_bytes(content)
    assert str(path) in error_of(read_split, tmp_path, 1, CLASSES)


def test_a_list_that_would_run_code_is_refused(tmp_path: Path) -> None:
    write_tree(tmp_path)
    np.save(tmp_path / "target" / "1" / "val_int2name.npy", np.array([b"a", None], object), allow_pickle=True)
    assert "Python objects" in error_of(read_split, tmp_path, 1, CLASSES)


def test_an_utterance_in_two_parts(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    write_list(tmp_path, "val", utterances[7:11], [0, 1, 2, 3])
    assert f"Found {utterances[7]} again" in error_of(read_split, tmp_path, 1, CLASSES)


def test_features_are_cut_padded_and_only_audio_is_normalised(tmp_path: Path) -> None:
    (name,) = names(1)
    write_features(tmp_path, [name], steps=3)
    with h5py.File(tmp_path / "A" / "comparE.h5") as file:
        audio = file[name][()]
    with h5py.File(tmp_path / "L" / "bert_large.h5") as file:
        text = file[name][()]
    read = [source.read(source.find(Row(name, "sad")), seed=None) for source in sources(tmp_path, 1, LENGTHS)]
    assert [tuple(x.shape) for x in read] == [(4, 6), (2, 5), (3, 4)]
    assert all(x.dtype == torch.float32 for x in read)
    np.testing.assert_allclose(read[0][:3].numpy(), text, rtol=1e-6)
    assert not read[0][3].any()
    np.testing.assert_allclose(read[1].numpy(), (audio[:2] - 1) / [1, 2, 2, 2, 2], rtol=1e-5)


def test_padding_comes_after_normalisation(tmp_path: Path) -> None:
    (name,) = names(1)
    write_features(tmp_path, [name], steps=1)
    _, audio, _ = sources(tmp_path, 1, LENGTHS)
    assert not audio.read(name, seed=1)[1].any()


def test_an_utterance_without_features_is_not_found(tmp_path: Path) -> None:
    write_features(tmp_path, names(2))
    assert [source.find(Row(names(3)[2], "sad")) for source in sources(tmp_path, 1, LENGTHS)] == [None] * 3


@pytest.mark.parametrize("keep", [0, 100, -200])
def test_a_truncated_h5_file(tmp_path: Path, keep: int) -> None:
    write_features(tmp_path, names(20), steps=50)
    path = tmp_path / "L" / "bert_large.h5"
    path.write_bytes(path.read_bytes()[:keep])
    assert f"{path} should be a whole h5 file. Found " in error_of(FeatureFile, path)


@pytest.mark.parametrize(
    ("values", "found"),
    [
        (np.ones((3, 7)), "shape (3, 7)"),
        (np.ones(6), "shape (6,)"),
        (np.full((3, 6), np.nan), "not finite"),
        (np.array([b"words"]), "could not convert"),
    ],
)
def test_bad_features_of_one_utterance(tmp_path: Path, values: Any, found: str) -> None:
    write_h5(tmp_path / "x.h5", {"a": np.ones((3, 6)), "b": values})
    file = FeatureFile(tmp_path / "x.h5")
    text = error_of(file.read, "b")
    assert found in text
    assert "of b. Found" in text
    assert "x.h5 should" in text
    assert "--skip-bad" in text


@pytest.mark.parametrize(("content", "found"), [({}, "Found none"), ({"a/b": np.ones((3, 6))}, "a group")])
def test_an_h5_file_of_another_kind(tmp_path: Path, content: Any, found: str) -> None:
    write_h5(tmp_path / "x.h5", content)
    assert found in error_of(FeatureFile, tmp_path / "x.h5")


def test_statistics_of_another_fold_or_size(tmp_path: Path) -> None:
    write_features(tmp_path, names(2), fold=3)
    path = tmp_path / "A" / "comparE_mean_std.h5"
    assert "1/mean" in error_of(read_statistics, path, 1)
    write_h5(path, {"1/mean": np.ones(4), "1/std": np.ones(4)})
    text = error_of(sources, tmp_path, 1, LENGTHS)
    assert f"should hold statistics of {SIZES['A/comparE.h5']} features" in text
    assert "Found 4" in text


def _read_elsewhere(file: FeatureFile, name: str) -> float:
    return float(file.read(name).sum())


def test_other_processes_open_the_file_anew(tmp_path: Path) -> None:
    write_h5(tmp_path / "x.h5", {"a": np.ones((3, 6))})
    file = FeatureFile(tmp_path / "x.h5")
    assert pickle.loads(pickle.dumps(file)).read("a").sum() == 18  # what `spawn` does
    with get_context("fork").Pool(1) as pool:
        assert pool.apply(_read_elsewhere, (file, "a")) == 18


def test_synthetic_utterances_are_the_same_every_time(tmp_path: Path) -> None:
    synthetic = SyntheticUtterances(parts=(6, 4, 4))
    for folder in ("one", "two"):
        synthetic.write(tmp_path / folder)
    for name in SIZES:
        with h5py.File(tmp_path / "one" / name) as one, h5py.File(tmp_path / "two" / name) as two:
            assert set(one) == set(two)
            assert all(np.array_equal(one[each][()], two[each][()]) for each in one)
    splits = [read_split(tmp_path / folder, 1, CLASSES) for folder in ("one", "two")]
    assert splits[0] == splits[1]
    swapped = read_split(tmp_path / "one", 2, CLASSES)
    assert (swapped.val, swapped.test) == (splits[0].test, splits[0].val)


def test_synthetic_audio_is_normalised_by_its_training_frames(tmp_path: Path) -> None:
    SyntheticUtterances(parts=(30, 4, 4)).write(tmp_path)
    split = read_split(tmp_path, 1, CLASSES)
    _, audio, _ = sources(tmp_path, 1, {"text": 6, "audio": 24, "vision": 8})
    with h5py.File(tmp_path / "A" / "comparE.h5") as file:
        frames = np.concatenate([file[row.name][()] for row in split.train])
        lengths = {len(file[row.name]) for row in split.train}
    mean, deviation = read_statistics(tmp_path / "A" / "comparE_mean_std.h5", 1)
    np.testing.assert_allclose(mean, frames.mean(0), rtol=1e-4, atol=1e-4)
    assert deviation[0] == 1
    np.testing.assert_allclose(deviation[1:], frames.std(0)[1:], rtol=1e-4)
    assert min(lengths) < 16 < max(lengths)
    steps = torch.cat([audio.read(row.name, seed=None) for row in split.train])
    assert steps.abs().max() < 10
