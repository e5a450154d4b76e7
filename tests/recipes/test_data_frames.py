"""Frames: which files, in which order, and the tensor, against Pillow and NumPy."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from recipe_common.data.readers.frames import Frames, frame_files, read_image, segments
from recipe_common.errors import RecipeError

from .cremad_tree import write_frame


def write_noise(folder: Path, count: int) -> tuple[Path, ...]:
    random = np.random.default_rng(0)
    folder.mkdir()
    for number in range(count):
        pixels = random.integers(0, 256, (40, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{30 * number:05d}.jpg")
    return frame_files(folder)


def picture_bytes(kind: str) -> bytes:
    content = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    return content.getvalue()


def reference(path: Path, size: int) -> torch.Tensor:
    with Image.open(path) as image:
        resized = image.resize((size, size), Image.Resampling.BILINEAR)
    scaled = np.asarray(resized, dtype=np.float64) / 255
    normalised = (scaled - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    return torch.from_numpy(normalised).permute(2, 0, 1).float()


@pytest.mark.parametrize(("count", "picked"), [(1, [2]), (2, [1, 3]), (3, [0, 2, 4])])
def test_evaluation_takes_the_resized_centre_frames(tmp_path: Path, count: int, picked: list[int]) -> None:
    files = write_noise(tmp_path / "clip", 5)
    visual = Frames(count, size=24)(files)
    expected = torch.stack([reference(files[index], 24) for index in picked], dim=1)
    assert visual.shape == (3, count, 24, 24)
    levels = (visual - expected) * torch.tensor([0.229, 0.224, 0.225])[:, None, None, None] * 255
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
    assert levels.abs().max() < 1.5  # one level: torch and Pillow round their weights differently
    assert levels.abs().mean() < 0.3


def test_one_frame_serves_three_segments(tmp_path: Path) -> None:
    visual = Frames(3, size=8)(write_noise(tmp_path / "clip", 1))
    assert torch.equal(visual[:, 0], visual[:, 1])
    assert torch.equal(visual[:, 0], visual[:, 2])


def test_training_is_a_function_of_the_seed_and_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    files = write_noise(tmp_path / "clip", 3)
    frames = Frames(1, size=16)
    state = torch.get_rng_state()
    first = frames(files, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert torch.equal(frames(files, seed=5), first)
    assert not torch.equal(frames(files, seed=6), first)


def test_training_uses_every_frame_of_a_segment_and_no_other(tmp_path: Path) -> None:
    for number in range(4):
        write_frame(tmp_path / f"{number:05d}.jpg", brightness=60 * number)
    files = frame_files(tmp_path)
    drawn = torch.stack([Frames(2, size=4)(files, seed=seed)[0, :, 0, 0] for seed in range(40)])
    brightness = (255 * (drawn * 0.229 + 0.485)).round().int()
    assert set(brightness[:, 0].tolist()) == {0, 60}
    assert set(brightness[:, 1].tolist()) == {120, 180}


def test_training_flips_half_of_the_time(tmp_path: Path) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:, 8:] = 255
    Image.fromarray(pixels).save(tmp_path / "00000.jpg", quality=95)
    files = frame_files(tmp_path)
    drawn = [Frames(size=16)(files, seed=seed)[0, 0] for seed in range(200)]
    balance = [(picture[:, 0] - picture[:, -1]).mean().item() for picture in drawn]
    decided = [value for value in balance if abs(value) > 1]
    assert 0.3 < np.mean([value > 0 for value in decided]) < 0.7


@given(frames=st.integers(1, 60), count=st.integers(1, 8))
def test_segments_are_never_empty_and_cover_the_clip_in_order(frames: int, count: int) -> None:
    parts = segments(frames, count)
    assert len(parts) == count
    assert all(0 <= part.start < part.stop <= frames for part in parts)
    if frames >= count:
        assert [index for part in parts for index in part] == list(range(frames))


@pytest.mark.parametrize(
    "names",
    [
        ["00000.jpg", "00030.jpg", "00060.jpg"],
        ["frame_00001.jpg", "frame_00002.jpg", "frame_00010.jpg"],
        ["1.JPG", "2.jpeg", "10.jpg"],
    ],
)
def test_files_are_sorted_by_number(tmp_path: Path, names: list[str]) -> None:
    for name in reversed(names):
        (tmp_path / name).touch()
    for other in ("._00000.jpg", ".DS_Store", "notes.txt", "cover.jpg"):
        (tmp_path / other).touch()
    assert [path.name for path in frame_files(tmp_path)] == names


def test_a_missing_folder_holds_no_frames(tmp_path: Path) -> None:
    assert frame_files(tmp_path / "nowhere") == ()


def test_grey_pictures_become_rgb(tmp_path: Path) -> None:
    Image.new("L", (9, 9), 128).save(tmp_path / "00000.jpg")
    assert Frames(size=8)(frame_files(tmp_path)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("kept", [0, 300])
def test_an_unreadable_picture_is_named_with_the_flag(tmp_path: Path, kept: int) -> None:
    (path,) = write_noise(tmp_path / "clip", 1)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(RecipeError, match=r"00000\.jpg.*--skip-bad"):
        Frames(size=8)([path])


@pytest.mark.parametrize("kind", ["BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_picture_is_read_or_named(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1 << 16)  # a mutated size would take gigabytes
    random = np.random.default_rng(1)
    content, path = picture_bytes(kind), tmp_path / "00000.jpg"
    errors = []
    for _ in range(150):
        mutated = bytearray(content)
        for place in random.integers(0, min(len(content), 200), random.integers(1, 9)):
            mutated[place] = random.integers(256)
        path.write_bytes(mutated[: random.integers(len(mutated))] if random.random() < 0.2 else mutated)
        try:
            assert read_image(path).mode == "RGB"
        except RecipeError as error:
            errors.append(str(error))
    assert errors
    assert all(error.startswith(f"{path} should be a readable picture. Found ") for error in errors)


@pytest.mark.parametrize("error", [ValueError("odd"), SyntaxError("odd"), Image.DecompressionBombError("odd")])
def test_whatever_pillow_raises_is_a_bad_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(path: Path) -> None:
        raise error

    monkeypatch.setattr(Image, "open", fails)
    with pytest.raises(RecipeError, match=r"0\.jpg should be a readable picture\. Found odd: restore"):
        read_image(tmp_path / "0.jpg")


def test_a_decompression_bomb_is_named(tmp_path: Path) -> None:
    path = tmp_path / "00000.jpg"
    content = bytearray(picture_bytes("BMP"))
    content[18:26] = (60_000).to_bytes(4, "little") * 2
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=r"00000\.jpg should be a readable picture\. Found Image size"):
        read_image(path)
