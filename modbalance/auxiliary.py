"""Modules that a method trains beside the user's model, and isolated random numbers."""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

import attrs
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from modbalance.context import Batch, Run
from modbalance.errors import ConfigError

__all__ = ["Auxiliary", "batch_rng", "isolated_rng"]

CPU = torch.device("cpu")
_STRIDE = 1_000_003  # between the streams of two ranks: more than any step has micro-batches


@contextmanager
def isolated_rng(device: torch.device, seed: int | None = None) -> Iterator[None]:
    """Restore torch's random states of the CPU and of ``device`` after the body.

    Args:
        device: Device that the body computes on.
        seed: Seed of both inside of the body; ``None``: their streams go on.
    """
    index = torch.cuda.current_device() if device.type == "cuda" and device.index is None else device.index
    with torch.random.fork_rng([index] if device.type == "cuda" else []):
        if seed is not None:
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                torch.cuda.default_generators[index].manual_seed(seed)
        yield


def batch_rng(batch: Batch) -> AbstractContextManager[None]:
    """Return an isolated stream for one batch: a function of step, micro-batch and rank alone."""
    generator = batch.run.generator(CPU, batch.index + _STRIDE * batch.run.rank)
    return isolated_rng(batch.logits.device, generator.initial_seed())


@attrs.define(eq=False)
class Auxiliary:
    """One module per modality outside of the user's model, such as a probe, and the optimizer that trains them.

    Attributes:
        modules: By modality.
        optimizer: Updates the parameters of all modules.
    """

    modules: dict[str, nn.Module]
    optimizer: Optimizer
    _parameters: dict[str, dict[str, nn.Parameter]] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._parameters = {name: dict(module.named_parameters()) for name, module in self.modules.items()}

    @classmethod
    def build(
        cls,
        run: Run,
        make: Callable[[str], nn.Module],
        make_optimizer: Callable[[Iterable[Tensor]], Optimizer],
        what: str = "auxiliary module",
    ) -> Self:
        """Return modules on the device of the run, with their optimizer.

        Random weights depend on the name of the modality alone: they are equal on every rank and in every run. Modules
        with other weights become equal by `share`.

        Args:
            run: The run.
            make: Returns the module of a modality.
            make_optimizer: Returns the optimizer of parameters.
            what: Name of a module in messages.

        Raises:
            ConfigError: A module has no parameter to train.
        """
        modules = {}
        for name in run.modalities:
            with isolated_rng(CPU, zlib.crc32(name.encode())):
                modules[name] = make(name)
            if not any(p.requires_grad for p in modules[name].parameters()):
                raise ConfigError(
                    f"The {what} of {name!r} should have parameters to train. Found none: pass one that has."
                )
            if next(modules[name].parameters()).device != run.device:
                modules[name].to(run.device)
        parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
        return cls(modules, make_optimizer(parameters))

    def share(self, run: Run) -> None:
        """Make parameters and buffers on all ranks those of rank 0; all ranks have to call it."""
        for module in self.modules.values():
            for tensor in (*module.parameters(), *module.buffers()):
                run.broadcast(tensor.detach())

    def follow(self, tensors: Mapping[str, Tensor]) -> None:
        """Move each module to the device of its modality's tensor: the user may have moved the model."""
        for name, module in self.modules.items():
            # Fake tensors cannot be moved, not even to where they are.
            if self.first(name).device != tensors[name].device:
                module.to(tensors[name].device)

    def first(self, modality: str) -> nn.Parameter:
        """Return the first parameter of a module, which tells its device and precision."""
        return next(iter(self._parameters[modality].values()))

    def trained(self, modality: str) -> dict[str, nn.Parameter]:
        """Return the parameters of a module that require a gradient, by name."""
        return {key: p for key, p in self._parameters[modality].items() if p.requires_grad}

    def state_dict(self) -> dict[str, Any]:
        """Return copies of the weights by modality, and of the state of the optimizer."""
        weights = {m: {k: v.detach().clone() for k, v in p.state_dict().items()} for m, p in self.modules.items()}
        return {"weights": weights, "optimizer": copy.deepcopy(self.optimizer.state_dict())}

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Restore a state that `state_dict` returned and that `fits`."""
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
        """Whether saved weights have the names and shapes of these modules."""
        ours = {m: {k: v.shape for k, v in p.state_dict().items()} for m, p in self.modules.items()}
        return ours == {m: {k: v.shape for k, v in values.items()} for m, values in saved["weights"].items()}
