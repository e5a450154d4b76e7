"""The head that all modalities share: a module for user models, and the checks of one that is given."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modbalance import Batch, ConfigError, Run
from modbalance.sharding import is_sharded

_FIX = (
    "let one head classify each modality alone, as `modbalance_mla.SharedHead(nn.Linear(D, classes))` in the place of "
    "the fusion, or name such a module in `head=`"
)


class SharedHead(nn.Module):
    """Late fusion by one head for all modalities: the weighted sum of the logits that it gives for each feature.

    Args:
        head: From a feature (B, ..., D), of the same width D for all modalities, to logits.
        weights: Weight of each modality, in order; ``None``: their mean.
    """

    def __init__(self, head: nn.Module, weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.head = head
        self.weights = None if weights is None else tuple(weights)

    def forward(self, *features: Tensor) -> Tensor:
        """Return the fused logits of features, one per modality.

        Raises:
            ConfigError: There are other numbers of weights and features.
        """
        if self.weights is not None and len(self.weights) != len(features):
            raise ConfigError(
                f"`SharedHead` should have a weight for each of {len(features)} features. Found {len(self.weights)} in "
                "`weights=`: give one per modality, or leave it out."
            )
        weights = self.weights or [1 / len(features)] * len(features)
        terms = [w * self.head(z) for w, z in zip(weights, features, strict=True)]
        return functools.reduce(torch.add, terms)


def find_head(run: Run, path: str | nn.Module | None) -> nn.Module:
    """Return the module from one feature to logits.

    Raises:
        ConfigError: None is named and the fusion has several layers, or the head reads all features together; or an
            encoder shares a parameter with the head or with another encoder; or the fusion trains others.
    """
    head = _sole_layer(run) if path is None else run.module(path, "Option `head` of method `mla`")
    encoders = {id(p) for m in run.modalities for _, p in run.encoder_parameters(m)}
    if any(id(p) in encoders for p in head.parameters()):
        raise ConfigError(
            f"The head of method `mla` should be no part of an encoder. Found {type(head).__name__}, which is: {_FIX}."
        )
    _check_sole(run, head, encoders)
    return head


def _check_sole(run: Run, head: nn.Module, encoders: set[int]) -> None:
    """Raise a ConfigError where the fusion trains parameters outside of the head, which no loss of `mla` reaches."""
    trained = {id(p) for p in run.optimized_parameters() if p.requires_grad}
    others = trained - encoders - {id(p) for p in head.parameters()}
    names = [name for each in run.fusion_modules for name, p in each.named_parameters() if id(p) in others]
    if names:
        raise ConfigError(
            "The fusion should train nothing but the head with method `mla`, which takes the loss of the head on each "
            f"feature alone. Found {names}, which would never change: move these into the head or the encoders, or "
            f"freeze them; {_FIX}."
        )


def check_inputs(head: nn.Module, batch: Batch) -> None:
    """Raise a ConfigError unless the fusion calls the head on each feature as it is, in order.

    The fusion runs once more, on copies: tensors are compared by identity and by the count of writes, not by value.
    """
    if not any(module is head for each in batch.run.fusion_modules for module in each.modules()):
        return
    copies = {name: z.detach().clone() for name, z in batch.features.items()}
    entered: list[list[tuple[Tensor, int]]] = []

    def record(_: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        entered.append([(x, x._version) for x in [*args, *kwargs.values()] if isinstance(x, Tensor)])

    versions = [z._version for z in copies.values()]
    handle = head.register_forward_pre_hook(record, with_kwargs=True)
    try:
        # Compiled code may have been made without the hook.
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            batch.fuse(copies)
    finally:
        handle.remove()
    expected = zip(entered, copies.values(), versions, strict=False)
    is_each = all([(id(x), v) for x, v in found] == [(id(z), w)] for found, z, w in expected)
    if len(entered) != len(copies) or not is_each:
        raise ConfigError(
            f"The fusion should call the head of method `mla` on the feature of each of {list(copies)}, as it is and "
            f"in this order. Found {len(entered)} calls of {type(head).__name__}, or features that something changes "
            f"before it, which `mla` would leave out: move that into the head or the encoders; {_FIX}."
        )


def _sole_layer(run: Run) -> nn.Module:
    layer = run.sole_fusion_layer
    if layer is None:
        found = [type(each).__name__ for each in run.fusion_modules] or "no module"
        raise ConfigError(
            f"Method `mla` needs one head for all modalities. Found {found} in `fusion=`, without a sole layer: {_FIX}."
        )
    if _reads_all(run, layer):
        raise ConfigError(
            f"Method `mla` needs one head for all modalities, which takes one feature. Found {layer}, which takes the "
            f"features of all modalities together: {_FIX}."
        )
    return layer


def last_linear(head: nn.Module) -> tuple[nn.Linear, str]:
    """Return the last linear layer of a head, whose gradient is projected, and the name of its weight in the head.

    Raises:
        ConfigError: There is none, or its weight is no parameter.
    """
    layers = [module for module in head.modules() if isinstance(module, nn.Linear)]
    names = [name for name, p in head.named_parameters() if layers and p is layers[-1].weight]
    if not names:
        raise ConfigError(
            "Option `projection` of method `mla` turns the gradient of the weight of a linear layer. Found none in "
            f"{type(head).__name__}, or one whose weight is computed: pass `projection='off'`."
        )
    return layers[-1], names[0]


def check_width(head: nn.Module, name: str, z: Tensor) -> None:
    """Raise a ConfigError for a feature that a linear head cannot take."""
    if isinstance(head, nn.Linear) and z.shape[-1] != head.in_features:
        raise ConfigError(
            f"The head of method `mla` should take the feature of each modality alone. Found {head}, and a feature of "
            f"width {z.shape[-1]} of {name!r}: {_FIX}; where widths differ, a projection belongs to the encoder."
        )


def check_logits(o: Tensor, fused: Tensor, name: str) -> None:
    """Raise a ConfigError unless the logits of a modality have the shape of the fused ones."""
    if o.shape != fused.shape:
        raise ConfigError(
            f"The head of method `mla` should give logits of the shape of the fused ones, {tuple(fused.shape)}. Found "
            f"{tuple(o.shape)} for {name!r}: name the module from one feature to logits in `head=`; in evaluation call "
            "the criterion, or `criterion.logits`, after each forward."
        )


def _reads_all(run: Run, layer: nn.Module) -> bool:
    """Return whether the fusion takes features whose widths add up to what its layer takes, tried on zeros."""
    if any(is_sharded(p) for p in layer.parameters()):
        return False
    is_map = isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    width = layer.in_channels if is_map else getattr(layer, "in_features", 0)
    count = len(run.modalities)
    if not isinstance(width, int) or width < count:
        return False
    widths = [width // count] * (count - 1) + [width - width // count * (count - 1)]
    like = next(layer.parameters())
    sizes = [8] * (like.dim() - 2) if is_map else []
    zeros = {m: like.new_zeros([2, w, *sizes]) for m, w in zip(run.modalities, widths, strict=True)}
    try:
        with torch.no_grad():
            Batch(run).fuse(zeros)
    except Exception:  # of a user's module, which may need more than features
        return False
    return True
