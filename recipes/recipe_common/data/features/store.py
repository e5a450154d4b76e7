"""Hidden states of frozen networks, computed once and read by index: n samples, T tokens, D features.

A folder of features holds one folder per network and transform, named by a checksum of all that the features depend
on: `image-0123456789ab/spec.json` and `shard-00000.h5`, ... A shard holds `features` (n, T, D) in half precision, and
the key and stamp of each sample. More samples become more shards; what is there stays.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor

from recipe_common.data.features.networks import Entry, FrozenNetwork
from recipe_common.data.prepare.engine import Item, run_prepare
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import RecipeError, require
from recipe_common.files import atomic_file

SHARD = 256
"""Samples of a shard: 77 MB of 197 tokens of 768 features, and what a kill costs each process."""
SPEC = "spec.json"


@attrs.frozen
class Shard(Item):
    """A file of features, the samples to write into it (none if it is there already), and what encodes them."""

    network: FrozenNetwork
    entries: tuple[Entry, ...] = ()


def prepare_features(
    root: Path, networks: Mapping[FrozenNetwork, Iterable[Entry]], *, workers: int, shard_size: int = SHARD
) -> int:
    """Encode what is not encoded yet, and say how it went; it can be killed at any moment and called again.

    Args:
        root: Folder of the features; gets the manifest.
        networks: What each of them has to encode.
        workers: Number of processes, each with a copy of the network. 0: no other process and no checksums, for sets
            that are too small to be worth the start of one.
        shard_size: Samples per file.

    Returns:
        The exit status: 0, or 1 if there were samples that could not be read, which are printed and kept in
        `unreadable_<modality>.txt`.

    Raises:
        RecipeError: If a network does not fit its modality, or if there is no room for its features.
    """
    root.mkdir(parents=True, exist_ok=True)
    unique = {network: list(dict.fromkeys(entries)) for network, entries in networks.items()}
    plans = [_plan(root, network, entries, shard_size) for network, entries in unique.items()]
    _check_room(root, sum(needed for _, needed in plans))
    shards = [shard for plan, _ in plans for shard in plan]
    status = 0
    if workers:
        make = partial(write_shard, threads=max(1, (os.cpu_count() or 1) // workers))
        status = run_prepare(root, shards, make, workers=workers, what="shards")
    else:
        for shard in shards:
            write_shard(shard)
    reports = [_report(root, network, entries) for network, entries in unique.items()]
    return max(status, *reports)


def write_shard(shard: Item, threads: int | None = None) -> None:
    """Encode the samples of a shard and write its file in one step, unless it is there.

    Args:
        shard: A `Shard`.
        threads: Of torch, in this process; None: as many as it has.
    """
    assert isinstance(shard, Shard)
    if shard.done:
        return
    if threads is not None:
        torch.set_num_threads(threads)
    good, features, faults = shard.network.encode(shard.entries)
    unreadable = [{"key": entry.key, "stamp": entry.stamp, "reason": reason} for entry, reason in faults.items()]
    with atomic_file(shard.outputs[0]) as partial_path, require("h5py").File(partial_path, "w") as file:
        file["features"] = features
        file["keys"] = np.array([entry.key.encode() for entry in good], dtype="S")
        file["stamps"] = np.array([entry.stamp or 0 for entry in good], np.int64)
        file.attrs["unreadable"] = json.dumps(unreadable)


class FeatureStore:
    """The features of one network and transform.

    Args:
        folder: One of the folders that `prepare_features` makes.

    Raises:
        RecipeError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = _read_spec(folder)
        self.shards = shard_files(folder)
        self.shape: tuple[int, ...] = ()
        self.unreadable: dict[tuple[str, int | None], str] = {}
        self._positions: dict[str, tuple[int, int, int]] = {}
        self._files: dict[int, Any] = {}
        self._process = os.getpid()
        for number in range(len(self.shards)):
            self._read_index(number)

    def __len__(self) -> int:
        return len(self._positions)

    def find(self, entry: Entry) -> tuple[int, int] | None:
        """Return shard and row of a sample; None if it is not there, or if its picture has been replaced since."""
        position = self._positions.get(entry.key)
        if position is None or entry.stamp not in (None, position[2]):
            return None
        return position[:2]

    def is_unreadable(self, entry: Entry) -> bool:
        """Tell whether this sample, and not one that replaced it, could not be read when its turn came."""
        return (entry.key, entry.stamp) in self.unreadable

    def read(self, position: tuple[int, int], *, seed: int | None = None) -> Tensor:
        """Return the features of a sample, float32 (T, D); they are the same in training and evaluation.

        Raises:
            RecipeError: If they cannot be read.
        """
        shard, row = position
        try:
            features = self._file(shard)["features"][row]
        except (OSError, KeyError, ValueError, IndexError) as error:
            raise _damaged(self.shards[shard], error) from error
        return torch.from_numpy(np.asarray(features, np.float32))

    def source(self, modality: str, entry_of: Callable[[Row], Entry]) -> Source:
        """Return the store as the source of a modality."""
        find = partial(_find_row, self, entry_of)
        what = f"{modality} feature (`prepare` makes it)"
        return Source(modality, what, str(self.folder), find, self.read, self.read)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def _file(self, shard: int) -> Any:
        if self._process != os.getpid():  # handles must not be shared with the workers that a process forks
            self._files, self._process = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = require("h5py").File(self.shards[shard], "r")
        return self._files[shard]

    def _read_index(self, number: int) -> None:
        path = self.shards[number]
        try:
            with require("h5py").File(path, "r") as file:
                shape = file["features"].shape[1:]
                keys, stamps = file["keys"][()], file["stamps"][()]
                unreadable = json.loads(file.attrs["unreadable"])
        except (OSError, KeyError, ValueError) as error:
            raise _damaged(path, error) from error
        if self.shape not in ((), shape):
            raise _damaged(path, f"features of shape {shape}, others have {self.shape}")
        self.shape = shape
        for row, (key, stamp) in enumerate(zip(keys, stamps, strict=True)):
            self._positions[key.decode()] = number, row, int(stamp)
        self.unreadable |= {(each["key"], each["stamp"]): each["reason"] for each in unreadable}


