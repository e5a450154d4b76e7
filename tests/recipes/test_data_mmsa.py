"""Packed files of MMSA: features, lengths, token ids, labels of each modality, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recipe_common.data.features.tokens import TokenStates
from recipe_common.data.readers.mmsa import read_mmsa
from recipe_common.data.readers.packed_parts import MODALITIES, Shapes
from recipe_common.data.readers.packed_sequences import Packed
from recipe_common.errors import RecipeError

from .mmsa_files import COUNTS, mmsa_content, write_bert

KIND = Shapes("MMSA", (12, 8), (None, 5), (None, 4))
ALIGNED = Shapes("MMSA", (12, 8), (12, 5), (12, 4))


def contents(**options: Any) -> dict[str, dict[str, Any]]:
    return mmsa_content((14, 5), (11, 4), text=(12, 8), **options)


def read(content: Any, kind: Shapes = KIND, **options: Any) -> dict[str, Packed]:
    return read_mmsa(Path("data.pkl"), copy.deepcopy(content), kind, (-3, 3), **options)


def test_all_of_a_file() -> None:
    content = contents()
    found = read(content)
    assert list(found) == ["train", "val", "test"]
    for ours, theirs in (("train", "train"), ("val", "valid"), ("test", "test")):
        packed = found[ours]
        assert len(packed) == COUNTS[theirs]
        assert packed.ids == tuple(content[theirs]["id"])
        np.testing.assert_array_equal(packed.labels, content[theirs]["regression_labels"])
        for modality in MODALITIES:
            values = getattr(packed, modality)
            assert values.dtype == torch.float32
            for row in range(len(packed)):
                np.testing.assert_array_equal(values[row, : 3 + row], content[theirs][modality][row, : 3 + row])
                assert not values[row, 3 + row :].any()
        assert packed.own_labels == {}
    assert found["val"].summary("val") == "val: 3 segments (MMSA)"


def test_infinite_text_of_padding_does_not_count() -> None:
    content, expected = contents(), read(contents())["train"].text
    content["train"]["text"][:, -1] = -np.inf
    train = read(content)["train"]
    assert train.repaired == {}
    assert torch.equal(train.text, expected)


def test_labels_of_each_modality() -> None:
    content = contents(own_labels=True)
    train = read(content)["train"]
    assert list(train.own_labels) == list(MODALITIES)
    for modality, letter in zip(MODALITIES, "TAV", strict=True):
        np.testing.assert_array_equal(train.own_labels[modality], content["train"][f"regression_labels_{letter}"])
    content["train"]["text"][2] = 0
    kept = read(content, drop_empty=True)["train"]
    assert kept.dropped == (content["train"]["id"][2],)
    np.testing.assert_array_equal(kept.own_labels["audio"], np.delete(content["train"]["regression_labels_A"], 2))


def test_steps_after_the_length_are_padding() -> None:
    content = contents()
    content["train"]["audio"][0, 3:] = 7
    content["train"]["vision_lengths"][1] = 2
    packed = read(content)["train"]
    assert not packed.audio[0, 3:].any()
    assert packed.audio[0, :3].all()
    assert packed.vision[1, :2].all()
    assert not packed.vision[1, 2:].any()


def test_a_length_beyond_the_array_is_that_of_a_segment_that_was_cut() -> None:
    content = contents()
    content["train"]["audio"][:] = 1
    content["train"]["audio_lengths"][0] = 500
    assert read(content)["train"].audio[0].all()


@pytest.mark.parametrize("length", [1e300, 1e19, 2**64 - 1])
def test_a_length_beyond_all_integers_is_one_beyond_the_array(length: float) -> None:
    content = contents()
    content["train"]["audio"][:] = 1
    content["train"]["audio_lengths"] = np.array([length, 4, 5, 6, 7, 8])
    train = read(content)["train"]
    assert train.audio[0].all()
    assert train.notes == ()


@pytest.mark.parametrize("tokens", [10, 14])
def test_a_mask_of_another_number_of_tokens_is_not_applied_and_noted(tokens: int) -> None:
    content = contents()
    content["train"]["text_bert"] = np.ones((6, 3, tokens), np.float32)
    train = read(content)["train"]
    np.testing.assert_array_equal(train.text, content["train"]["text"])
    note = f"padding of text is kept: text_bert has {tokens} tokens, and text 12 steps"
    assert train.summary("train").endswith(f"; {note}")


def test_lengths_that_were_counted_up_to_zeros_in_front_lose_nothing() -> None:
    content = contents()
    for row in (1, 4):
        content["train"]["audio"][row] = np.roll(content["train"]["audio"][row], 14 - (3 + row), axis=0)
        content["train"]["audio_lengths"][row] = 1  # the smallest length that getLengths.py of MMSA writes
    packed = read(content)["train"]
    for row in range(6):
        np.testing.assert_array_equal(packed.audio[row], content["train"]["audio"][row])
    assert packed.summary("train").endswith("; 2 audio lengths cover leading zeros only and are not applied")


def test_a_modality_without_content_and_length() -> None:
    content = contents()
    content["train"]["vision"][0] = 0
    content["train"]["vision_lengths"][0] = 0
    packed = read(content)["train"]
    assert not packed.vision[0].any()
    assert packed.notes == ()


def test_without_lengths_zeros_are_padding() -> None:
    content = contents(aligned=True)
    np.testing.assert_array_equal(read(content)["test"].audio, content["test"]["audio"])


def test_lengths_do_not_belong_to_aligned_arrays() -> None:
    content = mmsa_content((12, 5), (12, 4), text=(12, 8))
    content["train"]["audio_lengths"] = [1] * 6
    np.testing.assert_array_equal(read(content, ALIGNED)["train"].audio, content["train"]["audio"])


def test_silence_becomes_zero_and_is_counted() -> None:
    content = contents()
    content["test"]["audio"][0, 1, 2] = -np.inf
    content["test"]["vision"][0, 0, 0] = np.nan
    packed = read(content)["test"]
    assert packed.repaired == {"audio": 1, "vision": 1}
    assert packed.audio[0, 1, 2] == 0


def test_lists_of_labels_and_tokens_in_columns_as_their_own_script_writes_them() -> None:
    content = contents()
    for part in content.values():
        part["regression_labels"] = part["regression_labels"].tolist()
        part["text_bert"] = part["text_bert"].transpose(0, 2, 1)
    for one, other in zip(read(content).values(), read(contents()).values(), strict=True):
        assert torch.equal(one.labels, other.labels)
        assert torch.equal(one.text, other.text)


def test_text_by_a_local_encoder(tmp_path: Path) -> None:
    content = contents()
    for part in content.values():
        del part["text"]
    folder = write_bert(tmp_path / "bert")
    train = read(content, states=TokenStates(folder, batch_size=4))["train"]
    assert train.text.shape == (6, 12, 16)
    assert train.text.dtype == torch.float32
    for row in range(6):
        assert train.text[row, : 3 + row].any(dim=1).all()
        assert not train.text[row, 3 + row :].any()
    alone = TokenStates(folder)(torch.from_numpy(content["train"]["text_bert"][:1]).long())
    torch.testing.assert_close(train.text[:1], alone, atol=2e-3, rtol=0)  # states pass half precision


def test_an_encoder_of_another_vocabulary(tmp_path: Path) -> None:
    states = TokenStates(write_bert(tmp_path / "bert", words=5))
    with pytest.raises(RecipeError, match=r"should have the vocabulary of the file, 20 words or more.*Found 5 words"):
        read(contents(), states=states)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda c: c.pop("valid"), r"keys train, valid, test\. Found"),
        (lambda c: c["train"].pop("regression_labels"), r"keys text, audio, vision, regression_labels under train"),
        (lambda c: c["test"].update(audio=c["test"]["audio"][..., :3]), r"audio \(4, 14, 3\).* in test"),
        (lambda c: c["train"].update(text_bert=np.zeros((6, 2, 12))), r"token ids, mask and types \(N, 3, L\).*\(6, 2"),
        (
            lambda c: c["test"]["text_bert"].__setitem__((0, 0, 0), -1),
            r"under test, text_bert\. Found some that are neg",
        ),
        (
            lambda c: c["train"].update(text_bert=np.zeros((5, 3, 12))),
            r"should hold 6 segments under train, text_bert, as many as under text\. Found 5",
        ),
        (lambda c: c["train"].update(audio_lengths=[3] * 7), r"6 numbers of steps under train, audio_lengths\. Found"),
        (lambda c: c["train"].update(vision_lengths=[-1] * 6), r"vision_lengths\. Found some that are negative"),
        (lambda c: c["valid"]["regression_labels"].__setitem__(0, 4), r"from -3 to 3\. Found 4 in row 0 of valid"),
        (lambda c: c["valid"].update(id=["a"]), "should have 3 ids in valid. Found 1"),
        (lambda c: c["valid"].update(id=3), "should have 3 ids in valid. Found int"),
        (lambda c: c["valid"].update(id=np.array("abc")), "should have 3 ids in valid. Found ndarray"),
    ],
)
def test_what_does_not_belong_is_refused(change: Any, found: str) -> None:
    content = contents()
    change(content)
    with pytest.raises(RecipeError, match=found):
        read(content)
