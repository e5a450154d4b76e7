"""Store of features on disk: hidden states of frozen networks, computed once and read by index.

A folder of features holds one folder per network and transform, named by a checksum of everything on which the features
depend: `image-0123456789ab/spec.json` and `shard-00000-<digest>.safetensors`, ... For each sample a shard holds D
features of T tokens, (T, D), in half precision, see `recipe_common.data.cache.shards`. Further samples go into further
shards; the others stay.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor

from recipe_common.data.cache.shards import FORMAT, SUFFIX, Shard, damaged, header_of, shard_name, write_shard
from recipe_common.data.cache.store import Entry, Place, Store
from recipe_common.data.features.networks import FrozenNetwork
from recipe_common.data.prepare.engine import MANIFEST, Item, run_prepare
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.sources import Source
from recipe_common.errors import RecipeError
from recipe_common.files import atomic_file, check_room

SHARD = 256
"""Samples of a shard: 77 MB with 197 tokens of 768 features, and at most as many are lost per process by a kill."""
SPEC = "spec.json"
FORMER = "shard-*.h5"
"""Pattern of files of a former version, which are not read."""


@attrs.frozen
class ShardItem(Item):
    """A file of features: header, samples to write into it (none if it is there already), and their encoder."""

    network: FrozenNetwork
    entries: tuple[Entry, ...] = ()
    header: str = ""


def prepare_features(
    root: Path, networks: Mapping[FrozenNetwork, Iterable[Entry]], *, workers: int, shard_size: int = SHARD
) -> int:
    """Encode samples that are not encoded yet, and print the outcome; it can be killed at any moment and called again.

    Args:
        root: Folder of the features; the manifest is written there.
        networks: Samples by the network that encodes them.
        workers: Number of processes, each with a copy of the network. 0: no other process and no checksums, for sets
            that are too small to be worth the start of one.
        shard_size: Samples per file.

    Returns:
        The exit status: 0, or 1 if there were samples that could not be read, which are printed and listed in
        `unreadable_<modality>.txt`.

    Raises:
        RecipeError: If a network does not fit its modality, or if there is no room for its features.
    """
    root.mkdir(parents=True, exist_ok=True)
    unique = {network: list(dict.fromkeys(entries)) for network, entries in networks.items()}
    plans = [_plan(root, network, entries, shard_size) for network, entries in unique.items()]
    check_room(
        root,
        sum(needed for _, needed in plans),
        "the features",
        "name a folder on another disk with `--features`, or add `--keep cls`, which keeps one token of each sample",
    )
    shards = [shard for plan, _ in plans for shard in plan]
    status = 0
    if workers:
        make = partial(encode_shard, threads=max(1, (os.cpu_count() or 1) // workers))
        status = run_prepare(root, shards, make, workers=workers, what="shards")
    else:
        for shard in shards:
            encode_shard(shard)
    reports = [_report(root, network, entries) for network, entries in unique.items()]
    return max(status, *reports)


def encode_shard(item: Item, threads: int | None = None) -> None:
    """Encode the samples of a shard and write its file in one step, unless it is there.

    Args:
        item: A `ShardItem`.
        threads: Number of torch's threads in this process; None leaves it unchanged.
    """
    assert isinstance(item, ShardItem)
    if item.done:
        return
    if threads is not None:
        torch.set_num_threads(threads)
    encoded = item.network.encode(item.entries)
    features = (each if isinstance(each, str) else [torch.from_numpy(each)] for each in map(encoded.get, item.entries))
    write_shard(item.outputs[0], item.header, features)


class FeatureStore(Store):
    """The features of one network and transform.

    Args:
        folder: One of the folders from `prepare_features`.

    Attributes:
        shape: (T, D) of all features; None if there are none.

    Raises:
        RecipeError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.spec = _read_spec(folder)
        super().__init__([Shard(path) for path in shard_files(folder)])
        self.shape: tuple[int, ...] | None = None
        for number, at in {place[0]: place for place in self.places.values()}.values():
            shape = self.shards[number].shape(at)
            if self.shape not in (None, shape):
                raise damaged(self.shards[number].path, f"features of shape {shape}, others have {self.shape}")
            self.shape = shape

    def is_unreadable(self, entry: Entry) -> bool:
        """Return whether this sample, and not one that replaced it, could not be read at the time of encoding."""
        return entry.key in self.unreadable

    def read(self, place: Place, *, seed: int | None = None) -> Tensor:
        """Return the features of a sample, float32 (T, D); they are the same in training and evaluation."""
        return self[place][0].float()

    def source(self, modality: str, entry_of: Callable[[Row], Entry]) -> Source:
        """Return the store as the source of a modality."""
        find = partial(_find_row, self, entry_of)
        what = f"{modality} feature (`prepare` makes it)"
        return Source(modality, what, str(self.folder), find, self.read, self.read)


