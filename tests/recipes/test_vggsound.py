"""The VGGSound recipe: the csv file, every layout, what is reported, and every kind of bad input."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

import vggsound
from recipe_common.cli import main
from recipe_common.data.datasets.vggsound import video_job
from recipe_common.data.samples.youtube import clip_key
from recipe_common.data.synthetic.vggsound import SYNTHETIC_LABELS, synthetic_root
from recipe_common.errors import RecipeError
from vggsound import RECIPE

from .call import settings_of
from .clip_tree import labels_of, load, names_of, video_id, write_frames, write_lines, write_sound, write_stored
from .tiny_videos import write_video

LABELS = ("vehicle horn, car horn, honking", "air horn", "playing theremin")
SORTED = ("air horn", "playing theremin", "vehicle horn, car horn, honking")
CLIPS = [(video_id(number), 7 * number, LABELS[number % 3], "train" if number < 18 else "test") for number in range(21)]
TEST = [f"{identity}_{start}" for identity, start, _, part in CLIPS if part == "test"]


def write_csv(root: Path, clips: list[tuple[str, int, str, str]] = CLIPS, name: str = "vggsound.csv") -> None:
    write_lines(root / name, [f'{identity},{start},"{label}",{part}' for identity, start, label, part in clips])


def write_media(root: Path, audio: str, frames: str, name: str = "{}_{}", count: int = 4) -> None:
    for identity, start, _, part in CLIPS:
        clip = name.format(identity, start)
        write_sound(root / audio.format(part=part) / f"{clip}.wav", start)
        folder = root / frames.format(part=part)
        write_frames(folder.parent / folder.name.replace("NAME", clip), count, "{:05d}.jpg")


OGM_GE = ("{part}-audios/{part}-set", "{part}-videos/{part}-set-img/Image-01-FPS/NAME.mp4")
DGL = ("audio/{part}-audios/{part}-set", "video/{part}-set-img/Image-01-FPS/NAME.mp4")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The layout of the OGM-GE code."""
    write_csv(tmp_path / "data")
    write_media(tmp_path / "data", *OGM_GE)
    return tmp_path / "data"


@pytest.mark.parametrize("base", [".", "vggsound"])
@pytest.mark.parametrize(
    ("audio", "frames", "name"),
    [(*OGM_GE, "{}_{}"), (*DGL, "{}_{:06d}"), ("audio", "visual/NAME", "{}_{}"), ("audio", "video/NAME", "{}_{:06d}")],
)
def test_every_known_layout_is_read(tmp_path: Path, base: str, audio: str, frames: str, name: str) -> None:
    write_csv(tmp_path)
    write_media(tmp_path / base, audio, frames, name)
    data = load(RECIPE, tmp_path, num_classes=3)
    assert names_of(data.test) == TEST
    assert len(names_of(data.train)) + len(names_of(data.val)) == 18
    assert data.skipped == ()


def test_classes_are_the_sorted_labels_of_the_whole_file(root: Path) -> None:
    data = load(RECIPE, root, num_classes=3)
    assert data.classes == SORTED
    assert labels_of(data.test) == [2, 0, 1]
    for path in (root / "test-audios/test-set").iterdir():
        if path.stem != TEST[2]:
            path.unlink()
    fewer = load(RECIPE, root, num_classes=3, min_found=0.1)
    assert fewer.classes == SORTED
    assert labels_of(fewer.test) == [1]


def test_a_label_that_no_training_clip_has_keeps_its_index(root: Path) -> None:
    write_csv(root, [(*clip[:2], "a new label", "test") if clip[0] == video_id(18) else clip for clip in CLIPS])
    data = load(RECIPE, root, num_classes=4)
    assert data.classes[0] == "a new label"
    assert labels_of(data.test) == [0, 1, 2]
    assert "1 of 4 classes have no training sample: a new label" in data.summary


def test_the_defaults_give_the_tensors_of_the_paper(root: Path) -> None:
    audio, visual, label = load(RECIPE, root, num_classes=3).test[0, 0]
    assert audio.shape == (1, 129, 626)
    assert visual.shape == (3, 3, 224, 224)
    assert label == 2


