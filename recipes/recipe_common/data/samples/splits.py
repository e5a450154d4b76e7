"""Splits of a list of clips into training, validation and test."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any, TypeVar

import attrs

from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.seeding import permutation
from recipe_common.errors import RecipeError

T = TypeVar("T")
VAL_SHARE = 1 / 9
"""Share for validation of the samples that are not for testing; with 1 / 10 for testing, 80 / 10 / 10 % in all."""


@attrs.frozen
class Split:
    """Rows of each part; no clip is in two of them."""

    train: tuple[Row, ...]
    val: tuple[Row, ...]
    test: tuple[Row, ...]

    @property
    def parts(self) -> dict[str, tuple[Row, ...]]:
        """The rows by name of the part."""
        return {"train": self.train, "val": self.val, "test": self.test}

    def without_validation(self) -> "Split":
        """Return a split in which the validation rows are for training."""
        return Split((*self.train, *self.val), (), self.test)


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
        speaker: Returns the speaker of a clip, given its name.
        seed: Seed of the order of speakers.

    Raises:
        RecipeError: If there are fewer than three speakers.
    """
    speakers = sorted({speaker(row.name) for row in rows})
    part = max(1, round(len(speakers) / 10))
    if len(speakers) < 3:
        raise RecipeError("There should be at least 3 speakers", found=str(speakers), fix="use `--split random`")
    shuffled = [speakers[position] for position in permutation(len(speakers), seed)]
    of_part = {"test": set(shuffled[:part]), "val": set(shuffled[part : 2 * part]), "train": set(shuffled[2 * part :])}
    parts = {name: _by_name(row for row in rows if speaker(row.name) in chosen) for name, chosen in of_part.items()}
    return Split(**parts)


def check_disjoint(
    parts: Mapping[str, Iterable[T]],
    key: Callable[[T], Any],
    *,
    of: str = "lists",
    unit: str = "clip",
    fix: str = "restore the lists",
) -> None:
    """Check that nothing is in two parts.

    Args:
        parts: Rows, files or numbers of each part by its name.
        key: Returns what tells two of them apart: a name, a path, a group. Keys can be compared.
        of: What the parts are, for the message.
        unit: What a key stands for, for the message.
        fix: Remedy, for the message.

    Raises:
        RecipeError: If two parts share a key; it has their names, the number of shared keys, and the first of them.
    """
    keys = {name: {key(each) for each in part} for name, part in parts.items()}
    for one, other in combinations(keys, 2):
        if shared := keys[one] & keys[other]:
            raise RecipeError(
                f"The {one} and {other} {of} should have no common {unit}",
                found=f"{len(shared):,}, such as {min(shared)}",
                fix=fix,
            )


def row_name(row: Row) -> str:
    """Return the name of a row."""
    return row.name


def _by_name(rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple(sorted(rows, key=lambda row: row.name))
