"""Diagnosing & Re-learning: encoders that stopped to generalize are blended back towards their initial weights.

Source: Wei, Li, Feng, Hu, "Diagnosing and Re-learning for Balanced Multimodal Learning", ECCV 2024. Symbols are those
of docs/methods/relearning.md, which also lists where the authors' code departs from the paper, and which side each
option takes.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any, ClassVar

import attrs
import torch
from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import Progress
from torch import Tensor

from modbalance import (
    CheckpointError,
    ConfigError,
    EpochData,
    Method,
    ObservationError,
    Run,
    ge,
    hookimpl,
    integer,
    one_of,
    option,
    optional,
    sharding,
    state,
)
from modbalance.loaders import recalibrate_batch_norm, rng_kept
from modbalance_relearning.clusters import clustered, lexicographic, purity
from modbalance_relearning.samples import samples_of

SWITCH = one_of(False, True)


@attrs.define(eq=False, kw_only=True)
class Relearning(Method):
    """Compares how well features cluster by class on training and validation data, and blends encoders accordingly.

    Touches the weights of the encoders, after the epochs of its schedule; fusion, head and every step stay as they are.
    Costs one pass in eval mode over both loaders and 2 k-means runs per modality, each time.
    """

    name: ClassVar[str] = "relearning"
    needs = frozenset({"model", "classes", "validation"})
    suits: ClassVar[Mapping[str, str]] = {
        "starved": "Resets encoders in part, by the clusters of their features, to learn anew."
    }
    step_cost: ClassVar[float | None] = 1.00

    lam: float = option(3.0, ge(0), "strength of the re-learning, dimensionless, >= 0")
    period: int = option(20, integer(1), "epochs from one re-learning to the next", short=3)
    count: int = option(3, integer(1), "how many times encoders re-learn", short=2)
    offset: int = option(
        0, integer(-1), "first epoch that ends with re-learning, 0-based; 0: `period`, -1: `period` - 1", paper=-1
    )
    num_clusters: int | None = option(None, optional(integer(2)), "clusters of k-means; None: one per class")
    n_init: int = option(10, integer(1), "k-means runs of which the best counts")
    canonical_order: bool = option(True, SWITCH, "sort the rows before k-means, whose result depends on their order")
    blend_buffers: bool = option(False, SWITCH, "blend the encoders' floating-point buffers too, as BatchNorm's")
    recalibrate_bn: bool = option(False, SWITCH, "estimate BatchNorm statistics anew afterwards, on the training data")
    reset_momentum: bool = option(False, SWITCH, "clear the inner optimizer's state of the encoders afterwards")
    preserve_rng: bool = option(False, SWITCH, "restore the random states that drawing from the loaders consumes")

    initial: dict[str, Tensor] = state({}, on_host=True)

    def __attrs_post_init__(self) -> None:
        if find_spec("sklearn") is None:
            raise ConfigError(
                "Method `relearning` needs scikit-learn for its k-means. Found no such package: "
                "`pip install 'modbalance[relearning]'`."
            )

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        """Keep theta_init, on the CPU."""
        if not any(run.encoders(modality) for modality in run.modalities):
            raise ConfigError(
                "Method `relearning` needs the outputs of encoders. Found none: pass `modalities=`, such as "
                "{'audio': 'audio_net', 'visual': 'visual_net'}."
            )
        if self.reset_momentum and not run.can_clear_optimizer_state:
            raise ConfigError(
                "Option `reset_momentum` should be False with Adagrad, which makes its state only once. Found True: "
                "leave it out."
            )
        for modality in run.modalities:
            for name, value in self._blended(run, modality):
                self.initial[name] = sharding.whole(value).detach().to("cpu", copy=True).contiguous()

    @hookimpl
    def modbalance_epoch_end(self, run: Run, epoch: int, data: EpochData) -> None:
        """Diagnose and re-learn, after the epochs of the schedule."""
        if not self.is_due(epoch):
            return
        if data.train is None or data.val is None:
            found = [name for name in ("train", "val") if getattr(data, name) is not None]
            raise ObservationError(
                f"Method `relearning` needs data after epoch {epoch}, `opt.end_epoch(train=loader, val=val_loader)`. "
                f"Found {found or 'neither'}: pass both."
            )
        keeps_rng = self.preserve_rng or run.dry_run
        with rng_kept([data.train, data.val], run.device) if keeps_rng else nullcontext():
            weights = self.diagnose(run, data)
            if not run.dry_run:
                self.relearn(run, weights)
                if self.recalibrate_bn:
                    recalibrate_batch_norm(run, data.train, data.forward)

    def is_due(self, epoch: int) -> bool:
        """Whether encoders re-learn after this 0-based epoch: the code's 20, 40, 60 by default, never 0."""
        first = self.offset if self.offset > 0 else self.period + self.offset
        times, rest = divmod(epoch - first, self.period)
        return rest == 0 and 0 <= times < self.count

    def diagnose(self, run: Run, data: EpochData) -> dict[str, float]:
        """Return the blend weight of each modality, in [0, 1), equal on all ranks."""
        samples: list[tuple[Tensor, Tensor, int]] = []
        with _progress(run) as progress:
            for split, loader in {"train": data.train, "val": data.val}.items():
                assert loader is not None
                drawn = progress.track(loader, description=f"relearning: features, {split}")
                features, label, classes = samples_of(run, loader, run.evaluate(drawn, data.forward))
                clusters = self.num_clusters or classes
                if len(label) < clusters:
                    raise ObservationError(
                        f"Method `relearning` needs at least as many samples as clusters, {clusters}. Found "
                        f"{len(label)} in `{split}=`."
                    )
                samples += [(rows, label, clusters) for rows in features.values()]
            # Rank 0 clusters for all, so that ranks on unlike machines cannot drift apart.
            found = [math.nan] * len(samples)
            if run.rank == 0:
                tracked = progress.track(samples, description="relearning: k-means")
                found = [self.purity(*each) for each in tracked]
        of_rank_0 = run.gather_rows(torch.tensor([found], dtype=torch.float64))[0]
        columns = zip(run.modalities, *of_rank_0.view(2, -1).tolist(), strict=True)
        return {modality: self.weight(run, modality, of_train, of_val) for modality, of_train, of_val in columns}

    def purity(self, features: Tensor, label: Tensor, clusters: int) -> float:
        """Return the purity P of k-means clusters, in (0, 1]; NaN where features overflow.

        Args:
            features: One modality of one split, (N, D), on the CPU.
            label: Class of each row, (N,).
            clusters: K of k-means, <= N.
        """
        if not bool((features.amax(0) - features.amin(0)).isfinite().all()):
            return math.nan
        if self.canonical_order:
            order = lexicographic(features)
            features, label = features[order], label[order]
        return purity(clustered(features, clusters, self.n_init), label)

    def weight(self, run: Run, modality: str, of_train: float, of_val: float) -> float:
        """Return the blend weight w_i from two purities, or 0 where one is not known, which is counted."""
        gap = abs(of_train - of_val)  # g_i = |P_i^train - P_i^val|
        weight = math.tanh(self.lam * gap)  # w_i = tanh(lam g_i)
        for name, value in {"purity_train": of_train, "purity_val": of_val, "weight": weight}.items():
            run.log(f"{name}/{modality}", value)
        run.count(f"nonfinite/{modality}", torch.tensor(math.isnan(weight)))
        return 0.0 if math.isnan(weight) else weight

    def relearn(self, run: Run, weights: Mapping[str, float]) -> None:
        """Blend each encoder with its initial weights, in place."""
        with torch.no_grad():
            for modality, w in weights.items():
                for name, theta in self._blended(run, modality):
                    initial = run.broadcast(self.initial[name].to(theta.device, theta.dtype))
                    # theta_i <- w_i theta_i^init + (1 - w_i) theta_i
                    sharding.local(theta).lerp_(sharding.local_part(initial, theta), w)
                if self.reset_momentum:
                    run.clear_optimizer_state(parameter for _, parameter in run.parameters(modality))

    def check_state(self, saved: Mapping[str, Any]) -> None:
        """Raise a CheckpointError unless the saved initial weights are of these encoders."""
        Method.check_state(self, saved)
        ours, theirs = ({n: tuple(t.shape) for n, t in each.items()} for each in (self.initial, saved["initial"]))
        if different := sorted(dict(ours.items() ^ theirs.items())):
            raise CheckpointError(
                f"The checkpoint should hold the initial weights of these encoders. Found a difference in {different}: "
                "build BalancedOptimizer with the same `modalities=` and `blend_buffers=`."
            )

    def _blended(self, run: Run, modality: str) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that are blended of an encoder: parameters, of this optimizer or not, and buffers."""
        for name, parameter in run.encoder_parameters(modality):
            if parameter.is_floating_point():  # quantized weights are not trained
                yield name, parameter
        for index, module in enumerate(run.encoders(modality) if self.blend_buffers else []):
            for name, buffer in module.named_buffers():
                if buffer.is_floating_point():
                    yield f"{modality}/{index}/{name}", buffer


def _progress(run: Run) -> Progress:
    """Return progress bars, shown on rank 0 at a terminal without another live display, which replaces stdout."""
    is_seen = run.rank == 0 and sys.stdout.isatty() and not isinstance(sys.stdout, FileProxy)
    return Progress(transient=True, disable=not is_seen, console=Console(quiet=not is_seen))


@hookimpl
def modbalance_methods() -> list[type[Method]]:
    """Offer the method."""
    return [Relearning]
