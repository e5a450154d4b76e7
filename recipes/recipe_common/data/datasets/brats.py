"""BraTS on disk: modalities, the h5 files of cases and their split into training, validation and test."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from recipe_common.data.datasets.brats_releases import NAMES, UNDERSCORES, Release, only_release, release_of
from recipe_common.data.prepare.nifti import VolumeNames, find_cases
from recipe_common.data.samples.splits import check_disjoint
from recipe_common.errors import RecipeError, require
from recipe_common.files import listing

MODALITIES = tuple(UNDERSCORES.modalities)
SUFFIX = "_mri_norm2.h5"
FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
FEWEST = 10
"""Patients that can be split 80/10/10 %."""
ADVICE = {
    "labelsTr": "the Medical Segmentation Decathlon, where 1 is oedema and 2 the core, is not read; download BraTS",
    "volume_*_slice_*.h5": "slices in h5 files, as on Kaggle, are not read; download the NIfTI files of BraTS 2020",
    "*.mha": "BraTS 2012 to 2016 is not read; download a later release",
    "*.dcm": "DICOM files are not read; download the NIfTI files",
    "*.tar": "unpack the archive",
    "*.zip": "unpack the archive",
}
"""What to do, by pattern of files that are found in place of cases."""
Parts = dict[str, tuple[Path, ...]]


@attrs.frozen
class CaseFiles:
    """Names of the files of the dataset.

    Args:
        suffix: End of a file name, after the name of the case.
        prepared: Folder of the files that `prepare` has written, under the root.
        raw: Patterns of files that `prepare` reads.
        command: The command of `prepare`; `{root}` stands for the data root.
    """

    suffix: str
    prepared: str
    raw: tuple[str, ...]
    command: str

    def case(self, path: Path) -> str:
        """Return the name of the case of a file."""
        return path.name.removesuffix(self.suffix)

    def find(self, root: Path, seed: int) -> tuple[Parts, str, Release]:
        """Find the files of each part, sorted: in folders train, valid (or val) and test, or all together.

        Args:
            root: Folder of the dataset.
            seed: Seed of the split, where there are no folders.

        Returns:
            The files of train, val and test, a line about the origin of the split, and the release of the cases.

        Raises:
            RecipeError: If files are absent or not prepared yet, if a case is in two parts, or if there are cases of
                several releases.
        """
        folders = {part: [root / name for name in names if (root / name).is_dir()] for part, names in FOLDERS.items()}
        if all(folders.values()):
            parts = {part: self._files(found[0]) for part, found in folders.items()}
            by_folder = {found[0].name: parts[part] for part, found in folders.items()}
            check_disjoint(by_folder, self.case, of="folders", unit="case", fix="remove one copy of each")
            names = [[self.case(path) for path in paths] for paths in parts.values()]
            release = only_release({case: release_of(case) for each in names for case in each}, root)
            shared = _count_shared(release, names)
            note = f"; {shared:,} patients have cases in two of them" if shared else ""
            return parts, f"folders {', '.join(found[0].name for found in folders.values())}{note}", release
        if any(folders.values()):
            raise RecipeError(
                f"{root} should hold the folders train, valid and test",
                found=listing(root),
                fix="add the folders that are absent",
            )
        files = self._files(root / self.prepared) or self._files(root)
        cases = [self.case(path) for path in files]
        release = only_release({case: release_of(case) for case in cases}, root)
        patients = len(set(map(release.patient, cases)))
        if patients < FEWEST:
            raise self._missing(root, patients)
        parts = split_cases(files, seed, lambda path: release.patient(self.case(path)))
        of = f"{len(files):,} cases" if patients == len(files) else f"{patients:,} patients with {len(files):,} cases"
        return parts, f"80/10/10 % of {of}, by scikit-learn, random_state {seed}", release

    def _files(self, folder: Path) -> tuple[Path, ...]:
        return tuple(sorted(folder.glob(f"[!.]*{self.suffix}")))

    def _missing(self, root: Path, patients: int) -> RecipeError:
        found, fix = listing(root), "point --data-root to them, or leave it out to train on a small synthetic set"
        if patients:
            found, fix = f"files of {patients} patients alone", "prepare or download more of them"
        if any(next(root.rglob(pattern), None) is not None for pattern in self.raw):
            found, fix = f"{found}, not all prepared", f"run `{self.command.format(root=root)}`"
        elif not patients:
            fix = next((advice for pattern, advice in ADVICE.items() if next(root.rglob(pattern), None)), fix)
        return RecipeError(
            f"{root / self.prepared} should hold files CASE{self.suffix} of at least {FEWEST} patients, or {root} the "
            "folders train, valid and test of such files",
            found=found,
            fix=fix,
        )


FILES = CaseFiles(SUFFIX, "h5", ("*_flair.nii*", "*-t2f.nii*"), "python recipes/brats.py prepare --data-root {root}")


def split_cases(files: tuple[Path, ...], seed: int, patient: Callable[[Path], object] = str) -> Parts:
    """Split sorted files with scikit-learn, 80/10/10 % of the patients: 1,251 become 1,000 for training, 125 and 126.

    Args:
        files: The files.
        seed: Seed of the split.
        patient: From a file to its patient, all of whose cases go into one part.
    """
    split = require("sklearn.model_selection").train_test_split
    patients = list(dict.fromkeys(map(patient, files)))
    train, rest = split(patients, test_size=0.2, random_state=seed)
    val, test = split(rest, test_size=0.5, random_state=seed)
    return {
        part: tuple(path for path in files if patient(path) in chosen)
        for part, chosen in (("train", set(train)), ("val", set(val)), ("test", set(test)))
    }


def find_raw(root: Path) -> tuple[tuple[Path, ...], VolumeNames, Release]:
    """Find the folders of NIfTI files.

    Args:
        root: Folder that is searched, at any depth.

    Returns:
        The folders, sorted, the names of their files, and the release of all of them.

    Raises:
        RecipeError: If there is none, or if they are of several releases, or their files have two kinds of names.
    """
    found = find_cases(root, NAMES, advice=ADVICE)
    release = only_release(
        {case.name: release_of(case.name, names) for names, each in found.items() for case in each}, root
    )
    if len(found) > 1:
        raise RecipeError(
            f"The files of {root} should be named in one way",
            found=" and ".join(
                f"{len(cases):,} cases with {names.modalities['flair']}" for names, cases in found.items()
            ),
            fix="keep one of them there",
        )
    (names, cases), *_ = found.items()
    return tuple(cases), names, release


def _count_shared(release: Release, parts: Iterable[Sequence[str]]) -> int:
    """Count the patients with cases in more than one part."""
    counts = Counter(patient for cases in parts for patient in {*map(release.patient, cases)})
    return sum(count > 1 for count in counts.values())
