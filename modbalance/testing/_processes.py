"""Runs a function on several ranks: one process each, joined by gloo."""

from __future__ import annotations

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

LIMIT = timedelta(seconds=120)
PRELOADED = ("torch", "torch._dynamo", "modbalance.testing")
"""Modules that every rank imports: DDP needs `torch._dynamo`."""


def on_ranks(function: Callable[..., Any], *arguments: Any, ranks: int = 2, preload: Sequence[str] = ()) -> list[Any]:
    """Return what ``function(rank, *arguments)`` returns on each rank: tensors, numbers, strings, and containers.

    Args:
        function: A function of a module that can be imported.
        arguments: Its further arguments, which can be pickled.
        ranks: Number of processes.
        preload: Modules that the processes import once for all.

    Raises:
        RuntimeError: A rank failed or hung; the message holds the traceback of each that did.
    """
    # A server that has imported once what ranks need forks them: no threads are copied.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*PRELOADED, *preload])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = [
            context.Process(target=_rank, args=(rank, ranks, folder, function, arguments), daemon=True)
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        _wait(processes, folder)
        errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
        hung = [str(rank) for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
            process.join()
        if hung and not errors:
            errors.append(f"rank {' and '.join(hung)} did not end within {LIMIT.seconds} s")
        missing = [rank for rank in range(ranks) if not (folder / f"result-{rank}").exists()]
        if errors or missing:
            raise RuntimeError("\n".join(errors) or f"no result from ranks {missing}")
        return [torch.load(folder / f"result-{rank}", weights_only=True) for rank in range(ranks)]


def _wait(processes: list[Any], folder: Path) -> None:
    """Wait for all ranks; where one failed, the others, which may wait for it, get a second more."""
    deadline = time.monotonic() + LIMIT.seconds
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(folder.glob("error-*")):
            deadline = min(deadline, time.monotonic() + 1)
        time.sleep(0.01)


def _rank(rank: int, ranks: int, folder: Path, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        torch.set_num_threads(1)
        store = dist.FileStore(str(folder / "store"), ranks)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks, timeout=LIMIT)
        torch.save(function(rank, *arguments), folder / f"part-{rank}")
        dist.barrier()
        dist.destroy_process_group()
        (folder / f"part-{rank}").rename(folder / f"result-{rank}")
    except BaseException:
        (folder / f"error-{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
