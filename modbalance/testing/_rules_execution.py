"""Rules on execution: host reads, compiled models, ranks."""

from __future__ import annotations

import pickle
import traceback
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from modbalance.testing._case import Case, Training, different, require_same
from modbalance.testing._processes import on_ranks
from modbalance.testing._report import RuleError
from modbalance.testing._rules import PROCESSES, rule

READING_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
READING_CALLS = {"tolist", "numpy", "cpu"}
Reads = Counter[tuple[str, str]]


@rule
def no_host_read(case: Case) -> None:
    """A step reads no tensor on the host, from the second epoch on.

    Each read makes a GPU wait for the host and the host for the GPU. Shapes that depend on values, such as those of
    `nonzero` and of boolean indices, are reads as well.
    """
    added = _reads(case.training()) - _reads(case.bare())
    if added:
        shown = "; ".join(f"{name} in {where}" for name, where in list(added)[:3])
        raise RuleError(
            "no read in criterion, backward and step",
            shown,
            "branch by `torch.where`, keep numbers as 0-dim tensors, and log with `run.log`",
        )


def _reads(training: Training) -> Reads:
    """Return the reads of the steps in the second epoch, by operation and place."""
    data = training.data()
    training.run(data, stop=2)
    seen: Reads = Counter()
    with Calls(seen), Operations(seen):
        for batch in data[2:4]:
            training.step(batch)
    return seen


class Operations(TorchDispatchMode):
    """Counts dispatched operations whose result, or its shape, is read on the host."""

    def __init__(self, seen: Reads) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen = seen

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the operation and run it."""
        if READING_TAGS & set(func.tags) and (func is not torch.ops.aten.index.Tensor or _has_mask(args[1])):
            self.seen[str(func), _place()] += 1
        return func(*args, **(kwargs or {}))


class Calls(TorchFunctionMode):
    """Counts calls that copy a tensor to the host without such an operation."""

    def __init__(self, seen: Reads) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Count the call and make it."""
        if getattr(func, "__name__", "") in READING_CALLS:
            self.seen[f"Tensor.{func.__name__}", _place()] += 1
        return func(*args, **(kwargs or {}))


def _has_mask(indices: Sequence[Tensor | None]) -> bool:
    return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)


def _place() -> str:
    """Return the innermost line outside of torch, pluggy and modbalance; of modbalance where there is none."""
    frames = traceback.extract_stack()
    core = str(Path(__file__).parents[1]) + "/"
    outer = [each for each in frames if not any(part in each.filename for part in ("/torch/", "/pluggy/"))]
    own = [each for each in outer if not each.filename.startswith(core)]
    inside = [each for each in outer if each.filename.startswith(core) and "/testing/" not in each.filename]
    # The caller of the checks stands outside of modbalance, too, but above it in the stack.
    last = own[-1] if own and inside and frames.index(own[-1]) > frames.index(inside[0]) else (inside or outer)[-1]
    return f"{Path(last.filename).name}:{last.lineno}, {last.name}"


@rule
def compilation(case: Case) -> None:
    """A model compiled by `torch.compile` trains as the eager one, in one graph.

    Hooks that fire in the forward are traced with it; what cannot be traced breaks the graph.
    """
    eager = case.training().run()
    with warnings.catch_warnings():
        # Of torch about the interpreter; where warnings are errors, it would pass for one of the method.
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0", RuntimeWarning)
        try:
            compiled = case.training(wrap=lambda model: torch.compile(model, backend="eager", fullgraph=True)).run()
        finally:
            torch.compiler.reset()
    require_same(
        compiled.weights(),
        eager.weights(),
        "the weights of the eager training, to 1e-5",
        "keep `modbalance_inputs` and `modbalance_features` to tensor operations",
        1e-5,
    )


@rule
def equal_ranks(case: Case) -> None:
    """On two ranks that see different samples, weights and state stay equal, bit for bit.

    DistributedDataParallel averages gradients before the method sees them: a coefficient from the samples of one rank
    makes the models drift apart, without an error.
    """
    one, two = _on_two_ranks(case)
    fix = "build coefficients from `step.stats` or `run.sums`, and draw from `step.generator`, which are equal on ranks"
    require_same(two["weights"], one["weights"], "on rank 1 the weights of rank 0", fix)
    require_same(two["state"], one["state"], "on rank 1 the state of rank 0", fix)
    if not different(one["weights"], case.training().weights()):
        raise RuleError("weights that were trained", "those of the first step", "let the method train on ranks")


PROCESSES.add("equal_ranks")
IMPORTABLE = (
    "define the method, and functions among its options, in a module; in a script, put the call of the checks under "
    '`if __name__ == "__main__":`; or leave this rule out, `processes=False`'
)


def _on_two_ranks(case: Case) -> list[Any]:
    """Return the results of both ranks, or raise a RuleError where they cannot be had."""
    try:
        pickle.dumps(case)
    except Exception as error:
        raise RuleError("a method that processes can import", f"{type(error).__name__}: {error}", IMPORTABLE) from error
    try:
        return on_ranks(train_on_rank, case)
    except RuntimeError as error:
        # The second comes from a process that runs an unguarded script once more.
        is_lost = str(error).startswith("no result") or "start a new process" in str(error)
        fix = IMPORTABLE if is_lost else "look at the traceback of the rank"
        raise RuleError("a training of two processes", str(error), fix) from error


def train_on_rank(rank: int, case: Case) -> dict[str, Any]:
    """Train on the samples of a rank, and return weights and state."""
    training = case.training(wrap=DistributedDataParallel)
    data = [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in training.data(size=8)]
    training.run(data)
    return {"weights": training.weights(), "state": training.saved()["methods"]}
