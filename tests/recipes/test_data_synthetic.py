"""The synthetic sets: the same files every time, in real formats, made in one step."""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs
import numpy as np
import pytest
import soundfile
from PIL import Image

from recipe_common.data.synthetic.clips import SyntheticClips
from recipe_common.data.synthetic.folder import LOCK, default_cache, synthetic_folder
from recipe_common.data.synthetic.media import striped_picture, tone_waveform
from recipe_common.files import PARTIAL, lock

SMALL = SyntheticClips(names=("a", "b", "c"), labels=(0, 1, 5), num_classes=6)


def make(cache: Path, clips: SyntheticClips = SMALL) -> Path:
    return synthetic_folder("small", clips, lambda root: clips.write(root / "AudioWAV", root / "frames"), cache)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_settings_give_the_same_bytes(tmp_path: Path) -> None:
    one, two = contents(make(tmp_path / "one")), contents(make(tmp_path / "two"))
    assert one == two
    assert len(one) == 3 + 6


@pytest.mark.parametrize("change", [{"seed": 1}, {"seconds": 1.0}, {"labels": (0, 1, 2)}])
def test_other_settings_give_another_folder(tmp_path: Path, change: dict[str, object]) -> None:
    first, second = make(tmp_path), make(tmp_path, attrs.evolve(SMALL, **change))  # type: ignore[arg-type]
    assert first != second
    assert contents(first) != contents(second)


def test_files_have_the_real_formats(tmp_path: Path) -> None:
    folder = make(tmp_path)
    wav = soundfile.info(folder / "AudioWAV" / "b.wav")
    assert (wav.samplerate, wav.channels, wav.subtype) == (8_000, 1, "PCM_16")
    assert SMALL.seconds <= wav.duration <= 1.2 * SMALL.seconds
    pictures = sorted((folder / "frames" / "b").iterdir())
    assert [path.name for path in pictures] == ["00000.jpg", "00030.jpg"]
    with Image.open(pictures[0]) as picture:
        assert (picture.format, picture.size, picture.mode) == ("JPEG", (64, 64), "RGB")


def refuse(root: Path) -> None:
    raise AssertionError("made again")


def test_a_finished_set_is_not_made_again(tmp_path: Path) -> None:
    folder = make(tmp_path)
    assert synthetic_folder("small", SMALL, refuse, tmp_path) == folder


def test_an_interrupted_set_is_not_taken_for_a_finished_one(tmp_path: Path) -> None:
    def killed(root: Path) -> None:
        (root / "half").write_text("made")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic_folder("small", SMALL, killed, tmp_path)
    assert [path.name for path in (tmp_path / "small").iterdir()] == [".lock"]
    assert len(contents(make(tmp_path))) == 3 + 6


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    folder = make(tmp_path)
    left = folder.with_name(f".{folder.name}{PARTIAL}")
    folder.rename(left)
    (left / "half").write_text("made")

    assert len(contents(make(tmp_path))) == 3 + 6
    assert not left.exists()


def test_who_wants_a_set_that_another_makes_waits_for_it(tmp_path: Path) -> None:
    folder = make(tmp_path)
    away = folder.rename(folder.with_name("away"))

    with ThreadPoolExecutor() as pool:
        with (folder.parent / LOCK).open("a") as handle:
            assert lock(handle, wait=True)
            waiting = pool.submit(synthetic_folder, "small", SMALL, refuse, tmp_path)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
            away.rename(folder)
        assert waiting.result(timeout=60) == folder


def test_a_set_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    def full(root: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        synthetic_folder("small", SMALL, full, tmp_path)


@pytest.mark.parametrize("num_classes", [6, 31])
def test_pitch_tells_the_class_of_a_clip_that_is_not_ambiguous(num_classes: int) -> None:
    interval = 5 / max(5, num_classes - 1)
    for label in range(6):
        sound = tone_waveform(label, num_classes, np.random.default_rng(label), seconds=1.0, ambiguous=0.0)
        strongest = np.abs(np.fft.rfft(sound)).argmax() * 8_000 / len(sound)
        assert strongest == pytest.approx(180 * 1.25 ** (label * interval), rel=0.05 * interval)


def test_pictures_of_two_tints_differ_in_colour() -> None:
    warm, cold = (
        striped_picture(label, 6, np.random.default_rng(0), tint=0.2, noise=0.0).mean((0, 1)) for label in (0, 3)
    )
    assert warm[0] - warm[2] == pytest.approx(cold[2] - cold[0], abs=2)
    assert warm[0] - warm[2] > 80


def test_scripts_of_an_installed_package_write_into_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert default_cache(tmp_path / "site-packages" / "modbalance" / "_recipes") == tmp_path / "modbalance"
    assert default_cache(tmp_path / "clone" / "recipes") == tmp_path / "clone" / "recipes" / "data"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache(tmp_path / "_recipes") == Path.home() / ".cache" / "modbalance"
