"""Headers of media files are checked before the training, and read once."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import soundfile
from PIL import Image

import cremad
from recipe_common.data.cache import headers as module
from recipe_common.data.cache.feed import beside
from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.datasets.ave.sound import EventFile, EventSpectrogram, StartSpectrogram
from recipe_common.data.readers.audio import Fbank, FrontEnd, Spectrogram, WindowSpectrogram
from recipe_common.data.readers.frames import HEADERS_PER_CLIP, PICTURE_HEADER, Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.two_stream import TwoStreams, two_stream_sources
from recipe_common.data.samples.audiovisual import frames_source
from recipe_common.data.samples.lists import Row
from recipe_common.errors import RecipeError

from .clip_tree import load, names_of
from .cremad_tree import names, write_clips, write_frame, write_list, write_wav


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    clips = names(3)
    write_clips(root, clips)
    for part, chosen in (("train", clips[:24]), ("test", clips[24:])):
        write_list(root / f"{part}.csv", chosen)
    return root


@pytest.fixture
def opens(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count the files that are opened as sound or as pictures."""
    counted: Counter[str] = Counter()
    info, open_picture = soundfile.info, Image.open

    def sound(path: Any, **options: Any) -> Any:
        counted["sound"] += 1
        return info(path, **options)

    def picture(path: Any, **options: Any) -> Any:
        counted["picture"] += 1
        return open_picture(path, **options)

    monkeypatch.setattr(soundfile, "info", sound)
    monkeypatch.setattr(Image, "open", picture)
    return counted


def load_cremad(root: Path, **changes: Any) -> Any:
    return load(cremad.RECIPE, root, **changes)


def store_of(folder: Path) -> HeaderStore:
    return HeaderStore(folder, folder / "kept")


def fault(header: module.Header, media: Any, folder: Path) -> str | None:
    (result,) = store_of(folder).results(header, [media])
    return str(result) if isinstance(result, RecipeError) else None


def test_a_second_run_opens_no_file(root: Path, opens: Counter[str]) -> None:
    first = load_cremad(root)
    assert opens == {"sound": 36, "picture": 36}
    assert f"headers: 72 of 72 files and folders opened, kept in {beside(root) / 'headers'}" in first.summary
    opens.clear()
    second = load_cremad(root)
    assert opens == {}
    assert not any(line.startswith("headers") for line in second.summary)
    assert names_of(second.train) == names_of(first.train)


def test_only_new_and_changed_files_are_opened(root: Path, opens: Counter[str]) -> None:
    load_cremad(root)
    opens.clear()
    wav, frames = root / "AudioWAV" / f"{names(3)[0]}.wav", root / "Image-01-FPS" / names(3)[1]
    write_wav(wav, np.full(320, 0.1))
    write_frame(frames / "00030.jpg")
    load_cremad(root)
    assert opens == {"sound": 1, "picture": 2}


def test_a_changed_time_alone_is_a_change(root: Path, opens: Counter[str]) -> None:
    load_cremad(root)
    opens.clear()
    os.utime(root / "AudioWAV" / f"{names(3)[0]}.wav", ns=(0, 0))
    load_cremad(root)
    assert opens == {"sound": 1}


def test_all_faults_are_one_message_before_the_training(root: Path) -> None:
    clips = names(3)
    for clip in clips[:12]:
        (root / "AudioWAV" / f"{clip}.wav").write_bytes(b"")
    write_wav(root / "AudioWAV" / f"{clips[30]}.wav", np.zeros(0))
    (root / "Image-01-FPS" / clips[31] / "00000.jpg").write_bytes(b"no picture")
    with pytest.raises(RecipeError) as caught:
        load_cremad(root)
    found = str(caught.value)
    assert found.startswith(
        f"The files of all 36 samples in {root} should be readable. Found 14 that are not, 12 of them "
    )
    first = found.partition("12 of them empty files (")[2].partition("; ")[0]
    assert first in {f"AudioWAV/{clip}.wav: an empty file" for clip in clips[:12]}
    assert found.endswith("; and 4 more): download it again, or leave them out with `--skip-bad`.")
    assert found.count("an empty file") == 10


