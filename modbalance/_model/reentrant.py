"""Reentrant activation checkpointing: parts of a forward that run again in the backward, found in the graph.

The other kind of torch works by hooks on saved tensors, which can be forbidden while a pass runs. This one leaves a
node.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def next_number(like: Tensor) -> int:
    """Return a number that is larger than those of the nodes so far, and smaller than those of later ones.

    Args:
        like: A tensor of the device of the graph.
    """
    with torch.enable_grad():
        node: Any = torch.zeros((), device=like.device, requires_grad=True).clone().grad_fn
    number: int = node._sequence_nr()
    return number


def is_reentrant(output: Tensor, since: int) -> bool:
    """Return whether a part of the graph of ``output`` runs again in the backward; older nodes are not looked at.

    Args:
        output: A tensor with graph, or without.
        since: What `next_number` returned before the pass.
    """
    waiting: list[Any] = [output.grad_fn]
    seen = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen or _is_older(node, since):
            continue
        if node.name() == "CheckpointFunctionBackward":
            return True
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
    return False


def _is_older(node: Any, since: int) -> bool:
    # Nodes that add up gradients of a parameter have the largest number of all, and end the graph.
    return bool(node._sequence_nr() < since) or node.name() == "torch::autograd::AccumulateGrad"