def test_a_file_that_is_cut_short_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"should have 309 labels\. Found 3: .*--num-classes 3"):
        load(RECIPE, root)
    write_csv(root, CLIPS[:18])
    with pytest.raises(RecipeError, match=r"should have test rows\. Found none: .*cut short"):
        load(RECIPE, root, num_classes=3)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"{video_id(50)},30,air horn", r"vggsound\.csv:22 should .*Found"),
        (f"{video_id(50)},30,playing theremin, solo,test", "video id, start second"),
        (f"{video_id(50)},thirty,air horn,test", "'a_0050-_b1c,thirty"),
        (f"{video_id(50)},30,air horn,validation", "train or test"),
        (f"{video_id(50)},30,,test", "train or test"),
        (f"{video_id(18)},{7 * 18},air horn,test", "Every clip should have one label"),
        (f"{video_id(0)},000,air horn,test", "should have no common clip"),
    ],
)
def test_bad_lines_are_named(root: Path, line: str, message: str) -> None:
    with (root / "vggsound.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RecipeError, match=message):
        load(RECIPE, root, num_classes=3)


def test_the_lists_of_the_dgl_code(tmp_path: Path) -> None:
    write_media(tmp_path, *DGL, "{}_{:06d}")
    with pytest.raises(RecipeError, match=r"vggsound\.csv, or train\.csv and test\.csv.*Found \w+[-\w, ]*: download"):
        load(RECIPE, tmp_path, num_classes=3)
    for wanted in ("train", "test"):
        lines = [f'{identity}_{start:06d}.mp4,"{label}"' for identity, start, label, part in CLIPS if part == wanted]
        write_lines(tmp_path / f"{wanted}.csv", lines)
    data = load(RECIPE, tmp_path, num_classes=3)
    assert [clip_key(name) for name in names_of(data.test)] == TEST
    assert data.classes == SORTED
    write_lines(tmp_path / "test.csv", ["no clip,air horn"])
    with pytest.raises(RecipeError, match=r"test\.csv:1 should .*Found 'no clip,air horn'"):
        load(RECIPE, tmp_path, num_classes=3)


def test_missing_media_are_counted_and_named(root: Path) -> None:
    (root / "train-audios/train-set" / f"{video_id(0)}_0.wav").unlink()
    data = load(RECIPE, root, num_classes=3)
    assert [line for line in data.skipped if line.endswith(f"{video_id(0)}_0: no wav file")]
    for path in (root / "test-videos/test-set-img/Image-01-FPS" / f"{TEST[0]}.mp4").iterdir():
        path.unlink()
    with pytest.raises(RecipeError, match=r"2 of 3 listed samples; 1 without frames.*--min-found"):
        load(RECIPE, root, num_classes=3)


def test_stored_filter_banks_can_be_read_instead(root: Path) -> None:
    for identity, start, _, _ in CLIPS:
        write_stored(root / "audio" / f"{identity}_{start}.npy")
    assert load(RECIPE, root, num_classes=3, audio_frontend="stored").test[0, 0][0].shape == (1, 1024, 128)


def test_evaluation_is_deterministic_and_the_official_one_is_drawn_by_the_seed(root: Path) -> None:
    centre = load(RECIPE, root, num_classes=3)
    assert torch.equal(centre.test[0, 1][0], centre.test[1, 1][0])
    assert not torch.equal(centre.train[0, 1][0], centre.train[1, 1][0])
    seeds = [load(RECIPE, root, num_classes=3, crop="random", seed=seed).test for seed in (0, 1)]
    drawn = [seeds[0][0, 1][0], seeds[0][1, 1][0], seeds[1][0, 1][0]]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], centre.test[0, 1][0])


def test_the_protocols() -> None:
    official = {"select": "test", "validation": False, "crop": "random", "frame_choice": "first"}
    assert RECIPE.protocols["official"] == official
    assert RECIPE.protocols["dgl"] == {**official, "drop_last": "both", "lr": 2e-3}


