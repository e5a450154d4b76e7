"""A readable account of what an optimizer does to which parameters."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from modbalance.balancer import Balancer
from modbalance.hookspecs import HOOKS
from modbalance.method import Method


def describe(balancer: Balancer, inner: Optimizer, clip_grad_norm: float | None) -> str:
    """Return two tables, modalities and methods, and one line each for the order of a step and for the model."""
    run = balancer.run
    console = Console(width=110, force_terminal=False, color_system=None)
    with console.capture() as capture:
        console.print(_modalities(balancer))
        console.print(_methods(balancer))
        clip = "no clip" if clip_grad_norm is None else f"clip to norm {clip_grad_norm}"
        console.print(f"step: modulate, {clip}, {type(inner).__name__}.step" + (" (dry run)" if run.dry_run else ""))
        console.print(f"unimodal logits: {run.unimodal.kind}; epoch {run.epoch}; {run.steps} modulated steps taken")
    return capture.get().rstrip()


def _modalities(balancer: Balancer) -> Table:
    run = balancer.run
    table = Table("modality", "parameters", "elements", "modulated by", title="Modalities, in fusion order")
    for modality in run.modalities:
        named = run.topology.listed(modality)
        counts = [
            f"{method.name}: {sum(method.modulates(name, p) for name, p in named)}"
            for method in balancer.hooks.implementers("modbalance_coefficients")
        ]
        elements = sum(parameter.numel() for _, parameter in named)
        table.add_row(modality, str(len(named)), f"{elements:,}", ", ".join(counts) or "-")
    return table


def _methods(balancer: Balancer) -> Table:
    table = Table("method", "options", "hooks, in firing order", title="Methods, in order")
    for method in balancer.hooks.methods:
        hooks = [name for name in HOOKS if balancer.hooks.implementers(name, [method])]
        table.add_row(method.name, _options(method), "\n".join(hooks))
    if not balancer.hooks.methods:
        table.add_row("none", "-", "-")
    return table


def _options(method: Method) -> str:
    return "\n".join(f"{name} = {getattr(method, name)!r}" for name in method.options())
