"""CMU-MOSEI: packed files, and the words and mel spectrograms of AGM."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_common.data.datasets.cmu_mosei import MELS, clean_words, read_mosei, read_speech
from recipe_common.data.datasets.packed_files import PackedFile
from recipe_common.data.readers.packed_parts import Shapes
from recipe_common.errors import RecipeError

FILES = {
    name: PackedFile(f"{file}.pkl", Shapes("small", (4, 3), (4, 2), (4, 2)))
    for name, file in {"aligned": "mosei_senti_data", "noalign": "other"}.items()
}
FLAGS = "--model agm"
NAMES = {"train": ("a[0]", "a[10]", "a[2]"), "valid": ("b[0]", "b[1]"), "test": ("c[0]",)}


def dump(path: Path, content: Any) -> None:
    path.write_bytes(pickle.dumps(content, 2))


def packed() -> dict[str, Any]:
    random = np.random.default_rng(0)
    return {
        split: {
            "text": random.standard_normal((3, 4, 3)),
            "audio": random.standard_normal((3, 4, 2)),
            "vision": random.standard_normal((3, 4, 2)),
            "labels": np.array([-3, 0, 3.0]).reshape(3, 1, 1),
            "id": [["video", "0.0", "1.0"]] * 3,
        }
        for split in ("train", "valid", "test")
    }


def talks() -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    sentences: dict[str, Any] = {
        "a[0]": ["I", "LOVE", "it", "!"],
        "a[10]": [b"well-made", b"..."],
        "a[2]": [np.array([b"I"]), np.array([b"hate"])],
        "b[0]": ["love", "what"],
        "b[1]": ["?"],
        "c[0]": ["it"] * 9,
    }
    steps = {"a[0]": 2, "a[10]": 7, "a[2]": 5, "b[0]": 1, "b[1]": 3, "c[0]": 5}
    sentiment: dict[str, Any] = {
        "a[0]": 3.0,
        "a[10]": np.float32(0.5),
        "a[2]": np.array([[-3.0]]),
        "b[0]": 1,
        "b[1]": 0.0,
        "c[0]": -1 / 3,
    }
    mels = {name: random.standard_normal((count, MELS)) for name, count in steps.items()}
    files = {"sentences": sentences, "mels": mels, "sentiment": sentiment}
    return {
        f"{split}_{what}.p": {name: content[name] for name in names}
        for split, names in NAMES.items()
        for what, content in files.items()
    }


def write_talks(folder: Path, content: dict[str, dict[str, Any]], *, vocabulary: bool = True) -> Path:
    for name, of_file in content.items():
        dump(folder / name, of_file)
    if vocabulary:
        dump(folder / "token_to_ix.pkl", {"UNK": 1, "i": 1, "love": 2, "it": 3, "well made": 4})
        np.save(folder / "train_glove.npy", np.arange(10.0).reshape(5, 2))
    return folder


def test_packed_files_by_name_or_by_path(tmp_path: Path) -> None:
    content = packed()
    content["train"]["text"][0] = 0
    dump(tmp_path / "mosei_senti_data.pkl", content)
    path, splits = read_mosei(tmp_path, "aligned", FILES, drop_empty=True, speech_flags=FLAGS)
    assert path == tmp_path / "mosei_senti_data.pkl"
    assert splits["train"].labels.tolist() == [0, 3]
    assert splits["train"].ids == ("video 0.0 1.0",) * 2
    _, whole = read_mosei(path, "noalign", FILES, drop_empty=False, speech_flags=FLAGS)
    assert whole["train"].labels.tolist() == [-3, 0, 3]


def test_packed_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"should hold mosei_senti_data.pkl\. Found an empty folder: put"):
        read_mosei(tmp_path, "aligned", drop_empty=True, speech_flags=FLAGS)
    dump(tmp_path / "mosei_senti_data.pkl", packed())
    with pytest.raises(RecipeError, match=r"should hold mosei_senti_data_noalign.pkl\. .*: add --features aligned"):
        read_mosei(tmp_path, "noalign", drop_empty=True, speech_flags=FLAGS)
    (tmp_path / "train_mels.p").touch()
    with pytest.raises(RecipeError, match=": add --model agm for the words"):
        read_mosei(tmp_path, "noalign", drop_empty=True, speech_flags=FLAGS)
    with pytest.raises(
        RecipeError, match=r"aligned by word: text \(N, 50, 300\), audio \(N, 50, 74\).*Found .* in train"
    ):
        read_mosei(tmp_path, "aligned", drop_empty=True, speech_flags=FLAGS)


def test_words_are_cleaned_as_in_the_agm_code() -> None:
    assert clean_words(["I'm", "GREAT!", "--", "(so)", "a/b", "well-made", b"Yes;", [b"no"], "...", "#1*"]) == [
        "im",
        "great",
        "  ",
        "so",
        "a b",
        "well made",
        "yes",
        "no",
        "1",
    ]


def test_words_and_mel_spectrograms(tmp_path: Path) -> None:
    content = talks()
    content["train_mels.p"]["a[2]"][0, 0] = -np.inf
    found = read_speech(write_talks(tmp_path, content), tokens=5, speech_flags=FLAGS)
    train = found.splits["train"]
    assert train.ids == ("a[0]", "a[10]", "a[2]")
    assert train.text.dtype == torch.int64
    assert train.text.tolist() == [[1, 2, 3, 0, 0], [4, 0, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert found.splits["val"].text.tolist() == [[2, 1, 0, 0, 0], [0] * 5]
    assert found.splits["test"].text.tolist() == [[3] * 5]
    assert train.labels.tolist() == [3.0, 0.5, -3.0]
    assert found.splits["val"].labels.tolist() == [1.0, 0.0]
    assert train.audio.shape == (3, 5, MELS)
    mels = content["train_mels.p"]
    np.testing.assert_array_equal(train.audio[0, :2], mels["a[0]"].astype(np.float32))
    assert not train.audio[0, 2:].any()
    np.testing.assert_array_equal(train.audio[1], mels["a[10]"][:5].astype(np.float32))
    assert train.audio[2, 0, 0] == 0
    assert found.vectors.tolist() == np.arange(10.0).reshape(5, 2).tolist()
    assert found.skipped == ()
    assert found.summary[1] == "train: 3 of 3 segments; 1 audio values not finite, set to 0"


def test_segments_without_words_or_audio_are_left_out_and_listed(tmp_path: Path) -> None:
    content = talks()
    del content["train_mels.p"]["a[0]"], content["train_sentences.p"]["a[0]"], content["valid_mels.p"]["b[1]"]
    content["train_mels.p"]["nobody[0]"] = np.zeros((1, MELS))  # has no sentiment: does not count
    found = read_speech(write_talks(tmp_path, content), tokens=5, speech_flags=FLAGS)
    assert found.skipped == ("train: a[0]: no sentences or mels", "val: b[1]: no mels")
    assert found.splits["train"].ids == ("a[10]", "a[2]")
    assert "train: 2 of 3 segments" in found.summary


def test_without_word_vectors_training_words_get_random_ones(tmp_path: Path) -> None:
    found = read_speech(write_talks(tmp_path, talks(), vocabulary=False), tokens=5, speech_flags=FLAGS)
    # Sorted: hate 2, i 3, it 4, love 5, well made 6; unknown 1.
    assert found.splits["train"].text[:, :3].tolist() == [[3, 5, 4], [6, 0, 0], [3, 2, 0]]
    assert found.splits["val"].text[0, :2].tolist() == [5, 1]
    assert found.vectors.shape == (7, 300)
    assert found.summary[0].startswith("word vectors: random")
    again = read_speech(tmp_path, tokens=5, speech_flags=FLAGS)
    torch.testing.assert_close(again.vectors, found.vectors)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda c, _: c.pop("valid_mels.p"),
            r"should hold valid_mels.p\. .*: download the files .*, or leave --model agm out",
        ),
        (lambda c, _: c["train_mels.p"].update({"a[0]": np.zeros((2, 74))}), r"\(T, 80\) by segment.*\(2, 74\)"),
        (lambda c, _: c["train_mels.p"].update({"a[0]": ["x"]}), r"\(T, 80\) by segment\. Found <U1"),
        (lambda c, _: c["test_sentiment.p"].update({"c[0]": 3.5}), r"from -3 to 3\. Found 3.5 in row 0 of test"),
        (
            lambda c, _: c["test_sentiment.p"].update({"c[0]": [1, 2]}),
            r"test_sentiment\.p should hold one sentiment per segment\. Found",
        ),
        (lambda c, _: c.update({"test_sentences.p": ["it"]}), "hold a dict by segment. Found list"),
        (lambda _, root: (root / "train_glove.npy").unlink(), "Found token_to_ix.pkl alone: add the other file"),
        (lambda _, root: np.save(root / "train_glove.npy", np.zeros((3, 2))), "indices from 1 to 2, .*that of `it`"),
        (
            lambda _, root: np.save(root / "train_glove.npy", np.zeros(3)),
            r"train_glove\.npy should hold finite word vectors \(V, D\)\. Found shape \(3,\)",
        ),
        (
            lambda _, root: (root / "train_glove.npy").write_bytes(b"<html>"),
            r"train_glove\.npy should hold an array of word vectors\. Found",
        ),
        (lambda _, root: dump(root / "token_to_ix.pkl", {"it": 1}), "should have UNK, .*Found no UNK"),
    ],
)
def test_what_does_not_belong_is_refused(tmp_path: Path, change: Any, found: str) -> None:
    content = talks()
    write_talks(tmp_path, {})
    change(content, tmp_path)
    write_talks(tmp_path, content, vocabulary=False)
    with pytest.raises(RecipeError, match=found):
        read_speech(tmp_path, tokens=5, speech_flags=FLAGS)
