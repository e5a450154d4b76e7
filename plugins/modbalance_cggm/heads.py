"""Which weight CGGM compares its probes with: the whole head's, or each modality's slice of it."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from modbalance import ConfigError, Run

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
Sizes = dict[str, int]


def weight_of(layer: nn.Module) -> nn.Parameter:
    """Return the weight of a linear or convolutional layer."""
    assert isinstance(layer.weight, nn.Parameter)
    return layer.weight


def matrix(layer: nn.Module) -> Tensor:
    """Return the weight of a layer as a matrix, (C, K), a view."""
    return weight_of(layer).flatten(1)


def last_layer(module: nn.Module, what: str) -> nn.Module:
    """Return the last linear or convolutional layer of a module, in order of registration."""
    layers = [each for each in module.modules() if isinstance(each, LAYERS)]
    if not layers:
        raise ConfigError(f"{what} should hold an nn.Linear or a convolution. Found none in {type(module).__name__}.")
    return layers[-1]


def find_head(run: Run, head: str | nn.Module | None) -> nn.Module:
    """Return the layer that `head` names, or the last layer of the fusion."""
    if head is not None:
        return last_layer(run.module(head, "Option `head`"), "Option `head`")
    if not run.fusion_modules:
        raise ConfigError(
            "Method `cggm` compares its probes with the weight of the head, and looks for it in `fusion=`. Found no "
            "module there: pass the layer as `head=` (a path or a module), or `lam=0` for no comparison."
        )
    return last_layer(nn.ModuleList(run.fusion_modules), "The fusion")


def reads_concatenation(run: Run, head: nn.Module, width: int) -> bool:
    """Whether the head is linear over the concatenated features, ``width`` wide together."""
    is_alone = run.sole_fusion_layer is head or (not run.fusion_modules and isinstance(head, nn.Linear))
    return is_alone and matrix(head).shape[1] == width


def slices(run: Run, head: nn.Module, probes: Mapping[str, nn.Module], sizes: Sizes) -> Sizes:
    """Return the columns of the head's weight by modality, or nothing where probes are compared with all of it.

    Args:
        run: The run.
        head: The layer that probes are compared with.
        probes: Last layer of the probe of each modality.
        sizes: Size of each modality's feature; empty where it is not known yet.

    Raises:
        ConfigError: The shapes differ.
    """
    shapes = {name: matrix(layer).shape for name, layer in probes.items()}
    ours = matrix(head).shape
    if all(shape == ours for shape in shapes.values()):
        return {}
    columns = sizes or {name: shape[1] for name, shape in shapes.items()}
    parts = {name: (ours[0], columns[name]) for name in shapes}
    if reads_concatenation(run, head, sum(columns.values())) and shapes == parts:
        return columns
    raise ConfigError(
        f"The last layer of each probe should have a weight of the head's shape, {tuple(ours)}, or of its modality's "
        f"slice of a head that is linear over the concatenated features. Found "
        f"{ {name: tuple(shape) for name, shape in shapes.items()} }. Ways out: probes of that shape "
        "(`probes='mlp'` makes them, or pass modules or a factory), another layer as `head=`, or `lam=0` for no "
        "comparison."
    )