def test_prepare_makes_what_the_recipe_reads(tmp_path: Path) -> None:
    write_csv(tmp_path)
    for identity, start, _, part in CLIPS[16:20]:
        write_video(tmp_path / f"{part}-videos/{part}-set/{identity}_{start:06d}.mp4", codec="mpeg4")
    with pytest.raises(RecipeError, match=rf"not prepared yet.*vggsound\.py prepare --data-root {tmp_path}"):
        load(RECIPE, tmp_path, num_classes=3)
    assert vggsound.prepare_main(["--data-root", str(tmp_path), "--workers", "1", "--short-side", "8"]) == 0
    assert vggsound.prepare_main(["--data-root", str(tmp_path), "--verify"]) == 0
    frames = tmp_path / "test-videos/test-set-img/Image-01-FPS" / f"{video_id(18)}_000126.mp4"
    assert sorted(path.name for path in frames.iterdir()) == ["00000.jpg", "00010.jpg", "00020.jpg"]
    data = load(RECIPE, tmp_path, num_classes=3, min_found=0.0, validation=False, select="test")
    assert names_of(data.test) == TEST[:2]
    assert len(names_of(data.train)) == 2


def test_prepare_of_one_folder_of_videos(tmp_path: Path) -> None:
    job = video_job(tmp_path, tmp_path / "videos" / f"{TEST[0]}.mp4")
    assert (job.frames, job.wav) == (tmp_path / "visual" / TEST[0], tmp_path / "audio" / f"{TEST[0]}.wav")


def test_the_synthetic_set_has_the_real_format() -> None:
    root = synthetic_root()
    assert root == synthetic_root()
    with (root / "vggsound.csv").open() as file:
        rows = list(csv.reader(file))
    assert rows[2] == ["train000002", "2", "child speech, kid speaking", "train"]
    assert (root / "train-videos/train-set-img/Image-01-FPS/train000002_2.mp4/00000.jpg").is_file()
    assert (root / "test-audios/test-set/test_000002_000002.wav").is_file()
    data = load(RECIPE, None)
    assert [len(names_of(part)) for part in (data.train, data.val, data.test)] == [324, 36, 96]
    assert len(data.classes) == 12
    assert data.skipped == ()
    audio, visual, _ = data.train[0, 0]
    assert (audio.shape, visual.shape) == ((1, 64, 65), (3, 1, 64, 64))


def test_the_head_has_309_classes_and_the_metrics_are_those_of_the_papers(root: Path) -> None:
    data = load(RECIPE, root, num_classes=3)
    many = type("Data", (), {"classes": tuple(str(number) for number in range(309))})
    model = vggsound.build_model(settings_of(RECIPE), many)  # type: ignore[arg-type]
    assert sum(p.numel() for p in model.parameters()) == 11_170_240 + 11_176_512 + 1024 * 309 + 309
    assert {metric.key for metric in data.task.metrics} >= {"accuracy", "map", "macro_f1"}


