"""Upper limits of a step's cost that repeat exactly: operations that a method adds, Python calls per parameter."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from types import FrameType

import pytest

from bench.measure import operations
from bench.models import WORKLOADS, Step, bare_step, method_step
from support.methods import AUDIO_VISUAL, METHODS, acting

TENSORS = 302 - 10  # more of them in `vit` than in `mlp`


def calls(step: Step, counts: Callable[[str], bool]) -> int:
    """Return the number of calls of Python functions in a step, of files that count."""
    seen: Counter[str] = Counter()

    def note(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            seen[frame.f_code.co_filename] += 1

    for _ in range(2):
        step()
    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step()
    finally:
        sys.setprofile(before)
    return sum(number for file, number in seen.items() if counts(file))


def _is_step_code(file: str) -> bool:
    return "modbalance" in file and ("_model" not in file or file.endswith("ownership.py"))


def added_calls(method: str, workload: str) -> int:
    # A method that runs the encoders again looks at their modules and calls them: no cost per parameter. One that takes
    # gradients by them has `torch.autograd.grad` look at each, in two calls of torch.
    counts: Callable[[str], bool] = _is_step_code if method in ("agm", "mmpareto") else lambda file: True
    ours = method_step(WORKLOADS[workload], method, **acting(method, AUDIO_VISUAL, convolutions=False))
    return calls(ours, counts) - calls(bare_step(WORKLOADS[workload]), counts)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_step_takes_at_most_one_python_call_per_parameter(method: str) -> None:
    assert added_calls(method, "vit") - added_calls(method, "mlp") <= TENSORS


@pytest.mark.parametrize(
    ("method", "workload", "limit"),
    [
        ("none", "mlp", 0),
        ("ogm", "mlp", 36),
        ("ogm_ge", "mlp", 61),
        ("ogm_ge", "vit", 650),
        ("cggm", "mlp", 97),
        ("dgl", "mlp", 39),
        ("mslr", "mlp", 11),
        ("mses", "mlp", 11),
        ("agm", "mlp", 123),
        ("inforeg", "mlp", 100),
        ("lfm", "mlp", 64),
        ("mla", "mlp", 53),
        ("mmcosine", "mlp", 83),
        ("mmpareto", "mlp", 261),
        ("opm", "mlp", 112),
        ("pmr", "mlp", 83),
        ("relearning", "mlp", 0),
    ],
)
def test_a_method_adds_few_operations(method: str, workload: str, limit: int) -> None:
    ours = method_step(WORKLOADS[workload], method, **acting(method, AUDIO_VISUAL, convolutions=False))
    assert operations(ours) - operations(bare_step(WORKLOADS[workload])) <= limit
