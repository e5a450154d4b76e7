"""The order of a diagnosis: measure, conclude, suggest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from itertools import islice
from typing import Any

import attrs
import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from modbalance._model.rerun import preserved
from modbalance.diagnosis import _shapley as shapley
from modbalance.diagnosis._advice import suggest_methods
from modbalance.diagnosis._gradients import GradientFindings, measure_gradients
from modbalance.diagnosis._probe import probe_accuracy
from modbalance.diagnosis._report import Diagnosis, ModalityFindings
from modbalance.diagnosis._samples import Samples, measure_samples
from modbalance.diagnosis._subject import Subject
from modbalance.diagnosis._verdict import utilisation, verdict_of
from modbalance.errors import ConfigError, suggest
from modbalance.loaders import rng_kept


@attrs.frozen(kw_only=True)
class Settings:
    """What is measured, and on how many batches; see `modbalance.diagnose`."""

    ceilings: Mapping[str, float] | None = None
    max_batches: int | None = None
    gradient_batches: int = 8
    permutations: int = 64
    probe: bool = True
    seed: int = 0
    epoch: float | None = None
    history: Sequence[Diagnosis] = ()
    progress: bool | None = None

    @property
    def known(self) -> Mapping[str, float]:
        """The ceilings that were given, by modality."""
        return self.ceilings or {}


def run(subject: Subject, loader: Iterable[Any], settings: Settings) -> Diagnosis:
    """Return the diagnosis; the model, its flags, buffers, gradients and the random states stay as they were."""
    names = subject.modalities
    _check(subject, settings)
    orders = [] if len(names) <= shapley.MOST_EXACT else shapley.orders_of(names, settings.permutations, settings.seed)
    console = Console(stderr=True, force_terminal=settings.progress or None)
    shows = console.is_terminal if settings.progress is None else settings.progress
    console.quiet = not shows  # rich 13.7 ends a disabled bar with an empty line
    with (
        rng_kept([loader], subject.run.device),
        subject.watched(),
        preserved([subject.model], training=False),
        Progress(console=console, disable=not shows, transient=True) as bar,
    ):
        items = _followed(bar, "samples", loader, settings.max_batches)
        samples = measure_samples(subject, items, orders, settings.seed)
        gradients = None
        if settings.gradient_batches and subject.task.loss_fn is not None and samples.features:
            items = _followed(bar, "gradients", loader, min(settings.gradient_batches, samples.batches))
            gradients = measure_gradients(subject, items)
        probes = _probes(bar, samples, settings) if settings.probe else {}
    return _conclude(subject, samples, gradients, probes, orders, settings)


def _check(subject: Subject, settings: Settings) -> None:
    names = subject.modalities
    if len(names) < 2:
        raise ConfigError(
            f"A diagnosis compares two modalities or more. Found {list(names)}: name the encoder of each in "
            "`modalities=`."
        )
    for name, value in settings.known.items():
        if name not in names:
            raise ConfigError(f"Parameter `ceilings` should name modalities. Found {name!r}. {suggest(name, names)}")
        if not 0 <= value <= 1:
            raise ConfigError(
                f"Parameter `ceilings` should hold accuracies in [0, 1]. Found {name!r}: {value!r}: divide percent "
                "by 100."
            )
    least = {"max_batches": 1, "gradient_batches": 0, "permutations": 2}
    for parameter, bound in least.items():
        value = getattr(settings, parameter)
        if value is None and parameter == "max_batches":
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise ConfigError(f"Parameter `{parameter}` should be an integer >= {bound}. Found {value!r}.")


def _followed(bar: Progress, what: str, loader: Iterable[Any], most: int | None) -> Iterator[Any]:
    size = len(loader) if isinstance(loader, Sized) else None
    total = most if size is None else min(size, size if most is None else most)
    return iter(bar.track(islice(loader, most), total=total, description=what))


def _probes(bar: Progress, samples: Samples, settings: Settings) -> dict[str, float]:
    labels = samples.labels
    counted = None if labels is None else labels >= 0
    if labels is None or counted is None or int(counted.sum()) < 2 * samples.classes:
        return {}
    tracked = bar.track([*samples.features.items()], description="linear probes")
    return {name: probe_accuracy(feature[counted], labels[counted], settings.seed) for name, feature in tracked}


def _conclude(
    subject: Subject,
    samples: Samples,
    gradients: GradientFindings | None,
    probes: Mapping[str, float],
    orders: Sequence[shapley.Coalition],
    settings: Settings,
) -> Diagnosis:
    names, way = subject.modalities, next(iter(samples.alone))
    counted = ~samples.coalitions[names].isnan()
    values = {S: value[counted] for S, value in samples.coalitions.items()}
    phi, error, difference_error = _contributions(values, names, orders)
    alone = {name: {each: _mean(samples.alone[each][name]) for each in samples.alone} for name in names}
    chance = 1 / samples.classes if subject.task.score is None else 0.0
    used = {name: utilisation(alone[name][way], top, chance) for name, top in settings.known.items()}
    used = {name: value for name, value in used.items() if not math.isnan(value)}
    used_error = {
        name: shapley.standard_error(samples.alone[way][name][counted]) / (settings.known[name] - chance)
        for name in used
    }
    cosines = [] if gradients is None else [*gradients.with_fused.values(), *gradients.between.values()]
    known = [cosine for cosine in cosines if not math.isnan(cosine)]
    verdict = verdict_of(phi, difference_error, used, used_error, min(known, default=math.nan))
    speeds = _speeds(alone, way, settings)
    found = {
        name: ModalityFindings(
            alone=alone[name],
            shapley=phi[name],
            shapley_error=error[name],
            probe=probes.get(name),
            ceiling=settings.known.get(name),
            utilisation=used.get(name),
            gradient_norm=None if gradients is None else gradients.norm[name],
            gradient_share=None if gradients is None else gradients.share[name],
            cosine_with_fused=None if gradients is None else gradients.with_fused[name],
            speed=speeds.get(name),
        )
        for name in names
    }
    return Diagnosis(
        modalities=found,
        fused=_mean(samples.coalitions[names]),
        quantity=subject.task.quantity,
        way=way,
        cosine_between={} if gradients is None else gradients.between,
        verdict=verdict,
        suggestions=suggest_methods(verdict.findings, len(names)) if verdict.is_imbalanced else (),
        samples=int(counted.sum()),
        batches=samples.batches,
        epoch=settings.epoch,
        is_exact=not orders,
    )


def _contributions(
    values: Mapping[shapley.Coalition, Tensor], names: Sequence[str], orders: Sequence[shapley.Coalition]
) -> tuple[dict[str, float], dict[str, float], float]:
    """Return Shapley values, their standard errors, and that of the difference of the largest and the smallest."""
    gains = shapley.sampled(values, names, orders) if orders else {}
    each = {i: gain.mean(0) for i, gain in gains.items()} if orders else shapley.exact(values, names)
    phi = {i: float(value.mean()) for i, value in each.items()}
    low, high = min(phi, key=phi.__getitem__), max(phi, key=phi.__getitem__)

    def error(of_samples: Tensor, of_orders: Tensor | None) -> float:
        errors = [shapley.standard_error(part) for part in (of_samples, of_orders) if part is not None]
        return math.hypot(*errors)

    errors = {i: error(each[i], gains[i].mean(1) if orders else None) for i in names}
    between = (gains[high] - gains[low]).mean(1) if orders else None
    return phi, errors, error(each[high] - each[low], between)


def _speeds(alone: Mapping[str, Mapping[str, float]], way: str, settings: Settings) -> dict[str, float]:
    """Return the change per epoch since the first diagnosis of the history, or per diagnosis without epochs."""
    if not settings.history:
        return {}
    first = settings.history[0]
    known = settings.epoch is not None and first.epoch is not None
    time = settings.epoch - first.epoch if known else len(settings.history)  # type: ignore[operator]
    if not time > 0:
        raise ConfigError(
            f"`history` should hold diagnoses of earlier epochs. Found epoch {first.epoch:g} before {settings.epoch:g}."
        )
    earlier = {name: found.alone.get(way) for name, found in first.modalities.items()}
    if set(earlier) != set(alone) or None in earlier.values():
        raise ConfigError(
            f"`history` should hold diagnoses of this model, with {list(alone)}. Found {list(first.modalities)}."
        )
    return {name: (alone[name][way] - value) / time for name, value in earlier.items() if value is not None}


def _mean(values: Tensor) -> float:
    return float(torch.nanmean(values))
