"""The probes of all modalities at work: built equal on all ranks, observed on detached features, stepped, saved."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from modbalance import Batch, ConfigError, Run
from modbalance_cggm.heads import Sizes
from modbalance_cggm.metrics import Metric, measure
from modbalance_cggm.probes import Probe

Factory = Callable[[str, int, int], nn.Module]
Kind = str | Mapping[str, nn.Module] | Factory
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def authors_optimizer(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam at 5e-4, as for the authors' MOSI and IEMOCAP; fused, because plain Adam reads its step count."""
    return Adam(parameters, lr=5e-4, fused=True)


def feature_size(run: Run, feature: Tensor) -> int:
    """Return D of a feature (B, D), tokens (B, T, D) or a map (B, D, H, W)."""
    return feature.shape[-1 if feature.dim() <= 3 or run.feature_sizes else 1]


def build(
    run: Run, kind: Kind, make_optimizer: MakeOptimizer | None, sizes: Sizes, widths: Sizes, outputs: int
) -> Guides:
    """Return probes and their optimizer; built-in ones have the same weights on every rank and in every run.

    Args:
        run: The run.
        kind: What `probes` says.
        make_optimizer: What `probe_optimizer` says.
        sizes: Size of each modality's feature.
        widths: Columns of the last layer's weight.
        outputs: Its rows.
    """
    if isinstance(kind, Mapping):
        modules = dict(kind)
        if set(modules) != set(run.modalities):
            raise ConfigError(
                f"Option `probes` should hold a module for each of {list(run.modalities)}. Found {sorted(modules)}."
            )
        modules = {name: modules[name] for name in run.modalities}
    else:
        modules = {name: _built(run, kind, name, sizes[name], widths[name], outputs) for name in run.modalities}
    for name, module in modules.items():
        if not any(p.requires_grad for p in module.parameters()):
            raise ConfigError(f"The probe of {name!r} should have parameters to train. Found none.")
        _move(module, run.device)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    return Guides(modules, (make_optimizer or authors_optimizer)(parameters))


