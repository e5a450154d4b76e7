"""Engine of `prepare`: converts raw files in parallel, resumes after a kill, and records checksums of all outputs.

Every output appears in one step, when a finished `.NAME.partial` is renamed, so that outputs on disk are complete. Each
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
from recipe_common.data.readers.non_files import check_most, non_files
from recipe_common.errors import RecipeError, message
from recipe_common.files import DISK_FULL, lock, remove_partials
from recipe_common.settings.command_line import parse
from recipe_common.settings.declaration import flag

P = TypeVar("P", bound="Preparation")
MANIFEST = "manifest.jsonl"


@attrs.frozen
class Item:
    """A raw file, and the files or folders that are made of it.

    Args:
        source: The raw file, or a folder of raw files.
        outputs: Files or folders that are made of it.
        files: Raw files in `source`, if that is a folder.
    """

    source: Path
    outputs: tuple[Path, ...]
    files: tuple[Path, ...] = attrs.field(default=(), kw_only=True)

    @property
    def done(self) -> bool:
        """Whether all outputs are on disk; as each appears in one step, they are then complete."""
        return all(output.exists() for output in self.outputs)


@attrs.frozen
class Failure:
    """A source whose outputs could not be made, and the reason."""

    source: Path
    reason: str


@attrs.frozen(kw_only=True)
class Preparation:
    """Settings of every `prepare`."""

    data_root: Path = flag(metavar="DIR")
    workers: int = flag(os.cpu_count() or 1, "processes; default: one per core", number=positive_int)
    verify: bool = flag(False, f"compare the files with {MANIFEST}; nothing is made", is_one_way=True)


def parse_preparation(kind: type[P], prog: str, description: str, arguments: Sequence[str], **defaults: Any) -> P:
    """Parse the command line of a `prepare`.

    Args:
        kind: Class of the settings.
        prog: Name of the command.
        description: One line about it for `--help`.
        arguments: Arguments after the command.
        **defaults: Defaults of flags, where they differ from those of the class.
    """
    return parse(kind, prog, description, arguments, defaults, allow_abbrev=False)


def run_prepare(
    root: Path, items: Sequence[Item], make: Callable[[Item], object], *, workers: int, what: str = "videos"
) -> int:
    """Make the outputs that are missing, in `workers` processes, and print the outcome.

    It can be killed at any moment and called again: finished outputs stay, half-made ones are made anew.

    Args:
        root: Folder of the dataset, with `manifest.jsonl`.
        items: All items, also those that are done.
        make: Makes the missing outputs of an item, with `atomic_file` and `atomic_folder`. It must be picklable, and
            raises ValueError, OSError, RecipeError or av.FFmpegError for a bad source.
        workers: Number of processes.
        what: Noun for the items, in the plural.

    Returns:
        The exit status: 0, or 1 if there were bad sources, which are printed and listed in `unreadable_<what>.txt`.

    Raises:
        RecipeError: If most sources are git-lfs pointers, web pages, empty files or half downloads; if `root` cannot be
            written, another run is in progress there, the disk is full or a process died.
    """
    _check(root, items)
    kinds = non_files(item.files or (item.source,) for item in items if not item.done)
    advice = check_most(kinds, len(items), what, root)
    failures = []
    with _manifest(root) as manifest, progress_bar() as progress:
        for folder in {output.parent for item in items for output in item.outputs}:
            remove_partials(folder)  # also of sources that have been removed since
        recorded = read_manifest(root)
        waiting = [item for item in items if not (item.done and _names(root, item) <= recorded.keys())]
        task = progress.add_task(what.capitalize(), total=len(items), completed=len(items) - len(waiting))
        for _, outcome in in_processes(partial(_process, make=make, root=root), waiting, workers, "--workers"):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                _append(manifest, outcome)
            progress.advance(task)
    return _report(root, len(items), sorted(failures, key=lambda failure: failure.source), what, advice)


def verify(root: Path, *, workers: int = 1) -> int:
    """Compare the files on disk with `manifest.jsonl`, and print those that differ or are missing.

    A missing source is no fault, since raw data are often deleted; a source of another size than recorded is one.

    Returns:
        The exit status: 0, or 1 if something differs or is missing.

    Raises:
        RecipeError: If there is no manifest, or a line of it is damaged.
    """
    recorded = read_manifest(root)
    if not recorded:
        raise RecipeError(
            f"{root / MANIFEST} should hold checksums", found="none", fix="run prepare without `--verify`"
        )
    with ThreadPoolExecutor(workers) as pool:
        faults = list(filter(None, pool.map(lambda name: _fault(root, name, recorded[name]), recorded)))
    print(*faults, sep="\n" if faults else "", end="\n" if faults else "", file=sys.stderr)
    print(f"{len(recorded) - len(faults):,} of {len(recorded):,} outputs in {root} match {MANIFEST}")
    if faults:
        print("Remove those that differ and run prepare again: it makes the missing ones", file=sys.stderr)
    return 1 if faults else 0


def read_manifest(root: Path) -> dict[str, dict[str, Any]]:
    """Read the records of all outputs, by path relative to `root`; the last line about an output counts.

    Returns:
        For each output `files`, `bytes`, `sha256`, and for its raw file `source`, `source_bytes`.

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
                f"{path}:{number} should be a JSON record",
                found=repr(text[:80].decode(errors="replace")),
                fix="remove the line and run prepare again, which records the outputs of the line anew",
            ) from error
    return recorded


