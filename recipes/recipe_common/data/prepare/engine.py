"""From raw files to what recipes read: in parallel, killed and continued at will, with a checksum of everything made.

Every output appears in one step, by renaming a finished `.NAME.partial`, so that what is there is complete. Each
finished item adds one line to `manifest.jsonl`; `--verify` compares the files with it.
"""

import hashlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

import attrs

from recipe_common.arguments import positive_int
from recipe_common.data.prepare.processes import in_processes, progress_bar
from recipe_common.errors import RecipeError, message
from recipe_common.files import DISK_FULL, lock, remove_partials
from recipe_common.settings.command_line import parse
from recipe_common.settings.declaration import flag

P = TypeVar("P", bound="Preparation")
MANIFEST = "manifest.jsonl"


@attrs.frozen
class Item:
    """One raw file, and the files or folders that are made of it."""

    source: Path
    outputs: tuple[Path, ...]

    @property
    def done(self) -> bool:
        """Whether all outputs are there; as each appears in one step, they are then complete."""
        return all(output.exists() for output in self.outputs)


@attrs.frozen
class Failure:
    """A source of which the outputs could not be made, and why."""

    source: Path
    reason: str


@attrs.frozen(kw_only=True)
class Preparation:
    """Settings of every `prepare`."""

    data_root: Path = flag(metavar="DIR")
    workers: int = flag(os.cpu_count() or 1, "processes; default: one per core", number=positive_int)
    verify: bool = flag(False, f"compare the files with {MANIFEST}; nothing is made", is_one_way=True)


def parse_preparation(kind: type[P], prog: str, description: str, arguments: Sequence[str], **defaults: Any) -> P:
    """Return the settings of a `prepare`.

    Args:
        kind: Their class.
        prog: Name of the command.
        description: One line about it for `--help`.
        arguments: What is typed behind the command.
        **defaults: Values of flags that are not given, where they differ from those of the class.
    """
    return parse(kind, prog, description, arguments, defaults, allow_abbrev=False)


def run_prepare(
    root: Path, items: Sequence[Item], make: Callable[[Item], object], *, workers: int, what: str = "videos"
) -> int:
    """Make what is not there yet, in `workers` processes, and say how it went.

    It can be killed at any moment and called again: what is there stays, what was half-made is made anew.

    Args:
        root: The dataset; holds `manifest.jsonl`.
        items: All items, also those that are done.
        make: Makes those outputs of an item that are missing, with `atomic_file` and `atomic_folder`. It must be
            picklable, and raises ValueError, OSError, RecipeError or av.FFmpegError for a bad source.
        workers: Number of processes.
        what: What the items are, in the plural.

    Returns:
        The exit status: 0, or 1 if there were bad sources, which are printed and kept in `unreadable_<what>.txt`.

    Raises:
        RecipeError: If `root` cannot be written, another run is at work there, the disk is full or a process died.
    """
    _check(root, items)
    failures = []
    with _manifest(root) as manifest, progress_bar() as progress:
        for folder in {output.parent for item in items for output in item.outputs}:
            remove_partials(folder)  # also of sources that are gone by now
        recorded = read_manifest(root)
        waiting = [item for item in items if not (item.done and _names(root, item) <= recorded.keys())]
        task = progress.add_task(what.capitalize(), total=len(items), completed=len(items) - len(waiting))
        for _, outcome in in_processes(partial(_process, make=make, root=root), waiting, workers, "--workers"):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                _append(manifest, outcome)
            progress.advance(task)
    return _report(root, len(items), sorted(failures, key=lambda failure: failure.source), what)


def verify(root: Path, *, workers: int = 1) -> int:
    """Compare what `manifest.jsonl` lists with what is on disk, and print what differs or is missing.

    A source that is gone is no fault, since many delete the raw data; one of another size than recorded is.

    Returns:
        The exit status: 0, or 1 if something differs or is missing.
    """
    recorded = read_manifest(root)
    if not recorded:
        raise RecipeError(f"Expected checksums in {root / MANIFEST}. Found none. Fix: run prepare without --verify.")
    with ThreadPoolExecutor(workers) as pool:
        faults = list(filter(None, pool.map(lambda name: _fault(root, name, recorded[name]), recorded)))
    print(*faults, sep="\n" if faults else "", end="\n" if faults else "", file=sys.stderr)
    print(f"{len(recorded) - len(faults):,} of {len(recorded):,} outputs in {root} are as {MANIFEST} says")
    if faults:
        print("Remove those that differ and run prepare again: it makes what is missing", file=sys.stderr)
    return 1 if faults else 0


