"""An optimizer of two passes, and one that reads the loss: two conventions of third-party optimizers with closures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class SAM(Optimizer):
    """Sharpness-aware minimisation (Foret et al., ICLR 2021) around plain descent.

    The first pass moves to w + rho g / |g|; the second one moves back and descends along the gradient found there.
    """

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 0.1, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho})

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move to the place where the gradient of the step is taken."""
        group = self.param_groups[0]
        trained = [p for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm(p.grad for p in trained)
        for parameter in trained:
            self.state[parameter]["moved"] = moved = group["rho"] * parameter.grad / norm
            parameter.add_(moved)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad: bool = False) -> None:
        """Move back, and descend."""
        group = self.param_groups[0]
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.sub_(self.state[parameter]["moved"]).sub_(parameter.grad, alpha=group["lr"])
        if zero_grad:
            self.zero_grad()

    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """Take both passes; the gradient of the first one stands already, the closure makes that of the second one."""
        if closure is None:
            raise RuntimeError("SAM needs a closure")
        self.first_step(zero_grad=True)
        loss = closure()
        self.second_step()
        return loss


class Polyak(Optimizer):
    """Descent at the rate loss / |gradient|^2, at most 0.1: it needs what a closure returns."""

    def __init__(self, params: Iterable[nn.Parameter]) -> None:
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Any:  # type: ignore[override]
        """Take a step."""
        if closure is None:
            raise RuntimeError("the loss is needed")
        with torch.enable_grad():
            loss = closure()
        parameters = self.param_groups[0]["params"]
        norm = nn.utils.get_total_norm(p.grad for p in parameters)
        for parameter in parameters:
            parameter.sub_(parameter.grad * (loss.detach() / norm**2).clamp(max=self.param_groups[0]["lr"]))
        return loss
