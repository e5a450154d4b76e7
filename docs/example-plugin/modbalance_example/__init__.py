"""Inverse score: a method of balanced multimodal learning in one formula, to copy."""

from __future__ import annotations

from typing import ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import Batch, Method, Step, WindowedMethod, ge, hookimpl, option


@attrs.define(eq=False, kw_only=True)
class InverseScore(WindowedMethod):
    """Slows down the encoders whose modality does better than the others: k_i = clip((mean of the others / s_i)^gamma).

    Here s_i is the mean score of modality i in this step, by default the softmax probability of the target class, and
    k_i in [0, 1] scales all gradients of its encoder; fusion and head stay as they are.

    Source: this example; it is no published method. Deviations: none.
    Cost: one softmax per modality on logits that the forward yields anyway; no further pass, no host read.
    Distributed: scores are summed over micro-batches and ranks before the formula. Randomness: none. State: none.
    """

    name: ClassVar[str] = "inverse_score"
    needs = frozenset({"unimodal_logits", "target"})
    min_modalities = 2

    gamma: float = option(1.0, ge(0), "how strongly the lead of a modality counts, dimensionless; 0 changes nothing")

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Sum the scores of each modality, and count them; shapes (M,)."""
        scores = [batch.score(logits, name) for name, logits in batch.unimodal_logits.items()]
        return {"score": torch.stack([s for s, _ in scores]), "count": torch.stack([n for _, n in scores])}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return k_i in [0, 1]; 0/0 stays NaN, which the core turns into 1 and counts."""
        score = step.stats["score"] / step.stats["count"]
        others = (score.sum() - score) / (len(score) - 1)
        k = (others / score).pow(self.gamma).clamp(0, 1)
        return dict(zip(step.run.modalities, k, strict=True))


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [InverseScore]
