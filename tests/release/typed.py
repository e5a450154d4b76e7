"""A user's code with all types, checked by `mypy --strict` against the installed wheel alone.

Each mistake is marked with the error that mypy should report; it reports a mark without error too, so that a package
whose types are lost, where all is `Any`, does not pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import attrs
import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer, Batch, Diagnosis, Method, Step, WindowedMethod, diagnose, ge, hookimpl, option
from modbalance.testing import Check, checks_for
from modbalance_ogm_ge import OGM


@attrs.define(eq=False, kw_only=True)
class Mine(WindowedMethod):
    """Scales all encoders alike."""

    name: ClassVar[str] = "mine"
    gamma: float = option(1.0, ge(0), "strength")

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of samples, shape ()."""
        return {"count": torch.tensor(float(len(batch.logits)))}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        """Return a coefficient for each modality."""
        return {name: torch.tensor(self.gamma) for name in step.run.modalities}


def train(model: nn.Module, loader: Iterable[tuple[Tensor, Tensor, Tensor]]) -> Diagnosis:
    """Train an epoch with two methods and diagnose the model."""
    methods: list[Method] = [Mine(gamma=0.5), OGM(alpha=0.3)]
    optimizer = BalancedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        methods,
        model=model,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion",
    )
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    for audio, visual, target in loader:
        optimizer.zero_grad()
        criterion(model(audio, visual), target).backward()
        optimizer.step()
    optimizer.end_epoch()
    metrics: dict[str, float] = optimizer.metrics()
    print(metrics, optimizer.describe())
    checks: list[Check] = checks_for(Mine, options={"gamma": 0.5})
    print(checks)
    return diagnose(model, loader, modalities={"audio": "audio_net", "visual": "visual_net"}, fusion="fusion")


def mistakes(optimizer: BalancedOptimizer) -> None:
    """Hold one mistake of each kind."""
    number: int = optimizer.metrics()  # type: ignore[assignment]
    OGM(alpha="high")  # type: ignore[arg-type]
    OGM(strength=0.5)  # type: ignore[call-arg]
    print(number)
