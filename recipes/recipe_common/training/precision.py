"""Device, number format and determinism of a run."""

from __future__ import annotations

import gc
from pathlib import Path

import attrs
import torch
from torch.amp.grad_scaler import GradScaler

from recipe_common.errors import RecipeError
from recipe_common.settings.shared import MachineSettings
from recipe_common.training.ranks import ALONE, Ranks

_DTYPES = {"off": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@attrs.frozen
class Precision:
    """Device of the tensors and number format of the forward.

    Attributes:
        device: Device of model and batches.
        dtype: Format inside `autocast`; None switches it off.
        channels_last: Whether convolution weights are stored channels last.
    """

    device: torch.device
    dtype: torch.dtype | None
    channels_last: bool

    def autocast(self) -> torch.autocast:
        """Return the context of every forward."""
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None)

    def scaler(self) -> GradScaler:
        """Return a gradient scaler: active for fp16, else one that changes nothing."""
        return GradScaler(self.device.type, enabled=self.dtype is torch.float16)


def set_up(settings: MachineSettings, ranks: Ranks = ALONE) -> Precision:
    """Choose the device of this rank, and set threads and determinism of torch according to ``settings``.

    Raises:
        RecipeError: If the device does not exist, or does not support the number format.
    """
    device = choose_device(settings.device, ranks)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    dtype = _DTYPES[settings.amp]
    if dtype is torch.float16 and device.type != "cuda":
        raise RecipeError(
            "`--amp fp16` should go with a CUDA device", found=f"`{device}`", fix="write `--amp bf16` or `--amp off`"
        )
    if device.type == "cuda":
        if not ranks.is_alone:
            torch.cuda.set_device(device)
        torch.backends.cudnn.deterministic = settings.deterministic
        torch.backends.cudnn.benchmark = not settings.deterministic
    return Precision(device, dtype, settings.channels_last)


def choose_device(name: str, ranks: Ranks = ALONE) -> torch.device:
    """Return the device that ``--device`` names; of several ranks each has a GPU of its own.

    Raises:
        RecipeError: If there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
        if ranks.is_alone:
            return torch.device(name)
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            torch.zeros(1, device=device).item()  # torch accepts the names of many devices that do not exist
    except (RuntimeError, AssertionError) as error:
        raise RecipeError(
            "`--device` should be cpu, cuda or cuda:N", found=f"`{name}`", fix="write `--device cpu`"
        ) from error
    if device.type == "cuda" and not ranks.is_alone:
        if device.index is not None:
            raise RecipeError(
                f"`--device` should give each of the {ranks.size} processes a GPU of its own",
                found=f"`{name}`",
                fix="write `--device cuda`",
            )
        device = torch.device("cuda", ranks.local_rank)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise RecipeError(
            f"The device `{device}` should exist",
            found=f"{torch.cuda.device_count()} CUDA devices",
            fix="write `--device cpu`",
        )
    return device


def reset_peak_memory(device: torch.device) -> None:
    """Free the memory of earlier runs and reset the peak of a CUDA device; that of a process cannot be reset."""
    gc.collect()  # models and their hooks refer to each other in cycles
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device, is_alone: bool) -> float | None:
    """Return the peak memory in bytes: of the device on CUDA; else of this process, if it has trained one run only."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return _process_peak() if is_alone else None


def _process_peak() -> float | None:
    status = Path("/proc/self/status")
    if status.is_file():
        # On Linux, getrusage of a child starts at the peak of its parent.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024.0 * float(line.split()[1])
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS


def describe_device(precision: Precision) -> str:
    """Return one line about the device and the number format."""
    device = precision.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    dtype = "float32" if precision.dtype is None else f"autocast to {str(precision.dtype).removeprefix('torch.')}"
    return f"{device} ({name}), {dtype}"
