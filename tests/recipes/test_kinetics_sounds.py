"""The Kinetics-Sounds recipe: every layout, what is reported, and every kind of bad input."""

from __future__ import annotations

import io
import json
import pickle
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import kinetics_sounds
from kinetics_sounds import RECIPE
from recipe_common.cli import main
from recipe_common.data.datasets.kinetics_sounds import CLASSES
from recipe_common.data.datasets.kinetics_videos import video_jobs
from recipe_common.data.samples.audiovisual import choose, hdf5_frames
from recipe_common.data.samples.youtube import ListedKey, clip_key
from recipe_common.data.synthetic.kinetics_sounds import synthetic_root
from recipe_common.errors import RecipeError

from .call import settings_of
from .clip_tree import labels_of, load, names_of, video_id, write_frames, write_lines, write_sound, write_stored
from .tiny_videos import write_video

TRAIN = [f"{video_id(number)}_{number:06d}_{number + 10:06d}" for number in range(18)]
TEST = [f"{video_id(number)}_{number}" for number in range(20, 24)]
LABELS = (12, 5, 30)
SMALL = {"image_size": 16, "fbank_frames": 20, "mel_bins": 20}


def label(number: int) -> int:
    return LABELS[number % len(LABELS)]


def write_lists(root: Path, end: str = "\r\n") -> None:
    write_lines(root / "my_train.txt", [f"{name},10,{label(index)}" for index, name in enumerate(TRAIN)], end)
    write_lines(root / "my_test.txt", [f"{name},10,{label(index)}" for index, name in enumerate(TEST)], end)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The layout of the OGM-GE code: names on disk as in the lists."""
    for index, name in enumerate(TRAIN + TEST):
        write_sound(tmp_path / "data/audio" / f"{name}.wav", index)
        write_frames(tmp_path / "data/visual" / name, count=1 + index % 4)
    write_lists(tmp_path / "data")
    return tmp_path / "data"


def test_the_lists_and_folders_of_the_ogm_ge_code(root: Path) -> None:
    data = load(RECIPE, root)
    assert sorted(names_of(data.train) + names_of(data.val)) == sorted(TRAIN)
    assert names_of(data.test) == TEST
    assert labels_of(data.test) == [12, 5, 30, 12]
    assert data.classes == CLASSES
    assert data.classes[12] == "playing_guitar"
    assert len(data.classes) == 31
    assert any("28 of 31 classes have no training sample" in line for line in data.summary)


def test_the_defaults_give_the_tensors_of_the_paper(root: Path) -> None:
    audio, visual, target = load(RECIPE, root).test[0, 0]
    assert audio.shape == (1, 1024, 128)
    assert visual.shape == (3, 3, 224, 224)
    assert target == 12


@pytest.mark.parametrize(
    ("frontend", "shape"), [("stft16k", (1, 129, 626)), ("stft22k", (1, 257, 188)), ("fbank", (1, 1024, 128))]
)
def test_every_front_end(root: Path, frontend: str, shape: tuple[int, ...]) -> None:
    assert load(RECIPE, root, audio_frontend=frontend).train[3, 0][0].shape == shape


def test_one_tenth_of_every_class_is_held_out_and_the_seed_decides(root: Path, tmp_path: Path) -> None:
    rows = [f"{video_id(number)}_{number},10,{number % 2}" for number in range(60)]
    write_lines(tmp_path / "long.txt", rows)
    for row in rows:
        write_sound(root / "audio" / f"{row.split(',')[0]}.wav")
        write_frames(root / "visual" / row.split(",")[0], 1)
    write_lines(tmp_path / "short.txt", [f"{video_id(99)}_7,10,0"])
    write_sound(root / "audio" / f"{video_id(99)}_7.wav")
    write_frames(root / "visual" / f"{video_id(99)}_7", 1)
    lists = {"train_list": str(tmp_path / "long.txt"), "test_list": str(tmp_path / "short.txt")}
    data = load(RECIPE, root, **lists)
    assert sorted(labels_of(data.val)) == [0, 0, 0, 1, 1, 1]
    assert names_of(load(RECIPE, root, **lists, split_seed=1).val) != names_of(data.val)
    whole = load(RECIPE, root, **lists, validation=False, select="test")
    assert len(names_of(whole.train)) == 60
    assert names_of(whole.val) == []


@pytest.mark.parametrize("written", ["{}_{:06d}_{:06d}", "{}_{:06d}", "{}_{}", "{}_{}_{}", "{}_{:06d}.mp4"])
def test_zeros_and_ends_in_names_do_not_matter(root: Path, written: str) -> None:
    for index, name in enumerate(TEST):
        start = int(name.rpartition("_")[2])
        on_disk = written.format(video_id(20 + index), start, start + 10)
        (root / "audio" / f"{name}.wav").rename(root / "audio" / f"{on_disk.removesuffix('.mp4')}.wav")
        (root / "visual" / name).rename(root / "visual" / on_disk)
    assert names_of(load(RECIPE, root).test) == TEST


@pytest.mark.parametrize(
    "line",
    [
        "{name},10,12",
        "{name} 12",
        "{name}.mp4 10 12",
        "playing_guitar,{name}",
        "playing guitar,{name},10",
        "{name},Playing Guitar",
    ],
)
def test_columns_are_told_by_their_content(root: Path, line: str) -> None:
    write_lines(root / "my_test.txt", ["name,label", "", line.format(name=TEST[0])])
    data = load(RECIPE, root)
    assert names_of(data.test) == TEST[:1]
    assert labels_of(data.test) == [12]


def test_a_byte_order_mark_and_a_repeated_line_are_accepted(root: Path) -> None:
    (root / "my_test.txt").write_text(f"\ufeff{TEST[0]},10,12\n{TEST[0]},10,12\n{TEST[1]},10,5\n", encoding="utf-8")
    assert names_of(load(RECIPE, root).test) == TEST[:2]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"{TEST[0]},10,31"], r"my_test\.txt:1.*Found '31'"),
        ([f"{TEST[0]},10,-1"], r"0 to 30.*Found '-1'"),
        ([f"{TEST[0]},10,tying_tie"], "Found 'tying_tie'"),
        ([f"{TEST[0]},10,3", "short,10,3"], r"my_test\.txt:2 should have one clip name"),
        ([TEST[0]], "one clip name"),
        ([f"{TEST[0]},10,3", f"{video_id(20)}_000020_000030,10,4"], "Every clip should have one label"),
        ([f"{TRAIN[0]},10,12"], r"train and test lists should have no common clip\. Found 1"),
        ([], r"my_test\.txt should .*Found none"),
    ],
)
def test_bad_lists_are_refused(root: Path, lines: list[str], message: str) -> None:
    write_lines(root / "my_test.txt", lines)
    with pytest.raises(RecipeError, match=message):
        load(RECIPE, root)


def test_a_missing_partner_is_refused(root: Path) -> None:
    (root / "my_test.txt").unlink()
    with pytest.raises(RecipeError, match=r"my_train\.txt and my_test\.txt.*Found .*my_train\.txt.*--test-list"):
        load(RECIPE, root)


def test_stored_spectrograms_of_three_kinds(root: Path) -> None:
    shutil.rmtree(root / "audio")
    folder = root / "audio_spec"
    for index, name in enumerate(TRAIN + TEST):
        write_stored(folder / f"{name}.npy", value=index)
    (folder / f"{TEST[1]}.npy").unlink()
    (folder / f"{TEST[1]}.pkl").write_bytes(pickle.dumps(np.full((1024, 128), 2.0)))
    (folder / f"{TEST[2]}.npy").unlink()
    torch.save(torch.full((1024, 128), 3.0), folder / f"{TEST[2]}.pt")
    data = load(RECIPE, root, audio_frontend="stored")
    audio = [data.test[0, index][0] for index in range(4)]
    assert all(each.shape == (1, 1024, 128) and each.dtype == torch.float32 for each in audio)
    assert [each[0, 0, 0].item() for each in audio] == [18, 2, 3, 21]


def test_spectrograms_of_different_shapes_are_refused_or_skipped(root: Path) -> None:
    for name in TRAIN + TEST:
        write_stored(root / "audio" / f"{name}.npy")
    write_stored(root / "audio" / f"{TEST[3]}.npy", (998, 128))
    with pytest.raises(RecipeError, match=r"of the first, \(1024, 128\)\. Found \(998, 128\).*--skip-bad"):
        load(RECIPE, root, audio_frontend="stored").test[0, 3]
    data = load(RECIPE, root, audio_frontend="stored", skip_bad=True, min_found=0.5)
    assert names_of(data.test) == TEST[:3]
    assert any(TEST[3] in line for line in data.skipped)


def test_a_damaged_first_spectrogram_does_not_hide_the_others(root: Path) -> None:
    for name in TRAIN + TEST:
        write_stored(root / "audio" / f"{name}.npy", (20, 30))
    (root / "audio" / f"{TRAIN[0]}.npy").write_bytes(b"broken")
    data = load(RECIPE, root, audio_frontend="stored", skip_bad=True, min_found=0.5)
    assert data.test[0, 0][0].shape == (1, 20, 30)
    assert len(data.skipped) == 1
    assert TRAIN[0] in data.skipped[0]


def test_the_wrong_front_end_is_told_the_right_one(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"Found 22 \.wav files.*--audio-frontend fbank` or `stft16k"):
        load(RECIPE, root, audio_frontend="stored")
    for path in (root / "audio").iterdir():
        path.rename(path.with_suffix(".npy"))
    with pytest.raises(RecipeError, match=r"should hold \.wav files.*Found 22 \.npy files.*--audio-frontend stored"):
        load(RECIPE, root)


def write_class_folders(root: Path) -> None:
    for index, name in enumerate(TRAIN + TEST):
        part, images = ("train", "train_img") if name in TRAIN else ("test", "val_img")
        folder = CLASSES[label(index)]
        write_sound(root / f"audio/{part}/{folder}/{name}.wav", index)
        write_frames(root / f"visual/{images}/Image-01-FPS/{folder}/{name}")


@pytest.mark.parametrize("base", [".", "kinect_sound"])
def test_class_folders_are_paired_by_name(tmp_path: Path, base: str) -> None:
    write_class_folders(tmp_path / base)
    (tmp_path / base / "audio/train/tying_tie").mkdir()
    # Pairing by sort order would give every later clip of this class the sound of another one.
    (tmp_path / base / f"audio/train/{CLASSES[label(0)]}/{TRAIN[0]}.wav").unlink()
    data = load(RECIPE, tmp_path, validation=False, select="test", min_found=0.5)
    assert names_of(data.train) == TRAIN[1:]
    assert labels_of(data.train) == [label(index) for index in range(1, 18)]
    for sample in data.train.samples:  # type: ignore[attr-defined]
        assert clip_key(sample.media[0].stem) == clip_key(sample.media[1].name) == clip_key(sample.name)
    assert "left out, as they are none of the 31 classes: tying_tie" in data.summary[1]
    assert data.skipped == (f"train: {TRAIN[0]}: no wav file",)


def test_a_clip_in_two_class_folders_is_refused(tmp_path: Path) -> None:
    write_class_folders(tmp_path)
    write_sound(tmp_path / f"audio/train/tickling/{TRAIN[0]}.wav")
    with pytest.raises(RecipeError, match="Every clip should have one label"):
        load(RECIPE, tmp_path)


def jpg(brightness: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (12, 10), (brightness,) * 3).save(content, "JPEG")
    return content.getvalue()


def write_hdf5(path: Path, pictures: list[bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        frames = file.create_dataset("video", (len(pictures),), h5py.vlen_dtype(np.uint8))
        for index, picture in enumerate(pictures):
            frames[index] = np.frombuffer(picture, np.uint8)


@pytest.mark.parametrize(("subset", "held_out"), [("testing", 2), ("validation", 0)])
def test_the_json_and_hdf5_files_of_the_bml_code(tmp_path: Path, subset: str, held_out: int) -> None:
    database = {}
    for index, name in enumerate(TRAIN + TEST):
        part = subset if name in TEST else ("validation" if index < held_out else "training")
        database[name] = {"subset": part, "label": CLASSES[label(index)]}
        (tmp_path / "audio").mkdir(exist_ok=True)
        (tmp_path / "audio" / f"{name}.pkl").write_bytes(pickle.dumps(np.zeros((20, 30), np.float32)))
        write_hdf5(tmp_path / "visual" / f"{name}.hdf5", [jpg(20), jpg(120), jpg(220)])
    (tmp_path / "KS.json").write_text(json.dumps({"labels": list(CLASSES), "database": database}))
    data = load(RECIPE, tmp_path, audio_frontend="stored", image_size=8)
    assert names_of(data.test) == TEST
    assert len(names_of(data.train)) + len(names_of(data.val)) == 18
    if held_out:
        assert names_of(data.val) == TRAIN[:2]
    audio, visual, _ = data.test[0, 0]
    assert audio.shape == (1, 20, 30)
    assert visual.shape == (3, 3, 8, 8)
    assert visual[0, 0].mean() < visual[0, 1].mean() < visual[0, 2].mean()


def test_a_bad_json_file_is_explained(root: Path) -> None:
    for name in ("my_train.txt", "my_test.txt"):
        (root / name).unlink()
    (root / "KS.json").write_text('{"database": {"x": {"subset": "training"}}}')
    with pytest.raises(RecipeError, match=r"KS\.json.*KeyError"):
        load(RECIPE, root)
    (root / "KS.json").write_text('{"database": {"x": {"subset": "training", "label": "tying_tie"}}}')
    with pytest.raises(RecipeError, match=r"31 labels.*'tying_tie' for x"):
        load(RECIPE, root)


def test_bad_hdf5_files_name_the_file_and_the_frame(root: Path, tmp_path: Path) -> None:
    path = tmp_path / "clip.hdf5"
    path.write_bytes(b"no hdf5")
    with pytest.raises(RecipeError, match=r"clip\.hdf5.*--skip-bad"):
        hdf5_frames(path)
    write_hdf5(path, [])
    with pytest.raises(RecipeError, match="Found no frames"):
        hdf5_frames(path)
    shutil.rmtree(root / "visual" / TEST[0])
    write_hdf5(root / "visual" / f"{TEST[0]}.hdf5", [jpg(10), b"broken"])
    with pytest.raises(RecipeError, match=r"hdf5\[1\]"):
        load(RECIPE, root).test[0, 0]


def test_absent_and_empty_media_are_counted_and_named(root: Path) -> None:
    (root / "audio" / f"{TEST[0]}.wav").unlink()
    for path in (root / "visual" / TEST[1]).iterdir():
        path.unlink()
    with pytest.raises(RecipeError, match=r"at least 80%.*2 of 4 .*1 without wav file.*1 without frames.*--min-found"):
        load(RECIPE, root)
    data = load(RECIPE, root, min_found=0.5)
    assert names_of(data.test) == TEST[2:]
    assert data.skipped == (f"test: {TEST[0]}: no wav file", f"test: {TEST[1]}: no frames")


def test_unreadable_files_stop_or_are_skipped(root: Path) -> None:
    (root / "audio" / f"{TEST[0]}.wav").write_bytes(b"broken")
    (root / "visual" / TEST[1] / "frame_00001.jpg").write_bytes(b"broken")
    write_sound(root / "audio" / f"{TEST[2]}.wav", seconds=0.02)
    with pytest.raises(RecipeError, match="Found 3 that are not") as caught:
        load(RECIPE, root)
    for message in (
        f"audio/{TEST[0]}.wav: Error opening",
        f"visual/{TEST[1]}/frame_00001.jpg: cannot identify",
        f"audio/{TEST[2]}.wav: 320 samples, less than 25 ms",
        "or leave them out with `--skip-bad`",
    ):
        assert message in str(caught.value)
    data = load(RECIPE, root, skip_bad=True, min_found=0.2)
    assert names_of(data.test) == TEST[3:]
    assert len(data.skipped) == 3


def test_a_missing_root_and_videos_that_are_not_prepared_are_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"audio in .*--audio-dir.*frames in .*--visual-dir.*Found no such folder"):
        load(RECIPE, tmp_path / "nowhere")
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / f"{TEST[0]}.mp4").touch()
    with pytest.raises(RecipeError, match=rf"not prepared yet.*prepare --data-root {tmp_path}"):
        load(RECIPE, tmp_path)


def test_other_folders_can_be_named(root: Path) -> None:
    (root / "audio").rename(root / "my_sounds")
    (root / "visual").rename(root / "my_frames")
    data = load(RECIPE, root, audio_dir=("my_sounds",), visual_dir=("my_*",))
    assert names_of(data.test) == TEST


def test_which_frames_are_chosen() -> None:
    files = [Path(f"{number}.jpg") for number in range(10)]
    assert choose(files, 3, "segments") == files
    assert [int(path.stem) for path in choose(files, 3, "start")] == [0, 3, 6]
    assert [int(path.stem) for path in choose(files, 3, "first")] == [0, 1, 2]
    assert [int(path.stem) for path in choose(files[:2], 3, "start")] == [0, 0, 1]


def test_samples_depend_on_seed_epoch_and_index_alone(root: Path) -> None:
    data = load(RECIPE, root, audio_frontend="stft16k", image_size=16)
    again = load(RECIPE, root, audio_frontend="stft16k", image_size=16)
    again.train[5, 1]
    for one, other in zip(data.train[2, 0], again.train[2, 0], strict=True):
        assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))
    assert not torch.equal(data.train[2, 0][0], data.train[3, 0][0])
    assert torch.equal(data.test[2, 0][0], data.test[3, 0][0])


def test_classes_too_small_to_hold_out_anything_are_explained(root: Path) -> None:
    write_lines(root / "my_train.txt", [f"{name},10,{index}" for index, name in enumerate(TRAIN)])
    with pytest.raises(RecipeError, match=r"to hold out 10% of them\. Found 18 clips.*--no-validation --select test"):
        load(RECIPE, root)


def test_the_data_can_be_sent_to_a_spawned_worker(root: Path) -> None:
    data = load(RECIPE, root, audio_frontend="stft16k", image_size=16)
    sent = pickle.loads(pickle.dumps(data.train))
    assert torch.equal(sent[1, 2][0], data.train[1, 2][0])
    assert torch.equal(sent[1, 2][1], data.train[1, 2][1])


def test_the_official_protocol_differs_in_selection_and_frames() -> None:
    assert RECIPE.protocols["official"] == {"select": "test", "validation": False, "frame_choice": "start"}
    assert set(RECIPE.protocols["dgl"]) >= {"drop_last", "crop", "audio_frontend"}


def test_prepare_takes_the_listed_videos_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lists(tmp_path)
    for name in (TRAIN[0], TEST[0], f"{video_id(77)}_000001_000011"):
        write_video(tmp_path / "videos" / f"{name}.mp4", codec="mpeg4")
    jobs = video_jobs(tmp_path)
    assert sorted(job.wav.name for job in jobs) == [f"{TRAIN[0]}.wav", f"{TEST[0]}.wav"]
    assert jobs[0].frames == tmp_path / "visual" / TRAIN[0]
    assert kinetics_sounds.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert "2 of 2 videos" in capsys.readouterr().out
    assert kinetics_sounds.prepare_main(["--data-root", str(tmp_path), "--verify"]) == 0
    data = load(RECIPE, tmp_path, min_found=0.0, validation=False, select="test")
    assert (names_of(data.train), names_of(data.test)) == (TRAIN[:1], TEST[:1])


def test_prepare_keeps_the_class_folders_of_kinetics_400(tmp_path: Path) -> None:
    for part, folder in (("train", "playing guitar"), ("val", "tickling"), ("train", "abseiling")):
        (tmp_path / part / folder).mkdir(parents=True)
        (tmp_path / part / folder / f"{TRAIN[0]}.mp4").touch()
    jobs = {job.video.parent.name: job for job in video_jobs(tmp_path)}
    assert jobs.keys() == {"playing guitar", "tickling"}
    assert jobs["tickling"].wav == tmp_path / f"audio/test/tickling/{TRAIN[0]}.wav"
    assert jobs["playing guitar"].frames == tmp_path / f"visual/train_img/Image-01-FPS/playing_guitar/{TRAIN[0]}"


@pytest.mark.parametrize(("val", "folder"), [("val", "val"), ("videos_val", "videos_val"), (None, "test")])
def test_the_test_folder_of_kinetics_400_counts_only_without_val(
    tmp_path: Path, val: str | None, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, part in enumerate(filter(None, ("train", val, "test"))):
        (tmp_path / part / "tickling").mkdir(parents=True)
        (tmp_path / part / "tickling" / f"{TRAIN[number]}.mp4").touch()
    tested = [job.video for job in video_jobs(tmp_path) if "test" in job.wav.parts]
    assert [video.parents[1].name for video in tested] == [folder]
    line = f"in {val}/; the 1 in test/ are left out" if val else "in test/, as there are none in val/"
    assert capsys.readouterr().out == f"the test part: videos {line}\n"


def test_prepare_without_a_fitting_video_is_explained(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "other.mp4").touch()
    with pytest.raises(RecipeError, match=r"train/CLASS/NAME\.mp4.*Found 1 others.*: add my_train"):
        video_jobs(tmp_path)


def test_the_synthetic_set_has_the_real_format() -> None:
    root = synthetic_root()
    assert root == synthetic_root()
    lines = (root / "my_train.txt").read_bytes().split(b"\r\n")
    assert lines[1] == b"gen_00001-k_000001_000011,10,1"
    assert (root / "my_test.txt").read_bytes().startswith(b"gen_00310-k_310,10,0\r\n")
    data = load(RECIPE, None)
    assert [len(part.samples) for part in (data.train, data.val, data.test)] == [279, 31, 93]  # type: ignore[attr-defined]
    assert set(labels_of(data.train)) == set(labels_of(data.test)) == set(range(31))
    assert data.synthetic
    assert data.skipped == ()
    audio, visual, _ = data.train[0, 0]
    assert (audio.shape, visual.shape) == ((1, 48, 40), (3, 1, 64, 64))


def test_the_model_has_two_encoders_and_a_head_of_31_classes(root: Path) -> None:
    data = load(RECIPE, root, **SMALL)
    model = kinetics_sounds.build_model(settings_of(RECIPE), data)
    encoders = [sum(p.numel() for p in model.get_submodule(name).parameters()) for name in ("audio_net", "visual_net")]
    assert encoders == [11_170_240, 11_176_512]
    assert sum(p.numel() for p in model.parameters()) == sum(encoders) + 1024 * 31 + 31
    audio, visual, _ = data.test[0, 0]
    assert model.eval()(audio[None], visual[None]).shape == (1, 31)


@pytest.mark.slow
def test_it_trains_from_the_command_line(tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--limit-batches", "2", "--batch-size", "4", "--image-size", "32", "--device", "cpu"]
    assert main(RECIPE, [*flags, "--methods", "ogm_ge", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "ogm_ge" / "best.pt").is_file()


def write_annotations(path: Path, *rows: tuple[str, str, int], part: str = "train") -> None:
    """Write a csv file as the CVDF copy of Kinetics-400 has it."""
    lines = [f'"{label}",{name},{start},{start + 10},{part},0' for label, name, start in rows]
    write_lines(path, ["label,youtube_id,time_start,time_end,split,is_cc", *lines])


@pytest.mark.parametrize("base", [".", "k400"])
def test_flat_videos_of_kinetics_400_are_chosen_by_the_lists(tmp_path: Path, base: str) -> None:
    write_lists(tmp_path)
    for part, name in (
        ("train", TRAIN[0]),
        ("val", f"{video_id(20)}_000020_000030"),
        ("val", f"{video_id(77)}_000001_000011"),
    ):
        write_video(tmp_path / base / part / f"{name}.mp4", codec="mpeg4")
    with pytest.raises(RecipeError, match="not prepared yet"):
        load(RECIPE, tmp_path)
    assert kinetics_sounds.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    data = load(RECIPE, tmp_path, min_found=0.0, validation=False, select="test")
    assert (names_of(data.train), names_of(data.test)) == (TRAIN[:1], TEST[:1])


@pytest.mark.parametrize(
    ("train", "val"), [("annotations/train.csv", "annotations/val.csv"), ("train.csv", "validate.csv")]
)
def test_flat_videos_of_kinetics_400_take_their_classes_from_its_annotations(
    tmp_path: Path, train: str, val: str
) -> None:
    write_annotations(tmp_path / train, ("playing guitar", video_id(0), 7), ("abseiling", video_id(1), 8))
    write_annotations(tmp_path / val, ("tickling", video_id(2), 9), part="val")
    for part, number, start in (("train", 0, 7), ("train", 1, 8), ("val", 2, 9)):
        write_video(tmp_path / part / f"{video_id(number)}_{start:06d}_{start + 10:06d}.mp4", codec="mpeg4")
    assert kinetics_sounds.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    data = load(RECIPE, tmp_path, validation=False, select="test")
    assert names_of(data.train) == [f"{video_id(0)}_000007_000017"]
    assert (labels_of(data.train), labels_of(data.test)) == ([12], [30])
    assert any("1 of 2 and 1 of 1 rows are of the 31 classes" in line for line in data.summary)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ID 3", r"train\.csv:1 should have the columns label, youtube_id, time_start, time_end"),
        ("label,youtube_id,time_start,time_end\nsinging,x,1", r"train\.csv:2 .*Found 'singing,x,1'"),
        ("label,youtube_id,time_start,time_end\nsinging,a_0000-_b1c,one,11", r"train\.csv:2 .*one"),
    ],
)
def test_annotations_of_another_form_are_refused(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{TRAIN[0]}.mp4").touch()
    write_lines(tmp_path / "annotations/train.csv", [line])
    write_annotations(tmp_path / "annotations/val.csv")
    with pytest.raises(RecipeError, match=message):
        video_jobs(tmp_path)


def test_flat_videos_without_lists_are_told_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / f"{TRAIN[0]}.mp4").touch()
    with pytest.raises(
        RecipeError, match=r"Found 1 others, such as .*train.*: add my_train\.txt and my_test\.txt, or the annotations"
    ):
        video_jobs(tmp_path)


def test_a_replacement_is_taken_for_a_corrupted_video(tmp_path: Path) -> None:
    write_lists(tmp_path)
    replacement = tmp_path / "replacement/replacement_for_corrupted_k400" / f"{TRAIN[0]}.mp4"
    for path in (tmp_path / "train" / f"{TRAIN[0]}.mp4", tmp_path / "train" / f"{TRAIN[1]}.mp4", replacement):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(job.video for job in video_jobs(tmp_path)) == sorted(
        [replacement, tmp_path / f"train/{TRAIN[1]}.mp4"]
    )


@pytest.mark.parametrize("folders", ["{part}", "videos/{part}", "videos_{part}"])
def test_class_folders_of_other_tools(tmp_path: Path, folders: str) -> None:
    corrupted = tmp_path / folders.format(part="train") / "singing" / f"{TRAIN[0]}.mp4"
    replacement = tmp_path / "replacement/replacement_for_corrupted_k400" / corrupted.name
    other = tmp_path / folders.format(part="val") / "singing" / f"{TRAIN[1]}.mp4"
    for path in (corrupted, replacement, other):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    jobs = {job.video: job for job in video_jobs(tmp_path)}
    assert jobs.keys() == {replacement, other}
    assert jobs[replacement].wav == tmp_path / f"audio/train/singing/{TRAIN[0]}.wav"
    assert jobs[other].wav == tmp_path / f"audio/test/singing/{TRAIN[1]}.wav"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a_0000-_b1c_261000_271000", "a_0000-_b1c_261"),
        ("a_0000-_b1c_0_10000.mp4", "a_0000-_b1c_0"),
        ("a_0000-_b1c_35752000_35762000", "a_0000-_b1c_35752"),
        ("a_0000-_b1c_000261_000271", "a_0000-_b1c_261"),
        ("a_0000-_b1c_8104", "a_0000-_b1c_8104"),
        ("a_0000-_b1c_30000", "a_0000-_b1c_30000"),
    ],
)
def test_times_ten_thousand_apart_are_milliseconds(name: str, key: str) -> None:
    assert clip_key(name) == key


def test_a_start_in_milliseconds_without_end_is_told_by_the_list() -> None:
    key = ListedKey.of([f"{video_id(1)}_30", f"{video_id(2)}_30000", f"{video_id(2)}_30"])
    assert key(f"{video_id(1)}_30000.mp4") == f"{video_id(1)}_30"
    assert key(f"{video_id(2)}_30000") == f"{video_id(2)}_30000"
    assert key(f"{video_id(3)}_30000") == f"{video_id(3)}_30000"
    assert key(f"{video_id(1)}_000030_000040") == f"{video_id(1)}_30"


@pytest.mark.parametrize("base", [".", "kinsound"])
def test_the_folders_of_mla(tmp_path: Path, base: str) -> None:
    for part, clips in (("train", TRAIN), ("test", TEST)):
        write_lines(tmp_path / f"my_{part}_ks.txt", [f"{name}.mp4 playing guitar" for name in clips])
        for name in clips:
            write_stored(tmp_path / base / f"audio/{part}_fbank/{name}.npy")
            write_frames(tmp_path / base / f"visual/{part}_imgs/Image-01-FPS/{name}")
    data = load(RECIPE, tmp_path, audio_frontend="stored")
    assert names_of(data.test) == TEST
    assert set(labels_of(data.test)) == {12}


def test_the_folders_of_inforeg(tmp_path: Path) -> None:
    for part, frames, clips in (("train", "train", TRAIN), ("test", "val", TEST)):
        write_lines(tmp_path / f"ks_{part}_overlap.txt", [f"{name} {label(index)}" for index, name in enumerate(clips)])
        for name in clips:
            write_stored(tmp_path / f"{part}_spec/{name}.npy")
            write_frames(tmp_path / f"{frames}-frames-1fps/{part}/{name}")
    data = load(RECIPE, tmp_path, audio_frontend="stored")
    assert (names_of(data.test), labels_of(data.test)) == (TEST, [12, 5, 30, 12])


def test_the_folders_of_bmmal(tmp_path: Path) -> None:
    write_lists(tmp_path)
    for part, clips in (("train", TRAIN), ("test", TEST)):
        for name in clips:
            write_sound(tmp_path / f"{part}/audio/playing guitar/{name}.wav")
            write_frames(tmp_path / f"{part}/video/playing guitar/{name}", pattern="frame_{}.jpg")
    data = load(RECIPE, tmp_path)
    assert (names_of(data.test), labels_of(data.test)) == (TEST, [12, 5, 30, 12])


def test_the_folders_of_valuate_and_enhance(tmp_path: Path) -> None:
    for part, clips in (("train", TRAIN), ("test", TEST)):
        lines = [f"{name} 1 {label(index)}" for index, name in enumerate(clips)]
        write_lines(tmp_path / f"ks_audio/{part}_1fps_path.txt", lines)
        for name in clips:
            write_stored(tmp_path / f"ks_audio/{part}/{name}.npy")
            write_frames(tmp_path / f"ks_visual/{part}/{name}")
    data = load(RECIPE, tmp_path, audio_frontend="stored")
    assert (names_of(data.test), labels_of(data.test)) == (TEST, [12, 5, 30, 12])


def test_folders_are_named_from_the_root_or_absolutely(root: Path) -> None:
    (root / "audio").rename(root.parent / "sound")
    for name in TRAIN + TEST:
        (root / "visual" / name).rename(root / name)
    data = load(RECIPE, root, audio_dir=(str(root.parent / "so*"),), visual_dir=(".",))
    assert names_of(data.test) == TEST
    with pytest.raises(RecipeError, match=r"audio in /nowhere"):
        load(RECIPE, root, audio_dir=("/nowhere",), visual_dir=(".",))


def test_a_hidden_folder_counts_if_it_is_named(root: Path) -> None:
    hidden = root.rename(root.parent / ".hidden")
    for name in TRAIN + TEST:
        (hidden / "audio" / f"{name}.wav").rename(hidden / f"{name}.wav")
        (hidden / "visual" / name).rename(hidden / name)
    assert names_of(load(RECIPE, hidden, audio_dir=(".",), visual_dir=(".",)).test) == TEST
    (hidden / ".sound").mkdir()
    for path in hidden.glob("*.wav"):
        path.rename(hidden / ".sound" / path.name)
    assert names_of(load(RECIPE, hidden, audio_dir=(".sound",), visual_dir=(".",)).test) == TEST
    for pattern in ("*und", "?sound"):
        with pytest.raises(RecipeError, match=r"should hold audio in .*und "):
            load(RECIPE, hidden, audio_dir=(pattern,), visual_dir=(".",))
