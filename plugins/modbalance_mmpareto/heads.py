"""Own heads of MMPareto for a model without: one linear classifier per modality, trained beside the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from modbalance import Batch, ConfigError, Run, Step
from modbalance.auxiliary import Auxiliary
from modbalance.pooling import pooled

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def default_optimizer(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam with the defaults of torch; fused, because plain Adam reads its step count."""
    return Adam(parameters, fused=True)


def sizes_of(batch: Batch) -> tuple[dict[str, int], int]:
    """Return the sizes of the pooled features by modality, and the number of outputs.

    Raises:
        ConfigError: The logits are maps or sequences, which no linear layer on a pooled feature gives.
    """
    if batch.logits.dim() > 2:
        raise ConfigError(
            "The heads that method `mmpareto` builds are linear, from a feature of each sample to logits (B, C). Found "
            f"logits of shape {tuple(batch.logits.shape)}: pass own heads of the model, `unimodal={{...}}`, or "
            "`heads='slice'`."
        )
    sizes = {name: pooled(z.detach()).shape[-1] for name, z in batch.require_features().items()}
    return sizes, batch.logits.shape[1] if batch.logits.dim() > 1 else 1


class Heads(Auxiliary):
    """The heads of all modalities at work."""

    @classmethod
    def linear(cls, run: Run, sizes: Mapping[str, int], outputs: int, make_optimizer: MakeOptimizer) -> Heads:
        """Return linear heads from features of these sizes to logits."""
        precision = torch.promote_types(next(run.optimized_parameters()).dtype, torch.float32)
        return cls.build(
            run, lambda name: nn.Linear(sizes[name], outputs).to(precision), make_optimizer, "head of `mmpareto`"
        )

    def logits(self, batch: Batch) -> dict[str, Tensor]:
        """Return o_i by modality, of the shape of the fused logits, with graph."""
        with torch.autocast(batch.logits.device.type, enabled=False):
            return {
                name: self.modules[name](pooled(z).to(self.first(name).dtype)).reshape(batch.logits.shape)
                for name, z in batch.require_features().items()
            }

    def step(self, step: Step) -> None:
        """Take a step by the gradients that the core gathered; those that are not finite count as 0."""
        found = [(p, step.head_gradients(name)[key]) for name in self.modules for key, p in self.trained(name).items()]
        for parameter, gradient in found:
            parameter.grad = torch.where(gradient.isfinite(), gradient, 0).to(parameter)
        self.optimizer.step()
        self.optimizer.zero_grad()
