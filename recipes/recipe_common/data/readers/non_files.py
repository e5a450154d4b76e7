"""Recognition of files that are no data: git-lfs pointers, web pages, empty files, half downloads.

Git without git-lfs, a log-in page or a broken connection leave such files under the names of wav files, videos and
pictures. Decoders only report invalid data; the content shows the cause, and so the remedy.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import attrs

from recipe_common.errors import RecipeError

HEAD = 256
"""Bytes at the start of a file that are looked at."""
UNKNOWN_SIZE = 0x7FFF0000
"""RIFF sizes from this on, and 0, are placeholders of programs that write into a pipe."""
SLACK = 8
"""Bytes by which a RIFF size may exceed the file: some programs count the header or the padding wrongly."""
THREADS = 16


@attrs.frozen
class NonFile:
    """A kind of file that is no data: its noun, its plural and the remedy."""

    name: str
    plural: str
    fix: str


POINTER = NonFile(
    "a git-lfs pointer, whose file was not fetched",
    "git-lfs pointers",
    "run `git lfs pull` in the folder of the download",
)
WEB_PAGE = NonFile("a web page, such as a download or log-in page", "web pages", "download the file itself")
EMPTY = NonFile("an empty file", "empty files", "download it again")
HALF = NonFile("half a download, shorter than its header promises", "half downloads", "download it again")
KINDS = (POINTER, WEB_PAGE, EMPTY, HALF)


def non_file(source: Path | BytesIO) -> NonFile | None:
    """Return the kind of a file that is no data, by its content; None for any other, for folders and absent files.

    Args:
        source: The file, or its content. Only its first bytes are read.
    """
    try:
        head, size = _head(source)
    except OSError:
        return None
    if size == 0:
        return EMPTY
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return POINTER
    if text.startswith((b"<!doctype html", b"<html")):
        return WEB_PAGE
    return HALF if _is_cut_wav(head, size) else None


def check_file(source: Path, should: str, *, otherwise: str = "", may_be_empty: bool = False) -> None:
    """Check that a file is none of the kinds of `NonFile`.

    Args:
        source: The file.
        should: First part of the message.
        otherwise: Another remedy, such as ", or leave it out with `--skip-bad`".
        may_be_empty: Whether an empty file passes, such as a list whose reader has an error of its own for it.

    Raises:
        RecipeError: If it is, with the remedy.
    """
    kind = non_file(source)
    if kind is not None and not (may_be_empty and kind is EMPTY):
        raise RecipeError(should, found=kind.name, fix=kind.fix + otherwise)


def file_error(source: Path | BytesIO, should: str, *, found: str, fix: str, otherwise: str = "") -> RecipeError:
    """Return the error for a file that a decoder refuses; if the file is no data, that is found, with its remedy.

    Args:
        source: The file, or its content.
        should: First part of the message.
        found: Error of the decoder.
        fix: Remedy for a file of no known kind.
        otherwise: Another remedy for any file, such as ", or leave it out with `--skip-bad`".
    """
    kind = non_file(source)
    return RecipeError(should, found=kind.name if kind else found, fix=(kind.fix if kind else fix) + otherwise)


def non_files(sources: Iterable[Sequence[Path]]) -> list[NonFile | None]:
    """Return, for each group of files, the kind of the first that is no data, or None."""

    def first(files: Sequence[Path]) -> NonFile | None:
        return next(filter(None, map(non_file, files)), None)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(first, sources))


def check_most(kinds: Iterable[NonFile | None], total: int, what: str, root: Path) -> list[str]:
    """Return a line for each kind that is among `kinds`, with its number and remedy, unless they are the most.

    Args:
        kinds: Kind of each file.
        total: Number of all files.
        what: Noun for the files, in the plural.
        root: Folder of the dataset, for the message.

    Raises:
        RecipeError: If more than half of all files are no data.
    """
    counts = Counter(kind for kind in kinds if kind is not None)
    if counts and 2 * sum(counts.values()) > total:
        found = " and ".join(f"{count:,} {kind.plural}" for kind, count in counts.most_common())
        raise RecipeError(
            f"The {total:,} {what} of {root} should be whole files", found=found, fix=counts.most_common(1)[0][0].fix
        )
    return [f"{count:,} of {total:,} {what} are {kind.plural}: {kind.fix}" for kind, count in counts.most_common()]


def kinds_in(messages: Iterable[str]) -> Counter[NonFile]:
    """Count the kinds that messages of `check_file` and `file_error` name."""
    return Counter(kind for text in messages for kind in KINDS if f"Found {kind.name}: {kind.fix}" in text)


def _head(source: Path | BytesIO) -> tuple[bytes, int]:
    if isinstance(source, BytesIO):
        content = source.getvalue()
        return content[:HEAD], len(content)
    with source.open("rb") as file:
        return file.read(HEAD), source.stat().st_size


def _is_cut_wav(head: bytes, size: int) -> bool:
    if head[:4] != b"RIFF" or head[8:12] != b"WAVE":
        return False
    promised = int.from_bytes(head[4:8], "little")
    return 0 < promised < UNKNOWN_SIZE and promised + 8 > size + SLACK
