"""Counts the operations that are dispatched, which repeat exactly where times do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

READS = {"aten._local_scalar_dense.default", "aten.item.default", "aten.is_nonzero.default", "aten.nonzero.default"}
"""Operations that read a tensor on the host."""


class CountOps(TorchDispatchMode):
    """Counts aten operations by name, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if not func.is_view:
            self.ops[str(func)] += 1
        return func(*args, **(kwargs or {}))
