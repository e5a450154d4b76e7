"""Parallel work in several processes, and a progress bar."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from recipe_common.errors import RecipeError

Item = TypeVar("Item")
Result = TypeVar("Result")

SPEED_PERIOD = 600.0
"""Seconds over which the speed is averaged: one item may take minutes, and the default of rich is 30 s."""


def progress_bar(*, transient: bool = False, disable: bool = False) -> Progress:
    """Return a bar with the items done, the time passed and the time left.

    Args:
        transient: Whether the bar vanishes at the end.
        disable: Whether nothing is shown.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        console=Console(quiet=True) if disable else None,  # rich 13.7 ends a disabled bar with an empty line
        speed_estimate_period=SPEED_PERIOD,
        transient=transient,
        disable=disable,
    )


def in_processes(
    work: Callable[[Item], Result], items: Sequence[Item], workers: int, flag: str
) -> Iterator[tuple[Item, Result]]:
    """Yield each item with its result of `work`, in the order in which they finish.

    Args:
        work: Function that each item is passed to; picklable.
        items: The items; picklable.
        workers: Number of processes.
        flag: Command-line flag of `workers`, for the message.

    Raises:
        RecipeError: If a process is killed.
    """
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(work, item): item for item in items}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise RecipeError(
                "Worker processes should finish",
                found="one that was killed (no memory, or a crash in a decoder)",
                fix=f"start again, it continues; lower `{flag}` if memory is short",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """End this worker when its parent is killed (it would wait for work for ever), and without a trace on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
