"""AV-MNIST: its six npy files of pictures, spectrograms and labels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.arrays import ArrayFile, Pictures, brightness_scale, read_class_indices, rows_not_finite
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.errors import RecipeError
from recipe_common.files import listing

MODALITIES = ("audio", "image")
NUM_CLASSES = 10
FILES = (
    *(f"{name}/{part}_data.npy" for name in ("image", "audio") for part in ("train", "test")),
    *(f"{part}_labels.npy" for part in ("train", "test")),
)
Rows = NDArray[np.int64]
FIXES = {
    "*.tar*": "unpack avmnist.tar.gz",
    "*.zip": "unpack the archive",
    "audio/*.wav": "recordings are not read; take the spectrograms of avmnist.tar.gz",
    "*idx3-ubyte*": "MNIST alone has no sound; take avmnist.tar.gz",
    "*.csv": "lists of pictures and recordings belong to another build of the set; take avmnist.tar.gz",
    "../train_labels.npy": "point --data-root to the folder above",
}
"""What to do, by pattern of files that are found in place of the six."""


def find_digit_files(root: Path) -> Path:
    """Return the folder of the six files: `root`, or `avmnist` in it.

    Raises:
        RecipeError: If files are missing, with their names.
    """
    folder = next((place for place in (root / "avmnist", root) if (place / "image").is_dir()), root)
    missing = [name for name in FILES if not (folder / name).is_file()]
    if missing:
        steps = (step for pattern, step in FIXES.items() if any(folder.glob(pattern)))
        step = next(steps, "point --data-root to the unpacked data")
        raise RecipeError(
            f"{folder} should hold {', '.join(FILES)}",
            found=f"{listing(folder)}; missing: {', '.join(missing)}",
            fix=f"{step}, or leave --data-root out to train on a small set",
        )
    return folder


@attrs.frozen(eq=False)
class DigitPart:
    """The three files of the training or of the test part.

    Args:
        audio: File of the spectrograms, one per row.
        image: File of the pictures, one per row.
        labels: Class indices, int64 (N,).
    """

    audio: ArrayFile
    image: ArrayFile
    labels: Tensor

    @classmethod
    def open(cls, folder: Path, part: str) -> "DigitPart":
        """Open the files of `train` or `test`.

        Raises:
            RecipeError: If a file cannot be read, or the files differ in their numbers of rows.
        """
        audio, image = (ArrayFile(folder / name / f"{part}_data.npy") for name in MODALITIES)
        labels = read_class_indices(folder / f"{part}_labels.npy", NUM_CLASSES)
        if not len(audio) == len(image) == len(labels):
            raise RecipeError(
                f"audio/{part}_data.npy, image/{part}_data.npy and {part}_labels.npy should have equally many rows",
                found=f"{len(audio):,}, {len(image):,} and {len(labels):,} in {folder}",
                fix="take all three files from one download",
            )
        return cls(audio, image, labels)

    def __len__(self) -> int:
        return len(self.labels)

    def scales(self) -> dict[str, float]:
        """Return the factor by which the values of each modality are multiplied."""
        return {"audio": brightness_scale(self.audio), "image": brightness_scale(self.image)}

    def bad_rows(self) -> Rows:
        """Return the rows with a NaN or infinite value."""
        return np.union1d(rows_not_finite(self.audio), rows_not_finite(self.image))

    def subset(self, rows: Rows, sizes: Mapping[str, int], scales: Mapping[str, float]) -> TensorSet:
        """Return the samples of some rows: spectrogram (1, A, A) and picture (1, I, I), float32, and class index.

        Raises:
            RecipeError: If the pictures of a file have another size than that in `sizes`.
        """
        files = {"audio": self.audio, "image": self.image}
        pictures: list[Any] = [Pictures(file, sizes[name], rows, scales[name]) for name, file in files.items()]
        return TensorSet(pictures, self.labels[rows])
