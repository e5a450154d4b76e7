"""From NIfTI files to h5 files: normalisation, labels, bad cases, and going on after an interruption."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import nibabel
import numpy as np
import pytest

from recipe_common.data.prepare.engine import verify
from recipe_common.data.prepare.nifti import VolumeNames, find_cases, normalised, prepare_volumes, read_volume
from recipe_common.data.readers.volumes import Labels, open_case
from recipe_common.errors import RecipeError

from .brats_tree import SHAPE, case_name, write_raw

MODALITIES = ("flair", "t1ce", "t1", "t2")
NAMES = VolumeNames({name: f"_{name}" for name in MODALITIES})
LABELS = Labels(4, stored={4: 3})
SUFFIX = "_mri_norm2.h5"


def found_in(root: Path) -> list[Path]:
    return find_cases(root, [NAMES], advice={"*.tar": "unpack"})[NAMES]


def prepare(root: Path) -> int:
    return prepare_volumes(root, root / "h5", found_in(root), names=NAMES, labels=LABELS, suffix=SUFFIX, workers=1)


def volume(case: Path, name: str) -> np.ndarray:
    return np.asarray(nibabel.load(case / f"{case.name}_{name}.nii.gz").dataobj)


def test_each_modality_is_normalised_inside_the_brain() -> None:
    random = np.random.default_rng(0)
    image = random.integers(0, 50, (2, 5, 6, 4)).astype(np.float32)
    image[:, :2] = 0
    image[1, 3, 3, 3], image[0, 3, 3, 3] = 0, 9  # inside, since one modality is above 0
    found = normalised(image)
    voxels = [index for index in np.ndindex(5, 6, 4) if image[0][index] > 0 or image[1][index] > 0]
    assert (3, 3, 3) in voxels
    for modality in range(2):
        values = [float(image[modality][index]) for index in voxels]
        mean = sum(values) / len(values)
        spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
        for index in voxels:
            assert found[modality][index] == pytest.approx((image[modality][index] - mean) / spread, abs=1e-5)
    assert not found[:, :2].any()
    assert found.dtype == np.float32


@pytest.mark.parametrize("fill", [0.0, 3.0, np.nan])
def test_an_empty_modality_is_refused(fill: float) -> None:
    image = np.ones((2, 4, 4, 4), np.float32)
    image[0] = np.arange(64).reshape(4, 4, 4)
    image[1] = fill
    with pytest.raises(ValueError, match="modality 1 is empty, constant or not finite"):
        normalised(image)


@pytest.mark.slow
def test_prepare_makes_h5_files_and_lists_bad_cases(tmp_path: Path) -> None:
    good = write_raw(tmp_path / "BraTS2021_Training_Data", 3)
    write_raw(tmp_path / "unpacked", 7, suffix=".nii")
    cut, incomplete, mislabelled = (write_raw(tmp_path, number) for number in (4, 5, 6))
    flair = cut / f"{cut.name}_flair.nii.gz"
    flair.write_bytes(flair.read_bytes()[:500])
    (incomplete / f"{incomplete.name}_t2.nii.gz").unlink()
    label = volume(mislabelled, "seg").copy()
    label[0, 0, 0] = 9
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), mislabelled / f"{mislabelled.name}_seg.nii.gz")

    assert prepare(tmp_path) == 1
    made_files = sorted(path.name for path in (tmp_path / "h5").iterdir())
    assert made_files == [f"{case_name(number)}{SUFFIX}" for number in (3, 7)]
    report = (tmp_path / "unreadable_cases.txt").read_text()
    assert f"{cut.name}_flair.nii.gz:" in report
    assert f"there is no {incomplete.name}_t2.nii.gz" in report
    assert "labels 9, where 0, 1, 2, 3, 4 are known" in report

    path = tmp_path / "h5" / f"{good.name}{SUFFIX}"
    with h5py.File(path) as file:
        image, made = file["image"][:], file["label"][:]
        assert (file["image"].chunks, file["image"].compression) == ((4, *SHAPE[:2], 1), "gzip")
        assert (image.dtype, made.dtype) == (np.float32, np.uint8)
    raw = np.stack([volume(good, name) for name in MODALITIES]).astype(np.float64)
    inside = raw.max(0) > 0
    for modality in range(4):
        values = raw[modality][inside]
        np.testing.assert_allclose(image[modality][inside], (values - values.mean()) / values.std(), atol=1e-5)
        assert not image[modality][~inside].any()
    segmentation = volume(good, "seg")
    np.testing.assert_array_equal(made, np.where(segmentation == 4, 3, segmentation))
    assert open_case(path, 4, LABELS).shape == SHAPE

    lines = (tmp_path / "manifest.jsonl").read_text().splitlines()
    assert sorted(*zip(*(json.loads(line)["outputs"] for line in lines), strict=True)) == [
        f"h5/{name}" for name in made_files
    ]
    assert verify(tmp_path) == 0
    path.write_bytes(b"changed")
    assert verify(tmp_path) == 1


def test_a_folder_without_cases_is_explained(tmp_path: Path) -> None:
    (tmp_path / "BraTS2021_Training_Data.tar").touch()
    with pytest.raises(RecipeError, match=r"CASE_flair\.nii\.gz\. Found .*\.tar: unpack"):
        found_in(tmp_path)
    with pytest.raises(RecipeError, match="no such folder"):
        found_in(tmp_path / "nowhere")


def test_files_of_another_case_or_hidden_ones_make_no_case(tmp_path: Path) -> None:
    case = write_raw(tmp_path, 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{case.name}_flair.nii.gz").touch()
    (case / f"._{case.name}_flair.nii.gz").touch()
    assert found_in(tmp_path) == [case]


def test_a_volume_must_be_whole_and_have_three_axes(tmp_path: Path) -> None:
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)), path)
    with pytest.raises(ValueError, match=r"a\.nii\.gz has shape \(4, 4, 4, 2\)"):
        read_volume(path)
    path.write_bytes(b"no volume")
    with pytest.raises(ValueError, match=r"a\.nii\.gz: "):
        read_volume(path)


def test_a_folder_of_the_name_of_a_file_is_read_if_it_holds_one(tmp_path: Path) -> None:
    case = write_raw(tmp_path, 1, suffix=".nii")
    inner = case / f"{case.name}_t1.nii"
    content = inner.read_bytes()
    inner.unlink()
    inner.mkdir()
    assert NAMES.find(case, "_t1") is None
    (inner / "00000057_brain_t1.nii").write_bytes(content)
    assert NAMES.find(case, "_t1") == inner / "00000057_brain_t1.nii"
    assert prepare(tmp_path) == 0
    (inner / "another.nii").touch()
    assert NAMES.find(case, "_t1") is None
