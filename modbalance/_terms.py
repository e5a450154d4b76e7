"""Gradients of single loss terms by the encoders, gathered while the user's backward runs.

A term is computed on a leaf in the place of a feature, so that its own backward ends there. When the user's backward
reaches the loss, the gradient of the term is taken through the leaf and on through the encoder, before the backward
frees the encoder's graph. The gradient that arrives at the loss carries the division by micro-batches and the scale of
a GradScaler.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs
import torch
from torch import Tensor, nn

from modbalance import gradients, sharding
from modbalance._in_place import BackwardEnd
from modbalance._model.reentrant import is_reentrant
from modbalance._training import Training
from modbalance.errors import ConfigError

Key = tuple[str, str, str]
"""Kind of a parameter, ``encoder`` or ``head``, its modality and its name."""


@attrs.frozen(eq=False)
class Term:
    """A loss term of one modality.

    Attributes:
        modality: Whose feature it reads.
        value: The term, 0-dim, with graph down to the leaf.
        leaf: The leaf that stands in the place of the feature.
        feature: The feature, with graph to the encoder.
        encoder: Parameters of the encoder by name.
        head: Further parameters that the term depends on, by name.
    """

    modality: str
    value: Tensor
    leaf: Tensor
    feature: Tensor
    encoder: Mapping[str, nn.Parameter]
    head: Mapping[str, Tensor]

    def zeros(self) -> dict[Key, Tensor]:
        """Return what `gradients` is where nothing flows."""
        pairs = [("encoder", self.encoder), ("head", self.head)]
        return {(kind, self.modality, name): torch.zeros_like(p) for kind, named in pairs for name, p in named.items()}

    def gradients(self, arrived: Tensor) -> dict[Key, Tensor]:
        """Return the gradients of the term, multiplied by the one that arrived at the loss; zeros where none flows."""
        given = arrived.to(self.value)
        sources = [self.leaf, *self.head.values()]
        by_leaf, *by_head = _gradients(self.value, sources, given)
        by_encoder: Sequence[Tensor | None] = [None] * len(self.encoder)
        if by_leaf is None:  # from a synchronized batch norm, too, on a rank without samples; the others wait for it
            by_leaf = torch.zeros_like(self.leaf)
        if self.feature.requires_grad and self.encoder:
            by_encoder = _gradients(self.feature, [*self.encoder.values()], by_leaf)
        found: dict[Key, Tensor] = {}
        for kind, named, values in (("encoder", self.encoder, by_encoder), ("head", self.head, by_head)):
            for (name, parameter), value in zip(named.items(), values, strict=True):
                found[kind, self.modality, name] = torch.zeros_like(parameter) if value is None else value
        return found


def _gradients(output: Tensor, sources: Sequence[Tensor], given: Tensor) -> Sequence[Tensor | None]:
    if not output.requires_grad:
        return [None] * len(sources)
    try:
        return torch.autograd.grad(output, sources, given, retain_graph=True, allow_unused=True)
    except RuntimeError as error:
        if "donated" in str(error):
            raise ConfigError(
                "The backward of the model should run more than once where a method takes gradients of single loss "
                "terms. Found a compiled model whose backward overwrites what it reads: set "
                "`torch._functorch.config.donated_buffer = False` before the model is compiled."
            ) from error
        raise


class ScaleWatch:
    """Follows what happens to all gradients between the last backward and the modulation, such as an unscaling.

    It compares the largest entry of some gradients, those of the head, with what it was after the backward: exact for
    scales that are powers of two, to rounding for others.

    Args:
        training: The training.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self._after: Tensor | None = None
        self._watched: list[Tensor] = []
        self._end: BackwardEnd | None = None

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_after": None, "_watched": [], "_end": None}

    def watch(self) -> None:
        """Note the gradients at the end of every backward from now on."""
        if self._end is None:
            training = self.training
            encoders = training.ownership.parameters(training.epoch).values()
            inside = {id(p) for each in encoders for _, p in each}
            learning = [p for p in gradients.optimized(training.optimizer) if p.requires_grad]
            self._watched = [p for p in learning if id(p) not in inside] or learning
            self._end = BackwardEnd(self._watched, self._note)

    def remove(self) -> None:
        """Take all hooks off the parameters."""
        if self._end is not None:
            self._end.remove()

    def ratio(self) -> Tensor | None:
        """Return the scale of the gradients that stand over that after the backward, 0-dim; ``None``: not known."""
        after, now = self._after, self._largest()
        if after is None or now is None:
            return None
        ratio = now / after
        return torch.where(ratio.isfinite() & (ratio > 0), ratio, 1.0)

    def _note(self) -> None:
        with torch.no_grad():
            self._after = self._largest()

    def _largest(self) -> Tensor | None:
        values = gradients.all_values([p for p in self._watched if p.grad is not None])
        values = [each for each in values if each.numel()]
        if not values:
            return None
        norms = torch._foreach_norm(values, torch.inf)
        return torch.stack([each.to(values[0].device, torch.float64) for each in norms]).amax()


def require_recorded(terms: Iterable[Term]) -> None:
    """Raise a ConfigError for features from parts that run again in the backward: the graph hides their parameters."""
    for term in terms:
        if is_reentrant(term.feature, since=0):
            raise ConfigError(
                "Activation checkpointing should be of the kind `use_reentrant=False` where a method takes gradients "
                f"of single loss terms. Found the other kind in the encoder of {term.modality!r}."
            )


def require_whole(parameters: Iterable[tuple[str, Tensor]]) -> None:
    """Raise a ConfigError for parameters that `fully_shard` shards: their gradients exist in its own backward alone."""
    for name, parameter in parameters:
        if sharding.is_sharded(parameter):
            raise ConfigError(
                "The parameters of encoders should be whole where a method takes gradients of single loss terms. "
                f"Found {name!r}, which `fully_shard` shards: train with DistributedDataParallel instead."
            )
