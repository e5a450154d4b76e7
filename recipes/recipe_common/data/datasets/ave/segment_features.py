"""Reader of the published AVE features by segment: hdf5 files for audio-visual event localisation.

Row n of every file belongs to clip n. N clips, T segments (10 of one second), C classes.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recipe_common.data.readers.decoding import decoding
from recipe_common.data.readers.non_files import file_error
from recipe_common.data.samples.sources import SHOWN
from recipe_common.data.samples.splits import check_disjoint
from recipe_common.errors import RecipeError, message, require
from recipe_common.files import listing

AUDIO, VISUAL = "audio_feature.h5", "visual_feature.h5"
LABELS = ("right_labels.h5", "right_label.h5")
ORDERS = {"train": "train_order.h5", "val": "val_order.h5", "test": "test_order.h5"}
FEATURES_KEY, ORDER_KEY = "avadataset", "order"


class FeatureFile(Sequence[Any]):
    """Rows of the dataset `avadataset` of a file, read one by one, since the feature maps of AVE take 4 GB.

    Every process opens the file for itself at its first read, since an open file survives neither a fork nor a pickle.

    Args:
        path: The file.
        rows: Row numbers in the order of the sequence; None stands for all rows.

    Raises:
        RecipeError: If the file is absent, cut off or without that dataset.
    """

    def __init__(self, path: Path, rows: Sequence[int] | None = None) -> None:
        self.path = path
        self._opened: tuple[int, Any] | None = None
        with decoding(partial(_damaged, path)), _open(path) as file:
            self.shape: tuple[int, ...] = _dataset(file, path, FEATURES_KEY).shape
        if len(self.shape) == 0:
            raise _damaged(path, f"a single number as `{FEATURES_KEY}`")
        self.rows = range(self.shape[0]) if rows is None else rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        """Return a row, float32.

        Raises:
            RecipeError: If it cannot be read, or if it holds numbers that are not finite.
        """
        row = self.rows[index]
        with decoding(lambda found: _damaged(self.path, f"an unreadable row {row} ({found})")):
            values = torch.from_numpy(np.asarray(self._dataset[row], dtype=np.float32))
        if not torch.isfinite(values).all():
            raise _damaged(self.path, f"numbers that are not finite in row {row}")
        return values

    def of(self, rows: Sequence[int]) -> "FeatureFile":
        """Return the same file with other rows."""
        return FeatureFile(self.path, rows)

    @property
    def _dataset(self) -> Any:
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path)[FEATURES_KEY])
        return self._opened[1]


@attrs.frozen
class SegmentFeatures:
    """The six files, opened and checked.

    Attributes:
        audio: Features of sound, each row (T, D_audio).
        visual: Feature maps of frames, each row (T, H, W, D_visual).
        targets: Class index of each segment, int64 (N, T).
        orders: Clips of each part of the split.
        skipped: A line for each clip that is left out.
        summary: Lines for the start of a run.
    """

    audio: FeatureFile
    visual: FeatureFile
    targets: Tensor
    orders: dict[str, tuple[int, ...]]
    skipped: tuple[str, ...]
    summary: tuple[str, ...]


def read_segment_features(root: Path, classes: Sequence[str], *, skip_bad: bool) -> SegmentFeatures:
    """Open the six files under `root`, or in its folder `data`; feature maps stay on disk.

    Args:
        root: The data root.
        classes: Class names, background last.
        skip_bad: Whether every row is read at once, and damaged ones are left out.

    Raises:
        RecipeError: If a file is absent, cut off, of another shape, or if labels or orders are out of range.
    """
    folder = root / "data" if (root / "data" / VISUAL).is_file() else root
    paths = _find(folder)
    audio, visual = FeatureFile(paths[AUDIO]), FeatureFile(paths[VISUAL])
    targets = _read_targets(paths[LABELS[0]], classes)
    _check_shapes(audio, visual, targets)
    orders = {part: _read_order(paths[name], len(targets)) for part, name in ORDERS.items()}
    check_disjoint({ORDERS[part]: order for part, order in orders.items()}, int, of="files", fix="restore the files")
    summary = [f"data: {', '.join(path.name for path in paths.values())} in {folder}"]
    skipped: list[str] = []
    for part, order in orders.items():
        bad = _damaged_rows(audio, visual, order) if skip_bad else {}
        orders[part] = tuple(row for row in order if row not in bad)
        skipped += [f"{part}: clip {row}: {reason}" for row, reason in bad.items()]
        summary.append(f"{part}: {len(orders[part]):,} of {len(order):,} listed clips")
    summary += [f"  skipped {line}" for line in skipped[:SHOWN]]
    present = set(targets[list(orders["train"])].flatten().tolist())
    empty = [name for index, name in enumerate(classes) if index not in present]
    if empty:
        summary.append(f"{len(empty)} of {len(classes)} classes have no training segment: {', '.join(empty[:SHOWN])}")
    return SegmentFeatures(audio, visual, targets, orders, tuple(skipped), tuple(summary))


def _find(folder: Path) -> dict[str, Path]:
    labels = next((name for name in LABELS if (folder / name).is_file()), LABELS[0])
    paths = {name: folder / name for name in (AUDIO, VISUAL, *ORDERS.values())} | {LABELS[0]: folder / labels}
    names = [path.name for path in paths.values()]
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise RecipeError(
            f"{folder} should hold {', '.join(names)}",
            found=f"{listing(folder)}; missing: {', '.join(missing)}",
            fix="point --data-root to the folder of all six files, or leave it out to train on a small synthetic set",
        )
    return paths


def _read_targets(path: Path, classes: Sequence[str]) -> Tensor:
    """Read one-hot labels (N, T, C) as class indices (N, T)."""
    labels = _read(path, FEATURES_KEY)
    if labels.ndim != 3 or labels.shape[2] != len(classes):
        raise _damaged(path, f"labels of shape {labels.shape}, not (clips, segments, {len(classes)} classes)")
    wrong = np.argwhere(((labels != 0) & (labels != 1)).any(axis=2) | (labels.sum(axis=2) != 1))
    if len(wrong):
        clip, segment = wrong[0]
        raise _damaged(
            path, f"{len(wrong)} segments without exactly one class, such as segment {segment} of clip {clip}"
        )
    return torch.from_numpy(labels.argmax(axis=2)).long()


def _read_order(path: Path, clips: int) -> tuple[int, ...]:
    order = _read(path, ORDER_KEY)
    if order.ndim != 1 or order.size == 0 or not np.issubdtype(order.dtype, np.integer):
        raise _damaged(path, f"an order of shape {order.shape} and type {order.dtype}, not a list of whole numbers")
    if order.min() < 0 or order.max() >= clips:
        raise _damaged(path, f"clips {order.min()} to {order.max()}, where the features have 0 to {clips - 1}")
    if len(np.unique(order)) < len(order):
        raise _damaged(path, "clips that are listed twice")
    return tuple(int(clip) for clip in order)


def _check_shapes(audio: FeatureFile, visual: FeatureFile, targets: Tensor) -> None:
    clips, segments = targets.shape
    shapes = {"audio features": audio.shape, "visual features": visual.shape, "labels": tuple(targets.shape)}
    same = {shape[:2] for shape in shapes.values()} == {(clips, segments)}
    if not same or len(audio.shape) != 3 or len(visual.shape) != 5:
        found = "; ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise RecipeError(
            "Audio features (clips, segments, size), visual features (clips, segments, height, width, size) and labels "
            "should have equally many clips and segments",
            found=found,
            fix="restore files of one download",
        )


def _damaged_rows(audio: FeatureFile, visual: FeatureFile, order: Sequence[int]) -> dict[int, str]:
    bad = {}
    for row in order:
        try:
            audio[row], visual[row]
        except RecipeError as error:
            bad[row] = message(error)
    return bad


def _read(path: Path, key: str) -> NDArray[Any]:
    with decoding(partial(_damaged, path)), _open(path) as file:
        return np.asarray(_dataset(file, path, key)[()])


def _open(path: Path) -> Any:
    with decoding(partial(_damaged, path)):
        return require("h5py").File(path, "r")


def _dataset(file: Any, path: Path, key: str) -> Any:
    if key not in file:
        raise _damaged(path, f"datasets {sorted(file)}, and no `{key}`")
    return file[key]


def _damaged(path: Path, found: str) -> RecipeError:
    return file_error(
        path,
        f"{path} should be a whole hdf5 file of AVE features",
        found=found,
        fix="download it again, or leave damaged rows out with --skip-bad",
    )
