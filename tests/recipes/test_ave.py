"""AVE, a class per clip: lists, splits, front ends, the tree on disk, `prepare` and the command line."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image

import ave
from ave import CLASSES, RECIPE
from recipe_common.cli import main
from recipe_common.data.datasets.ave.clips import event_split, first_of_each, read_events, seconds_of
from recipe_common.data.datasets.ave.sound import EventFile, EventSpectrogram, StartSpectrogram, event_audio_source
from recipe_common.data.prepare.video import write_frames
from recipe_common.data.readers.audio import Spectrogram
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.lists import Row
from recipe_common.data.synthetic.ave import SyntheticEvents
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipes.call import settings_of
from recipes.tiny_videos import write_video

BELL, CAT = "Church bell", "Cat"
RATE = 16_000


def wav(path: Path, seconds: float = 2.0, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * rate)) / rate
    soundfile.write(path, 0.5 * np.sin(2 * np.pi * (300 + 200 * np.floor(time)) * time), rate, "PCM_16")
    return path


def clip(root: Path, name: str, frames: int = 3) -> None:
    wav(root / "Audios" / f"{name}.wav")
    for number in range(frames):
        path = root / "Image-01-FPS-SE" / name / f"{30 * number:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = np.zeros((32, 32, 3), dtype=np.uint8)
        picture[..., 0], picture[:, 16:, 2] = 80 * number, 255  # frame 0, 1, 2 by red, left and right by blue
        Image.fromarray(picture).save(path, quality=95)


def lists(root: Path, train: str, val: str, test: str) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for name, text in (("trainSet", train), ("valSet", val), ("testSet", test)):
        (root / f"{name}.txt").write_text(text, newline="")


def tree(root: Path) -> Path:
    lists(
        root,
        f"{BELL}&aaaaaaaaaaa&good&0&2\r\n{CAT}&bbbbbbbbbbb&good&1&2\r\n{BELL}&bbbbbbbbbbb&good&1&2\r\n"
        f"{CAT}&ttttttttttt&good&0&1\r\n{CAT}&gone_______&good&0&1\r\n",
        f"{CAT}&-v_vvvvvvvv&good&0&0\n",
        f"{BELL}&ttttttttttt&good&0&1\n",
    )
    for name in ("aaaaaaaaaaa", "bbbbbbbbbbb", "ttttttttttt", "-v_vvvvvvvv"):
        clip(root, name)
    return root


def load(root: Path, *flags: str) -> Data:
    return ave.load(settings_of(RECIPE, "--data-root", root, "--min-found", "0.5", *flags))


def test_classes_are_28_and_ordered_as_published() -> None:
    assert len(set(CLASSES)) == 28
    assert [CLASSES.index(name) for name in ("Church bell", "Frying (food)", "Bus", "Mandolin")] == [0, 10, 20, 27]


# Lists


def test_list_with_byte_order_mark_crlf_header_and_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "Annotations.txt"
    text = f"\ufeffCategory&VideoID&Quality&StartTime&EndTime\r\n{BELL}&-a_&good&3&10\r\n\r\n{CAT}&-a_&good&0&0\r\n"
    path.write_text(text, newline="", encoding="utf-8")
    rows = read_events(path, CLASSES)
    assert rows == (Row("-a_", BELL, ("3", "10")), Row("-a_", CAT, ("0", "0")))
    assert [seconds_of(row) for row in rows] == [(3, 10), (0, 1)]
    assert first_of_each(rows) == rows[:1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Dog&x&good&0&10", "Found 'Dog'"),
        ("Cat&x&good&0", "Found 'Cat&x&good&0'"),
        ("Cat&&good&0&10", "Found 'Cat&&good&0&10'"),
        ("Cat&x&good&5&3", "Found '5' to '3'"),
        ("Cat&x&good&0&11", "Found '0' to '11'"),
        ("Cat&x&good&10&10", "Found '10' to '10'"),
        ("Cat&x&good&0.5&3", "Found '0.5' to '3'"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, expected: str) -> None:
    path = tmp_path / "trainSet.txt"
    path.write_text(f"{CAT}&y&good&0&10\n{line}\n")
    with pytest.raises(RecipeError, match=f"trainSet.txt:2.*{expected}"):
        read_events(path, CLASSES)


def test_list_that_is_empty_absent_or_binary(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "binary").write_bytes(b"\xff\xfe\xff")
    for name, expected in (("empty", "Found none"), ("absent", "No such file"), ("binary", "codec")):
        with pytest.raises(RecipeError, match=expected):
            read_events(tmp_path / name, CLASSES)


def test_videos_of_train_that_are_held_out_elsewhere_leave_it(tmp_path: Path) -> None:
    root = tree(tmp_path)
    fair, line = event_split(root, CLASSES, 0, listed=True, overlap=False)
    assert [row.name for row in fair.train] == ["aaaaaaaaaaa", "bbbbbbbbbbb", "gone_______"]
    assert fair.train[1].label == CAT  # as what it is listed first
    assert "1 repeated videos left out" in line
    assert "left out of train (1)" in line
    official, line = event_split(root, CLASSES, 0, listed=True, overlap=True)
    assert [row.name for row in official.train] == ["aaaaaaaaaaa", "bbbbbbbbbbb", "ttttttttttt", "gone_______"]
    assert official.test == fair.test
    assert "stay in train" in line


def test_annotations_alone_are_split_at_random(tmp_path: Path) -> None:
    names = [f"{label}{number:02d}" for label in (BELL, CAT) for number in range(20)]
    rows = "".join(f"{name[:-2]}&{name}&good&0&10\n" for name in [*names, names[0]])
    (tmp_path / "Annotations.txt").write_text(f"Category&VideoID&Quality&StartTime&EndTime\n{rows}")
    split, line = event_split(tmp_path, CLASSES, 3, listed=True, overlap=False)
    assert [len(part) for part in (split.train, split.val, split.test)] == [32, 4, 4]
    assert sorted(row.name for part in (split.train, split.val, split.test) for row in part) == sorted(names)
    assert "seed 3; 1 repeated videos left out" in line


# Front ends


def numpy_spectrogram(samples: NDArray[np.float64], size: int, hop: int, rate: int) -> NDArray[np.float64]:
    """Power density of windows minus their mean, tapered over an eighth at each end (Tukey 0.25, periodic)."""
    taper = int(0.25 * size / 2)
    window = np.ones(size + 1)
    window[: taper + 1] = (1 - np.cos(np.pi * np.arange(taper + 1) / (0.125 * size))) / 2
    window[size - taper :] = window[taper::-1]
    window = window[:-1]
    starts = range(0, len(samples) - size + 1, hop)
    frames = np.stack([(samples[s : s + size] - samples[s : s + size].mean()) * window for s in starts], axis=1)
    power = np.abs(np.fft.rfft(frames, axis=0)) ** 2 / (rate * (window**2).sum())
    power[1:-1] *= 2
    return power


def test_sound_of_the_event_as_in_the_pmr_code(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", seconds=10.0)
    read = EventSpectrogram()
    found = read(EventFile(path, 3, 5))
    assert found.shape == (1, 257, 1004)
    assert found.dtype == torch.float32
    samples = soundfile.read(path)[0][3 * RATE : 5 * RATE]
    expected = np.log(numpy_spectrogram(np.tile(samples, 5), 512, 159, RATE) + 1e-7)
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(found[0].numpy(), expected, atol=2e-3)
    assert torch.equal(found, read(EventFile(path, 3, 5), seed=7))
    assert not torch.equal(found, read(EventFile(path, 0, 2)))


def test_event_goes_on_beyond_the_sound_or_begins_after_it(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", seconds=1.5)
    read = EventSpectrogram(seconds=1.0)
    assert read(EventFile(path, 1, 10)).shape == (1, 257, 98)
    with pytest.raises(RecipeError, match=r"sound from second 2 on. Found 1.5 s"):
        read(EventFile(path, 2, 3))


def test_sound_is_clipped_resampled_and_may_be_stereo(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.full((8_000, 2), 3.0), 8_000, "FLOAT")
    constant = EventSpectrogram(seconds=1.0)(EventFile(path, 0, 1))
    assert torch.isfinite(constant).all()
    assert constant.shape == (1, 257, 98)


def test_window_larger_than_the_sound_is_refused() -> None:
    with pytest.raises(RecipeError, match="`--hop` should be at most `--n-fft`, and that at most"):
        EventSpectrogram(seconds=0.01)


def test_start_of_the_clip_as_in_the_dgl_code(tmp_path: Path) -> None:
    path = wav(tmp_path / "a.wav", seconds=4.0, rate=22_050)
    plain = StartSpectrogram()(EventFile(path, 2, 3))
    assert plain.shape == (1, 257, 259)
    assert torch.equal(plain, Spectrogram(22_050, 3.0, 512, 256)(path))
    refilled = StartSpectrogram(refill=224)(EventFile(path, 0, 1))
    np.testing.assert_array_equal(refilled[0].numpy(), np.resize(plain[0].numpy(), (224, 224)))
    small = StartSpectrogram(Spectrogram(8_000, 0.1, 64, 64), refill=40)(EventFile(path, 0, 1))
    bare = Spectrogram(8_000, 0.1, 64, 64)(path)[0].numpy()
    np.testing.assert_array_equal(small[0].numpy(), np.resize(bare, (40, 40)))


def test_stored_spectrogram_of_the_pmr_code(tmp_path: Path) -> None:
    matrix = np.arange(257 * 1004, dtype=np.float32).reshape(257, 1004)
    (tmp_path / "-a_.pkl").write_bytes(pickle.dumps(matrix))
    source = event_audio_source(tmp_path, StoredSpectrogram())
    found = source.read(source.find(Row("-a_", CAT, ("0", "10"))), seed=None)
    np.testing.assert_array_equal(found[0].numpy(), matrix)
    assert source.find(Row("other", CAT, ("0", "10"))) is None


# The tree on disk


def test_clips_are_found_counted_and_read(tmp_path: Path) -> None:
    data = load(tree(tmp_path))
    assert [len(part) for part in (data.train, data.val, data.test)] == [2, 1, 1]  # type: ignore[arg-type]
    assert "train: 2 of 3 listed samples; 1 without wav file, such as gone_______; 1 without frames" in str(
        data.summary
    )
    assert set(data.skipped) == {"train: gone_______: no wav file", "train: gone_______: no frames"}
    audio, frames, label = data.train[(0, 1)]
    assert (audio.shape, frames.shape, label) == ((1, 257, 1004), (3, 4, 224, 224), CLASSES.index(CAT))
    assert torch.equal(audio, EventSpectrogram()(EventFile(tmp_path / "Audios" / "bbbbbbbbbbb.wav", 1, 2)))
    assert torch.equal(data.train[(0, 0)][1], data.train[(0, 0)][1])
    assert not torch.equal(data.train[(0, 0)][1], data.train[(1, 0)][1])
    assert torch.equal(data.val[(0, 0)][1], data.val[(5, 0)][1])


def test_no_validation_trains_on_it(tmp_path: Path) -> None:
    data = load(tree(tmp_path), "--no-validation", "--select", "test")
    assert [row for row in data.summary if "validation added to train" in row]
    assert len(data.train) == 3  # type: ignore[arg-type]


def test_first_frames_and_nested_folder(tmp_path: Path) -> None:
    tree(tmp_path / "AVE_Dataset")
    data = load(tmp_path, "--frames", "2", "--frame-choice", "first", "--image-size", "8")
    red = data.val[(0, 0)][1][0, :, 4, 1] * 0.229 + 0.485
    np.testing.assert_allclose(red.numpy(), [0, 80 / 255], atol=0.02)


def test_official_protocols(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert len(load(root, "--protocol", "official").train) == 3  # type: ignore[arg-type]
    assert load(root, "--protocol", "dgl").train[(0, 0)][0].shape == (1, 224, 224)


def test_layout_that_is_not_prepared_wrong_or_without_lists(tmp_path: Path) -> None:
    lists(tmp_path, "", "", "")
    with pytest.raises(RecipeError, match=r"Audios and .*Image-01-FPS-SE should be folders\. Found in .*testSet.txt"):
        load(tmp_path)
    (tmp_path / "AVE").mkdir()
    with pytest.raises(RecipeError, match=r"videos that are not prepared yet.*ave.py prepare"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="Audio-1004-SE"):
        load(tmp_path, "--audio-frontend", "stored")
    for path in tmp_path.glob("*.txt"):
        path.unlink()
    with pytest.raises(RecipeError, match=r"should hold trainSet.txt, .* or Annotations.txt"):
        load(tmp_path)


def test_too_few_clips(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"at least 90%.*train: 2 of 3"):
        load(tree(tmp_path), "--min-found", "0.9")


def test_bad_files_stop_or_are_left_out(tmp_path: Path) -> None:
    root = tree(tmp_path)
    (root / "Audios" / "aaaaaaaaaaa.wav").write_bytes(b"RIFF")
    with pytest.raises(RecipeError, match=r"aaaaaaaaaaa.wav"):
        load(root).train[(0, 0)]
    data = load(root, "--skip-bad", "--min-found", "0.3")
    assert len(data.train) == 1  # type: ignore[arg-type]
    assert [line for line in data.skipped if "aaaaaaaaaaa" in line]


# Videos


def mp4(path: Path, seconds: float) -> None:
    """A video with sound under the name that AVE's have; decoders look at the content."""
    made = path.with_suffix(".mkv")
    write_video(made, seconds, codec="mpeg4")
    made.rename(path)


