"""Checks of what hooks return, with messages for the author of a plugin."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from modbalance.errors import ConfigError
from modbalance.method import Method


def named_tensors(
    method: Method, hook: str, returned: object, *, names: Collection[str] | None = None, scalar: bool = False
) -> Mapping[str, Tensor]:
    """Return the result of a hook, ``None`` as an empty mapping.

    Args:
        method: The method.
        hook: Name of the hook.
        returned: Its result.
        names: The names that are admitted; ``None``: all.
        scalar: Whether the tensors must be 0-dim.

    Raises:
        ConfigError: It is not a mapping from such names to such tensors.
    """
    if returned is None:
        return {}
    kind = "0-dim tensors" if scalar else "tensors"
    by = "by name" if names is None else f"by modality, of {list(names)}"
    found = type(returned).__name__
    if isinstance(returned, Mapping):
        wrong = [
            f"{name!r}: {_described(value)}"
            for name, value in returned.items()
            if not isinstance(value, Tensor) or (scalar and value.dim()) or (names is not None and name not in names)
        ]
        if not wrong:
            return returned
        found = ", ".join(wrong)
    raise ConfigError(f"`{hook}` of method `{method.name}` should return {kind} {by}. Found {found}.")


def check_names(method: Method, hook: str, returned: Mapping[str, object], names: Collection[str]) -> None:
    """Raise a ConfigError if a hook returns values for unknown modalities."""
    unknown = [name for name in returned if name not in names]
    if unknown:
        raise ConfigError(
            f"`{hook}` of method `{method.name}` should return values by modality, of {list(names)}. Found {unknown}."
        )


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