def shard_files(folder: Path) -> tuple[Path, ...]:
    """List the shards of a store in the order in which they were planned."""
    return tuple(sorted(folder.glob(f"shard-*{SUFFIX}")))


def find_store(root: Path, modality: str, settings: Mapping[str, Any], name: str | None, command: str) -> FeatureStore:
    """Open the features of a modality.

    Args:
        root: Folder of the features.
        modality: Such as `image`.
        settings: Settings of the network that encoded them.
        name: Name of their folder; None: the only one with these settings.
        command: Command that makes the features, for the message.

    Raises:
        RecipeError: If there are none, or, without a name, several.
    """
    stores = {path.parent.name: _read_spec(path.parent) for path in sorted(root.glob(f"{modality}-*/{SPEC}"))}
    fitting = [each for each, spec in stores.items() if spec["settings"] == settings and name in (None, each)]
    found = "; ".join(f"{each} ({_described(spec)})" for each, spec in stores.items()) or "none"
    wanted = f"{modality} features with {_listed(settings)}"
    if not fitting:
        named = f" named {name}" if name else ""
        raise RecipeError(
            f"{root} should hold {wanted}{named}",
            found=found,
            fix=f"run `{command}`, or give the flags of those found",
        )
    if len(fitting) > 1:
        raise RecipeError(
            f"{root} should hold one set of {wanted}", found=found, fix=f"give `--{modality}-features NAME`"
        )
    _check_version(root / fitting[0], command)
    return FeatureStore(root / fitting[0])


def _check_version(folder: Path, command: str) -> None:
    former = sorted(folder.glob(FORMER))
    if former and not shard_files(folder):
        raise RecipeError(
            f"{folder} should hold features in files shard-*{SUFFIX}",
            found=f"{len(former)} of a former version, such as {former[0].name}",
            fix=f"remove that folder and {folder.parent / MANIFEST}, then run `{command}`",
        )


def _find_row(store: FeatureStore, entry_of: Callable[[Row], Entry], row: Row) -> Place | None:
    return store.find(entry_of(row))


def _described(spec: Mapping[str, Any]) -> str:
    return f"network {spec['network_sha256'][:8]}, {_listed(spec['settings'])}"


def _listed(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in settings.items())


def _plan(root: Path, network: FrozenNetwork, entries: Sequence[Entry], shard_size: int) -> tuple[list[ShardItem], int]:
    """Return the shards on disk, followed by new ones for samples in none of them, and the bytes of the new ones."""
    folder = root / network.store_name
    tokens, size = network.hidden_states(network.blank()).shape[1:]
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / SPEC) as path:
        path.write_text(json.dumps({**network.spec, "network": network.folder.name}, indent=2))
    store = FeatureStore(folder)
    absent = [entry for entry in entries if store.find(entry) is None]
    missing = [each for each in absent if not store.is_unreadable(each) or network.is_readable(each)]
    old = [ShardItem(network.folder, (shard.path,), network) for shard in store.shards]
    first = 1 + max((int(shard.path.name.split("-")[1]) for shard in store.shards), default=-1)
    content = {"format": FORMAT, **network.spec}
    new = []
    for number, chunk in enumerate(_chunks(missing, shard_size), first):
        header = header_of(content, [entry.key for entry in chunk])
        path = folder / shard_name(f"shard-{number:05d}", header)
        new.append(ShardItem(network.folder, (path,), network, chunk, header))
    return [*old, *new], 2 * len(missing) * tokens * size


def _chunks(entries: Sequence[Entry], size: int) -> Iterator[tuple[Entry, ...]]:
    for start in range(0, len(entries), size):
        yield tuple(entries[start : start + size])


def _report(root: Path, network: FrozenNetwork, entries: Sequence[Entry]) -> int:
    store = FeatureStore(root / network.store_name)
    lines = [
        f"{each.content}: {store.unreadable.get(each.key, 'not encoded')}"
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
        raise damaged(folder / SPEC, error) from error
