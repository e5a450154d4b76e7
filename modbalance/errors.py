"""Errors and warnings of modbalance; each message names the expected and the found value, and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "ModbalanceError",
    "ModbalanceWarning",
    "ObservationError",
    "PluginConflictError",
    "PluginLoadError",
    "UnknownMethodError",
    "suggest",
]


class ModbalanceError(Exception):
    """Base class of all errors that modbalance raises."""


class ConfigError(ModbalanceError, ValueError):
    """Something given to a constructor does not fit: an option, a path, a module, a combination."""


class UnknownMethodError(ModbalanceError, LookupError):
    """No installed distribution offers a method of that name."""


class PluginConflictError(ModbalanceError):
    """Two installed distributions offer a method of the same name."""


class PluginLoadError(ModbalanceError):
    """A plugin cannot be imported, or offers no valid method."""


class ObservationError(ModbalanceError, RuntimeError):
    """A method needs a value in this step that was neither seen nor given."""


class CaptureError(ModbalanceError, RuntimeError):
    """A step is captured in a CUDA graph that could not be repeated as it is."""


class CheckpointError(ModbalanceError, ValueError):
    """A state does not belong to this optimizer, or cannot be saved at this moment."""


class ModbalanceWarning(UserWarning):
    """Training goes on, but probably not as intended."""


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a sentence with the names nearest to ``name``, or with all that are known."""
    known = sorted(known)
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    if near:
        return "Did you mean " + " or ".join(f"`{match}`" for match in near) + "?"
    return "Known: " + (", ".join(f"`{each}`" for each in known) or "none") + "."
