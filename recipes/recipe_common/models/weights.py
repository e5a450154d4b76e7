"""Weights from local torch files, and loading of ResNet-18 from them."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from recipe_common.errors import RecipeError


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read a file of weights by name, as `torch.save(model.state_dict(), path)` writes it.

    A dictionary that holds such weights as `state_dict`, and names that begin with `module.`, are accepted. Code in
    the file is never run.

    Raises:
        RecipeError: If the file cannot be read, or is no such dictionary.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise RecipeError(
            f"{path} should be weights, saved by torch",
            found=f"that it cannot be read ({reason.rstrip('.')})",
            fix="give the path of a .pth file",
        ) from error
    if isinstance(content, Mapping):
        content = content.get("state_dict", content)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise RecipeError(
            f"{path} should hold weights by name", found=type(content).__name__, fix="save model.state_dict()"
        )
    return {name.removeprefix("module."): weight for name, weight in content.items()}


def load_resnet18(trunk: nn.Module, path: Path) -> None:
    """Load weights of torchvision's ResNet-18 into the network of `resnet18_trunk`, in place.

    The classifier `fc` is ignored. A first convolution for another number of channels, such as that of optical flow,
    keeps its own weights.

    Raises:
        RecipeError: If weights are missing, unknown or of another shape.
    """
    stored = {name: value for name, value in read_state_dict(path).items() if not name.startswith("fc.")}
    first = trunk.get_submodule("conv1").state_dict(prefix="conv1.")
    if "conv1.weight" in stored and stored["conv1.weight"].shape != first["conv1.weight"].shape:
        stored |= first
    try:
        trunk.load_state_dict(stored)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise RecipeError(
            f"{path} should hold weights of torchvision's ResNet-18",
            found=f"others ({reason[:300].rstrip('.')})",
            fix="give a file of that network",
        ) from error