def test_frames_inside_the_event(tmp_path: Path) -> None:
    mp4(tmp_path / "a.mp4", 4.0)
    write_frames(tmp_path / "a.mp4", tmp_path / "two", 1, seconds=(1, 3))
    # 10 frames per second: two seconds give ten frames at five per second.
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [f"{n:05d}.jpg" for n in range(10, 30, 2)]
    write_frames(tmp_path / "a.mp4", tmp_path / "one", 1, seconds=(3, 4))
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == [f"{n:05d}.jpg" for n in range(30, 40)]
    with pytest.raises(ValueError, match="from second 7 to 9"):
        write_frames(tmp_path / "a.mp4", tmp_path / "none", 1, seconds=(7, 9))
    assert not (tmp_path / "none").exists()


def test_prepare_makes_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = f"{BELL}&aaa&good&0&2\n{CAT}&aaa&good&0&2\n{CAT}&ddd&good&0&2\n"
    lists(tmp_path, rows, f"{CAT}&bbb&good&1&2\n", f"{CAT}&ccc&good&0&1\n")
    (tmp_path / "AVE").mkdir()
    for name in ("aaa", "bbb", "ccc", "unlisted"):
        mp4(tmp_path / "AVE" / f"{name}.mp4", 2.0)
    (tmp_path / "AVE" / "ddd.mp4").write_bytes(b"not a video")
    command = ["prepare", "--data-root", str(tmp_path), "--workers", "1"]
    assert main(RECIPE, command) == 1  # one video is bad
    assert "ddd.mp4" in capsys.readouterr().err + (tmp_path / "unreadable_videos.txt").read_text()
    assert {path.name for path in (tmp_path / "Audios").iterdir()} == {"aaa.wav", "bbb.wav", "ccc.wav"}
    assert len(list((tmp_path / "Image-01-FPS-SE" / "bbb").iterdir())) == 10
    assert main(RECIPE, [*command, "--verify"]) == 0
    frames = load(tmp_path, "--frames", "10").val[(0, 0)][1]
    assert frames.shape == (3, 10, 224, 224)


