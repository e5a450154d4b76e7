"""Accelerate: modulation before the clip of an Accelerator.

`accelerator.clip_grad_norm_` and `accelerator.clip_grad_value_` unscale the gradients of prepared optimizers and clip
them; modulation belongs between the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import DistributedType

from modbalance.errors import ConfigError
from modbalance.optimizer import BalancedOptimizer

__all__ = ["modulate_before_clip", "unwrapped"]


def modulate_before_clip(accelerator: Accelerator, *optimizers: Any) -> None:
    """Let BalancedOptimizers modulate right before an Accelerator clips the gradients of a step.

    Call it once, after `accelerator.prepare`. It replaces the method `unscale_gradients` of this one Accelerator, which
    both of its clips call. A clip between the micro-batches of a step, before gradients are synchronized, modulates
    nothing.

    Args:
        accelerator: The Accelerator that clips.
        optimizers: What `accelerator.prepare` returned for each BalancedOptimizer, or the BalancedOptimizer.

    Raises:
        ConfigError: One of them is no BalancedOptimizer, or the Accelerator clips inside of DeepSpeed.
    """
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        raise ConfigError(
            "Gradients should be clipped after modulation. Found DeepSpeed, which clips inside of its engine: set "
            "`gradient_clipping` to 0 there and pass `clip_grad_norm=` to BalancedOptimizer."
        )
    if not optimizers:
        raise ConfigError(
            "`modulate_before_clip` should get the optimizers that modulate, `modulate_before_clip(accelerator, opt)`. "
            "Found none."
        )
    accelerator.unscale_gradients = _Unscaling(accelerator, [_balanced(each) for each in optimizers])


class _Unscaling:
    """The method `unscale_gradients` of an Accelerator, followed by modulation."""

    def __init__(self, accelerator: Accelerator, balanced: Sequence[BalancedOptimizer]) -> None:
        self.accelerator = accelerator
        self.balanced = balanced

    def __call__(self, optimizer: Any = None) -> None:
        """Unscale gradients, of all optimizers or of those given, and modulate them if their step is complete."""
        type(self.accelerator).unscale_gradients(self.accelerator, optimizer)
        given = optimizer if isinstance(optimizer, list | tuple) else [optimizer]
        named = {id(unwrapped(each)) for each in given}
        for each in self.balanced if self.accelerator.sync_gradients else []:
            if optimizer is None or id(each) in named:
                each.modulate()


def _balanced(optimizer: Any) -> BalancedOptimizer:
    found = unwrapped(optimizer)
    if isinstance(found, BalancedOptimizer):
        inside = unwrapped(found._inner)
        if inside is found._inner:
            return found
        raise ConfigError(
            "`accelerator.prepare` should get the BalancedOptimizer. Found one around an optimizer that is prepared "
            "already: wrap the torch optimizer first, `opt = accelerator.prepare(BalancedOptimizer(...))`."
        )
    raise ConfigError(
        f"`modulate_before_clip` should get a BalancedOptimizer, bare or as `accelerator.prepare` returned it. Found "
        f"{type(found).__name__}: wrap the optimizer before it is prepared."
    )


def unwrapped(optimizer: Any) -> Any:
    """Return the optimizer that `accelerator.prepare` got, for one that it returned; any other one as it is."""
    while isinstance(optimizer, AcceleratedOptimizer):
        optimizer = optimizer.optimizer
    return optimizer
