"""The CREMA-D recipe: layouts, splits, what is reported, and every kind of bad input."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cremad
from recipe_common.data.datasets.cremad import layout_of
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.training.settings import resolve

from .clip_tree import write_lines, write_stored
from .cremad_tree import label_of, names, write_clips, write_frame, write_list, write_wav
from .tiny_videos import write_video

WORDS = ("Neutral", "Happy", "Sad", "Fear", "Disgust", "Anger")


@pytest.fixture
def clips() -> list[str]:
    return names(actors=4)


@pytest.fixture
def root(tmp_path: Path, clips: list[str]) -> Path:
    """A whole tree: 48 clips, lists of 36 and 12."""
    write_clips(tmp_path / "data", clips)
    write_list(tmp_path / "data" / "train.csv", clips[:36])
    write_list(tmp_path / "data" / "test.csv", clips[36:])
    return tmp_path / "data"


def load(data_root: Path | None, **changes: Any) -> Data:
    return cremad.load(resolve({"data_root": data_root, **changes}, cremad.RECIPE))


def names_of(part: Any) -> list[str]:
    return [sample.name for sample in part.samples]


@pytest.mark.parametrize("audio", ["AudioWAV", "Audio", "audio"])
@pytest.mark.parametrize("frame", ["00000.jpg", "frame_00001.jpg"])
@pytest.mark.parametrize("lists", [".", "CREMAD", "data/CREMAD"])
def test_every_known_layout_is_read(tmp_path: Path, clips: list[str], audio: str, frame: str, lists: str) -> None:
    write_clips(tmp_path, clips, audio=audio, frame=frame)
    write_list(tmp_path / lists / "train.csv", clips[:36])
    write_list(tmp_path / lists / "test.csv", clips[36:])
    data = load(tmp_path)
    assert names_of(data.test) == clips[36:]
    assert sorted(names_of(data.train) + names_of(data.val)) == sorted(clips[:36])
    assert not data.synthetic


def test_the_defaults_give_the_tensors_of_the_paper(root: Path) -> None:
    audio, visual, label = load(root).test[0, 0]
    assert audio.shape == (1, 257, 188)
    assert visual.shape == (3, 1, 224, 224)
    assert label == 0


@pytest.mark.parametrize(("order", "indices"), [("official", [0, 1, 2, 3, 4, 5]), ("alphabetical", [4, 3, 5, 2, 1, 0])])
def test_both_published_class_orders(root: Path, order: str, indices: list[int]) -> None:
    data = load(root, class_order=order)
    assert [sample.label for sample in data.test.samples[:6]] == indices  # type: ignore[attr-defined]
    assert data.classes[indices[0]] == "NEU"


def test_speakers_are_disjoint_on_request(root: Path) -> None:
    data = load(root, split="speaker")
    actors = [{name[:4] for name in names_of(part)} for part in (data.train, data.val, data.test)]
    assert sum(len(part) for part in actors) == len(set.union(*actors)) == 4


def test_without_lists_the_split_is_random_and_says_so(root: Path) -> None:
    (root / "train.csv").unlink()
    data = load(root)
    assert "80/10/10 % of every class, seed 0; there is no train.csv" in data.summary[1]
    assert names_of(data.test) == names_of(load(root, split="random").test)
    assert names_of(data.test) != names_of(load(root, split="random", split_seed=1).test)


def test_a_clip_without_frames_is_counted(root: Path, clips: list[str]) -> None:
    shutil.rmtree(root / "Image-01-FPS" / clips[36])
    data = load(root)
    assert f"test: 11 of 12 listed samples; 1 without frames, such as {clips[36]}" in data.summary


def test_too_few_clips_are_refused(root: Path, clips: list[str]) -> None:
    for name in clips[36:38]:
        (root / "AudioWAV" / f"{name}.wav").unlink()
    with pytest.raises(RecipeError, match=r"at least 90%.*test: 10 of 12 .* 2 without wav file.*--min-found"):
        load(root)
    assert len(names_of(load(root, min_found=0.8).test)) == 10


def test_a_part_without_any_clip_is_refused(root: Path, clips: list[str]) -> None:
    for name in clips[36:]:
        (root / "AudioWAV" / f"{name}.wav").unlink()
    with pytest.raises(RecipeError, match="test: 0 of 12"):
        load(root, min_found=0.0)


def test_unreadable_files_stop_or_are_skipped(root: Path, clips: list[str]) -> None:
    (root / "AudioWAV" / f"{clips[36]}.wav").write_bytes(b"broken")
    with pytest.raises(RecipeError, match=rf"{clips[36]}\.wav.*--skip-bad"):
        load(root).test[0, 0]
    data = load(root, skip_bad=True)
    assert names_of(data.test) == clips[37:]
    assert "test: 11 of 12 listed samples; 1 unreadable" in data.summary
    assert any(line.strip().startswith(f"skipped {clips[36]}") for line in data.summary)


def test_a_missing_or_empty_root_is_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"AudioWAV or Audio or audio.*Image-01-FPS.*Found no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="Found an empty folder"):
        load(tmp_path)


def test_a_root_with_other_things_is_explained(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"file{number}").touch()
    with pytest.raises(RecipeError, match=r"Found file0, file1, .* and 2 more"):
        load(tmp_path)


def test_a_download_that_is_not_prepared_is_told_the_command(tmp_path: Path) -> None:
    (tmp_path / "AudioWAV").mkdir()
    (tmp_path / "VideoFlash").mkdir()
    with pytest.raises(RecipeError, match=rf"prepare --data-root {tmp_path} --fps 2"):
        load(tmp_path, fps=2)


def test_folders_with_other_names_inside_are_explained(tmp_path: Path) -> None:
    write_clips(tmp_path, ["song"])
    with pytest.raises(RecipeError, match=r"Found song\.wav and song"):
        load(tmp_path)


def test_a_list_without_its_partner_is_refused(root: Path) -> None:
    (root / "test.csv").unlink()
    with pytest.raises(RecipeError, match=r"test\.csv"):
        load(root)


def test_files_that_are_no_clips_are_ignored(root: Path) -> None:
    (root / "Image-01-FPS" / ".DS_Store").touch()
    write_frame(root / "Image-01-FPS" / ".1001_IEO_NEU_XX.partial" / "00000.jpg")
    data = load(root, split="random")
    assert sum(len(names_of(part)) for part in (data.train, data.val, data.test)) == 48


def test_the_official_protocol_trains_on_all_of_the_training_list(root: Path, clips: list[str]) -> None:
    data = load(root, protocol="official")
    assert names_of(data.train) == clips[:36]
    assert len(data.val) == 0  # type: ignore[arg-type]


def test_the_synthetic_set_is_read_as_real_data_is() -> None:
    data = load(None)
    parts = [names_of(part) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [300, 60, 108]
    assert data.synthetic
    audio, visual, label = data.train[0, 0]
    assert (audio.shape, visual.shape) == ((1, 64, 64), (3, 1, 64, 64))
    assert data.classes[label] == label_of(parts[0][0])
    assert all(torch.isfinite(tensor).all() for tensor in (audio, visual))


@pytest.mark.parametrize("fusion", ["concat", "sum", "film", "gated"])
def test_the_description_of_the_model_fits_it(root: Path, fusion: str) -> None:
    settings = resolve({"data_root": root, "fusion": fusion}, cremad.RECIPE)
    model = cremad.build_model(settings, load(root))
    description = cremad.balance(settings)
    paths = [*description["modalities"].values(), description["fusion"], *description.get("unimodal", {}).values()]
    assert all(model.get_submodule(path) is not None for path in paths)
    assert ("unimodal" in description) == (fusion == "sum")


@pytest.mark.parametrize("folder", ["annotations", "cremad"])
def test_lists_of_other_folders(tmp_path: Path, clips: list[str], folder: str) -> None:
    write_clips(tmp_path, clips)
    write_list(tmp_path / folder / "train.csv", clips[:36])
    write_list(tmp_path / folder / "test.csv", clips[36:])
    assert names_of(load(tmp_path).test) == clips[36:]


def test_the_folders_of_mla(tmp_path: Path, clips: list[str]) -> None:
    words = dict(zip(("NEU", "HAP", "SAD", "FEA", "DIS", "ANG"), WORDS, strict=True))
    for part, names_of_part in (("train", clips[:36]), ("test", clips[36:])):
        lines = [f"{name}.flv {words[label_of(name)]}" for name in names_of_part]
        write_lines(tmp_path / f"my_{part}_cre.txt", lines)
        for name in names_of_part:
            write_wav(tmp_path / f"audio/{part}/{name}.wav")
            write_stored(tmp_path / f"audio/{part}_fbank/{name}.npy")
            write_frame(tmp_path / f"visual/{part}_imgs/Image-01-FPS/{name}/00000.jpg")
    for frontend, shape in ((None, (1, 257, 188)), ("stored", (1, 1024, 128))):
        data = load(tmp_path, audio_frontend=frontend)
        assert names_of(data.test) == clips[36:]
        assert [sample.label for sample in data.test.samples[:6]] == [0, 1, 2, 3, 4, 5]  # type: ignore[attr-defined]
        assert data.test[0, 0][0].shape == shape


@pytest.mark.parametrize("line", ["1001_IEO_NEU_XX.flv Happy", "1001_IEO_NEU_XX Neutral", "x.flv Neutral", ""])
def test_lists_of_mla_with_other_lines_are_refused(tmp_path: Path, clips: list[str], line: str) -> None:
    write_clips(tmp_path, clips)
    for part in ("train", "test"):
        write_lines(tmp_path / f"my_{part}_cre.txt", [line])
    with pytest.raises(RecipeError, match=r"my_train_cre\.txt.* should .*1001_DFA_ANG_XX\.flv Anger"):
        load(tmp_path)


@pytest.mark.parametrize(("folder", "ending"), [("audio", "pt"), ("Audio-1004", "pkl"), ("Audio-299", "pkl")])
def test_stored_spectrograms_beside_frames_in_visual(
    tmp_path: Path, clips: list[str], folder: str, ending: str
) -> None:
    for name in clips:
        path = tmp_path / folder / f"{name}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == "pt":
            torch.save(torch.ones(1024, 128), path)
        else:
            path.write_bytes(pickle.dumps(np.ones((257, 1004))))
        write_frame(tmp_path / "visual" / name / "frame_00001.jpg")
    with pytest.raises(RecipeError, match=rf"Found 48 \.{ending} files: read the spectrograms with .*stored"):
        load(tmp_path)
    assert load(tmp_path, audio_frontend="stored").test[0, 0][0].shape[0] == 1


def test_wav_files_are_not_read_as_stored_spectrograms(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"Found 48 \.wav files: read the wav files without `--audio-frontend`"):
        load(root, audio_frontend="stored")


def test_frames_of_unknown_rate_are_not_read_as_another_one(tmp_path: Path, clips: list[str]) -> None:
    write_clips(tmp_path, clips)
    (tmp_path / "Image-01-FPS").rename(tmp_path / "visual")
    assert len(names_of(load(tmp_path).train)) > 0
    with pytest.raises(RecipeError, match="Image-02-FPS"):
        load(tmp_path, fps=2)


def test_sound_alone_is_named(tmp_path: Path, clips: list[str]) -> None:
    write_wav(tmp_path / "AudioWAV" / f"{clips[0]}.wav")
    with pytest.raises(RecipeError, match=r"Found sound alone, in .*AudioWAV: get VideoFlash of the repository"):
        load(tmp_path)


@pytest.mark.parametrize("video", ["VideoFlash/{}.flv", "VideoFlash/{}.mp4", "VideoMP4/{}.mp4"])
def test_prepare_reads_converted_videos_too(tmp_path: Path, video: str) -> None:
    name = "1001_DFA_ANG_XX"
    write_video(tmp_path / video.format(name), codec="flv" if video.endswith("flv") else "mpeg4")
    with pytest.raises(RecipeError, match="not prepared yet"):
        load(tmp_path)
    assert cremad.prepare_main(["--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert (tmp_path / "AudioWAV" / f"{name}.wav").is_file()
    assert (tmp_path / "Image-01-FPS" / name / "00000.jpg").is_file()


def test_prepare_takes_one_of_two_videos_of_a_clip(tmp_path: Path) -> None:
    # The mirror of the corpus has one mp4 file beside its flv file.
    for video in ("VideoMP4/1001_DFA_ANG_XX.mp4", "VideoFlash/1001_DFA_ANG_XX.mp4", "VideoFlash/1001_DFA_ANG_XX.flv"):
        path = tmp_path / video
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert layout_of(1).find_videos(tmp_path) == (tmp_path / "VideoFlash/1001_DFA_ANG_XX.flv",)
