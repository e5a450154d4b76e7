"""Packed sequence features: what is read, cleaned and refused."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_common.data.readers.packed_parts import MODALITIES, Shapes
from recipe_common.data.readers.packed_sequences import Packed, joined, read_packed
from recipe_common.data.samples.padding import left_aligned, trim_padding
from recipe_common.errors import RecipeError

ALIGNED = Shapes("aligned", text=(6, 3), audio=(6, 2), vision=(6, 4))
UNALIGNED = Shapes("not aligned", text=(6, 3), audio=(None, 2), vision=(9, 4))
KINDS = (ALIGNED, UNALIGNED)
SIZES = {"train": 5, "valid": 2, "test": 3}


def contents(kind: Shapes = ALIGNED, audio_steps: int = 6) -> dict[str, dict[str, Any]]:
    random = np.random.default_rng(0)
    splits = {}
    for split, count in SIZES.items():
        arrays = {
            modality: random.standard_normal(
                (count, getattr(kind, modality)[0] or audio_steps, getattr(kind, modality)[1])
            )
            for modality in MODALITIES
        }
        labels = random.uniform(-3, 3, (count, 1, 1))
        splits[split] = {**arrays, "labels": labels, "id": [f"{split}{row}" for row in range(count)]}
    return splits


def read(folder: Path, content: Any, kinds: tuple[Shapes, ...] = KINDS, **options: Any) -> dict[str, Packed]:
    path = folder / "data.pkl"
    path.write_bytes(pickle.dumps(content, 2))
    return read_packed(path, kinds, (-3, 3), **options)


def test_all_of_a_file(tmp_path: Path) -> None:
    content = contents()
    found = read(tmp_path, content)
    assert list(found) == ["train", "val", "test"]
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        packed = found[ours]
        assert len(packed) == SIZES[theirs]
        assert packed.kind == "aligned"
        assert packed.ids == tuple(content[theirs]["id"])
        assert packed.dropped == ()
        assert packed.repaired == {}
        assert packed.labels.dtype == torch.float32
        assert packed.labels.shape == (SIZES[theirs],)
        np.testing.assert_array_equal(packed.labels, content[theirs]["labels"][:, 0, 0].astype(np.float32))
        for modality in MODALITIES:
            np.testing.assert_array_equal(getattr(packed, modality), content[theirs][modality].astype(np.float32))
            assert getattr(packed, modality).dtype == torch.float32
    assert found["val"].summary("val") == "val: 2 segments (aligned)"


@pytest.mark.parametrize("shape", [(5, 1, 1), (5, 1), (5,)])
def test_shapes_of_labels(tmp_path: Path, shape: tuple[int, ...]) -> None:
    content = contents()
    labels = content["train"]["labels"]
    content["train"]["labels"] = labels.reshape(shape)
    np.testing.assert_array_equal(read(tmp_path, content)["train"].labels, labels.reshape(5).astype(np.float32))


def test_labels_that_are_exactly_zero_stay(tmp_path: Path) -> None:
    content = contents()
    content["train"]["labels"][:] = 0
    assert read(tmp_path, content)["train"].labels.tolist() == [0] * 5


def test_segments_without_text_are_left_out_and_named(tmp_path: Path) -> None:
    content = contents()
    content["train"]["text"][[1, 3]] = 0
    content["train"]["text"][1, 0, 0] = np.nan  # nothing but a value that is not finite is no text either
    packed = read(tmp_path, content)["train"]
    assert packed.ids == ("train0", "train2", "train4")
    assert packed.dropped == ("train1", "train3")
    np.testing.assert_array_equal(packed.audio, content["train"]["audio"][[0, 2, 4]].astype(np.float32))
    np.testing.assert_array_equal(packed.labels, content["train"]["labels"][[0, 2, 4], 0, 0].astype(np.float32))
    assert packed.summary("train").startswith("train: 3 segments (aligned); 2 without text left out, such as train1; ")
    content["train"]["text"][1, 0, 0] = 0
    whole = read(tmp_path, content, drop_empty=False)["train"]
    assert len(whole) == 5
    assert whole.dropped == ()


def test_values_that_are_not_finite_become_zero_and_are_counted(tmp_path: Path) -> None:
    content = contents()
    content["test"]["audio"][0, :2, 1] = -np.inf
    content["test"]["vision"][1, 0, 0] = np.nan
    content["test"]["vision"][2, 0, 0] = 1e300  # too large for float32
    packed = read(tmp_path, content)["test"]
    assert packed.audio[0, :2, 1].tolist() == [0, 0]
    assert all(getattr(packed, modality).isfinite().all() for modality in MODALITIES)
    assert packed.repaired == {"audio": 2, "vision": 2}
    assert "; 2 audio values not finite, set to 0; 2 vision values" in packed.summary("test")


def test_ids_of_every_kind(tmp_path: Path) -> None:
    content = contents()
    content["train"]["id"] = np.array([f"é{row}".encode() for row in range(5)], dtype=object)
    content["valid"]["id"] = np.array([["video", "0.5", "2.0"], ["other", "1.0", "3.0"]])
    del content["test"]["id"]
    found = read(tmp_path, content)
    assert found["train"].ids == ("é0", "é1", "é2", "é3", "é4")
    assert found["val"].ids == ("video 0.5 2.0", "other 1.0 3.0")
    assert found["test"].ids == ("row 0", "row 1", "row 2")


def test_unaligned_files_have_any_number_of_audio_steps(tmp_path: Path) -> None:
    packed = read(tmp_path, contents(UNALIGNED, audio_steps=17))["train"]
    assert packed.kind == "not aligned"
    assert packed.audio.shape == (5, 17, 2)


def test_another_file_of_the_family_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as failure:
        read(tmp_path, contents(UNALIGNED), (ALIGNED,))
    text = str(failure.value)
    assert "with equal N, aligned: text (N, 6, 3), audio (N, 6, 2), vision (N, 6, 4)" in text
    assert "Found text (5, 6, 3), audio (5, 6, 2), vision (5, 9, 4) in train" in text
    with pytest.raises(RecipeError, match=r"or not aligned: text \(N, 6, 3\), audio \(N, T, 2\)"):
        read(tmp_path, contents(Shapes("else", text=(6, 7), audio=(6, 2), vision=(6, 4))))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda content: content.pop("valid"), r"keys train, valid, test\. Found \['test', 'train'\]"),
        (lambda content: content["test"].pop("vision"), r"keys text, audio, vision, labels under test"),
        (lambda content: content.update(train=[1]), "Found list"),
        (
            lambda content: content["test"].update(text=content["test"]["text"][:2]),
            r"Found text \(2, 6, 3\), .* in test",
        ),
        (lambda content: content["train"].update(text=[["a"]]), "array of numbers under train, text. Found dtype <U1"),
        (lambda content: content["train"].update(audio=[[1.0], [1.0, 2.0]]), "array of numbers under train, audio"),
        (
            lambda content: content["train"].update(labels=np.zeros((5, 1, 7))),
            r"\(5, 1, 1\). Found \(5, 1, 7\) in train",
        ),
        (lambda content: content["train"].update(labels=np.zeros(4)), r"Found \(4,\) in train"),
        (lambda content: content["train"]["labels"].__setitem__(2, 3.5), "from -3 to 3. Found 3.5 in row 2 of train"),
        (lambda content: content["valid"]["labels"].__setitem__(1, np.nan), "Found nan in row 1 of valid, and 0 more"),
        (lambda content: content["test"].update(id=["a"]), "should have 3 ids in test. Found 1"),
    ],
)
def test_what_does_not_belong_is_refused(tmp_path: Path, change: Any, found: str) -> None:
    content = contents()
    change(content)
    with pytest.raises(RecipeError, match=found):
        read(tmp_path, content)


def test_a_pickle_of_something_else(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Found ndarray: take the packed file"):
        read(tmp_path, np.zeros(3))


def test_leading_zeros_move_to_the_end_in_all_modalities(tmp_path: Path) -> None:
    content = contents()
    starts = [0, 2, 5, 1, 3]
    for row, start in enumerate(starts):
        content["train"]["text"][row, :start] = 0
    content["train"]["text"][1, 4] = 0  # a zero step between words stays
    packed = left_aligned(read(tmp_path, content)["train"])
    for modality in MODALITIES:
        for row, start in enumerate(starts):
            expected = np.zeros_like(content["train"][modality][row], dtype=np.float32)
            expected[: 6 - start] = content["train"][modality][row][start:]
            np.testing.assert_array_equal(getattr(packed, modality)[row], expected)


def test_only_aligned_sequences_can_be_moved(tmp_path: Path) -> None:
    packed = read(tmp_path, contents(UNALIGNED, audio_steps=17))["train"]
    with pytest.raises(RecipeError, match=r"aligned by word. Found .*'audio': 17.* steps in time"):
        left_aligned(packed)


def test_batches_are_cut_to_their_longest_sequence() -> None:
    values = torch.ones(3, 6, 2)
    values[0, 2:] = 0
    values[1, 4:] = 0
    others = torch.ones(3, 6, 1)
    others[:, 3:] = 0
    samples = [(values[row], others[row], row) for row in range(3)]
    text, audio, target = trim_padding(samples[:2])
    assert text.shape == (2, 4, 2)
    torch.testing.assert_close(text, values[:2, :4])
    torch.testing.assert_close(audio, others[:2, :4])
    assert target.tolist() == [0, 1]
    assert trim_padding(samples)[0].shape == (3, 6, 2)
    assert trim_padding([(torch.zeros(6, 2), torch.zeros(6, 1), 0)])[0].shape == (1, 1, 2)


def test_splits_are_joined_in_order(tmp_path: Path) -> None:
    splits = read(tmp_path, contents())
    both = joined([splits["train"], splits["val"]])
    assert both.ids == splits["train"].ids + splits["val"].ids
    for name in (*MODALITIES, "labels"):
        torch.testing.assert_close(getattr(both, name)[:5], getattr(splits["train"], name))
        torch.testing.assert_close(getattr(both, name)[5:], getattr(splits["val"], name))
    assert joined([both]) is both
