"""Installed methods, and options with which each acts from the first step of a training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modbalance import list_methods

METHODS = ("none", *(each.name for each in list_methods() if each.method is not None))
AUDIO_VISUAL = ("audio", "visual")


def acting(method: str, modalities: Sequence[str] = ("a", "b"), convolutions: bool = True) -> dict[str, Any]:
    """Return options with which a method acts from the first step, where its defaults do not.

    Args:
        method: Name of the method.
        modalities: Names of two modalities of the model.
        convolutions: Whether its encoders have any; `ogm` and `ogm_ge` act on other parameters only if told to.
    """
    options: dict[str, dict[str, Any]] = {
        "mslr": {"init": dict(zip(modalities, (0.5, 1.5), strict=True))},
        "opm": {"start_epoch": 0},
    }
    if not convolutions:
        options |= {name: {"param_filter": "all"} for name in ("ogm", "ogm_ge")}
    return options.get(method, {})