def checksum(path: Path) -> dict[str, Any]:
    """Return `files`, `bytes` and `sha256` of a file or folder.

    The checksum of a file covers its content. That of a folder covers its files sorted by relative path, each as path,
    NUL, length in decimal, NUL, content; hidden files, which file managers leave, do not count.
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
        raise RecipeError("`--data-root` should be a folder", found=f"none at {root}", fix="point it to the data")
    makers = Counter(output for item in items for output in item.outputs)
    output, count = max(makers.items(), key=lambda pair: pair[1], default=(root, 0))
    if count > 1:
        sources = [str(item.source) for item in items if output in item.outputs]
        raise RecipeError(
            f"{output} should have one source", found=", ".join(sources), fix="move all but one of them away"
        )


@contextmanager
def _manifest(root: Path) -> Iterator[FileIO]:
    """Open the manifest for appending, under a lock and without a half-written last line."""
    path = root / MANIFEST
    try:
        handle = path.open("a+b", buffering=0)
    except OSError as error:
        raise RecipeError(f"{path} should be writable", found=str(error), fix="make the folder writable") from error
    with handle:
        if not lock(handle, wait=False):
            raise RecipeError(
                "`prepare` should run once at a time in a folder",
                found=f"another run in {root}",
                fix="wait for it, or end it",
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
    """Make the missing outputs of an item; return its line of the manifest, or a failure."""
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
    """Return the errors of bad sources; those of PyAV and OpenCV, which may be absent, are errors of their own."""
    av, cv2 = sys.modules.get("av"), sys.modules.get("cv2")
    return (ValueError, OSError, RecipeError, *((av.FFmpegError,) if av else ()), *((cv2.error,) if cv2 else ()))


def _disk_full(error: Exception) -> RecipeError:
    return RecipeError(
        "The disk should have room for the outputs",
        found=f"none left ({error})",
        fix="make room and run prepare again, it continues",
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


def _report(root: Path, total: int, failures: Sequence[Failure], what: str, advice: Sequence[str]) -> int:
    report = root / f"unreadable_{what.replace(' ', '_')}.txt"
    report.unlink(missing_ok=True)
    print(f"{total - len(failures):,} of {total:,} {what} are ready in {root}; checksums in {root / MANIFEST}")
    if not failures:
        return 0
    lines = [f"{failure.source}: {failure.reason}" for failure in failures]
    report.write_text("\n".join(lines) + "\n")
    print(*lines, f"These cannot be read; the list is in {report}", *advice, sep="\n", file=sys.stderr)
    return 1
