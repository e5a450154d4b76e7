"""UR-FUNNY as MultiBench packs it and as it is released."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_common.data.datasets.ur_funny import RELEASE, SIZES, STEPS, read_ur_funny
from recipe_common.errors import RecipeError

VOCABULARY = 9


def dump(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content, 2))


def packed(counts: dict[str, int]) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    splits = {}
    for split, count in counts.items():
        arrays = {modality: random.standard_normal((count, STEPS, size)) for modality, size in SIZES.items()}
        splits[split] = {**arrays, "labels": np.ones((count, 1, 1)), "id": np.arange(count)[:, None]}
    return splits


def release() -> dict[str, Any]:
    """Six segments: 1 to 3 for training, 4 and 5 for validation, 6 for the test."""
    random = np.random.default_rng(0)
    words = {1: [3, 1, 8], 2: [2], 3: list(range(VOCABULARY)) * 7, 4: [0, 1], 5: [4, 4], 6: [5]}

    def features(size: int) -> dict[int, dict[str, Any]]:
        return {
            id_: {"punchline_features": random.standard_normal((len(of), size)).tolist(), "context_features": [[]]}
            for id_, of in words.items()
        }

    return {
        "data_folds.pkl": {"train": [1, 2, 3], "dev": [4, 5], "test": [6]},
        "language_sdk.pkl": {
            id_: {"punchline_embedding_indexes": of, "context_embedding_indexes": [[1]], "punchline_sentence": "a"}
            for id_, of in words.items()
        },
        "word_embedding_list.pkl": random.standard_normal((VOCABULARY, SIZES["text"])).tolist(),
        "covarep_features_sdk.pkl": features(SIZES["audio"]),
        "openface_features_sdk.pkl": features(SIZES["vision"]),
        "humor_label_sdk.pkl": {1: 1, 2: 0, 3: 1, 4: 0, 5: 1, 6: 0},
    }


def write(folder: Path, content: dict[str, Any]) -> Path:
    for name, of_file in content.items():
        dump(folder / name, of_file)
    return folder


def test_the_packed_file_is_found_and_moved_to_the_left(tmp_path: Path) -> None:
    content = packed({"train": 3, "valid": 2, "test": 2})
    content["train"]["text"][0, :10] = 0
    content["train"]["text"][2] = 0
    content["valid"]["labels"][0] = -1
    dump(tmp_path / "humor.pkl", content)
    humor = read_ur_funny(tmp_path)
    assert humor.path == tmp_path / "humor.pkl"
    assert humor.skipped == ()
    train = humor.splits["train"]
    assert (len(train), len(humor.splits["val"]), len(humor.splits["test"])) == (2, 2, 2)
    assert train.dropped == ("2",)
    for modality in SIZES:
        expected = content["train"][modality][0, 10:].astype(np.float32)
        np.testing.assert_array_equal(getattr(train, modality)[0, :40], expected)
        assert not getattr(train, modality)[0, 40:].any()
    assert humor.splits["val"].labels.tolist() == [-1, 1]
    (tmp_path / "humor.pkl").rename(tmp_path / "renamed")
    assert len(read_ur_funny(tmp_path / "renamed").splits["train"]) == 2


def test_all_of_the_release(tmp_path: Path) -> None:
    content = release()
    humor = read_ur_funny(write(tmp_path, content))
    assert humor.skipped == ()
    train = humor.splits["train"]
    assert {name: part.ids for name, part in humor.splits.items()} == {
        "train": ("1", "2", "3"),
        "val": ("4", "5"),
        "test": ("6",),
    }
    assert train.labels.tolist() == [1, 0, 1]
    assert (train.text.shape, train.audio.shape, train.vision.shape) == ((3, 50, 300), (3, 50, 81), (3, 50, 371))
    vectors = np.array(content["word_embedding_list.pkl"], np.float32)
    np.testing.assert_array_equal(train.text[0, :3], vectors[[3, 1, 8]])
    np.testing.assert_array_equal(train.text[2], vectors[(list(range(VOCABULARY)) * 7)[:50]])
    for modality, name in (("audio", "covarep_features_sdk.pkl"), ("vision", "openface_features_sdk.pkl")):
        values = np.array(content[name][1]["punchline_features"], np.float32)
        np.testing.assert_array_equal(getattr(train, modality)[0, :3], values)
        assert not getattr(train, modality)[0, 3:].any()


def version_1(content: dict[str, Any]) -> dict[str, Any]:
    """Rename and change the files of version 2 to those of version 1."""
    features = content["openface_features_sdk.pkl"]
    of_version_1 = {
        id_: {"punchline_features": [row[:75] for row in entry["punchline_features"]]}
        for id_, entry in features.items()
    }
    indexes = {
        id_: {"punchline_embedding_indexes": [[index] for index in of_id["punchline_embedding_indexes"]]}
        for id_, of_id in content.pop("language_sdk.pkl").items()
    }
    return {
        **content,
        "word_embedding_indexes_sdk.pkl": indexes,
        "openface_features_sdk.pkl": of_version_1,
    }


def test_all_of_version_1(tmp_path: Path) -> None:
    content = version_1(release())
    humor = read_ur_funny(write(tmp_path, content))
    assert humor.skipped == ()
    train = humor.splits["train"]
    assert (train.text.shape, train.audio.shape, train.vision.shape) == ((3, 50, 300), (3, 50, 81), (3, 50, 75))
    vectors = np.array(content["word_embedding_list.pkl"], np.float32)
    np.testing.assert_array_equal(train.text[0, :3], vectors[[3, 1, 8]])
    assert train.summary("train") == "train: 3 segments (release, version 1)"


def test_the_name_of_version_1_for_the_text_of_version_2(tmp_path: Path) -> None:
    write(tmp_path, release())
    (tmp_path / "language_sdk.pkl").rename(tmp_path / "word_embedding_indexes_sdk.pkl")
    train = read_ur_funny(tmp_path).splits["train"]
    assert (train.kind, train.vision.shape) == ("release", (3, 50, 371))


def test_features_of_both_versions_are_not_mixed(tmp_path: Path) -> None:
    content = version_1(release())
    content["openface_features_sdk.pkl"][4] = release()["openface_features_sdk.pkl"][4]
    with pytest.raises(RecipeError, match=r"features \(T, 75\) for 4\. Found \(2, 371\): take version 2"):
        read_ur_funny(write(tmp_path, content))


def test_what_the_release_lacks_is_left_out_and_listed(tmp_path: Path) -> None:
    content = release()
    del content["covarep_features_sdk.pkl"][1], content["humor_label_sdk.pkl"][1]
    content["openface_features_sdk.pkl"][2]["punchline_features"] *= 2
    content["language_sdk.pkl"][4]["punchline_embedding_indexes"] = []
    for name in ("covarep_features_sdk.pkl", "openface_features_sdk.pkl"):
        content[name][4]["punchline_features"] = []
    content["covarep_features_sdk.pkl"][5]["punchline_features"][0][7] = float("-inf")
    humor = read_ur_funny(write(tmp_path, content))
    assert humor.splits["train"].ids == ("3",)
    assert humor.skipped == (
        "train: 1: not in covarep_features_sdk.pkl, humor_label_sdk.pkl",
        "train: 2: not aligned by word: {'text': 1, 'audio': 1, 'vision': 2}",
    )
    val = humor.splits["val"]
    assert (val.ids, val.dropped) == (("5",), ("4",))
    assert val.repaired == {"audio": 1}
    assert val.audio[0, 0, 7] == 0
    assert torch.isfinite(val.audio).all()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda c: c.update({"data_folds.pkl": {"train": [1]}}),
            r"data_folds\.pkl should hold the keys train, dev and test\. Found train",
        ),
        (lambda c: c.update({"data_folds.pkl": [1]}), "data_folds.pkl should hold a dict. Found list"),
        (
            lambda c: c["language_sdk.pkl"][1].pop("punchline_embedding_indexes"),
            "should hold punchline_embedding_indexes",
        ),
        (
            lambda c: c["language_sdk.pkl"][1].update(punchline_embedding_indexes=[99]),
            r"word indices below 9 for 1\. Found 99 to 99",
        ),
        (
            lambda c: c["covarep_features_sdk.pkl"][6].update(punchline_features=[[0.0] * 75]),
            r"features \(T, 81\) for 6\. Found \(1, 75\).*version 2",
        ),
        (
            lambda c: c["covarep_features_sdk.pkl"][6].update(punchline_features=[[1.0], []]),
            r"covarep_features_sdk.pkl should hold .* for 6\. Found",
        ),
        (
            lambda c: c["openface_features_sdk.pkl"][1].update(punchline_features=3),
            r"openface_features_sdk\.pkl should hold punchline_features \(T, D\) for 1\. Found int: take version 2",
        ),
        (
            lambda c: c["openface_features_sdk.pkl"][1].update(punchline_features=np.array(3.0)),
            r"openface_features_sdk\.pkl should hold .* for 1\. Found",
        ),
        (lambda c: c.update({"word_embedding_list.pkl": [[1.0]]}), r"word vectors \(V, 300\)\. Found \(1, 1\)"),
        (lambda c: c.update({"word_embedding_list.pkl": [[1.0], []]}), "list of word vectors of one size"),
        (lambda c: c["humor_label_sdk.pkl"].update({1: 4}), "Labels .* from -1 to 1. Found 4 in row 0 of train"),
    ],
)
def test_what_does_not_belong_is_refused(tmp_path: Path, change: Any, found: str) -> None:
    content = release()
    change(content)
    with pytest.raises(RecipeError, match=found):
        read_ur_funny(write(tmp_path, content))


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"should hold humor.pkl, or the files of the release .*Found an empty folder"
    ):
        read_ur_funny(tmp_path)
    content = release()
    del content["word_embedding_list.pkl"]
    with pytest.raises(
        RecipeError, match=r"Found of the release all but word_embedding_list.pkl: download the missing"
    ):
        read_ur_funny(write(tmp_path, content))
    assert set(content) < set(RELEASE)


def test_a_file_of_another_dataset_is_told_apart(tmp_path: Path) -> None:
    content = packed({"train": 2, "valid": 2, "test": 2})
    content["test"]["vision"] = content["test"]["vision"][:, :, :35]
    dump(tmp_path / "humor.pkl", content)
    with pytest.raises(RecipeError, match=r"packed by MultiBench: text \(N, 50, 300\), audio .*Found .*35.* in test"):
        read_ur_funny(tmp_path)
