"""MSLR and MSES as the code of AGM (ICCV 2023) has them, straight-line and slow.

Modalities u = 1..M with encoders phi_u; a_u(e) and l_u(e) are accuracy and loss of modality u after epoch e.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass(kw_only=True)
class MSLRTwin:
    """One training with MSLR. In mode "lr" the inner optimizer has a group of parameters for each encoder, in order."""

    model: nn.Module
    encoders: Sequence[nn.Module]
    inner: Optimizer
    init: Sequence[float]
    memory: int = 5
    mode: str = "grad"
    start_epoch: int = 0
    end_epoch: float = 19
    epoch: int = 0
    ratio: list[float] = field(default_factory=list)
    remembered: list[list[float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ratio = self.ratio or [1.0 for _ in self.encoders]
        self.remembered = [[] for _ in self.encoders]
        self.lr = self.inner.param_groups[0]["lr"]

    @property
    def acts(self) -> bool:
        return self.start_epoch <= self.epoch <= self.end_epoch

    def step(self, x: Sequence[Tensor], y: Tensor, micro: int = 1) -> None:
        """Train on one batch, in ``micro`` parts."""
        self.inner.zero_grad()
        for *inputs, target in zip(*(each.chunk(micro) for each in (*x, y)), strict=True):
            (F.cross_entropy(self.model(*inputs), target) / micro).backward()
        for u, phi_u in enumerate(self.encoders):
            coefficient = self.init[u] * self.ratio[u] if self.acts else 1.0
            if self.mode == "lr":
                self.inner.param_groups[u]["lr"] = self.lr * coefficient
                continue
            for parameter in phi_u.parameters():
                if parameter.grad is not None:
                    parameter.grad = coefficient * parameter.grad
        self.inner.step()

    def end_epoch_with(self, a: Sequence[float]) -> None:
        """ratio_u = a_u(e) / mean of the remembered accuracies, once enough are remembered."""
        if self.acts:
            for u, remembered in enumerate(self.remembered):
                if len(remembered) < self.memory:
                    remembered.append(a[u])
                else:
                    self.ratio[u] = a[u] / (sum(remembered) / self.memory)
                    remembered.append(a[u])
                    remembered.pop(0)
        self.epoch += 1


@dataclass(kw_only=True)
class MSESTwin:
    """One training with MSES, which keeps a copy of everything for every epoch there was."""

    model: nn.Module
    encoders: Sequence[nn.Module]
    inner: Optimizer
    patience: int
    freeze: str = "official"
    rewind: str = "all"
    epoch: int = 0
    should_stop: bool = False
    ratio: list[float] = field(default_factory=list)
    losses: list[list[float]] = field(default_factory=list)
    best: list[tuple[float, int]] = field(default_factory=list)
    files: dict[int, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.ratio = [1.0 for _ in self.encoders]
        self.losses = [[] for _ in self.encoders]

    def step(self, x: Sequence[Tensor], y: Tensor) -> None:
        """Train on one batch."""
        self.inner.zero_grad()
        F.cross_entropy(self.model(*x), y).backward()
        for ratio_u, phi_u in zip(self.ratio, self.encoders, strict=True):
            for parameter in phi_u.parameters():
                if ratio_u == 0 and self.freeze == "hard":
                    parameter.grad = None
                elif parameter.grad is not None:
                    parameter.grad = ratio_u * parameter.grad
        self.inner.step()

    def end_epoch_with(self, losses: Sequence[float]) -> None:
        """Smooth, compare (losses of single precision, beyond rounding), save, stop, rewind."""
        e, modalities = self.epoch, range(len(self.encoders))
        smoothed = []
        for u in modalities:
            self.losses[u].append(losses[u])
            l_u = self.losses[u]
            smoothed.append(l_u[0] if len(l_u) == 1 else 0.6 * l_u[-2] + 0.4 * l_u[-1])
        if not self.best:
            self.best = [(smoothed[u], e) for u in modalities]
        for u in modalities:
            if self.best[u][0] > smoothed[u] + 32 * 2**-23 * abs(smoothed[u]):
                self.best[u] = (smoothed[u], e)
        self.files[e] = copy.deepcopy((self.model.state_dict(), self.inner.state_dict(), self.best))

        stopping = [u for u in modalities if e - self.best[u][1] > self.patience and self.ratio[u] != 0]
        for u in stopping:
            self.ratio[u] = 0.0
            best_epoch = self.best[u][1]
            if self.rewind == "all":
                weights, optimizer, best = copy.deepcopy(self.files[best_epoch])
                self.model.load_state_dict(weights)
                self.inner.load_state_dict(optimizer)
                self.best = best
            elif self.rewind == "modality":
                self.rewind_encoder(u, best_epoch)
        self.should_stop = not any(self.ratio)
        self.epoch += 1

    def rewind_encoder(self, u: int, best_epoch: int) -> None:
        """Weights, buffers and optimizer state of one encoder."""
        weights, optimizer, _ = copy.deepcopy(self.files[best_epoch])
        (prefix,) = [name for name, module in self.model.named_modules() if module is self.encoders[u]]
        own = {name: value for name, value in weights.items() if name.startswith(prefix + ".")}
        self.model.load_state_dict(self.model.state_dict() | own)
        mine = {id(parameter) for parameter in self.encoders[u].parameters()}
        everything = [parameter for group in self.inner.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(everything):
            if id(parameter) in mine:
                self.inner.state.pop(parameter, None)
                if index in optimizer["state"]:
                    self.inner.state[parameter] = optimizer["state"][index]
