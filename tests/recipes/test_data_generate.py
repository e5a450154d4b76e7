"""The generated set: the same files every time, in real formats, made in one step."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import attrs
import numpy as np
import pytest
import soundfile
from PIL import Image

from common.data import generate
from common.data.generate import Generated, cached
from common.data.layout import Layout

LAYOUT = Layout(("AudioWAV",), "Image-01-FPS", "VideoFlash", (".",), re.compile("(.)"), prepare="")
SMALL = Generated(names=("a", "b", "c"), labels=(0, 1, 5), classes=6)


def make(root: Path, generated: Generated = SMALL) -> Path:
    return cached(root, generated, {"train.csv": "a,NEU\n"}, LAYOUT)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    assert contents(make(tmp_path / "one")) == contents(make(tmp_path / "two"))


@pytest.mark.parametrize("change", [{"seed": 1}, {"ambiguous": 1.0}, {"labels": (0, 1, 2)}])
def test_other_settings_give_another_folder(tmp_path: Path, change: dict[str, object]) -> None:
    first, second = make(tmp_path), make(tmp_path, attrs.evolve(SMALL, **change))  # type: ignore[arg-type]
    assert first != second
    assert contents(first) != contents(second)


def test_files_have_the_real_formats(tmp_path: Path) -> None:
    folder = make(tmp_path)
    wav = soundfile.info(folder / "AudioWAV" / "b.wav")
    assert (wav.samplerate, wav.channels, wav.subtype) == (16_000, 1, "PCM_16")
    assert 1.0 <= wav.duration <= 1.2
    pictures = sorted((folder / "Image-01-FPS" / "b").iterdir())
    assert [path.name for path in pictures] == ["00000.jpg", "00030.jpg", "00060.jpg"]
    with Image.open(pictures[0]) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 64), "RGB")
    assert (folder / "train.csv").read_text() == "a,NEU\n"


def test_a_finished_set_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make(tmp_path)
    monkeypatch.setattr(generate, "write_clips", None)
    assert make(tmp_path) == folder


def test_an_interrupted_set_is_not_taken_for_a_finished_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(generate, "write_clips", killed)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path)
    assert len(contents(make(tmp_path))) == 1 + 3 + 9


def test_two_processes_may_make_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def be_slower(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "rename", rename)
        make(tmp_path)
        rename(source, target)

    monkeypatch.setattr(os, "rename", be_slower)
    folder = make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_pitch_tells_the_class_of_a_clip_that_is_not_ambiguous() -> None:
    clear = attrs.evolve(SMALL, ambiguous=0.0)
    for label in range(6):
        sound = generate.waveform(clear, label, np.random.default_rng(label))
        strongest = np.abs(np.fft.rfft(sound)).argmax() * clear.rate / len(sound)
        assert strongest == pytest.approx(180 * 1.25**label, rel=0.05)