def test_a_single_fault_is_its_own_message(root: Path) -> None:
    path = root / "AudioWAV" / f"{names(3)[0]}.wav"
    path.write_bytes(b"no sound")
    with pytest.raises(RecipeError, match=rf"^{path} should be a readable wav file\. Found .*, or leave it out with"):
        load_cremad(root)


def test_a_message_says_each_path_once(root: Path) -> None:
    for name, folder in zip(names(3)[:2], ("AudioWAV", "Image-01-FPS"), strict=True):
        path = root / folder / f"{name}.wav" if folder == "AudioWAV" else root / folder / name / "00000.jpg"
        path.write_bytes(b"no media")
    with pytest.raises(RecipeError, match=r"Found 2 that are not") as caught:
        load_cremad(root)
    assert str(caught.value).count(str(root)) == 1
    assert str(caught.value).count(names(3)[1]) == 1


def test_skip_bad_leaves_out_and_min_found_counts_what_headers_show(root: Path) -> None:
    clips = names(3)
    (root / "AudioWAV" / f"{clips[24]}.wav").write_bytes(b"")
    data = load_cremad(root, skip_bad=True)
    assert names_of(data.test) == clips[25:]
    assert [line.partition(":")[0] for line in data.skipped] == ["test"]
    with pytest.raises(RecipeError, match=r"at least 100%.*test: 11 of 12.*1 unreadable, 1 of them empty files"):
        load_cremad(root, skip_bad=True, min_found=1.0)


def test_a_repaired_file_counts_at_once_even_with_its_old_time(root: Path) -> None:
    path = root / "AudioWAV" / f"{names(3)[0]}.wav"
    content, stamp = path.read_bytes(), path.stat()
    path.write_bytes(bytes(len(content)))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(RecipeError, match="should be a readable wav file"):
        load_cremad(root)
    path.write_bytes(content)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert len(load_cremad(root).train) > 0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 0, "entries": {"a": [1]}}', b'{"format": 1}'])
def test_a_damaged_file_of_facts_is_made_anew(root: Path, content: bytes, opens: Counter[str]) -> None:
    load_cremad(root)
    kept = beside(root) / "headers" / "sound.json"
    whole = json.loads(kept.read_bytes())
    kept.write_bytes(content)
    opens.clear()
    load_cremad(root)
    assert opens == {"sound": 36}
    assert json.loads(kept.read_bytes()) == whole


def test_facts_that_cannot_be_kept_are_read_again_and_said(root: Path, opens: Counter[str]) -> None:
    beside(root).write_bytes(b"in the way")
    for _ in range(2):
        opens.clear()
        data = load_cremad(root)
        assert opens == {"sound": 36, "picture": 36}
        assert any(line.startswith("headers: 72 of 72 files and folders opened, not kept: ") for line in data.summary)


def test_facts_are_in_the_folder_of_the_cache(root: Path, tmp_path: Path) -> None:
    load_cremad(root, cache=str(tmp_path / "fast"))
    assert {path.name for path in (tmp_path / "fast" / "headers").glob("*.json")} == {"sound.json", "frames.json"}
    assert not beside(root).exists()
    kept = json.loads((tmp_path / "fast" / "headers" / "sound.json").read_bytes())["entries"]
    assert kept[f"AudioWAV/{names(1)[0]}.wav"][2] == [160, 16_000]


def test_runs_that_start_together_open_each_file_once_and_agree(tmp_path: Path) -> None:
    paths = [tmp_path / f"{number:03d}.jpg" for number in range(200)]
    for path in paths:
        write_frame(path)
    paths[7].write_bytes(b"")
    stores = [store_of(tmp_path) for _ in range(4)]
    with ThreadPoolExecutor(len(stores)) as pool:
        results = list(pool.map(lambda store: store.results(PICTURE_HEADER, paths), stores))
    assert sum(store.opened for store in stores) == 200 + 3  # the damaged one is opened by each
    assert len({str(result) for result in results}) == 1
    assert "an empty file" in str(results[0][7])


