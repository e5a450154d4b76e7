"""Wraps the user's loss so that methods can observe each training batch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modbalance import scores
from modbalance._lifecycle import Lifecycle
from modbalance.context import Batch
from modbalance.errors import ConfigError, ObservationError, suggest

__all__ = ["Criterion", "LogitsOf"]

LogitsOf = Callable[[Any], Tensor] | str | int
_BEFORE_THE_LOSS = {
    "modbalance_takeover": "computes the loss itself",
    "modbalance_logits": "replaces the logits before the loss is computed",
}


class Criterion(nn.Module):
    """A loss function that lets the methods of an optimizer observe training batches.

    In evaluation, and outside of every method's window, it is exactly the user's loss. Build it by
    `BalancedOptimizer.criterion`.
    """

    def __init__(
        self,
        lifecycle: Lifecycle,
        loss_fn: Callable[..., Tensor],
        logits_of: LogitsOf | None = None,
        score: scores.Score | str | None = None,
    ) -> None:
        super().__init__()
        self.loss_fn = loss_fn
        self._lifecycle = lifecycle
        self._logits_of = logits_of
        self.score = scores.resolve(score, loss_fn)
        self._score_is_default = score is None
        self._scores_classes = score is None or score == "softmax"

    def forward(
        self,
        output: Any,
        target: Any,
        *args: Any,
        features: Mapping[str, Tensor] | None = None,
        unimodal_logits: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Return the loss, 0-dim.

        Args:
            output: What the model returned; the logits, (B, C, ...), unless `logits_of=` picks them out of it.
            target: Passed on to the loss; class indices or probabilities for the default score.
            args: Passed on to the loss.
            features: By modality, (B, ..., D_i), where no hook can see them; the live tensors, with graph.
            unimodal_logits: By modality, (B, C, ...), where they are known already.
            present: By modality, boolean (B,): which samples have it; a modality left out has all.
            kwargs: Passed on to the loss.

        Raises:
            ConfigError: The output holds no logits, or the target does not fit the score.
            ObservationError: A method needs what was neither seen nor given.
        """
        logits = self.pick_logits(output)

        def task_loss(chosen: Tensor) -> Tensor:
            return self.loss_fn(chosen, target, *args, **kwargs)

        lifecycle = self._lifecycle
        if not lifecycle.is_training(logits):
            masks = _checked_masks(present or {}, lifecycle.modalities, len(logits))
            return lifecycle.heard(task_loss(lifecycle.evaluated(logits, features, masks)))
        batch = self._batch(logits, target, features, unimodal_logits, present)
        batch.task_loss = task_loss
        return lifecycle.heard(lifecycle.observe(batch))

    def logits(self, output: Any, *, present: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return the logits that predictions are made from, (B, C, ...).

        They are those in the output of the model, but for methods that replace them in evaluation too; then call this
        right after the forward that made the output.

        Args:
            output: What the model returned.
            present: As for a call.
        """
        logits = self.pick_logits(output)
        masks = _checked_masks(present or {}, self._lifecycle.modalities, len(logits))
        return self._lifecycle.evaluated(logits, present=masks)

    def observe(self, loss: Tensor, output: Any, target: Any, **given: Any) -> Tensor:
        """Let the methods observe a batch whose loss is computed already, and return that loss."""
        logits = self.pick_logits(output)
        if not self._lifecycle.is_training(loss):
            return self._lifecycle.heard(loss)
        for hook, does in _BEFORE_THE_LOSS.items():
            for method in self._lifecycle.acting(hook):
                raise ConfigError(
                    f"Method `{method.name}` {does}. Found a loss that is computed already: take it from "
                    "`opt.criterion(loss_fn)` instead of `opt.observe`."
                )
        return self._lifecycle.heard(self._lifecycle.observe(self._batch(logits, target, **given), loss))

    def pick_logits(self, output: Any) -> Tensor:
        """Return the logits in the model's output."""
        where = self._logits_of
        found = output if where is None else _look_up(output, where)
        if isinstance(found, Tensor):
            return found
        given = "" if where is None else f" by `logits_of={where!r}`"
        keys = f" in a mapping with {sorted(map(str, output))}" if isinstance(output, Mapping) else ""
        example = 0 if isinstance(output, tuple | list) else "logits"
        raise ConfigError(
            f"The criterion should receive the logits as a tensor. Found {type(found).__name__}{given}{keys}: name "
            f"their place, `opt.criterion(loss_fn, logits_of={example!r})`; a name, an index or a callable."
        )

    def _batch(
        self,
        logits: Tensor,
        target: Any,
        features: Mapping[str, Tensor] | None = None,
        unimodal_logits: Mapping[str, Tensor] | None = None,
        present: Mapping[str, Tensor] | None = None,
    ) -> Batch:
        lifecycle = self._lifecycle
        modalities = lifecycle.modalities
        forward = lifecycle.forward_of(logits, self.pick_logits)
        self._check(logits, target, lifecycle.needs)
        return Batch(
            lifecycle.run,
            forward=forward,
            features=forward.features if features is None else _complete(features, modalities, "features"),
            logits=logits,
            target=target,
            scorer=self.score,
            present=_checked_masks(present or {}, modalities, len(logits)),
            given_logits=unimodal_logits and _complete(unimodal_logits, modalities, "unimodal_logits"),
        )

    def _check(self, logits: Tensor, target: Any, needs: Collection[str]) -> None:
        """Raise a ConfigError if methods would score, or differentiate, something else than the user means."""
        if "target" in needs and self._scores_classes:
            if self._score_is_default:
                fix = "pass `score=` to `opt.criterion`, {presets} or a callable"
                scores.require_classes(self.loss_fn, "The default score, the softmax probability of the target,", fix)
            scores.check_classes(logits, target)
        if "loss_fn" in needs and getattr(self.loss_fn, "reduction", None) == "none":
            raise ConfigError(
                "The loss should be one number, which methods differentiate. Found `reduction='none'`: pass a loss "
                "with 'mean' or 'sum', or a function that reduces."
            )


def _look_up(output: Any, where: LogitsOf) -> Any:
    if callable(where):
        return where(output)
    if isinstance(where, str) and not isinstance(output, Mapping):
        return getattr(output, where, None)
    try:
        return output[where]
    except (LookupError, TypeError):
        return None


def _complete(values: Mapping[str, Tensor], modalities: Sequence[str], name: str) -> dict[str, Tensor]:
    if set(values) != set(modalities):
        raise ObservationError(
            f"`{name}=` should hold a tensor for each of {list(modalities)}. Found {sorted(values)}."
        )
    return {modality: values[modality] for modality in modalities}


def _checked_masks(masks: Mapping[str, Tensor], modalities: Sequence[str], size: int) -> Mapping[str, Tensor]:
    for name, mask in masks.items():
        if name not in modalities:
            raise ConfigError(f"`present=` should name modalities. {suggest(name, modalities)} Found {name!r}.")
        if not isinstance(mask, Tensor):
            raise ConfigError(
                f"`present[{name!r}]` should be a boolean tensor of shape ({size},). Found {type(mask).__name__}."
            )
        if mask.dtype != torch.bool or mask.shape != (size,):
            raise ConfigError(
                f"`present[{name!r}]` should be boolean of shape ({size},), one flag per sample. "
                f"Found {mask.dtype} of shape {tuple(mask.shape)}."
            )
    return masks
