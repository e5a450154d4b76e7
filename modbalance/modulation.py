"""What hooks return is checked here, and becomes the sums of a step and the scale of gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from modbalance import gradients
from modbalance.errors import ConfigError
from modbalance.method import Method
from modbalance.pending import Pending, Sums
from modbalance.records import Step
from modbalance.run import Run


def named_tensors(
    method: Method, hook: str, returned: object, *, names: Collection[str] | None = None, scalar: bool = False
) -> Mapping[str, Tensor]:
    """Return what a hook returned, ``None`` as nothing.

    Args:
        method: Whose hook it is.
        hook: Its name.
        returned: What it returned.
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
    """Raise a ConfigError if a hook replaces what is not there."""
    unknown = [name for name in returned if name not in names]
    if unknown:
        raise ConfigError(
            f"`{hook}` of method `{method.name}` should return values by modality, of {list(names)}. Found {unknown}."
        )


def steps_of(pending: Pending, methods: Sequence[Method], run: Run) -> list[Step]:
    """Return the record of a step for each method, with what it observed summed over all ranks in one reduction."""
    keys = [(method, name) for method, sums in pending.sums.items() for name in sums]
    totals = run.ranks.sum([pending.sums[method][name] for method, name in keys])
    stats: dict[str, Sums] = {method.name: {} for method in methods}
    for (method, name), total in zip(keys, totals, strict=True):
        stats.setdefault(method, {})[name] = total
    return [Step(run, method, stats[method.name]) for method in methods]


def apply_coefficients(step: Step, returned: object) -> None:
    """Scale the gradients of each encoder by its coefficient, and log it; one that is not finite acts as 1."""
    method, run = step.method, step.run
    given = named_tensors(method, "modbalance_coefficients", returned, names=run.modalities, scalar=True)
    step.coefficients = _finite(step, given) if given else {}
    for name, coefficient in step.coefficients.items():
        run.telemetry.log(f"{method.name}/coefficient/{name}", coefficient)
        gradients.scale_(step.parameters(name), coefficient)


def _finite(step: Step, coefficients: Mapping[str, Tensor]) -> dict[str, Tensor]:
    device = next(iter(coefficients.values())).device
    values = torch.stack([value.to(device) for value in coefficients.values()])
    is_finite = values.isfinite()
    for name, is_bad in zip(coefficients, ~is_finite, strict=True):
        step.run.telemetry.count(f"{step.method.name}/nonfinite/{name}", is_bad)
    return dict(zip(coefficients, values.where(is_finite, 1), strict=True))


def _described(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