@pytest.mark.parametrize("kind", [Spectrogram, WindowSpectrogram, Fbank])
@pytest.mark.parametrize("damage", ["half", "no samples", "rate", "text"])
def test_headers_of_sound_show_what_reading_would(tmp_path: Path, kind: Callable[[], FrontEnd], damage: str) -> None:
    path, front_end = tmp_path / "a.wav", kind()
    write_wav(path, np.zeros(0 if damage == "no samples" else 3200))
    content = bytearray(path.read_bytes())
    if damage == "half":
        content = content[:2000]
    if damage == "rate":
        content[24:28] = (2**31 - 1).to_bytes(4, "little")
    path.write_bytes(b"text" if damage == "text" else content)
    with pytest.raises(RecipeError) as caught:
        front_end(path)
    assert fault(front_end.header, path, tmp_path) == str(caught.value)


@pytest.mark.parametrize("samples", [399, 400])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_the_length_for_filter_banks_is_that_after_resampling(tmp_path: Path, samples: int, rate: int) -> None:
    path = tmp_path / "a.wav"
    write_wav(path, np.zeros(int(samples * rate / 16_000)), rate)
    try:
        Fbank()(path)
        expected = None
    except RecipeError as error:
        expected = str(error)
    assert (expected is None) == (samples == 400)
    assert fault(Fbank().header, path, tmp_path) == expected


@pytest.mark.parametrize("start", [0, 1, 2])
def test_an_event_after_the_end_of_its_sound_is_found(tmp_path: Path, start: int) -> None:
    write_wav(tmp_path / "a.wav", np.zeros(16_001))
    event = EventFile(tmp_path / "a.wav", start, start + 1)
    found = fault(EventSpectrogram().header, event, tmp_path)
    late = f"{event.path} should have sound from second 2 on. Found 1.0 s: restore the file"
    assert found is None if start < 2 else str(found).startswith(late)
    assert fault(StartSpectrogram().header, event, tmp_path) is None


def test_stored_spectrograms_of_another_shape_or_length_are_found(tmp_path: Path) -> None:
    good, other, cut, flat, text = (tmp_path / f"{name}.npy" for name in ("good", "other", "cut", "flat", "text"))
    for path, shape in ((good, (4, 6)), (other, (1, 4, 7)), (cut, (4, 6)), (flat, (24,))):
        np.save(path, np.zeros(shape, np.float32))
    cut.write_bytes(cut.read_bytes()[:-4])
    text.write_bytes(b"text")
    read = StoredSpectrogram().as_in(good)
    assert fault(read.header, good, tmp_path) is None
    for path in (other, cut, flat, text):
        with pytest.raises(RecipeError) as caught:
            read(path)
        found = fault(read.header, path, tmp_path)
        assert found is not None
        assert found.partition(". Found")[0] == str(caught.value).partition(". Found")[0]
    pickled = tmp_path / "a.pkl"
    pickled.write_bytes(b"")
    assert "an empty file" in str(fault(read.header, pickled, tmp_path))


def test_all_frames_are_looked_at_and_a_bounded_number_opened(tmp_path: Path, opens: Counter[str]) -> None:
    folder = tmp_path / "visual" / "clip"
    for number in range(100):
        write_frame(folder / f"{number:05d}.jpg")
    source = frames_source([folder.parent], Frames())
    assert source.header is not None
    assert fault(source.header, folder, tmp_path) is None
    assert opens == {"picture": HEADERS_PER_CLIP}
    (folder / "00077.jpg").write_bytes(b"")
    (folder / "00100.jpg").write_bytes(b"")  # so that the folder has changed
    assert f"{folder / '00077.jpg'} should be a readable picture. Found an empty file" in str(
        fault(source.header, folder, tmp_path)
    )


