"""What the options of CGGM admit: each check returns ``None``, or the words for what is expected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from modbalance_cggm.probes import KINDS


def is_probes(value: Any) -> str | None:
    """Check for a kind of probe, a mapping to modules or a factory."""
    is_mapping = isinstance(value, Mapping) and all(isinstance(probe, nn.Module) for probe in value.values())
    is_known = is_mapping or callable(value) or (isinstance(value, str) and value in KINDS)
    return None if is_known else f"one of {', '.join(map(repr, KINDS))}, a mapping to modules, or a factory"


def is_head(value: Any) -> str | None:
    """Check for a path or a module."""
    return None if value is None or isinstance(value, str | nn.Module) else "None, a path or a module"


def is_maker(value: Any) -> str | None:
    """Check for something that makes an optimizer."""
    return None if value is None or callable(value) else "None or a callable: parameters -> optimizer"


def is_interval(value: Any) -> str | None:
    """Check for a pair of numbers in ascending order."""
    is_pair = isinstance(value, tuple | list) and len(value) == 2 and all(isinstance(v, int | float) for v in value)
    return None if value is None or (is_pair and value[0] <= value[1]) else "None or a pair (low, high), low <= high"
