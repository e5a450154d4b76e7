"""Decoded samples on disk, once for all runs: the format, how it is built, and how it is read.

The samples of one modality, whatever split they are in, lie in one folder as shards of some 32 to 64 samples. The name
of a shard holds a digest of all that it depends on: the version of the format, the settings of decoding, and of each of
its samples the name and its files' names, sizes and times of change. So a shard that is there is the right one, what
has changed is built anew, and nothing else. A shard appears in one step, by renaming a finished file.

A shard is, in this order, all numbers little-endian:

    the arrays, each from a multiple of 64 bytes on, row after row
    the table: int64 (arrays, 6): sample (0, 1, ...), offset in bytes, dtype (0 uint8, 1 int16, 2 float32), and three
        lengths, -1 for those that an array of fewer dimensions lacks; in the order of samples
    a JSON text, UTF-8: format, modality, settings, and the names and stamps of the samples
    40 bytes: offset of the table, its rows, bytes of the text, CRC-32 of table and text (uint64 each), b"MBSHARD1"
"""

import hashlib
import json
import mmap
import multiprocessing
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import IO, Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor

from common.data.compact import Compact
from common.data.media import one_thread
from common.data.prepare import DISK_FULL, SPEED_PERIOD, atomic_file, start_worker
from common.errors import RecipeError

FORMAT = 1
MAGIC = b"MBSHARD1"
TRAILER = struct.Struct("<4Q8s")
ALIGNMENT = 64
PER_SHARD = 64
FEW = 8
"""Shards that are written without other processes."""
DTYPES = (torch.uint8, torch.int16, torch.float32)
TABLE_COLUMNS = 6
LOCK = ".lock"
NOTE = "cache.json"


