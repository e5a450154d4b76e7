"""Tiny BraTS trees on disk, for the tests of reading them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
from numpy.typing import NDArray

SHAPE = (20, 24, 6)
PARTS = {"train": 5, "valid": 2, "test": 3}


def synthetic_case(number: int, shape: tuple[int, ...] = SHAPE) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Image (4, H, W, D) and label (H, W, D) with labels 0, 1, 2, 3; the first slice has no tumour."""
    random = np.random.default_rng(number)
    image = random.standard_normal((4, *shape)).astype(np.float32)
    label = np.zeros(shape, np.uint8)
    label[6:14, 8:16, 1:] = random.integers(0, 4, (8, 8, shape[2] - 1))
    return image, label


def write_h5(path: Path, image: NDArray[Any], label: NDArray[Any], **options: Any) -> Path:
    """As the preprocessing script of the authors does: gzip, chunks as h5py likes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip", **options)
        file.create_dataset("label", data=label, compression="gzip")
    return path


def case_name(number: int) -> str:
    return f"BraTS2021_{number:05d}"


def write_folders(root: Path, parts: Mapping[str, int] = PARTS) -> None:
    numbers = iter(range(100))
    for part, count in parts.items():
        for number in (next(numbers) for _ in range(count)):
            write_h5(root / part / f"{case_name(number)}_mri_norm2.h5", *synthetic_case(number))


def write_raw(root: Path, number: int, shape: tuple[int, ...] = SHAPE, suffix: str = ".nii.gz") -> Path:
    """As downloaded: int16 volumes that are 0 outside of the brain, and labels 0, 1, 2, 4."""
    case = root / case_name(number)
    case.mkdir(parents=True)
    random = np.random.default_rng(number)
    _, label = synthetic_case(number, shape)
    label[label == 3] = 4
    brain = np.zeros(shape, bool)
    brain[3:17, 4:20] = True
    for name in ("flair", "t1", "t1ce", "t2"):
        volume = np.where(brain, random.integers(1, 900, shape), 0)
        nibabel.save(nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4)), case / f"{case.name}_{name}{suffix}")
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), case / f"{case.name}_seg{suffix}")
    return case


UNDERSCORES = {"flair": "_flair", "t1ce": "_t1ce", "t1": "_t1", "t2": "_t2", "seg": "_seg"}
HYPHENS = {"flair": "-t2f", "t1ce": "-t1c", "t1": "-t1n", "t2": "-t2w", "seg": "-seg"}


def write_release(
    root: Path,
    case: str,
    endings: Mapping[str, str],
    labels: tuple[int, ...],
    *,
    suffix: str = ".nii.gz",
    shape: tuple[int, ...] = SHAPE,
) -> Path:
    """As downloaded from one of the releases: modalities of different means, and exactly these labels."""
    folder = root / case
    folder.mkdir(parents=True)
    random = np.random.default_rng(len(case))
    brain = np.zeros(shape, bool)
    brain[3:17, 4:20] = True
    label = np.zeros(shape, np.uint8)
    label[6:14, 8:16, 1:] = random.choice(labels, (8, 8, shape[2] - 1))
    label[6, 8 : 8 + len(labels), 1] = labels
    for number, name in enumerate(("flair", "t1ce", "t1", "t2")):
        volume = np.where(brain, random.integers(1, 900, shape) * 4 + number, 0)  # its remainder tells the modality
        image = nibabel.Nifti1Image(volume.astype(np.int16), np.eye(4))
        nibabel.save(image, folder / f"{case}{endings[name]}{suffix}")
    nibabel.save(nibabel.Nifti1Image(label, np.eye(4)), folder / f"{case}{endings['seg']}{suffix}")
    return folder
