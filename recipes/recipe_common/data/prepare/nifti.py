"""Converts NIfTI files, one per modality and case, to the h5 files of `recipe_common.data.readers.volumes`."""

import zlib
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recipe_common.data.prepare.engine import Item, run_prepare
from recipe_common.data.readers.non_files import check_file
from recipe_common.data.readers.volumes import Labels
from recipe_common.errors import RecipeError, require
from recipe_common.files import atomic_file, listing

SUFFIXES = (".nii.gz", ".nii")


def prepare_volumes(
    root: Path, folder: Path, *, modalities: Sequence[str], labels: Labels, suffix: str, workers: int
) -> int:
    """Make `<folder>/<case><suffix>` of every `<case>/<case>_<modality>.nii.gz` and `<case>/<case>_seg.nii.gz`.

    Args:
        root: Folder of the dataset, for the manifest; cases may be anywhere below it.
        folder: Folder of the h5 files.
        modalities: Names in the order of `image`.
        labels: Values that the segmentation may have.
        suffix: End of the names of the h5 files.
        workers: Number of processes.

    Returns:
        The exit status of `run_prepare`.

    Raises:
        RecipeError: If there is no case.
    """
    require("h5py")
    require("nibabel")
    cases = find_cases(root, modalities[0])
    items = [
        Item(case, (folder / f"{case.name}{suffix}",), files=tuple(sorted(case.glob("[!.]*.nii*")))) for case in cases
    ]
    make = partial(_make, modalities=tuple(modalities), labels=labels)
    return run_prepare(root, items, make, workers=workers, what="cases")


def find_cases(root: Path, modality: str) -> tuple[Path, ...]:
    """Return the folders `<case>` with a file `<case>_<modality>.nii.gz`, sorted.

    Raises:
        RecipeError: If there is none.
    """
    files = [path for suffix in SUFFIXES for path in root.rglob(f"[!.]*_{modality}{suffix}")]
    cases = {path.parent for path in files if path.name.startswith(f"{path.parent.name}_{modality}.")}
    if not cases:
        is_packed = any(root.glob("*.tar")) or any(root.glob("*.zip"))
        raise RecipeError(
            f"{root} should hold folders CASE with CASE_{modality}.nii.gz",
            found=listing(root),
            fix="unpack the archive" if is_packed else "point `--data-root` to their folder",
        )
    return tuple(sorted(cases))


def normalised(image: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return volumes (M, H, W, D) with mean 0 and standard deviation 1 inside the brain, and 0 outside of it.

    The brain is where any modality is above 0, as in the preprocessing for the code of Guo et al. (NeurIPS 2024).

    Raises:
        ValueError: If a modality is empty, constant or not finite there.
    """
    brain = (image > 0).any(axis=0)
    result = np.zeros_like(image)
    for number, (volume, out) in enumerate(zip(image, result, strict=True)):
        inside = volume[brain].astype(np.float64)
        spread = inside.std() if inside.size else 0.0
        if not np.isfinite(spread) or spread == 0:
            raise ValueError(f"modality {number} is empty, constant or not finite inside the brain")
        out[brain] = (inside - inside.mean()) / spread
    return result


def write_case(path: Path, image: NDArray[np.float32], label: NDArray[np.uint8]) -> None:
    """Write an h5 file whose chunks are one slice deep, so that reading a slice decompresses this slice only.

    Args:
        path: The file, which appears in one step.
        image: Volumes, (M, H, W, D).
        label: Classes, (H, W, D).
    """
    with atomic_file(path) as partial_path, require("h5py").File(partial_path, "w") as file:
        values: NDArray[Any]
        for name, values in (("image", image), ("label", label)):
            # Without time stamps, equal cases give equal files and checksums.
            options: dict[str, Any] = {"compression": "gzip", "compression_opts": 4, "track_times": False}
            file.create_dataset(name, data=values, chunks=(*values.shape[:-1], 1), **options)


def _make(item: Item, modalities: Sequence[str], labels: Labels) -> None:
    volumes = {name: read_volume(find_volume(item.source, name)) for name in (*modalities, "seg")}
    _check_shapes({name: volume.shape for name, volume in volumes.items()})
    image: NDArray[np.float32] = np.stack([volumes[name] for name in modalities]).astype(np.float32)
    write_case(item.outputs[0], normalised(image), labels.classes(volumes["seg"]).astype(np.uint8))


def find_volume(case: Path, name: str) -> Path:
    """Return `<case>_<name>.nii.gz` or `.nii` in the folder of a case.

    Raises:
        ValueError: If there is none.
    """
    paths = [case / f"{case.name}_{name}{suffix}" for suffix in SUFFIXES]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise ValueError(f"there is no {paths[0].name}")
    return found


def read_volume(path: Path) -> NDArray[Any]:
    """Read a NIfTI file.

    Raises:
        ValueError: If it cannot be decoded, or is not three-dimensional.
        RecipeError: If it is a git-lfs pointer, a web page or an empty file.
    """
    nibabel = require("nibabel")
    check_file(path, f"{path} should be a NIfTI file")
    try:
        volume: NDArray[Any] = np.asanyarray(nibabel.load(path).dataobj)
    except (OSError, EOFError, zlib.error, nibabel.filebasedimages.ImageFileError) as error:
        raise ValueError(f"{path.name}: {error}") from error
    if volume.ndim != 3:
        raise ValueError(f"{path.name} has shape {volume.shape}, not (H, W, D)")
    return volume


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if len(set(shapes.values())) > 1:
        raise ValueError("volumes of different shapes: " + ", ".join(f"{name} {each}" for name, each in shapes.items()))
