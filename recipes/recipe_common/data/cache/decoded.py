"""Cache of decoded samples on disk, built once for all runs.

The samples of one modality in all splits are in one folder, as shards of about 128 MB at most. The name of a shard ends
in a digest of everything on which it depends: the version of the format, the settings of decoding, and for each sample
its name and the names, sizes and times of change of its files. A shard under its name is therefore valid, and only
shards whose samples have changed are built anew.
"""

import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from recipe_common.data.cache.pipelines import Pipeline
from recipe_common.data.cache.shards import FORMAT, SUFFIX, Shard, digest, header_of, shard_name, write_shard
from recipe_common.data.cache.store import Entry, Store
from recipe_common.data.prepare.processes import in_processes, progress_bar
from recipe_common.data.samples.sources import one_thread
from recipe_common.errors import RecipeError
from recipe_common.files import DISK_FULL, atomic_file, check_room, lock, remove_partials

SHARD_BYTES = 1 << 27
"""Approximate size of a shard, which is in memory while it is written."""
PER_SHARD = 64
"""Largest number of samples in a shard."""
PROBED = 8
"""Approximate number of samples that are decoded for an estimate of their size."""
FEW_SHARDS = 8
"""Number of shards up to which no other processes are started, as their start takes longer."""
LOCK = ".lock"
NOTE = "cache.json"
PER_FILE = "samples per file"


@attrs.frozen
class Plan:
    """Name and content of one shard.

    Attributes:
        path: File of the shard.
        entries: Its samples, sorted by name.
        header: JSON: format, modality, settings, and the names and stamps of the samples.
    """

    path: Path
    entries: tuple[Entry, ...]
    header: str


def entries_of(samples: Sequence[tuple[str, Any]], pipeline: Pipeline) -> list[Entry]:
    """Return the entries of samples, given as name and media; in many threads, as network disks respond slowly."""

    def entry(sample: tuple[str, Any]) -> Entry:
        name, media = sample
        return Entry(name, stamp_of(pipeline.files(media), pipeline.note(media)), media)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(entry, samples))


def stamp_of(files: Sequence[Path], note: str = "") -> str:
    """Return a digest of the names, sizes and times of change of files, and of a note."""
    states = [(path.name, (status := path.stat()).st_size, status.st_mtime_ns) for path in files]
    return digest([note, *states])


def open_cache(
    folder: Path,
    modality: str,
    pipeline: Pipeline,
    entries: Sequence[Entry],
    *,
    workers: int,
    report: Callable[[str], None] = print,
) -> Store:
    """Open the decoded samples of a modality; those that are not in the cache yet are decoded first.

    Args:
        folder: Folder of all caches.
        modality: Name of the modality.
        pipeline: Pipeline that decodes the samples.
        entries: The samples; repeated ones are stored once.
        workers: Number of processes that decode.
        report: Called with one line about the files that were built, if there were any.

    Raises:
        RecipeError: If a file of the data or the cache cannot be read, or there is no room to write.
    """
    content = {"format": FORMAT, "modality": modality, "settings": pipeline.settings}
    home = folder / f"{modality}-{digest(content)}"
    unique = sorted({entry.key: entry for entry in entries}.values(), key=lambda entry: entry.key)
    per_shard = _read_per_shard(home)
    plans = make_plans(home, content, unique, per_shard) if per_shard else []
    if not per_shard or not all(plan.path.exists() for plan in plans):
        with _building(home):
            plans, built = _complete(home, content, pipeline, unique, workers)
        if built:
            report(f"cache: {home}: {built:,} of {len(plans):,} files built")
    return Store([Shard(plan.path) for plan in plans])


def make_plans(home: Path, content: Mapping[str, Any], entries: Sequence[Entry], per_shard: int) -> list[Plan]:
    """Distribute samples over shards by a checksum of their names, so that one more sample changes one shard only.

    Args:
        home: Folder of the shards.
        content: Common part of all headers.
        entries: The samples, sorted, none repeated.
        per_shard: Approximate largest number of samples in a shard.
    """
    shards = 1
    while shards * per_shard < len(entries):
        shards *= 2
    groups: dict[int, list[Entry]] = {}
    for entry in entries:
        groups.setdefault(zlib.crc32(entry.name.encode()) % shards, []).append(entry)
    plans = []
    for number, group in sorted(groups.items()):
        header = header_of(content, [entry.key for entry in group])
        path = home / shard_name(f"{number:05d}-of-{shards:05d}", header)
        plans.append(Plan(path, tuple(group), header))
    return plans


