"""Checkpoints on disk: written atomically, read without running code from the file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recipe_common.errors import RecipeError
from recipe_common.files import atomic_file, room_for

FORMAT = 1
WEIGHTS = ("recipe", "settings", "classes", "row", "model")
"""Parts of every checkpoint."""
STATE = (*WEIGHTS, "optimizer", "schedule", "scaler", "sampler", "sums", "rng", "history", "best")
"""Parts of a checkpoint from which training continues."""
_FIX = "restore that file, name one that a run of this version has written, or train anew with `--overwrite`"


def save(state: dict[str, Any], path: Path) -> None:
    """Write ``state`` to ``path``; an interruption leaves the previous file untouched.

    Raises:
        RecipeError: If the disk is full.
    """
    # For a file that torch opens itself, its error does not contain that of the full disk.
    with room_for(path), atomic_file(path) as partial, partial.open("wb") as file:
        torch.save({"format": FORMAT, **_plain(state)}, file)


def _plain(value: Any) -> Any:
    """Return ``value`` with Python numbers for NumPy's, which `weights_only=True` refuses; other types as they are.

    Libraries return either: metrics of scikit-learn are NumPy scalars up to 1.6.
    """
    if isinstance(value, np.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key): _plain(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(each) for each in value)
    return value


def load(path: Path, parts: Sequence[str] = WEIGHTS) -> dict[str, Any]:
    """Read a checkpoint of a recipe onto the CPU.

    Args:
        path: The file.
        parts: Names of the parts that must be in it.

    Raises:
        RecipeError: If there is no such file, it is damaged, or it is no checkpoint of a recipe.
    """
    if not path.is_file():
        raise RecipeError(
            f"{path} should be a checkpoint",
            found="no file",
            fix="restore it, name the best.pt or last.pt in the folder of a run, or train anew with `--overwrite`",
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # an unpickler may raise any error on other bytes
        raise RecipeError(
            f"{path} should be a checkpoint of a recipe",
            found=f"that it cannot be read ({_first_line(error).rstrip('.')})",
            fix=_FIX,
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise RecipeError(f"{path} should be a checkpoint of format {FORMAT}", found=f"{found}", fix=_FIX)
    if missing := [name for name in parts if name not in state]:
        raise RecipeError(
            f"{path} should have the parts {', '.join(parts)}", found=f"it without {', '.join(missing)}", fix=_FIX
        )
    return state


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__


def rng_state(device: torch.device | None = None) -> dict[str, Any]:
    """Return the states of torch's global generators; of the generators of GPUs only that of ``device``, if given."""
    if device is not None:
        return {"cpu": torch.get_rng_state(), "cuda": _cuda_state(device)}
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def _cuda_state(device: torch.device) -> list[torch.Tensor]:
    return [torch.cuda.get_rng_state(device)] if device.type == "cuda" else []


def set_rng_state(state: dict[str, Any], device: torch.device | None = None) -> None:
    """Restore what `rng_state` returned. CUDA states are skipped on a machine with another number of devices."""
    torch.set_rng_state(state["cpu"])
    if device is not None:
        for cuda in state["cuda"] if device.type == "cuda" else []:
            torch.cuda.set_rng_state(cuda, device)
        return
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
