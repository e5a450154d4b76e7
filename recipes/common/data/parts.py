"""From a split to the clips that are on disk, with counts."""

from collections.abc import Sequence
from pathlib import Path

import attrs

from common.data.clips import Clip, Found, drop_unreadable, find_clips
from common.data.lists import Row
from common.data.splits import Split
from common.errors import RecipeError

SHOWN = 10
"""Unreadable clips that are named one by one."""


@attrs.frozen
class Parts:
    """The clips of each part, and one line for each thing a person should know about them."""

    train: tuple[Clip, ...]
    val: tuple[Clip, ...]
    test: tuple[Clip, ...]
    summary: tuple[str, ...]


@attrs.frozen
class Reader:
    """Looks up the clips of a split on disk.

    Args:
        classes: Class names in the order of their indices.
        audio: Folder of the wav files.
        frames: Folder of the frame folders.
        min_found: Share of each part, 0 to 1, that must be there.
        skip_bad: Whether to decode every file now and leave out clips with an unreadable one.
    """

    classes: tuple[str, ...]
    audio: Path
    frames: Path
    min_found: float
    skip_bad: bool

    def read(self, split: Split) -> Parts:
        """Find the clips of all parts.

        Raises:
            RecipeError: If too few clips of a part are there.
        """
        clips, summary = {}, []
        for part in ("train", "val", "test"):
            clips[part], lines = self._part(part, getattr(split, part))
            summary += lines
        return Parts(**clips, summary=tuple(summary))

    def _part(self, part: str, rows: Sequence[Row]) -> tuple[tuple[Clip, ...], list[str]]:
        found = find_clips(rows, self.classes, self.audio, self.frames)
        good, bad = drop_unreadable(found.clips) if self.skip_bad else (found.clips, ())
        line = _counts(part, len(rows), found, len(bad))
        if not good or len(good) < self.min_found * len(rows):
            raise RecipeError(
                f"Expected at least {self.min_found:.0%} of the listed clips, in {self.audio} and {self.frames}. "
                f"Found {line}. Fix: complete the data, or lower --min-found."
            )
        more = [f"  ... and {len(bad) - SHOWN} more"] if len(bad) > SHOWN else []
        return good, [line, *(f"  skipped {fault}" for fault in bad[:SHOWN]), *more]


def _counts(part: str, listed: int, found: Found, unreadable: int) -> str:
    line = f"{part}: {len(found.clips) - unreadable:,} of {listed:,} listed clips"
    for names, lack in ((found.without_audio, "without wav file"), (found.without_frames, "without frames")):
        if names:
            line += f"; {len(names):,} {lack}, such as {names[0]}"
    return line + (f"; {unreadable:,} unreadable" if unreadable else "")