@contextmanager
def _building(home: Path) -> Iterator[None]:
    """Hold the lock of one building process, while others wait; remove files that killed processes left behind."""
    try:
        home.mkdir(parents=True, exist_ok=True)
        handle = (home / LOCK).open("a")
    except OSError as error:
        raise RecipeError(
            f"The cache folder {home} should be writable",
            found=str(error),
            fix="name another folder with `--cache`",
        ) from error
    with handle:
        lock(handle, wait=True)
        remove_partials(home)
        yield


def _complete(
    home: Path, content: Mapping[str, Any], pipeline: Pipeline, entries: Sequence[Entry], workers: int
) -> tuple[list[Plan], int]:
    """Build the shards that are missing, after another process may have built some.

    Returns:
        All shards, and the number of those that were built.
    """
    size = _bytes_per_sample(entries, pipeline)
    per_shard = _read_per_shard(home)
    if per_shard is None:
        per_shard = _samples_in(SHARD_BYTES, size)
        _write_note(home, content, per_shard)
    plans = make_plans(home, content, entries, per_shard)
    missing = [plan for plan in plans if not plan.path.exists()]
    if missing:
        check_room(
            home,
            size * sum(len(plan.entries) for plan in missing),
            "the cache",
            "name another folder with `--cache`, lower `--cache-size`, or leave `--cache` out",
        )
        _build(missing, pipeline, workers, f"{content['modality']}: decoding")
        _remove_outdated(home, missing)
    return plans, len(missing)


def _bytes_per_sample(entries: Sequence[Entry], pipeline: Pipeline) -> float:
    """Return the mean size of some samples, always the same ones of the same data."""
    probed = entries[:: max(1, len(entries) // PROBED)]
    return sum(array.nbytes for entry in probed for array in pipeline.decode(entry.content)) / max(1, len(probed))


def _samples_in(size: float, per_sample: float) -> int:
    """Return the number of samples that fit into `size` bytes, as a power of two of at most `PER_SHARD`."""
    samples = PER_SHARD
    while samples > 1 and samples * per_sample > size:
        samples //= 2
    return samples


def _build(plans: Sequence[Plan], pipeline: Pipeline, workers: int, title: str) -> None:
    write = partial(_write, pipeline=pipeline)
    with progress_bar(transient=True) as progress:
        task = progress.add_task(title, total=sum(len(plan.entries) for plan in plans))
        written: Iterator[tuple[Plan, None]] = ((plan, write(plan)) for plan in plans)
        if workers > 1 and len(plans) > FEW_SHARDS:
            written = in_processes(write, plans, workers, "--cache-workers")
        for plan, _ in written:
            progress.advance(task, len(plan.entries))


def _write(plan: Plan, pipeline: Pipeline) -> None:
    try:
        with one_thread():
            write_shard(plan.path, plan.header, (pipeline.decode(entry.content) for entry in plan.entries))
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise RecipeError(
            f"The disk should have room for the cache in {plan.path.parent}",
            found=f"none left ({error})",
            fix="make room, lower `--cache-size`, or leave `--cache` out; what is built stays",
        ) from error


def _remove_outdated(home: Path, built: Sequence[Plan]) -> None:
    """Remove shards of the same samples whose files have changed since; shards of other sets of samples stay."""
    for plan in built:
        names = [entry.name for entry in plan.entries]
        for path in home.glob(f"{plan.path.name.rpartition('-')[0]}-*{SUFFIX}"):
            with suppress(RecipeError):  # a damaged shard that is not in use
                if path != plan.path and [name for name, _ in Shard(path).keys] == names:
                    path.unlink()


def _read_per_shard(home: Path) -> int | None:
    """Return the samples per shard of the first build: data that change a little must not change all shards."""
    path = home / NOTE
    if not path.exists():
        return None
    try:
        per_shard = int(json.loads(path.read_text())[PER_FILE])
        if per_shard < 1:
            raise ValueError(per_shard)
        return per_shard
    except (ValueError, LookupError, TypeError) as error:
        raise RecipeError(
            f"{path} should be JSON with `{PER_FILE}`",
            found=repr(error),
            fix=f"remove {home}; it is built anew",
        ) from error


def _write_note(home: Path, content: Mapping[str, Any], per_shard: int) -> None:
    with atomic_file(home / NOTE) as path:
        path.write_text(json.dumps({**content, PER_FILE: per_shard}, indent=1) + "\n")
