"""The result of a diagnosis: numbers, a table, a picture, JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import attrs
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from modbalance.diagnosis._advice import Suggestion
from modbalance.diagnosis._picture import Panel, save
from modbalance.diagnosis._verdict import Verdict


@attrs.frozen
class ModalityFindings:
    """Numbers of one modality; NaN or ``None`` where one was not measured.

    Attributes:
        alone: By way, the accuracy or mean score of this modality alone in the joint model.
        shapley: Shapley value of the accuracy or mean score, and ``shapley_error`` its standard error.
        probe: Accuracy of a linear probe on the features of the encoder, in [0, 1].
        ceiling: Accuracy of an encoder that was trained by itself, as given.
        utilisation: Part of the ceiling that the modality alone reaches, both above chance.
        gradient_norm: L2 norm of the gradient of its encoder, and ``gradient_share`` its part of the sum.
        cosine_with_fused: Cosine of the gradients of its own loss and the fused loss for its encoder.
        speed: Change of its accuracy alone per epoch since the first earlier diagnosis.
    """

    alone: dict[str, float]
    shapley: float
    shapley_error: float
    probe: float | None
    ceiling: float | None
    utilisation: float | None
    gradient_norm: float | None
    gradient_share: float | None
    cosine_with_fused: float | None
    speed: float | None


@attrs.frozen
class Diagnosis:
    """What `modbalance.diagnose` found.

    Attributes:
        modalities: By name, in fusion order.
        fused: Accuracy or mean score of the joint model.
        quantity: ``"accuracy"`` or ``"score"``: what is measured.
        way: Main way to obtain the logits of one modality alone; others stand in ``alone``.
        cosine_between: By pair, cosine of the gradients of both losses for the parameters that both use.
        verdict: Degree of imbalance, the starved modality, and the reason.
        suggestions: Installed methods that suit the findings.
        samples: Number of samples, and ``batches`` of batches.
        epoch: Epoch of the training, if given.
        is_exact: Whether Shapley values are exact, or else estimated from permutations.
    """

    modalities: dict[str, ModalityFindings]
    fused: float
    quantity: str
    way: str
    cosine_between: dict[tuple[str, str], float]
    verdict: Verdict
    suggestions: tuple[Suggestion, ...]
    samples: int
    batches: int
    epoch: float | None
    is_exact: bool

    @property
    def is_imbalanced(self) -> bool:
        """Whether the verdict is imbalance."""
        return self.verdict.is_imbalanced

    @property
    def starved(self) -> str | None:
        """The starved modality, or ``None``."""
        return self.verdict.starved

    @property
    def degree(self) -> float:
        """Degree of imbalance, in [0, 1]."""
        return self.verdict.degree

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, strings, lists and mappings; numbers that are not finite become ``None``."""
        found = attrs.asdict(self, filter=lambda field, value: field.name != "cosine_between")
        pairs = [{"modalities": list(pair), "cosine": cosine} for pair, cosine in self.cosine_between.items()]
        plain: dict[str, Any] = _plain(found | {"cosine_between": pairs})
        return plain

    def to_json(self) -> str:
        """Return `to_dict` as JSON, without NaN."""
        return json.dumps(self.to_dict(), indent=2, allow_nan=False)

    def save_picture(self, path: str | Path) -> Path:
        """Draw accuracies, contributions and gradients as bars into a file; the suffix names its format.

        Raises:
            ConfigError: matplotlib is not installed.
        """
        of = [*self.modalities.values()]
        alone = [each.alone[self.way] for each in of]
        shares = [each.gradient_share or 0.0 for each in of]
        panels = [
            Panel(f"{self.quantity} alone", alone, ceilings=[each.ceiling for each in of], line=self.fused),
            Panel("Shapley value", [each.shapley for each in of], errors=[each.shapley_error for each in of]),
            Panel("share of gradient norm", shares),
        ]
        title = f"{'imbalanced' if self.is_imbalanced else 'no imbalance found'}, degree {self.degree:.2f}"
        return save(Path(path), title, [*self.modalities], panels if any(shares) else panels[:2])

    def __rich__(self) -> Group:
        """Return what `rich.print` shows: tables and the verdict."""
        parts: list[Any] = [self._table()]
        parts += [Text(f"{' and '.join(pair)}: cosine {value:+.2f}") for pair, value in self.cosine_between.items()]
        degree = "-" if math.isnan(self.degree) else f"{self.degree:.2f}"
        name = f"imbalanced, {self.starved} is starved" if self.is_imbalanced else "no imbalance found"
        parts.append(Text(f"Verdict: {name} (degree {degree}); {self.verdict.reason}."))
        return Group(*parts, *([self._suggestions()] if self.suggestions else []))

    def __str__(self) -> str:
        console = Console(file=StringIO(), width=110, color_system=None, force_terminal=False)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def _table(self) -> Table:
        at = "" if self.epoch is None else f", epoch {self.epoch:g}"
        title = f"Diagnosis of {self.samples:,} samples{at}: {self.quantity} {self.fused:.3f}"
        table = Table("measure", *map(escape, self.modalities), title=title)
        of = [*self.modalities.values()]
        for way in of[0].alone:
            table.add_row(f"{self.quantity} alone, {way}", *(_number(each.alone[way]) for each in of))
        kind = "exact" if self.is_exact else "sampled"
        table.add_row(f"Shapley value, {kind}", *(f"{each.shapley:.3f} ± {each.shapley_error:.3f}" for each in of))
        rows = {
            "linear probe": [each.probe for each in of],
            "ceiling": [each.ceiling for each in of],
            "utilisation": [each.utilisation for each in of],
            "share of gradient norm": [each.gradient_share for each in of],
            "cosine of own and fused gradient": [each.cosine_with_fused for each in of],
            "speed per epoch": [each.speed for each in of],
        }
        for name, values in rows.items():
            if any(value is not None for value in values):
                table.add_row(name, *map(_number, values))
        return table

    def _suggestions(self) -> Table:
        table = Table(
            "method", "step time over bare", "reason", title="Methods that suit the findings, by their papers"
        )
        named = None
        for each in self.suggestions:
            cost = "-" if each.cost is None else f"{each.cost:.2f}"
            is_further = each.method == named
            table.add_row("" if is_further else each.method, "" if is_further else cost, escape(each.reason))
            named = each.method
        return table


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