@pytest.fixture
def hdf5(tmp_path: Path) -> Path:
    write_frame(tmp_path / "0.jpg")
    path = tmp_path / "visual" / "clip.hdf5"
    path.parent.mkdir()
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("video", 2, h5py.vlen_dtype(np.uint8))
        for index in range(2):
            frames[index] = np.frombuffer((tmp_path / "0.jpg").read_bytes(), np.uint8)
    return path


def test_frames_in_hdf5_files_are_checked(hdf5: Path, tmp_path: Path) -> None:
    header = frames_source([hdf5.parent], Frames()).header
    assert header is not None
    assert fault(header, hdf5, tmp_path) is None
    with h5py.File(hdf5, "a") as file:
        file["video"][0] = np.zeros(3, np.uint8)
    assert f"{hdf5}[0] should be a readable picture" in str(fault(header, hdf5, tmp_path))
    with h5py.File(hdf5, "a") as file:
        del file["video"]
    assert f"{hdf5} should be an hdf5 file with jpg bytes" in str(fault(header, hdf5, tmp_path))


def test_the_parts_of_a_flow_must_have_the_same_files(tmp_path: Path) -> None:
    for name, count in (("rgb", 3), ("u", 2), ("v", 2)):
        for number in range(count):
            write_frame(tmp_path / name / "clip" / f"frame{number:06d}.jpg")
    rgb, flow = two_stream_sources([tmp_path / "rgb"], [tmp_path / "u"], [tmp_path / "v"], TwoStreams())
    media = [source.find(Row("clip", "label")) for source in (rgb, flow)]
    assert rgb.header is not None
    assert flow.header is not None
    assert fault(rgb.header, media[0], tmp_path) is None
    assert fault(flow.header, media[1], tmp_path) is None
    write_frame(tmp_path / "v" / "clip" / "frame000009.jpg")
    expected = rf"{tmp_path / 'u' / 'clip'} and {tmp_path / 'v' / 'clip'} should hold the same jpg files. Found 2 and 3"
    assert expected in str(fault(flow.header, media[1], tmp_path))
    with pytest.raises(RecipeError, match="should hold the same jpg files"):
        flow.read(media[1], seed=None)


def test_flow_in_the_folder_of_the_frames_is_checked(tmp_path: Path) -> None:
    clip = tmp_path / "clip"
    for name in ("img_00001", "img_00002", "flow_x_00001", "flow_y_00001"):
        write_frame(clip / f"{name}.jpg")
    _, flow = two_stream_sources([tmp_path], [tmp_path], [tmp_path], TwoStreams())
    assert flow.header is not None
    media = flow.find(Row("clip", "label"))
    assert fault(flow.header, media, tmp_path) is None
    write_frame(clip / "flow_x_00002.jpg")
    assert "should hold the same jpg files. Found 2 and 1" in str(fault(flow.header, media, tmp_path))
    (clip / "flow_y_00002.jpg").write_bytes(b"")
    assert "flow_y_00002.jpg should be a readable picture. Found an empty file" in str(
        fault(flow.header, media, tmp_path)
    )
    for path in clip.glob("flow_y_*"):
        path.unlink()
    assert "should hold the same jpg files. Found 2 and 0" in str(fault(flow.header, media, tmp_path))


def test_a_file_that_vanishes_is_a_fault(tmp_path: Path) -> None:
    assert f"{tmp_path / 'a.jpg'} should be a readable file" in str(fault(PICTURE_HEADER, tmp_path / "a.jpg", tmp_path))


def test_headers_are_checked_before_a_cache_is_built(root: Path, tmp_path: Path) -> None:
    for name in names(3)[:2]:
        (root / "AudioWAV" / f"{name}.wav").write_bytes(b"")
    with pytest.raises(RecipeError, match=r"Found 2 that are not, 2 of them empty files"):
        load_cremad(root, cache=str(tmp_path / "fast"))
    assert not list((tmp_path / "fast").glob("audio-*"))