@attrs.frozen
class Entry:
    """One sample to be kept.

    Attributes:
        name: Of the sample.
        stamp: Digest of its files.
        media: What the `Compact` reads.
    """

    name: str
    stamp: str
    media: Any

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from all others."""
        return self.name, self.stamp


@attrs.frozen
class Plan:
    """One shard as it should be.

    Attributes:
        path: Its file.
        entries: Its samples, sorted by name.
        header: The JSON text.
    """

    path: Path
    entries: tuple[Entry, ...]
    header: str


class Shard:
    """A finished shard, mapped into memory: processes share it, and the system keeps in memory what is read often.

    Raises:
        RecipeError: If the file is not a whole shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                # A private mapping is writable, as torch wants it; nobody writes.
                self._bytes = torch.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype=torch.uint8)
            self.table, self.header = self._index()
        except (OSError, ValueError, struct.error) as error:
            raise RecipeError(
                f"Expected a whole file of the cache. Found {path}: {error}. "
                "Fix: remove it and start again; it is built anew from the data."
            ) from error
        starts = np.searchsorted(self.table[:, 0], np.arange(len(self) + 1)).tolist()
        self._ranges = list(pairwise(starts))

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)

    def __len__(self) -> int:
        return len(self.header["samples"])

    def __getitem__(self, sample: int) -> "Arrays":
        """Return the arrays of one sample."""
        return Arrays(self, *self._ranges[sample])

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Name and stamp of each sample."""
        return [(name, stamp) for name, stamp in self.header["samples"]]

    def array(self, row: int) -> Tensor:
        """Return an array by its row in the table; it is a view of the file."""
        _, offset, kind, *lengths = self.table[row].tolist()
        dtype, shape = DTYPES[kind], [length for length in lengths if length >= 0]
        return self._bytes[offset : offset + prod(shape) * dtype.itemsize].view(dtype).view(shape)

    def _index(self) -> tuple[NDArray[np.int64], dict[str, Any]]:
        end = len(self._bytes) - TRAILER.size
        if end < 0:
            raise ValueError("it is cut off")
        offset, rows, text_size, checksum, magic = TRAILER.unpack(self._bytes[end:].numpy().tobytes())
        if magic != MAGIC or offset + rows * TABLE_COLUMNS * 8 + text_size != end:
            raise ValueError("it is cut off, or not such a file")
        index = self._bytes[offset:end].numpy().tobytes()
        if zlib.crc32(index) != checksum:
            raise ValueError("its table of contents is damaged")
        table = np.frombuffer(index, "<i8", rows * TABLE_COLUMNS).reshape(rows, TABLE_COLUMNS)
        return table, json.loads(index[table.nbytes :])


@attrs.frozen
class Arrays(Sequence[Tensor]):
    """The arrays of one sample, read when they are asked for."""

    shard: Shard
    first: int
    last: int

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, index: Any) -> Any:
        """Return an array, a view of the file."""
        return self.shard.array(range(self.first, self.last)[index])


class Cache:
    """The decoded samples of one modality.

    Args:
        shards: All files.
    """

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = tuple(shards)
        places = {key: (file, at) for file, shard in enumerate(shards) for at, key in enumerate(shard.keys)}
        self._places: Mapping[tuple[str, str], tuple[int, int]] = places

    def find(self, entry: Entry) -> tuple[int, int]:
        """Return where a sample is: its shard, and its number in it."""
        return self._places[entry.key]

    def __getitem__(self, place: tuple[int, int]) -> Arrays:
        """Return the arrays of the sample at a place that `find` tells."""
        shard, number = place
        return self.shards[shard][number]


def entries_of(samples: Sequence[tuple[str, Any]], compact: Compact) -> list[Entry]:
    """Look at the files of samples, given as name and media; many at a time, as network disks are slow to answer."""

    def entry(sample: tuple[str, Any]) -> Entry:
        name, media = sample
        return Entry(name, stamp_of(compact.files(media), compact.note(media)), media)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(entry, samples))


def stamp_of(files: Sequence[Path], note: str = "") -> str:
    """Return a digest of the names, sizes and times of change of files, and of a note."""
    seen = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    return _digest([note, *seen])


def open_cache(
    folder: Path,
    modality: str,
    compact: Compact,
    entries: Sequence[Entry],
    *,
    workers: int,
    say: Callable[[str], None] = print,
) -> Cache:
    """Open the decoded samples of a modality; decode what is not there yet.

    Args:
        folder: Of all caches.
        modality: Its name.
        compact: Decodes.
        entries: The samples, repeated ones too.
        workers: Processes that decode.
        say: Tells a person what is built.

    Raises:
        RecipeError: If a file of the data or of the cache cannot be read, or there is no room to write.
    """
    home = folder / f"{modality}-{_digest([FORMAT, compact.settings])}"
    plans = make_plans(home, modality, compact.settings, entries)
    if not all(plan.path.exists() for plan in plans):
        with _building(home):
            missing = [plan for plan in plans if not plan.path.exists()]  # another process may have built them
            if missing:
                _check_room(home, missing, compact)
                _build(missing, compact, workers, f"{modality}: decoding")
                _remove_outdated(home, missing)
                _write_note(home, modality, compact.settings, plans)
                say(f"cache: {home}: {len(missing):,} of {len(plans):,} files built")
    return Cache([Shard(plan.path) for plan in plans])


def make_plans(home: Path, modality: str, settings: str, entries: Sequence[Entry]) -> list[Plan]:
    """Distribute samples over shards by a checksum of their names, so that one more sample changes one shard only."""
    unique = sorted({entry.key: entry for entry in entries}.values(), key=lambda entry: entry.key)
    shards = 1
    while shards * PER_SHARD < len(unique):
        shards *= 2
    groups: dict[int, list[Entry]] = {}
    for entry in unique:
        groups.setdefault(zlib.crc32(entry.name.encode()) % shards, []).append(entry)
    plans = []
    for number, group in sorted(groups.items()):
        content = {"format": FORMAT, "modality": modality, "settings": settings}
        header = json.dumps({**content, "samples": [entry.key for entry in group]})
        plans.append(Plan(home / f"{number:05d}-of-{shards:05d}-{_digest(header)}.bin", tuple(group), header))
    return plans


def write_shard(plan: Plan, compact: Compact) -> None:
    """Decode the samples of a shard and write it; it is there whole or not at all.

    Raises:
        RecipeError: If a file cannot be read, or the disk is full.
    """
    try:
        with one_thread(), atomic_file(plan.path) as path, path.open("wb") as file:
            rows = [row for number, entry in enumerate(plan.entries) for row in _write(file, number, entry, compact)]
            table = np.array(rows, "<i8").reshape(-1, TABLE_COLUMNS).tobytes()
            text = plan.header.encode()
            offset = file.tell()
            trailer = TRAILER.pack(offset, len(rows), len(text), zlib.crc32(table + text), MAGIC)
            file.write(table + text + trailer)
            file.flush()
            os.fsync(file.fileno())  # a power cut must not leave a renamed file without its content
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise RecipeError(
            f"Expected room for the cache in {plan.path.parent}. Found none: {error}. "
            "Fix: make room, lower --cache-size, or leave --cache out; what is built stays."
        ) from error


def _write(file: IO[bytes], number: int, entry: Entry, compact: Compact) -> Iterator[list[int]]:
    for array in compact.decode(entry.media):
        file.write(b"\0" * (-file.tell() % ALIGNMENT))
        lengths = [*array.shape, *[-1] * (3 - array.ndim)]
        yield [number, file.tell(), DTYPES.index(array.dtype), *lengths]
        file.write(array.contiguous().numpy().data)


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


@contextmanager
def _building(home: Path) -> Iterator[None]:
    """Let one process build at a time, while others wait; remove what a killed one has left."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = (home / LOCK).open("a")
    except OSError as error:
        raise RecipeError(
            f"Expected to write the cache in {home}. Found: {error}. Fix: name another folder with --cache."
        ) from error
    with handle:
        _lock(handle)
        for leftover in home.glob(".*.partial"):
            leftover.unlink()
        yield