def _built(run: Run, kind: str | Factory, name: str, size: int, width: int, outputs: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(zlib.crc32(name.encode()))
        if not isinstance(kind, str):
            return kind(name, size, outputs)
        precision = torch.promote_types(next(run.optimized_parameters()).dtype, torch.float32)
        probe = Probe(kind, size, width, outputs, bool(run.feature_sizes))
        return probe if precision == torch.get_default_dtype() else probe.to(precision)


def _move(module: nn.Module, device: torch.device) -> None:
    # Fake tensors cannot be moved, not even to where they are.
    if next(module.parameters()).device != device:
        module.to(device)


@attrs.define(eq=False)
class Guides:
    """The probes of all modalities and their optimizer.

    Attributes:
        modules: Probe by modality, outside of the user's model.
        optimizer: Updates the parameters of all probes.
    """

    modules: dict[str, nn.Module]
    optimizer: Optimizer

    def observe(
        self, batch: Batch, name: str, feature: Tensor, metric: str | Metric, in_eval: bool
    ) -> dict[str, Tensor]:
        """Return what one probe shows on one batch, as sums over its samples.

        Keys are ``<quantity>/<modality>``: ``metric`` and the ``count`` of what it is measured on, ``loss`` and the
        number of ``samples``, ``calls``; and ``gradient/<modality>/<name>`` and ``buffer/<modality>/<name>``.

        Args:
            batch: The batch; with its task loss.
            name: The modality.
            feature: Its feature.
            metric: How the probe is measured.
            in_eval: Whether it is measured in eval mode, in a second forward.
        """
        buffers = self._copied_buffers(name)
        sums = dict.fromkeys(
            ("metric", "count", "loss", "samples", "calls"), feature.new_zeros((), dtype=torch.float64)
        )
        gradients = {key: torch.zeros_like(p) for key, p in self._trained(name).items()}
        moved = {key: torch.zeros_like(buffer, dtype=torch.float64) for key, buffer in buffers.items()}
        if len(batch.logits):
            there = batch.present.get(name)
            logits = self._logits(name, feature, batch.logits, buffers)
            loss = _loss(batch, logits, there)
            found = torch.autograd.grad(loss, list(self._trained(name).values()), allow_unused=True)
            gradients |= {key: g * len(logits) for key, g in zip(gradients, found, strict=True) if g is not None}
            moved = {key: buffer.double() for key, buffer in buffers.items()}
            if in_eval:
                logits = self._logits(name, feature, batch.logits, buffers, training=False)
            ignore_index = getattr(batch.run.loss_fn, "ignore_index", -100)
            sums["metric"], sums["count"] = measure(metric, logits.detach(), batch.target, there, ignore_index)
            sums["calls"] = sums["calls"] + 1
            sums["samples"] = sums["samples"] + (len(logits) if there is None else there.sum())
            sums["loss"] = loss.detach().double() * sums["samples"]
        named = {f"{quantity}/{name}": value for quantity, value in sums.items()}
        named |= {f"gradient/{name}/{key}": value for key, value in gradients.items()}
        return named | {f"buffer/{name}/{key}": value for key, value in moved.items()}

    def step(self, sums: Mapping[str, Tensor]) -> None:
        """Take a step by the mean gradients, and give buffers the mean of what the forwards made of them."""
        for name, module in self.modules.items():
            samples, calls = sums[f"samples/{name}"].clamp(min=1), sums[f"calls/{name}"]
            for key, parameter in self._trained(name).items():
                parameter.grad = (sums[f"gradient/{name}/{key}"] / samples).to(parameter)
            for key, buffer in module.named_buffers():
                buffer.copy_(torch.where(calls > 0, sums[f"buffer/{name}/{key}"] / calls, buffer))
        self.optimizer.step()
        self.optimizer.zero_grad()

    def last_gradient(self, sums: Mapping[str, Tensor], name: str, weight: Tensor) -> Tensor:
        """Return the mean gradient by the weight of a probe's last layer, zero where it is frozen; (C, K)."""
        keys = [key for key, parameter in self._trained(name).items() if parameter is weight]
        found = [sums[f"gradient/{name}/{key}"] / sums[f"samples/{name}"].clamp(min=1) for key in keys]
        return (found or [torch.zeros_like(weight)])[0].flatten(1).to(weight.dtype)

    def follow(self, features: Mapping[str, Tensor]) -> None:
        """Move each probe to the device of its feature: the model may have moved since the probes were built."""
        for name, module in self.modules.items():
            _move(module, features[name].device)

    def share(self, run: Run) -> None:
        """Make parameters and buffers on all ranks those of rank 0."""
        for module in self.modules.values():
            for tensor in (*module.parameters(), *module.buffers()):
                run.broadcast(tensor.detach())

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the weights, and the state of the optimizer."""
        weights = {m: {k: v.detach().clone() for k, v in p.state_dict().items()} for m, p in self.modules.items()}
        return {"weights": weights, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        for name, module in self.modules.items():
            module.load_state_dict(saved["weights"][name])
        optimizer = dict(saved["optimizer"])
        # torch leaves a step count where it finds it, and plain Adam on a device would then read it at every step.
        optimizer["state"] = {
            index: {k: v.cpu() if k == "step" and isinstance(v, Tensor) else v for k, v in values.items()}
            for index, values in optimizer["state"].items()
        }
        self.optimizer.load_state_dict(optimizer)

    def fits(self, saved: Mapping[str, Any]) -> bool:
        """Whether saved weights have the names and shapes of these probes."""
        ours = {m: {k: v.shape for k, v in p.state_dict().items()} for m, p in self.modules.items()}
        return ours == {m: {k: v.shape for k, v in values.items()} for m, values in saved["weights"].items()}

    def _trained(self, name: str) -> dict[str, nn.Parameter]:
        return {key: p for key, p in self.modules[name].named_parameters() if p.requires_grad}

    def _copied_buffers(self, name: str) -> dict[str, Tensor]:
        return {key: buffer.clone() for key, buffer in self.modules[name].named_buffers()}

    def _logits(
        self, name: str, feature: Tensor, like: Tensor, buffers: dict[str, Tensor], *, training: bool = True
    ) -> Tensor:
        """Run one probe in the precision of its weights; ``buffers`` move, those of the probe do not."""
        module = self.modules[name]
        given = (feature.detach().to(next(module.parameters()).dtype),)
        module.train(training)
        output: Tensor = functional_call(module, buffers, (*given, like) if isinstance(module, Probe) else given)
        module.train()
        if output.shape != like.shape:
            raise ConfigError(
                f"The probe of {name!r} should return logits of shape {tuple(like.shape)}. Found {tuple(output.shape)}."
            )
        return output.to(like.device)


def _loss(batch: Batch, logits: Tensor, there: Tensor | None) -> Tensor:
    assert batch.task_loss is not None
    if there is not None:  # as constants, the samples that lack the modality have no gradient
        logits = logits.where(there.to(logits.device).reshape(-1, *[1] * (logits.dim() - 1)), logits.detach())
    return batch.task_loss(logits)


@contextmanager
def own_draws(batch: Batch) -> Iterator[None]:
    """Let dropout in the body draw from a stream of this step, micro-batch and rank; the user's stream is kept."""
    run, device = batch.run, batch.logits.device
    key = run.generator(torch.device("cpu"), batch.index + 1_000_003 * run.rank).initial_seed()
    with torch.random.fork_rng([device.index] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(key)
        if device.type == "cuda":
            torch.cuda.default_generators[device.index].manual_seed(key)
        yield
