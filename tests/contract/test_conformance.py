"""Every built-in method, with options of each kind, keeps every rule of `modbalance.testing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from modbalance import list_methods
from modbalance.testing import Check, checks_for

pytestmark = pytest.mark.slow

Options = Mapping[str, Any]
OPTIONS: dict[str, list[Options]] = {
    "agm": [
        {},
        {"preset": "paper"},
        {"coalitions": "full", "masked_pass_grad": False},
        {"coalitions": "joined"},
        {"recompute": True},
    ],
    "cggm": [{}, {"preset": "paper", "coeff_clip": (0.0, 2.0)}, {"probes": "transformer"}],
    "dgl": [{}, {"detach_at": "projected"}],
    "inforeg": [{}, {"against": "best", "window_of": "each", "gap": "mean", "window": 1, "threshold": 0.3}],
    "lfm": [
        {},
        {"divergence": "js", "pairs": "mean", "fused": "model"},
        {"alpha": "learned", "alpha_lr": 1.0, "alpha_start": 0.6},
        {"alpha": "heuristic", "alpha_clip": (0.1, 0.9)},
    ],
    "mla": [
        {},
        {"projection": "elementwise", "steps_per_epoch": 2, "idle": "coast", "eval_weights": "batch_entropy"},
        {"projection": "rls", "eval_weights": "sample_entropy"},
    ],
    "mmcosine": [{}, {"eval_logits": "cosine", "nce": 0.5}],
    "mmpareto": [{}, {"heads": "slice", "rescale": "encoder", "gamma": 1.0}],
    "mses": [{"patience": 0}, {"patience": 0, "preset": "paper"}],
    "mslr": [{"memory": 1}, {"memory": 1, "preset": "paper"}],
    "ogm": [{}, {"preset": "paper", "ratio": "min"}],
    "ogm_ge": [{}, {"preset": "paper", "noise_source": "modulated"}],
    "opm": [{}, {"theta_gradient": False, "ratio": "min", "p_exe": 1.0}],
    "pmr": [{"fraction": 1.0}, {"fraction": 1.0, "preset": "paper"}],
    "relearning": [{"period": 1, "n_init": 1}],
}
"""Options with which a method acts in four epochs of two steps."""


BUILT_IN = [listing.name for listing in list_methods() if listing.distribution == "modbalance"]


def checks() -> list[Check]:
    cases = [(name, options) for name, each in OPTIONS.items() for options in each]
    return [check for name, options in cases for check in checks_for(name, options=options)]


def test_options_are_listed_of_every_built_in_method() -> None:
    assert sorted(OPTIONS) == BUILT_IN


@pytest.mark.parametrize("check", checks(), ids=repr)
def test_a_built_in_method_keeps_the_rule(check: Check) -> None:
    check()