def _lock(handle: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # not on Windows
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system releases it when the process ends, however it ends
    except OSError:
        return  # some network file systems know no locks


def _check_room(home: Path, plans: Sequence[Plan], compact: Compact) -> None:
    first = plans[0].entries[0]
    size = sum(array.nbytes for array in compact.decode(first.media)) * sum(len(plan.entries) for plan in plans)
    free = shutil.disk_usage(home).free
    if size > free:
        raise RecipeError(
            f"Expected room for the cache, about {size / 1e9:,.1f} GB, in {home}. Found {free / 1e9:,.1f} GB. "
            "Fix: name another folder with --cache, lower --cache-size, or leave --cache out."
        )


def _build(plans: Sequence[Plan], compact: Compact, workers: int, title: str) -> None:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    total = sum(len(plan.entries) for plan in plans)
    with Progress(*columns, TimeRemainingColumn(), speed_estimate_period=SPEED_PERIOD, transient=True) as progress:
        task = progress.add_task(title, total=total)
        for plan in _written(plans, partial(write_shard, compact=compact), workers):
            progress.advance(task, len(plan.entries))


def _written(plans: Sequence[Plan], write: Callable[[Plan], None], workers: int) -> Iterator[Plan]:
    if workers == 1 or len(plans) <= FEW:  # starting processes takes longer
        for plan in plans:
            write(plan)
            yield plan
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(plans)), mp_context=context, initializer=start_worker) as pool:
        futures = {pool.submit(write, plan): plan for plan in plans}
        try:
            for future in as_completed(futures):
                future.result()
                yield futures[future]
        except BrokenProcessPool as error:
            raise RecipeError(
                "Expected the processes that build the cache to finish. Found one killed. "
                "Fix: start again, it continues; with fewer --cache-workers if memory is short."
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _remove_outdated(home: Path, built: Sequence[Plan]) -> None:
    """Remove shards of the same samples, whose files have changed since; other sets of samples keep theirs."""
    for plan in built:
        names = [entry.name for entry in plan.entries]
        for path in home.glob(f"{plan.path.name.rpartition('-')[0]}-*.bin"):
            with suppress(RecipeError):  # damaged, but nobody reads it
                if path != plan.path and [name for name, _ in Shard(path).keys] == names:
                    path.unlink()


def _write_note(home: Path, modality: str, settings: str, plans: Sequence[Plan]) -> None:
    """Say what the folder holds, for people."""
    note = {
        "format": FORMAT,
        "modality": modality,
        "settings": settings,
        "samples": sum(len(plan.entries) for plan in plans),
        "bytes": sum(plan.path.stat().st_size for plan in plans),
        "files": [plan.path.name for plan in plans],
    }
    with atomic_file(home / NOTE) as path:
        path.write_text(json.dumps(note, indent=1) + "\n")
