"""Files that are no data: git-lfs pointers, web pages, empty files and half downloads, in every reader."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from recipe_common.data.datasets import cmu_mosei, iemocap, kinetics_sounds, ucf101
from recipe_common.data.datasets.ave import clips as ave_clips
from recipe_common.data.datasets.ave import segment_features
from recipe_common.data.datasets.food101.lists import read_titles
from recipe_common.data.datasets.food101.prepare import _pictures
from recipe_common.data.prepare.nifti import VolumeNames, prepare_volumes, read_volume
from recipe_common.data.prepare.video import sampled_frames
from recipe_common.data.readers.arrays import ArrayFile
from recipe_common.data.readers.audio import WindowSpectrogram
from recipe_common.data.readers.frames import read_image
from recipe_common.data.readers.non_files import EMPTY, HALF, POINTER, WEB_PAGE, NonFile, non_file
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.volumes import Labels, open_case
from recipe_common.data.readers.waveforms import read_samples, read_waveform
from recipe_common.data.samples.audiovisual import StoredJpg, hdf5_frames
from recipe_common.data.samples.lists import read_list
from recipe_common.data.samples.youtube import lines_of
from recipe_common.errors import RecipeError

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 64044\n"
PAGE = b"\xef\xbb\xbf\n<!doctype HTML><html>Google Drive - Virus scan warning"
CONTENTS = {POINTER: LFS, WEB_PAGE: PAGE, EMPTY: b""}


def wav_bytes(seconds: float = 1.0) -> bytes:
    content = BytesIO()
    soundfile.write(content, np.zeros(int(16_000 * seconds)), 16_000, subtype="PCM_16", format="WAV")
    return content.getvalue()


def riff(size: int) -> bytes:
    return b"RIFF" + size.to_bytes(4, "little") + wav_bytes()[8:]


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (LFS, POINTER),
        (PAGE, WEB_PAGE),
        (b"<html lang=en>", WEB_PAGE),
        (b"", EMPTY),
        (wav_bytes()[:5000], HALF),
        (wav_bytes(), None),
        (riff(0), None),
        (riff(0xFFFFFFFF), None),
        (riff(len(wav_bytes())), None),
        (b"name,label\n", None),
        (b"<svg>", None),
    ],
)
def test_the_kind_follows_from_the_content(tmp_path: Path, content: bytes, kind: NonFile | None) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert non_file(path) == non_file(BytesIO(content)) == kind


def test_folders_and_absent_files_are_of_no_kind(tmp_path: Path) -> None:
    assert non_file(tmp_path) is None
    assert non_file(tmp_path / "absent") is None


BINARY: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "wav": ("a.wav", read_waveform),
    "wav, for a cache": ("a.wav", lambda path: read_samples(path, 16_000)),
    "picture": ("a.jpg", read_image),
    "video": ("a.flv", lambda path: list(sampled_frames(path, 1))),
    "NIfTI": ("a.nii.gz", read_volume),
    "volumes": ("a.h5", lambda path: open_case(path, 4, Labels(4))),
    "frames in h5": ("a.h5", hdf5_frames),
    "features of AVE": ("a.h5", lambda path: segment_features._read(path, "avadataset")),
    "features of IEMOCAP": ("a.h5", iemocap.FeatureFile),
    "statistics of IEMOCAP": ("a.h5", lambda path: iemocap.read_statistics(path, 1)),
    "pickle": ("a.pkl", load_pickle),
    "npy": ("a.npy", ArrayFile),
    "npy of IEMOCAP": ("a.npy", iemocap._load),
    "word vectors": ("a.npy", cmu_mosei._read_vectors),
    "stored npy": ("a.npy", StoredSpectrogram()),
    "stored pkl": ("a.pkl", StoredSpectrogram()),
    "stored pt": ("a.pt", StoredSpectrogram()),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("reader", BINARY)
def test_readers_of_media_name_what_is_no_data(tmp_path: Path, reader: str, kind: NonFile) -> None:
    name, read = BINARY[reader]
    (tmp_path / name).write_bytes(CONTENTS[kind])
    with pytest.raises(RecipeError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} should ")
    assert f". Found {kind.name}: {kind.fix}" in str(caught.value)


LISTS: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "csv": ("train.csv", lambda path: read_list(path, ("a",))),
    "lines": ("train.csv", lines_of),
    "UCF-101": ("trainlist01.txt", ucf101._lines),
    "AVE": ("trainSet.txt", lambda path: ave_clips.read_events(path, ("a",))),
    "Kinetics": ("a.json", lambda path: kinetics_sounds.read_database(path, ("a",))),
    "Food-101": ("texts/train_titles.csv", lambda path: read_titles(path.parents[1], ("a",), "csv")),
}


@pytest.mark.parametrize("kind", [POINTER, WEB_PAGE])
@pytest.mark.parametrize("reader", LISTS)
def test_readers_of_lists_name_what_is_no_data(tmp_path: Path, reader: str, kind: NonFile) -> None:
    name, read = LISTS[reader]
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "test_titles.csv").write_bytes(CONTENTS[kind])
    (tmp_path / name).write_bytes(CONTENTS[kind])
    with pytest.raises(RecipeError) as caught:
        read(tmp_path / name)
    assert str(caught.value).startswith(f"{tmp_path / name} should ")
    assert f". Found {kind.name}: {kind.fix}" in str(caught.value)


@pytest.mark.parametrize("read", [read_waveform, lambda path: read_samples(path, 16_000)])
def test_half_a_wav_file_is_named(tmp_path: Path, read: Callable[[Path], Any]) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(wav_bytes()[:20_000])
    with pytest.raises(RecipeError, match=r"a\.wav should be a readable wav file\. Found half a download.*again"):
        read(path)


def test_a_pointer_among_stored_frames_is_named() -> None:
    with pytest.raises(RecipeError, match=r"a\.hdf5\[3\] should be a readable picture\. Found a git-lfs pointer"):
        read_image(StoredJpg(LFS, "a.hdf5[3]"))  # type: ignore[arg-type]


def test_cases_of_pointers_stop_prepare(tmp_path: Path) -> None:
    for case in ("one", "two"):
        for name in ("flair", "seg"):
            path = tmp_path / case / f"{case}_{name}.nii.gz"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(LFS)
    with pytest.raises(RecipeError, match=r"The 2 cases of .* should be whole files\. Found 2 git-lfs pointers: run"):
        prepare_volumes(
            tmp_path,
            tmp_path,
            [tmp_path / "one", tmp_path / "two"],
            names=VolumeNames({"flair": "_flair"}),
            labels=Labels(4),
            suffix=".h5",
            workers=1,
        )


def test_pictures_that_are_pointers_stop_the_encoding_and_few_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        records = [
            {"id": f"{part}{n}", "text_tokens": "x", "label": "a", "img_path": f"{part}{n}.jpg"} for n in range(3)
        ]
        (tmp_path / f"{part}.json").write_text(json.dumps(records))
        for record in records:
            Image.new("RGB", (4, 4)).save(tmp_path / str(record["img_path"]))
    lists = read_titles(tmp_path, ("a",), "json")
    (tmp_path / "train0.jpg").write_bytes(LFS)
    assert len(_pictures(lists)) == 6
    assert "1 of 6 pictures are git-lfs pointers: run `git lfs pull`" in capsys.readouterr().out
    for number in range(3):
        (tmp_path / f"test{number}.jpg").write_bytes(LFS)
    with pytest.raises(RecipeError, match=r"The 6 pictures of .* should be whole files\. Found 4 git-lfs pointers"):
        _pictures(lists)


@pytest.mark.parametrize("rate", [1, 44_101, 2**31 - 1])
def test_a_sampling_rate_of_a_damaged_header_is_named(tmp_path: Path, rate: int) -> None:
    content = bytearray(wav_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(
        RecipeError, match=rf"a\.wav should be a readable wav file\. Found a sampling rate of {rate:,} Hz"
    ):
        read_waveform(path, 16_000)
    with pytest.raises(RecipeError, match=f"Found a sampling rate of {rate:,} Hz.*--skip-bad"):
        WindowSpectrogram().check(path)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_mutated_wav_file_is_read_or_named(tmp_path: Path, subtype: str) -> None:
    random = np.random.default_rng(0)
    whole, path = BytesIO(), tmp_path / "a.wav"
    soundfile.write(whole, random.normal(0, 0.1, (1600, 2)), 16_000, subtype=subtype, format="WAV")
    errors = []
    for _ in range(250):
        content = bytearray(whole.getvalue())
        for place in random.integers(0, 80, random.integers(1, 9)):
            content[place] = random.integers(256)
        path.write_bytes(content[: random.integers(len(content))] if random.random() < 0.2 else content)
        try:
            assert len(read_waveform(path, 16_000)) > 0
        except RecipeError as error:
            errors.append(str(error))
    assert errors
    assert all(error.startswith(f"{path} should be a readable wav file. Found ") for error in errors)
