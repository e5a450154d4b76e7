"""Splits of a list of clips into training, validation and test."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import attrs

from recipe_common.data.samples.lists import Row, read_list
from recipe_common.data.samples.seeding import permutation
from recipe_common.errors import RecipeError

VAL_SHARE = 1 / 9
"""Of what is not test; with 1 / 10 for test it makes 80 / 10 / 10 %."""


@attrs.frozen
class Split:
    """The rows of each part; no clip is in two of them."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    test: tuple[Row, ...]

    def without_validation(self) -> "Split":
        """Return the split with the validation rows among those for training."""
        return Split((*self.train, *self.val), (), self.test)


def listed_split(folder: Path, classes: Sequence[str], seed: int, *, validation: bool = True) -> tuple[Split, str]:
    """Read `train.csv` and `test.csv`, and `val.csv` and `my_train.csv` (what is left of train.csv) where they exist.

    Without `val.csv`, one ninth of every class of train.csv is held out: for CREMA-D 744 clips, as many as in test.csv.
    Without `validation`, all of train.csv is for training.

    Returns:
        The split, and a line that says where it comes from.
    """
    train, test = (read_list(folder / name, classes) for name in ("train.csv", "test.csv"))
    if not validation:
        split, origin = Split(train, (), test), f"lists in {folder}; nothing held out for validation"
    elif (folder / "val.csv").is_file():
        val = read_list(folder / "val.csv", classes)
        mine = folder / "my_train.csv"
        held = {row.name for row in val}
        rest = read_list(mine, classes) if mine.is_file() else tuple(row for row in train if row.name not in held)
        split, origin = Split(rest, val, test), f"lists in {folder}, val.csv included"
    else:
        split = Split(*hold_out(train, VAL_SHARE, seed), test)
        origin = f"lists in {folder}; for validation 1/9 of every class of train.csv, seed {seed}"
    _check_disjoint(split)
    return split, origin


def hold_out(rows: Iterable[Row], share: float, seed: int) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Set aside `share` of every class at random, as a function of the set of rows and the seed.

    Returns:
        The rows that stay, and the rows held out, both sorted by name.
    """
    by_class: dict[str, list[Row]] = defaultdict(list)
    for row in _by_name(rows):
        by_class[row.label].append(row)
    kept: list[Row] = []
    held: list[Row] = []
    for index, label in enumerate(sorted(by_class)):
        group = by_class[label]
        order = permutation(len(group), seed, index)
        count = round(len(group) * share)
        held += [group[position] for position in order[:count]]
        kept += [group[position] for position in order[count:]]
    return _by_name(kept), _by_name(held)


def random_split(rows: Sequence[Row], seed: int) -> Split:
    """Split 80 / 10 / 10 % of every class at random."""
    rest, test = hold_out(rows, 1 / 10, seed)
    train, val = hold_out(rest, VAL_SHARE, seed)
    return Split(train, val, test)


def speaker_split(rows: Sequence[Row], speaker: Callable[[str], str], seed: int) -> Split:
    """Split the speakers 80 / 10 / 10 % at random, each with all of their clips.

    Args:
        rows: All clips.
        speaker: Gives the speaker of a clip name.
        seed: Decides together with the set of speakers.
    """
    speakers = sorted({speaker(row.name) for row in rows})
    part = max(1, round(len(speakers) / 10))
    if len(speakers) < 3:
        raise RecipeError(f"Expected at least 3 speakers. Found {speakers}. Fix: use --split random.")
    shuffled = [speakers[position] for position in permutation(len(speakers), seed)]
    of_part = {"test": set(shuffled[:part]), "val": set(shuffled[part : 2 * part]), "train": set(shuffled[2 * part :])}
    parts = {name: _by_name(row for row in rows if speaker(row.name) in chosen) for name, chosen in of_part.items()}
    return Split(**parts)


def _by_name(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.name))


def _check_disjoint(split: Split) -> None:
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        shared = {row.name for row in getattr(split, one)} & {row.name for row in getattr(split, other)}
        if shared:
            raise RecipeError(
                f"Expected {one} and {other} lists without a common clip. Found {len(shared)}, such as {min(shared)}. "
                "Fix: restore the lists, or use --split random."
            )
