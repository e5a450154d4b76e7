"""The CREMA-D recipe: layouts, splits, what is reported, and every kind of bad input."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import cremad
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.training.settings import resolve

from .cremad_tree import label_of, names, write_clips, write_frame, write_list


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