@pytest.mark.slow
def test_it_trains_from_the_command_line(tmp_path: Path) -> None:
    flags = ["--epochs", "1", "--limit-batches", "2", "--batch-size", "4", "--image-size", "32", "--device", "cpu"]
    assert main(RECIPE, [*flags, "--methods", "ogm_ge", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "ogm_ge" / "best.pt").is_file()
    saved = torch.load(tmp_path / "ogm_ge" / "best.pt", weights_only=True)
    assert tuple(saved["classes"]) == SYNTHETIC_LABELS


@pytest.mark.parametrize("name", ["{}_{}000_{}000", "{}_{:06d}"])
@pytest.mark.parametrize("folder", ["video", "VGGSound_final/video", "vggsound/video"])
def test_videos_of_the_published_archive_and_of_downloaders(tmp_path: Path, name: str, folder: str) -> None:
    write_csv(tmp_path)
    for identity, start, _, part in CLIPS[16:20]:
        write_video(tmp_path / folder / f"{name.format(identity, start, start + 10)}.mp4", codec="mpeg4")
        assert part in ("train", "test")
    with pytest.raises(RecipeError, match=rf"not prepared yet.*vggsound\.py prepare --data-root {tmp_path}"):
        load(RECIPE, tmp_path, num_classes=3)
    assert vggsound.prepare_main(["--data-root", str(tmp_path), "--workers", "1", "--short-side", "8"]) == 0
    data = load(RECIPE, tmp_path, num_classes=3, min_found=0.0, validation=False, select="test")
    assert names_of(data.test) == TEST[:2]
    assert len(names_of(data.train)) == 2


def test_starts_in_milliseconds_without_end_are_read(root: Path) -> None:
    for folder in ("test-audios/test-set", "test-videos/test-set-img/Image-01-FPS"):
        for path in (root / folder).iterdir():
            identity, start = path.name[:11], int(path.name[12:].split(".")[0])
            path.rename(path.with_name(f"{identity}_{start}000{path.suffix}"))
    assert [clip_key(name) for name in names_of(load(RECIPE, root, num_classes=3).test)] == TEST


def test_an_archive_that_is_unpacked_with_all_its_folders_is_found(tmp_path: Path) -> None:
    write_csv(tmp_path)
    inner = "scratch/shared/beegfs/hchen/train_data/VGGSound_final/video"
    write_video(tmp_path / inner / f"{TEST[0]}.mp4", codec="mpeg4")
    assert vggsound.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert (tmp_path / "visual" / TEST[0]).is_dir()


def test_sound_of_another_kind_beside_videos_is_explained(tmp_path: Path) -> None:
    write_csv(tmp_path)
    for identity, start, _, _ in CLIPS:
        write_frames(tmp_path / "visual" / f"{identity}_{start}")
        (tmp_path / "audio").mkdir(exist_ok=True)
        (tmp_path / "audio" / f"{identity}_{start}000_{start + 10}000.flac").touch()
    with pytest.raises(
        RecipeError, match=r"Found \d+ \.flac files: convert them to wav.*or run `prepare` on the videos"
    ):
        load(RECIPE, tmp_path, num_classes=3)


def test_videos_in_class_folders_are_prepared_by_name(tmp_path: Path) -> None:
    write_csv(tmp_path)
    write_video(tmp_path / "test/air horn" / f"{TEST[0]}.mp4", codec="mpeg4")
    assert vggsound.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert (tmp_path / "visual" / TEST[0]).is_dir()


def test_the_folders_of_bmmal(tmp_path: Path) -> None:
    write_csv(tmp_path)
    for identity, start, label, part in CLIPS:
        write_sound(tmp_path / f"audio/{part}/{label}/{identity}_{start}_{start + 10}.wav")
        write_frames(tmp_path / f"frames/{part}/{label}/{identity}_{start}_{start + 10}", pattern="frame_{}.jpg")
    assert names_of(load(RECIPE, tmp_path, num_classes=3).test) == TEST


def test_a_header_of_the_csv_file_is_skipped(root: Path) -> None:
    path = root / "vggsound.csv"
    path.write_text("YTID,start_seconds,positive_labels,split\n" + path.read_text())
    assert len(names_of(load(RECIPE, root, num_classes=3).test)) == 3
    path.write_text("x,y\n" + path.read_text())
    with pytest.raises(RecipeError, match=r"vggsound\.csv:1 should be"):
        load(RECIPE, root, num_classes=3)


def test_messages_list_the_first_folders_of_a_layout(tmp_path: Path) -> None:
    write_csv(tmp_path)
    with pytest.raises(RecipeError, match=r"frames in visual or video or .* names another folder") as error:
        load(RECIPE, tmp_path, num_classes=3)
    assert len(str(error.value)) < 600 + 2 * len(str(tmp_path))


def test_a_few_irregular_rows_are_repaired_and_said(root: Path) -> None:
    # 600 further rows without files: one clip with two labels, one in both parts.
    more = [(f"x{number:010d}", 0, LABELS[number % 3], "train") for number in range(600)]
    write_csv(root, [*CLIPS, *more, (*CLIPS[0][:2], "air horn", "train"), (*CLIPS[18][:3], "train")])
    data = load(RECIPE, root, num_classes=3, min_found=0.0, validation=False, select="test")
    assert [line for line in data.summary if "vggsound.csv" in line] == [
        f"split: {root / 'vggsound.csv'}; 1 rows repeat a clip with another label, the first counts; "
        "1 clips of both parts left out of training; nothing held out for validation"
    ]
    assert len(names_of(data.train)) == 18
    assert TEST[0] in names_of(data.test)
    assert data.train.samples[0].label == SORTED.index(CLIPS[0][2])  # type: ignore[attr-defined]


def test_sound_and_frames_in_a_folder_for_each_part(tmp_path: Path) -> None:
    write_csv(tmp_path)
    write_media(tmp_path, "audio/{part}", "video/frames/{part}/Image-01-FPS/NAME", "{}_{:06d}")
    assert [clip_key(name) for name in names_of(load(RECIPE, tmp_path, num_classes=3).test)] == TEST