def frame_numbers(path: Path) -> list[int]:
    return sorted(int(frame.stem) for frame in path.iterdir())


def test_every_row_of_a_video_has_the_frames_and_the_sound_of_its_own_event(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lists(
        tmp_path,
        f"{BELL}&aaa&good&0&1\n{CAT}&aaa&good&1&2\n{BELL}&bbb&good&0&1\n",
        f"{BELL}&bbb&good&0&1\n",
        f"{CAT}&aaa&good&2&4\n",
    )
    for name in ("aaa", "bbb"):
        (tmp_path / "AVE").mkdir(exist_ok=True)
        mp4(tmp_path / "AVE" / f"{name}.mp4", 4.0)
    command = ["prepare", "--data-root", str(tmp_path), "--workers", "1"]
    assert main(RECIPE, command) == 0
    assert "2 of 2 videos" in capsys.readouterr().out
    frames = tmp_path / "Image-01-FPS-SE"
    # One folder per event that is read; the second row of a video in one list is not.
    assert {path.name for path in frames.iterdir()} == {"aaa", "aaa.02-04", "bbb"}
    assert frame_numbers(frames / "aaa") == list(range(10))
    assert frame_numbers(frames / "aaa.02-04") == list(range(20, 40, 2))
    assert main(RECIPE, [*command, "--verify"]) == 0

    data = load(tmp_path, "--overlap", "--image-size", "8", "--frames", "1", "--frame-choice", "first")
    assert "another event" not in " ".join(data.summary[2:])
    train, test = (part[(0, 0)] for part in (data.train, data.test))
    brightness = [sample[1].mean() * 0.226 + 0.449 for sample in (train, test)]
    np.testing.assert_allclose(brightness, [0, 20 * 5 / 255], atol=0.03)  # frames 0 and 20
    sound = EventSpectrogram()
    assert torch.equal(train[0], sound(EventFile(tmp_path / "Audios" / "aaa.wav", 0, 1)))
    assert torch.equal(test[0], sound(EventFile(tmp_path / "Audios" / "aaa.wav", 2, 4)))


def test_frames_of_other_code_are_read_and_named_and_prepare_completes_them(tmp_path: Path) -> None:
    lists(tmp_path, f"{BELL}&aaa&good&0&1\n{BELL}&bbb&good&0&1\n", f"{BELL}&bbb&good&0&1\n", f"{CAT}&aaa&good&1&2\n")
    for name in ("aaa", "bbb"):
        clip(tmp_path, name)
    data = load(tmp_path)
    assert len(data.test) == 1  # type: ignore[arg-type]
    (line,) = [line for line in data.summary if "frames of another event" in line]
    assert line.startswith(
        "1 events have the frames of another event of their video, such as aaa: `python recipes/ave.py"
    )
    (tmp_path / "AVE").mkdir()
    mp4(tmp_path / "AVE" / "aaa.mp4", 2.0)
    assert main(RECIPE, ["prepare", "--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert frame_numbers(tmp_path / "Image-01-FPS-SE" / "aaa") == [0, 30, 60]  # kept
    assert frame_numbers(tmp_path / "Image-01-FPS-SE" / "aaa.01-02") == list(range(10, 20))
    assert not [line for line in load(tmp_path).summary if "frames of another event" in line]


# The synthetic set and the command line


def test_synthetic_set_is_deterministic_and_reads_as_real(tmp_path: Path) -> None:
    clips = SyntheticEvents(CLASSES[:3], clips=(2, 1, 1))

    def digest(root: Path) -> str:
        root.mkdir()
        clips.write(root)
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return hashlib.sha256(b"".join(str(p.relative_to(root)).encode() + p.read_bytes() for p in files)).hexdigest()

    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    rows = read_events(tmp_path / "a" / "trainSet.txt", CLASSES)
    assert {row.extra for row in rows} == {("0", "1"), ("1", "2")}
    waveform, rate = soundfile.read(tmp_path / "a" / "Audios" / f"{rows[1].name}.wav")
    assert len(waveform) == 2 * rate


@pytest.mark.slow
def test_short_run_on_the_synthetic_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "1", "--limit-batches", "1", "--batch-size", "4", "--output", str(tmp_path)]
    assert main(RECIPE, ["--methods", "none", "ogm_ge", *flags]) == 0
    assert "SYNTHETIC DATA" in capsys.readouterr().out
    assert {"none", "ogm_ge"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("video", ["AVE/aaa/aaa.mp4", "AVE/Church bell/aaa.mp4", "train/Church bell/aaa.mp4"])
def test_videos_in_folders_of_their_own_or_of_their_class(tmp_path: Path, video: str) -> None:
    lists(tmp_path, f"{BELL}&aaa&good&0&2\n", f"{CAT}&bbb&good&1&2\n", f"{CAT}&ccc&good&0&1\n")
    (tmp_path / video).parent.mkdir(parents=True)
    mp4(tmp_path / video, 2.0)
    with pytest.raises(RecipeError, match="not prepared yet"):
        load(tmp_path)
    assert main(RECIPE, ["prepare", "--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert (tmp_path / "Audios" / "aaa.wav").is_file()
