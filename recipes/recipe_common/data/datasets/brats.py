"""BraTS 2021 on disk: modalities, classes, the h5 files of cases and their split into training, validation and test."""

from pathlib import Path

import attrs

from recipe_common.data.readers.volumes import Labels
from recipe_common.errors import RecipeError, require
from recipe_common.files import listing

MODALITIES = ("flair", "t1ce", "t1", "t2")
CLASSES = ("background", "necrotic core", "oedema", "enhancing tumour")
LABELS = Labels(len(CLASSES), stored={4: 3})  # there is no 3 in the raw data
SUFFIX = "_mri_norm2.h5"
FOLDERS = {"train": ("train",), "val": ("valid", "val"), "test": ("test",)}
FEWEST = 10
"""Cases that can be split 80/10/10 %."""
Parts = dict[str, tuple[Path, ...]]


@attrs.frozen
class CaseFiles:
    """Names of the files of the dataset.

    Args:
        suffix: End of a file name, after the name of the case.
        prepared: Folder of the files that `prepare` has written, under the root.
        raw: Pattern of a file that `prepare` reads.
        command: The command of `prepare`; `{root}` stands for the data root.
    """

    suffix: str
    prepared: str
    raw: str
    command: str

    def find(self, root: Path, seed: int) -> tuple[Parts, str]:
        """Find the files of each part, sorted: in folders train, valid (or val) and test, or all together.

        Args:
            root: Folder of the dataset.
            seed: Seed of the split, where there are no folders.

        Returns:
            The files of train, val and test, and a line about the origin of the split.

        Raises:
            RecipeError: If files are absent or not prepared yet, or if a case is in two parts.
        """
        folders = {part: [root / name for name in names if (root / name).is_dir()] for part, names in FOLDERS.items()}
        if all(folders.values()):
            parts = {part: self._files(found[0]) for part, found in folders.items()}
            _check_disjoint(parts)
            return parts, f"folders {', '.join(found[0].name for found in folders.values())}"
        if any(folders.values()):
            raise RecipeError(
                f"{root} should hold the folders train, valid and test",
                found=listing(root),
                fix="add the folders that are absent",
            )
        files = self._files(root / self.prepared) or self._files(root)
        if len(files) < FEWEST:
            raise self._missing(root, len(files))
        return split_cases(files, seed), f"80/10/10 % of {len(files):,} cases, by scikit-learn, random_state {seed}"

    def _files(self, folder: Path) -> tuple[Path, ...]:
        return tuple(sorted(folder.glob(f"[!.]*{self.suffix}")))

    def _missing(self, root: Path, count: int) -> RecipeError:
        found, fix = listing(root), "point --data-root to them, or leave it out to train on a small synthetic set"
        if count:
            found, fix = f"{count} of them", "prepare or download more of them"
        if next(root.rglob(self.raw), None) is not None:
            found, fix = f"{found}, not all prepared", f"run `{self.command.format(root=root)}`"
        return RecipeError(
            f"{root / self.prepared} should hold at least {FEWEST} files CASE{self.suffix}, or {root} the folders "
            "train, valid and test of such files",
            found=found,
            fix=fix,
        )


FILES = CaseFiles(SUFFIX, "h5", "*_flair.nii*", "python recipes/brats.py prepare --data-root {root}")


def split_cases(files: tuple[Path, ...], seed: int) -> Parts:
    """Split 80/10/10 % of sorted files with scikit-learn: 1,251 become 1,000 for training, 125 and 126."""
    split = require("sklearn.model_selection").train_test_split
    train, rest = split(files, test_size=0.2, random_state=seed)
    val, test = split(rest, test_size=0.5, random_state=seed)
    return {part: tuple(sorted(paths)) for part, paths in (("train", train), ("val", val), ("test", test))}


def _check_disjoint(parts: Parts) -> None:
    seen: set[str] = set()
    twice: set[str] = set()
    for path in (path for paths in parts.values() for path in paths):
        (twice if path.name in seen else seen).add(path.name)
    if twice:
        raise RecipeError(
            "Every case should be in one of the folders train, valid and test",
            found=f"{len(twice)} in two of them, such as {min(twice)}",
            fix="remove one copy of each",
        )
