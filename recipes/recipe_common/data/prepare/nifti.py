"""Converts NIfTI files, one per modality and case, to the h5 files of `recipe_common.data.readers.volumes`."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from recipe_common.data.prepare.engine import Item, run_prepare
from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.non_files import check_file
from recipe_common.data.readers.volumes import Labels
from recipe_common.errors import RecipeError, require
from recipe_common.files import atomic_file, listing

SUFFIXES = (".nii.gz", ".nii")


@attrs.frozen
class VolumeNames:
    """Names of the files of a case: the name of its folder, an ending, then `.nii.gz` or `.nii`.

    A folder of such a name is read as well if it holds one file, as some archives are unpacked.

    Args:
        modalities: Ending of each modality, in the order of `image`.
        labels: Ending of the segmentation.
        exceptions: Files of other names, by the name that they should have; both without suffix.
    """

    modalities: Mapping[str, str] = attrs.field(hash=False)
    labels: str = "_seg"
    exceptions: Mapping[str, str] = attrs.field(factory=dict, hash=False)

    def find(self, case: Path, ending: str) -> Path | None:
        """Return the file of a case with an ending, or None if there is none."""
        name = f"{case.name}{ending}"
        for stem in filter(None, (name, self.exceptions.get(name))):
            for path in (case / f"{stem}{suffix}" for suffix in SUFFIXES):
                inner = sorted(path.glob("[!.]*.nii*")) if path.is_dir() else [path] if path.is_file() else []
                if len(inner) == 1:
                    return inner[0]
        return None


def prepare_volumes(
    root: Path, folder: Path, cases: Sequence[Path], *, names: VolumeNames, labels: Labels, suffix: str, workers: int
) -> int:
    """Make `<folder>/<case><suffix>` of the volumes and the segmentation of each case.

    Cases without a segmentation, as those of validation data, are counted in a line and left out.

    Args:
        root: Folder of the dataset, for the manifest.
        folder: Folder of the h5 files.
        cases: Folders of the cases, as `find_cases` returns them.
        names: Names of their files.
        labels: Values that the segmentation may have.
        suffix: End of the names of the h5 files.
        workers: Number of processes.

    Returns:
        The exit status of `run_prepare`.

    Raises:
        RecipeError: If no case has a segmentation.
    """
    require("h5py")
    require("nibabel")
    labelled = [case for case in cases if names.find(case, names.labels)]
    if not labelled:
        raise RecipeError(
            f"The cases of {root} should have segmentations",
            found=f"none in {len(cases):,} cases, such as {cases[0].name}",
            fix="point `--data-root` to the training data; those for validation are published without",
        )
    if len(labelled) < len(cases):
        first = min(set(cases) - set(labelled)).name
        print(f"cases without a segmentation, which are left out: {len(cases) - len(labelled):,}, such as {first}")
    items = [
        Item(
            case,
            (folder / f"{case.name}{suffix}",),
            files=tuple(sorted(filter(Path.is_file, case.rglob("[!.]*.nii*")))),
        )
        for case in labelled
    ]
    return run_prepare(root, items, partial(_make, names=names, labels=labels), workers=workers, what="cases")


def find_cases(root: Path, names: Sequence[VolumeNames], *, advice: Mapping[str, str]) -> dict[VolumeNames, list[Path]]:
    """Return the folders `<case>` with a file of the first modality, sorted, by the names of their files.

    Args:
        root: Folder that is searched, at any depth.
        names: Names of files that there may be.
        advice: Where no case is found: what to do, by pattern of files that stand there in their place.

    Raises:
        RecipeError: If there is no case.
    """
    found = {each: sorted(_cases(root, next(iter(each.modalities.values())))) for each in names}
    if not any(found.values()):
        examples = " or ".join(f"CASE{next(iter(each.modalities.values()))}.nii.gz" for each in names)
        fixes = (fix for pattern, fix in advice.items() if next(root.rglob(pattern), None) is not None)
        raise RecipeError(
            f"{root} should hold folders CASE with {examples}",
            found=listing(root),
            fix=next(fixes, "point `--data-root` to their folder"),
        )
    return {each: cases for each, cases in found.items() if cases}


def _cases(root: Path, ending: str) -> set[Path]:
    files = [path for suffix in SUFFIXES for path in root.rglob(f"[!.]*{ending}{suffix}")]
    return {path.parent for path in files if path.name.startswith(f"{path.parent.name}{ending}.")}


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


def _make(item: Item, names: VolumeNames, labels: Labels) -> None:
    paths = {name: _existing(item.source, names, ending) for name, ending in names.modalities.items()}
    path = _existing(item.source, names, names.labels)
    segmentation = read_volume(path)
    try:
        classes = labels.classes(segmentation).astype(np.uint8)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from error
    volumes = {name: read_volume(each) for name, each in paths.items()}
    _check_shapes({name: volume.shape for name, volume in {**volumes, "seg": segmentation}.items()})
    image: NDArray[np.float32] = np.stack(list(volumes.values())).astype(np.float32)
    write_case(item.outputs[0], normalised(image), classes)


def _existing(case: Path, names: VolumeNames, ending: str) -> Path:
    path = names.find(case, ending)
    if path is None:
        raise ValueError(f"there is no {case.name}{ending}{SUFFIXES[0]}")
    return path


def read_volume(path: Path) -> NDArray[Any]:
    """Read a NIfTI file.

    Raises:
        ValueError: If it cannot be decoded, or is not three-dimensional.
        RecipeError: If it is a git-lfs pointer, a web page or an empty file.
    """
    nibabel = require("nibabel")
    check_file(path, f"{path} should be a NIfTI file")
    with decoding(lambda found: ValueError(f"{path.name}: {found}")):
        volume: NDArray[Any] = np.asanyarray(nibabel.load(path).dataobj)
    if volume.ndim != 3:
        raise ValueError(f"{path.name} has shape {volume.shape}, not (H, W, D)")
    return volume


def _check_shapes(shapes: Mapping[str, tuple[int, ...]]) -> None:
    if len(set(shapes.values())) > 1:
        raise ValueError("volumes of different shapes: " + ", ".join(f"{name} {each}" for name, each in shapes.items()))