def read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    """Read what is recorded of each output, by its path relative to `root`; the last line about an output counts.

    Returns:
        For each output `files`, `bytes`, `sha256`, and of what it was made: `source`, `source_bytes`.

    Raises:
        RecipeError: If a line is damaged. A last line without line end, cut by a kill, is not read.
    """
    path = root / MANIFEST
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    recorded: dict[str, dict[str, Any]] = {}
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            origin = {"source": line["source"], "source_bytes": line["bytes"]}
            recorded |= {name: {**output, **origin} for name, output in line["outputs"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RecipeError(
                f"Expected a JSON record at {path}:{number}. Found {text[:80].decode(errors='replace')!r}. "
                "Fix: remove the line and run prepare again, which records what the line was about."
            ) from error
    return recorded


def checksum(path: Path) -> dict[str, Any]:
    """Return `files`, `bytes` and `sha256` of a file or folder.

    The checksum of a file is that of its content. Of a folder it is that of its files sorted by relative path, each as
    path, NUL, length in decimal, NUL, content; hidden files, which file managers leave, do not count.
    """
    digest = hashlib.sha256()
    if not path.is_dir():
        _feed(digest, path)
        return {"files": 1, "bytes": path.stat().st_size, "sha256": digest.hexdigest()}
    files = sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("[!.]*") if file.is_file())
    sizes = [file.stat().st_size for _, file in files]
    for (name, file), size in zip(files, sizes, strict=True):
        digest.update(b"%s\0%d\0" % (name.encode(), size))
        _feed(digest, file)
    return {"files": len(files), "bytes": sum(sizes), "sha256": digest.hexdigest()}


def _feed(digest: Any, file: Path) -> None:
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)


def _relative(root: Path, path: Path) -> str:
    return Path(os.path.relpath(path, root)).as_posix()


def _names(root: Path, item: Item) -> set[str]:
    return {_relative(root, output) for output in item.outputs}


def _check(root: Path, items: Sequence[Item]) -> None:
    if not root.is_dir():
        raise RecipeError(f"Expected a folder. Found none at {root}. Fix: point --data-root to the data.")
    makers = Counter(output for item in items for output in item.outputs)
    output, count = max(makers.items(), key=lambda pair: pair[1], default=(root, 0))
    if count > 1:
        sources = [str(item.source) for item in items if output in item.outputs]
        raise RecipeError(
            f"Expected one source for {output}. Found {', '.join(sources)}. Fix: move all but one of them away."
        )


@contextmanager
def _manifest(root: Path) -> Iterator[FileIO]:
    """Open the manifest for appending, without a half-written last line, and keep other runs out."""
    path = root / MANIFEST
    try:
        handle = path.open("a+b", buffering=0)
    except OSError as error:
        raise RecipeError(f"Expected to write {path}. Found: {error}. Fix: make the folder writable.") from error
    with handle:
        if not lock(handle, wait=False):
            raise RecipeError(
                f"Expected one prepare at a time. Found another at work in {root}. Fix: wait for it, or end it."
            )
        handle.seek(0)
        handle.truncate(handle.read().rfind(b"\n") + 1)
        yield handle


def _append(manifest: FileIO, line: Mapping[str, Any]) -> None:
    data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
    start = manifest.seek(0, os.SEEK_END)
    try:
        while data:
            data = data[manifest.write(data) :]
    except OSError as error:
        with suppress(OSError):
            manifest.truncate(start)
        raise (_disk_full(error) if error.errno in DISK_FULL else error) from error


def _process(item: Item, make: Callable[[Item], object], root: Path) -> dict[str, Any] | Failure:
    """Make what is missing of one item; return its line of the manifest, or why there is none."""
    try:
        if not item.done:
            make(item)
        outputs = {_relative(root, output): checksum(output) for output in item.outputs}
        return {"source": _relative(root, item.source), "bytes": _size(item.source), "outputs": outputs}
    except _source_errors() as error:
        if getattr(error, "errno", None) in DISK_FULL:
            raise _disk_full(error) from error
        reason = message(error) if isinstance(error, RecipeError) else str(error)
        return Failure(item.source, reason or type(error).__name__)


def _source_errors() -> tuple[type[Exception], ...]:
    """What `make` may raise; not every FFmpegError is a ValueError or OSError, and not every dataset needs PyAV."""
    av = sys.modules.get("av")
    return (ValueError, OSError, RecipeError, *((av.FFmpegError,) if av else ()))


def _disk_full(error: Exception) -> RecipeError:
    return RecipeError(
        f"Expected room on the disk. Found none: {error}. Fix: make room and run prepare again, it continues."
    )


def _size(path: Path) -> int:
    """Return the bytes of a file, or of all files of a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _fault(root: Path, name: str, recorded: Mapping[str, Any]) -> str | None:
    path, source = root / name, root / recorded["source"]
    if not path.exists():
        return f"{path}: missing"
    found = checksum(path)
    if any(found[key] != recorded[key] for key in found):
        sizes = [f"{each['files']:,} files of {each['bytes']:,} bytes" for each in (found, recorded)]
        return f"{path}: differs ({sizes[0]}; recorded: {sizes[1]})"
    if source.exists() and _size(source) != recorded["source_bytes"]:
        return f"{path}: its source {source} has changed since"
    return None


def _report(root: Path, total: int, failures: Sequence[Failure], what: str) -> int:
    report = root / f"unreadable_{what.replace(' ', '_')}.txt"
    report.unlink(missing_ok=True)
    print(f"{total - len(failures):,} of {total:,} {what} are ready in {root}; checksums in {root / MANIFEST}")
    if not failures:
        return 0
    lines = [f"{failure.source}: {failure.reason}" for failure in failures]
    report.write_text("\n".join(lines) + "\n")
    print(*lines, f"These cannot be read; the list is kept in {report}", sep="\n", file=sys.stderr)
    return 1
