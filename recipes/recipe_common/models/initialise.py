"""Initialisation of all weights of a model, as in the code of Peng et al. (CVPR 2022)."""

from __future__ import annotations

from torch import nn


def initialise(model: nn.Module) -> None:
    """Draw every weight of ``model`` anew, in place.

    Linear: Xavier normal, bias 0. Convolution: Kaiming normal by fan-out. BatchNorm: weight 1, bias 0.
    The authors' constructors initialise, too; this second pass overwrites all of it.
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
