"""CUDA graphs: what cannot be part of one is refused while it is captured."""

from __future__ import annotations

import torch

from modbalance.errors import CaptureError


def refuse_in_capture(found: str) -> None:
    """Raise a CaptureError if the current CUDA stream is being captured.

    Args:
        found: What every replay of the graph would repeat, or what a graph cannot hold.
    """
    is_used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    if is_used and torch.cuda.is_current_stream_capturing():
        raise CaptureError(
            f"A step in a CUDA graph should be the same work on other values each time. Found {found}: take these "
            "steps without a graph, or capture the forward and the backward of the model alone."
        )
