"""The initialisation that the OGM-GE authors apply to the whole model."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draw every weight of ``model`` anew, in place.

    Linear: Xavier normal, bias 0. Convolution: Kaiming normal by fan-out. BatchNorm: weight 1, bias 0.
    This is the second of the paper's two passes; it overwrites all that the first one, in the constructors, has drawn.
    """
    model.apply(_initialise_layer)


def _initialise_layer(layer: nn.Module) -> None:
    if isinstance(layer, nn.Linear):
        nn.init.xavier_normal_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    elif isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(layer, nn.BatchNorm2d):
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
