"""Index of stored samples over the shards of a folder: decoded samples, or features of frozen networks."""

from collections.abc import Sequence
from typing import Any

import attrs
from torch import Tensor

from recipe_common.data.cache.shards import Key, Shard

Place = tuple[int, int]
"""Number of the shard, and number of the sample in it."""


@attrs.frozen
class Entry:
    """A sample to be stored.

    Attributes:
        name: Name in the list, path of a picture, or checksum of a text.
        stamp: State of its files, which differs after a change: a digest, or the size of a picture; None: unknown.
        content: Input from which its arrays are made, such as paths, or a text.
    """

    name: str
    stamp: str | int | None
    content: Any

    @property
    def key(self) -> Key:
        """Name and stamp."""
        return self.name, self.stamp


class Store:
    """The stored samples of one modality.

    Args:
        shards: All files in the order of their writing; of samples with one name, the last is the latest.

    Raises:
        RecipeError: If a file is not a whole shard.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        self.places: dict[Key, Place] = {}
        self.unreadable: dict[Key, str] = {}
        self._latest: dict[str, Key] = {}
        for number, shard in enumerate(self.shards):
            faults = shard.unreadable
            for at, key in enumerate(shard.keys):
                if at in faults:
                    self.unreadable[key] = faults[at]
                else:
                    self.places[key] = number, at
                    self._latest[key[0]] = key

    def __len__(self) -> int:
        """Return the number of different samples."""
        return len(self._latest)

    def find(self, entry: Entry) -> Place | None:
        """Return the place of the sample with this stamp, without a stamp the latest of its name; None if absent."""
        return self.places.get(self._latest.get(entry.name, entry.key) if entry.stamp is None else entry.key)

    def __getitem__(self, place: Place) -> Sequence[Tensor]:
        """Return the arrays of the sample at a place from `find`."""
        shard, number = place
        return self.shards[shard][number]
