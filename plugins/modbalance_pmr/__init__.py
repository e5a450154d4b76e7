"""PMR: adds a loss that pulls the features of the weaker modality towards their class means.

Source: Fan, Xu, Wang, Wang, Guo, "PMR: Prototypical Modal Rebalance for Multimodal Learning", CVPR 2023. Symbols are
those of docs/methods/pmr.md, which also lists where the authors' code departs from the paper.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import nullcontext
from itertools import islice
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import (
    Batch,
    ConfigError,
    EpochData,
    Method,
    ObservationError,
    Run,
    WindowedMethod,
    between,
    gt,
    hookimpl,
    integer,
    one_of,
    option,
    optional,
    state,
)
from modbalance.loaders import rng_kept
from modbalance.pooling import pooled
from modbalance.scores import clearly_greater
from modbalance_pmr.prototypes import Classified, class_sums, classified, memberships


@attrs.define(eq=False, kw_only=True)
class PMR(WindowedMethod):
    """Adds a prototypical cross-entropy for every modality but the best one, and renews prototypes between epochs.

    Touches the loss, through which encoders alone get a gradient. Costs distances to C prototypes in a step, and a pass
    in eval mode over a tenth of the training data between epochs; no further pass, no host read in a step.
    """

    name: ClassVar[str] = "pmr"
    needs = frozenset({"model", "features", "target", "classes"})
    min_modalities = 2
    suits: ClassVar[Mapping[str, str]] = {
        "starved": "Adds a loss on the class prototypes of the modality that lags behind, and trains it faster."
    }
    step_cost: ClassVar[float | None] = 1.01

    start_epoch: int = option(0, integer(0), "first epoch with the further losses, 0-based, inclusive")
    end_epoch: int | None = option(100, optional(integer(0)), "last epoch of the method, 0-based, inclusive")
    alpha: float = option(1.0, gt(0), "weight of the prototypical losses, dimensionless, > 0")
    momentum: float = option(0.2, between(0, 1), "share of the old prototypes after epoch 1 and later ones, in [0, 1]")
    fraction: float = option(
        0.1, between(0, 1), "part of a loader's batches that prototypes are the means of, in [0, 1]"
    )
    source: str = option("train", one_of("train", "val"), "loader that prototypes are computed on")
    coefficient: str = option(
        "binary",
        one_of("binary", "clip"),
        "weight w_i of a modality behind the best: 1, or clip(max_j s_j / s_i - 1, 0, 1)",
        paper="clip",
    )
    preserve_rng: bool = option(
        False, one_of(False, True), "restore the random states that drawing from the loader consumes"
    )

    prototypes: dict[str, Tensor] = state({})
    seen: Tensor | None = state(None)

    def is_active(self, epoch: int) -> bool:
        """Whether ``epoch`` is not behind the window: prototypes are renewed from the first epoch on."""
        return self.end_epoch is None or epoch <= self.end_epoch

    def ends_epoch(self, epoch: int) -> bool:
        """Whether prototypes are renewed after ``epoch``, or random states have to move on as those of the code do."""
        return not self.preserve_rng or self.is_active(epoch)

    def exemptions(self) -> Mapping[str, str]:
        """Return why micro-batches are not one batch."""
        return {"accumulation": "w_i compares the scores of one batch, as the loss needs it before the backward"}

    @hookimpl
    def modbalance_begin(self, run: Run, data: EpochData) -> None:
        """Compute the prototypes of epoch 0."""
        if self.start_epoch == 0:
            self.prototypes, self.seen = {}, None
            self.renew(run, data, "opt.begin")
        else:
            self.draw(run, data)

    @hookimpl
    def modbalance_epoch_end(self, run: Run, epoch: int, data: EpochData) -> None:
        """Renew the prototypes, unless no later epoch needs them."""
        if self.is_active(epoch + 1):
            self.renew(run, data, "opt.end_epoch", self.momentum if epoch else 0.0)
        else:
            self.draw(run, data)

    @hookimpl
    def modbalance_epoch_start(self, run: Run, epoch: int) -> None:
        """Warn of an epoch of the window without prototypes."""
        if epoch >= self.start_epoch and self.seen is None:
            run.warn(
                f"Method `pmr` has no prototypes in epoch {epoch}, so it adds no loss. Call `opt.begin(train=loader)` "
                "before the first step, or set `start_epoch` to 1 or more."
            )

    @hookimpl
    def modbalance_losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return alpha w_i L_i for each modality behind the best, 0 for the others, in epochs of the window."""
        run = batch.run
        if run.epoch < self.start_epoch or self.seen is None:
            return {}
        found = {name: self.classified(batch, name) for name in run.modalities}
        # s_i, the mean probability of the target; over all ranks, which take one decision.
        totals, numbers = (torch.stack(each) for each in zip(*[found[m][:2] for m in found], strict=True))
        totals, numbers = run.sums([totals, numbers])
        s = totals / numbers
        best = s.nan_to_num(nan=0.0).amax()  # NaN: a modality that no sample has
        w = torch.ones_like(s) if self.coefficient == "binary" else (best / s - 1).clamp(0, 1)
        w = w.where(clearly_greater(best, s), 0)
        losses = {name: each.loss for name, each in found.items()}
        run.log_each("score", s)
        run.log_each("active", w)
        run.log_each("loss", losses.values())
        # Not a product with w_i = 0: L_i = inf or NaN would stay in it.
        terms = zip(losses.items(), w, strict=True)
        return {f"prototypes/{name}": torch.where(w_i > 0, self.alpha * w_i * loss, 0) for (name, loss), w_i in terms}

    def classified(self, batch: Batch, modality: str) -> Classified:
        """Return how the prototypes of a modality classify a batch; samples without it or a class do not count."""
        assert self.seen is not None
        feature = batch.require_features()[modality]
        y = memberships(batch.target, batch.logits, len(self.seen)) * self.seen.to(feature.device)
        if (there := batch.present.get(modality)) is not None:
            y = y * there.to(y.device)[:, None]
        with torch.autocast(feature.device.type, enabled=False):
            return classified(pooled(feature), self.prototypes[modality].to(feature.device), y, self.seen)

    def renew(self, run: Run, data: EpochData, call: str, share: float = 0.0) -> None:
        """Compute prototypes anew, in eval mode, over all ranks.

        Args:
            run: The run.
            data: The loaders.
            call: Where they come from, for messages.
            share: Weight of the old prototypes, in [0, 1].

        Raises:
            ConfigError: There are no classes, or it is not known how many batches a part of the loader is.
            ObservationError: There is no loader, or no batch in it.
        """
        loader = getattr(data, self.source)
        if loader is None:
            raise ObservationError(
                f"Method `pmr` needs data for its prototypes, `{call}({self.source}=loader)`. Found none: pass it."
            )
        keeps_rng = self.preserve_rng or run.dry_run
        with rng_kept([loader], run.device) if keeps_rng else nullcontext():
            drawn = islice(loader, self.batches(loader))
            sums, counts = class_sums(run, run.evaluate(drawn, data.forward))
        if counts is None:
            raise ObservationError(
                f"Method `pmr` needs a batch to compute prototypes on. Found none in `{self.source}=`."
            )
        for modality, total in sums.items():
            new = total / counts.clamp(min=1)[:, None]
            self.prototypes[modality] = self.blended(self.prototypes.get(modality), new, counts > 0, share)
        self.seen = counts > 0 if self.seen is None else self.seen.to(counts.device) | (counts > 0)
        missing = f"Prototypes of some classes are missing: a larger `fraction` than {self.fraction} finds them."
        run.count("missing_classes", (~self.seen).sum(), missing)

    def draw(self, run: Run, data: EpochData) -> None:
        """Draw batches and drop them, as the code does where it needs no prototypes: random states move on as there."""
        loader = getattr(data, self.source)
        if loader is not None and not (self.preserve_rng or run.dry_run):
            for _ in islice(loader, self.batches(loader)):
                pass

    def blended(self, old: Tensor | None, new: Tensor, found: Tensor, share: float) -> Tensor:
        """Return P <- (1 - mu) P_new + mu P; what is known of one of them alone is taken from it."""
        if old is None or self.seen is None:
            return new
        old, seen = old.to(new.device), self.seen.to(new.device)
        return torch.where((found & seen)[:, None], new.lerp(old, share), torch.where(found[:, None], new, old))

    def batches(self, loader: Any) -> int | None:
        """Return how many batches of a loader to look at, at least 1; ``None``: all."""
        if self.fraction == 1:
            return None
        if not hasattr(loader, "__len__"):
            raise ConfigError(
                f"Method `pmr` looks at the part `fraction` of a loader's batches. Found a {type(loader).__name__} "
                f"without a length, and `fraction = {self.fraction}`: set it to 1.0, or pass a loader with `len`."
            )
        return max(1, math.floor(self.fraction * len(loader) + 1e-9))


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [PMR]
