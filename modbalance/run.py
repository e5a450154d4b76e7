"""What a method knows of the training that it takes part in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance.gradients import optimized
from modbalance.records import Batch, Forwarder

if TYPE_CHECKING:
    from modbalance.capture import Capture
    from modbalance.distributed import Ranks
    from modbalance.method import Method
    from modbalance.scores import Score
    from modbalance.telemetry import Telemetry
    from modbalance.topology import Topology
    from modbalance.unimodal import Unimodal


@attrs.define(eq=False)
class Run:
    """One training with one optimizer, as its methods see it.

    Attributes:
        modalities: Names of the modalities, in fusion order.
        epoch: Current epoch, 0-based.
        steps: Optimizer steps taken so far in which a method acted; a step that a GradScaler skips does not count.
        dry_run: Whether everything is computed and logged but nothing may change.
        topology: The model seen as encoders and fusion.
        capture: The hooks on the model.
        ranks: The ranks that train the model together.
        optimizer: The inner optimizer.
        loss_fn: The loss of the latest `opt.criterion`, ``scorer`` its score.
        should_stop: Set by a method that would end the training; users read `opt.should_stop`.
    """

    topology: Topology
    capture: Capture
    unimodal: Unimodal
    ranks: Ranks
    telemetry: Telemetry
    optimizer: Optimizer
    dry_run: bool = False
    epoch: int = 0
    steps: int = 0
    method: Method | None = None
    loss_fn: Callable[..., Tensor] | None = None
    scorer: Score | None = None
    should_stop: bool = False

    @property
    def modalities(self) -> tuple[str, ...]:
        """Names of the modalities, in fusion order."""
        return self.topology.modalities

    @property
    def model(self) -> nn.Module | None:
        """The user's model without DDP or compile wrappers, ``None`` in the model-free form."""
        return self.topology.model

    def parameters(self, modality: str) -> list[tuple[str, nn.Parameter]]:
        """Return (name, parameter) of a modality's encoder, as far as this optimizer updates them.

        Raises:
            ConfigError: The encoder shares a parameter with that of another modality.
        """
        ours = {id(p) for p in optimized(self.optimizer)}
        return [(name, p) for name, p in self.topology.owned(modality) if id(p) in ours]

    @property
    def device(self) -> torch.device:
        """Device of the first parameter."""
        return next(optimized(self.optimizer)).device

    def evaluate(self, loader: Iterable[Any], forward: Forwarder) -> Iterator[Batch]:
        """Yield a batch with features, logits and target for each batch of a loader, in eval mode and without graph.

        Training flags, buffers and the RNG of the model's forward are left as they were; methods replace nothing.
        """
        assert self.model is not None
        for item in loader:
            watching, preserved = self.capture.watching(), self.topology.preserved([self.model], training=False)
            with torch.no_grad(), preserved, watching as seen:
                logits, target = forward(self.model, item)
            yield Batch(
                self,
                forward=seen,
                features=seen.features,
                logits=logits,
                target=target,
                task_loss=None if self.loss_fn is None else partial(_loss_of, self.loss_fn, target),
                scorer=self.scorer,
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over ranks; for use outside of a step, where statistics are summed by the core."""
        return self.ranks.sum([tensor])[0]

    def mean(self, tensor: Tensor) -> Tensor:
        """Return the mean over ranks."""
        return self.sum(tensor) / self.ranks.count

    def log(self, name: str, value: Tensor | float) -> None:
        """Keep the latest value of a quantity, such as ``kappa/audio``, for `opt.metrics()`; no host read."""
        self.telemetry.log(f"{self._prefix}/{name}", value)

    def count(self, name: str, increment: Tensor, warning: str | None = None) -> None:
        """Add a 0-dim tensor to a counter of `opt.metrics()`, which gives ``warning`` once if it is above 0."""
        self.telemetry.count(f"{self._prefix}/{name}", increment, warning)

    def generator(self, device: torch.device, seed: int) -> torch.Generator:
        """Return a generator for the current step: its stream depends on ``seed`` and ``steps`` alone.

        Two ranks, or a run and its resumption, therefore draw the same numbers, and a step that never happens takes
        no numbers away from the next one.
        """
        # Odd multiplier (2^64 / golden ratio) so that neighbouring seeds and steps do not share streams.
        key = (seed * 0x9E3779B97F4A7C15 + self.steps) % 2**63
        return torch.Generator(device).manual_seed(key)

    @property
    def _prefix(self) -> str:
        return self.method.name if self.method else "modbalance"


def _loss_of(loss_fn: Callable[..., Tensor], target: Any, logits: Tensor) -> Tensor:
    return loss_fn(logits, target)