def shard_files(folder: Path) -> tuple[Path, ...]:
    """List the shards of a store in the order in which they were planned."""
    return tuple(sorted(folder.glob("shard-*.h5")))


def find_store(root: Path, modality: str, settings: Mapping[str, Any], name: str | None, command: str) -> FeatureStore:
    """Open the features of a modality.

    Args:
        root: Folder of the features.
        modality: Such as `image`.
        settings: Those of the network that made them.
        name: Name of their folder; None: the only one with these settings.
        command: What makes them, for the message.

    Raises:
        RecipeError: If there are none, or, without a name, several.
    """
    stores = {path.parent.name: _read_spec(path.parent) for path in sorted(root.glob(f"{modality}-*/{SPEC}"))}
    fitting = [each for each, spec in stores.items() if spec["settings"] == settings and name in (None, each)]
    there = "; ".join(f"{each} ({_described(spec)})" for each, spec in stores.items()) or "none"
    wanted = f"{modality} features with {_listed(settings)} in {root}"
    if not fitting:
        named = f" named {name}" if name else ""
        raise RecipeError(f"Expected {wanted}{named}. Found {there}. Fix: {command}, or the flags of those.")
    if len(fitting) > 1:
        raise RecipeError(f"Expected one set of {wanted}. Found {there}. Fix: --{modality}-features NAME.")
    return FeatureStore(root / fitting[0])


def _find_row(store: FeatureStore, entry_of: Callable[[Row], Entry], row: Row) -> tuple[int, int] | None:
    return store.find(entry_of(row))


def _described(spec: Mapping[str, Any]) -> str:
    return f"network {spec['network_sha256'][:8]}, {_listed(spec['settings'])}"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _plan(root: Path, network: FrozenNetwork, entries: Sequence[Entry], shard_size: int) -> tuple[list[Shard], int]:
    """Return the shards that are there and new ones for the samples that are in none, and the bytes of the new ones."""
    folder = root / network.store_name
    tokens, size = network.hidden_states(network.blank()).shape[1:]
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / SPEC) as path:
        path.write_text(json.dumps({**network.spec, "network": network.folder.name}, indent=2))
    store = FeatureStore(folder)
    absent = [entry for entry in entries if store.find(entry) is None]
    missing = [each for each in absent if not store.is_unreadable(each) or network.is_readable(each)]
    first = 1 + max((int(path.stem.rpartition("-")[2]) for path in store.shards), default=-1)
    new = [
        Shard(network.folder, (folder / f"shard-{first + number:05d}.h5",), network, chunk)
        for number, chunk in enumerate(_chunks(missing, shard_size))
    ]
    old = [Shard(network.folder, (path,), network) for path in store.shards]
    return [*old, *new], 2 * len(missing) * tokens * size


def _chunks(entries: Sequence[Entry], size: int) -> Iterator[tuple[Entry, ...]]:
    for start in range(0, len(entries), size):
        yield tuple(entries[start : start + size])


def _check_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise RecipeError(
            f"Expected room for {needed / 1e9:.1f} GB of features in {folder}. Found {free / 1e9:.1f} GB. "
            "Fix: --features on another disk, or --keep cls, which keeps one token of each sample."
        )


def _report(root: Path, network: FrozenNetwork, entries: Sequence[Entry]) -> int:
    store = FeatureStore(root / network.store_name)
    lines = [
        f"{each.content}: {store.unreadable.get((each.key, each.stamp), 'not encoded')}"
        for each in entries
        if store.find(each) is None
    ]
    report = root / f"unreadable_{network.modality}.txt"
    report.unlink(missing_ok=True)
    print(f"{len(entries) - len(lines):,} of {len(entries):,} different {network.modality}s are in {store.folder}")
    if not lines:
        return 0
    report.write_text("\n".join(lines) + "\n")
    print(*lines[:10], f"{len(lines):,} are not encoded; the list is kept in {report}", sep="\n")
    return 1


def _read_spec(folder: Path) -> dict[str, Any]:
    try:
        spec = json.loads((folder / SPEC).read_text())
        return {**spec, "settings": dict(spec["settings"]), "network_sha256": str(spec["network_sha256"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder / SPEC, error) from error


def _damaged(path: Path, error: object) -> RecipeError:
    return RecipeError(
        f"Expected a whole file of features. Found {path}: {error}. Fix: remove it and run prepare again, which makes "
        "what is missing."
    )
