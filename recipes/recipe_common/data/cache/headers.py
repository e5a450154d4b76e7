"""Headers of media files, checked before the training: read in threads, kept on disk by size and time of change.

A header shows in microseconds that a file is empty, cut off, of another kind or too short. `HeaderStore` reads those of
all samples; the facts of each kind of media are in one JSON file. Later runs, and other processes of the same run, open
new and changed files alone. Files with a fault are never kept: a repaired one counts at once.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import attrs

from recipe_common.data.prepare.processes import progress_bar
from recipe_common.data.readers.non_files import file_error, kinds_in
from recipe_common.errors import RecipeError
from recipe_common.files import atomic_file, lock

FORMAT = 1
"""Version of the JSON files; those of another version are read anew."""
FOLDER = "headers"
"""Name of the folder of the JSON files in that of the cache."""
THREADS = 8
PER_TASK = 32
"""Paths that a thread takes at a time."""
MANY = 2_000
"""Number of paths from which a progress bar is shown."""
SHOWN = 10
"""Faults that are named one by one."""
Facts = list[Any]
"""Facts from one header: numbers, texts and lists of these, as in JSON."""
Entry = list[Any]
"""Size in bytes and time of change in nanoseconds of a file or folder, and its facts."""


def _one_path(media: Any) -> tuple[Path, ...]:
    return (media,)


def _accept(media: Any, facts: Sequence[Facts]) -> None:
    """Accept any facts."""


@attrs.frozen
class Header:
    """Reader of the headers of one kind of media.

    Args:
        kind: Name of the kind; readers with the same name give the same facts.
        read: From a path to its facts, which depend on nothing else; raises a RecipeError for a fault.
        check: `check(media, facts)` raises a RecipeError if the facts of the paths do not fit the settings of a run.
        paths: From media to the files or folders whose headers are read.
    """

    kind: str
    read: Callable[[Path], Facts]
    check: Callable[[Any, Sequence[Facts]], object] = _accept
    paths: Callable[[Any], Sequence[Path]] = _one_path


@attrs.define
class HeaderStore:
    """Reads headers, and keeps their facts; one process reads at a time, and the others then find the facts.

    Args:
        root: Folder of the dataset, relative to which paths are kept.
        folder: Folder of the cache. If it cannot be written, headers are read at each start.

    Attributes:
        asked: Number of files and folders whose facts were asked for.
        opened: Number of those that were opened, as their facts were not known.
        unwritable: Error of writing the facts, or None.
    """

    root: Path
    folder: Path
    asked: int = attrs.field(default=0, init=False)
    opened: int = attrs.field(default=0, init=False)
    unwritable: str | None = attrs.field(default=None, init=False)

    @property
    def summary(self) -> tuple[str, ...]:
        """A line for the summary of the data; none if nothing was opened."""
        if not self.opened:
            return ()
        kept = f"kept in {self.folder / FOLDER}" if self.unwritable is None else f"not kept: {self.unwritable}"
        return (f"headers: {self.opened:,} of {self.asked:,} files and folders opened, {kept}",)

    def results(self, header: Header, media: Sequence[Any]) -> list[Any]:
        """Return for each media the result of `header.check`, or the RecipeError of its first fault."""
        paths = [header.paths(each) for each in media]
        facts = self.facts(header, [path for group in paths for path in group])
        return [
            _result(header, each, [facts[path] for path in group]) for each, group in zip(media, paths, strict=True)
        ]

    def facts(self, header: Header, paths: Sequence[Path]) -> dict[Path, Facts | RecipeError]:
        """Return the facts of files or folders, or the error of one with a fault, by path."""
        unique = list(dict.fromkeys(paths))
        file = self.folder / FOLDER / f"{header.kind}.json"
        with self._locked(file):
            known = _load(file)
            found = self._found(header, unique, known)
            new = {name: entry for name, entry in found.items() if isinstance(entry, list) and entry != known.get(name)}
            if new and self.unwritable is None:
                self._save(file, known | new)
        return {
            path: entry[2] if isinstance(entry, list) else entry
            for path, entry in zip(unique, found.values(), strict=True)
        }

    def error(self, faults: Sequence[RecipeError], total: int, what: str) -> RecipeError:
        """Return the error for faults: a single one as it is, several with their number and the first of them.

        Args:
            faults: The faults, at least one.
            total: Number of all samples.
            what: Noun for the samples, in the plural.
        """
        if len(faults) == 1:
            return faults[0]
        kinds = kinds_in(map(str, faults)).most_common()
        counts = "".join(f", {count:,} of them {kind.plural}" for kind, count in kinds)
        named = [self._named(fault) for fault in faults[:SHOWN]]
        more = [f"and {len(faults) - SHOWN:,} more"] if len(faults) > SHOWN else []
        fix = kinds[0][0].fix if kinds else "restore the files"
        return RecipeError(
            f"The files of all {total:,} {what} in {self.root} should be readable",
            found=f"{len(faults):,} that are not{counts} ({'; '.join([*named, *more])})",
            fix=f"{fix}, or leave them out with `--skip-bad`",
        )

    def _named(self, fault: RecipeError) -> str:
        """Return the file of a fault, which its message begins with, and the fault without that name."""
        path = fault.should.partition(" should ")[0]
        found = str(fault.found).replace(f" '{path}'", "")
        return f"{self._name(Path(path))}: {found}"

    def _found(self, header: Header, paths: Sequence[Path], known: Mapping[str, Entry]) -> dict[str, Any]:
        """Return the entry, or the error, of each path by its name."""
        names = [self._name(path) for path in paths]
        pairs = list(zip(paths, names, strict=True))
        tasks = [pairs[start : start + PER_TASK] for start in range(0, len(pairs), PER_TASK)]
        entry = partial(_entry, header, known)
        found: dict[str, Any] = {}
        with (
            ThreadPoolExecutor(THREADS) as pool,
            progress_bar(transient=True, disable=len(paths) < MANY) as progress,
        ):
            shown = progress.add_task(f"{header.kind}: headers", total=len(paths))
            for outcomes in pool.map(lambda task: [(name, *entry(path, name)) for path, name in task], tasks):
                found |= {name: outcome for name, outcome, _ in outcomes}
                self.opened += sum(is_new for *_, is_new in outcomes)
                progress.advance(shown, len(outcomes))
        self.asked += len(paths)
        return found

    def _name(self, path: Path) -> str:
        return str(path).removeprefix(f"{self.root}{os.sep}")

    @contextmanager
    def _locked(self, file: Path) -> Iterator[None]:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = file.with_suffix(".lock").open("a")
        except OSError as error:
            self.unwritable = str(error)
            yield
            return
        with handle:
            lock(handle, wait=True)
            yield

    def _save(self, file: Path, entries: Mapping[str, Entry]) -> None:
        try:
            with atomic_file(file) as path:
                path.write_text(json.dumps({"format": FORMAT, "entries": entries}, separators=(",", ":")))
        except OSError as error:
            self.unwritable = str(error)


def _entry(header: Header, known: Mapping[str, Entry], path: Path, name: str) -> tuple[Entry | RecipeError, bool]:
    """Return the entry of a path, or its error, and whether it was opened."""
    try:
        status = os.stat(path)
        stamp = [status.st_size, status.st_mtime_ns]
        before = known.get(name)
        if before is not None and before[:2] == stamp:
            return before, False
        return [*stamp, header.read(path)], True
    except RecipeError as error:
        return error, True
    except OSError as error:
        return file_error(path, f"{path} should be a readable file", found=str(error), fix="restore the file"), True


def _result(header: Header, media: Any, facts: Sequence[Facts | RecipeError]) -> Any:
    good = []
    for each in facts:
        if isinstance(each, RecipeError):
            return each
        good.append(each)
    try:
        return header.check(media, good)
    except RecipeError as error:
        return error


def _load(file: Path) -> dict[str, Entry]:
    """Return the entries of an earlier run; none if the file is absent, damaged or of another version."""
    try:
        content = json.loads(file.read_bytes())
        entries = content["entries"] if content["format"] == FORMAT else {}
        return {name: entry for name, entry in entries.items() if isinstance(entry, list) and len(entry) == 3}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}
