"""A state that does not belong here is refused before anything is changed; one can be saved at any time."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
from torch import nn

from modbalance import BalancedOptimizer, CheckpointError, ModbalanceWarning
from support.methods import METHODS, acting
from support.optimizers import Memory, assert_same_state
from support.training import assert_same, balanced, batches, multimodal, multimodal_for, train

ON_WHOLE_BATCHES = ("mla",)
WITHOUT_STATISTICS = ("dgl", "lfm", "mla", "mmcosine", "mses", "mslr", "none", "opm", "pmr", "relearning")


@pytest.mark.parametrize("method", METHODS)
def test_within_a_step_the_state_is_that_of_the_last_whole_step(method: str) -> None:
    model, alone = multimodal_for(method), multimodal_for(method)
    first, *data = batches(model, 2 if method in ON_WHOLE_BATCHES else 3)
    for each in (model, alone):
        optimizer = balanced(each, method, **acting(method))
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        train(each, optimizer, [first], criterion)
        optimizer.zero_grad()
        whole = copy.deepcopy(optimizer.state_dict())
        for index, (inputs, target) in enumerate(data):
            (criterion(each(*inputs), target) / 2).backward()
            if each is model:
                warns = index == 0 and method not in WITHOUT_STATISTICS
                with pytest.warns(ModbalanceWarning, match="micro-batches") if warns else nullcontext():
                    assert_same_state(optimizer.state_dict(), whole)
        optimizer.step()

    assert_same(model, alone)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_of_the_step_before_are_no_reason_for_a_warning(method: str) -> None:
    """As Lightning has it, which calls the criterion before `zero_grad`, when an exception asks for a checkpoint."""
    model = multimodal_for(method)
    optimizer = balanced(model, method, **acting(method))
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    first, (inputs, target) = batches(model, 2)
    train(model, optimizer, [first], criterion)
    whole = copy.deepcopy(optimizer.state_dict())
    criterion(model(*inputs), target)
    assert_same_state(optimizer.state_dict(), whole)


def _other_method(saved: dict[str, Any]) -> None:
    saved["modbalance"]["methods"] = {"ogm_ge": {}}


def _other_version(saved: dict[str, Any]) -> None:
    saved["modbalance"]["version"] = 99


def _other_shape(saved: dict[str, Any]) -> None:
    saved["modbalance"]["shapes"][1] = [7]


def _fewer_parameters(saved: dict[str, Any]) -> None:
    del saved["modbalance"]["shapes"][-1]


def _other_declared_state(saved: dict[str, Any]) -> None:
    saved["modbalance"]["methods"]["memory"]["median"] = 0.5


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_other_method, r"methods \['memory'\]. Found \['ogm_ge'\].*same `method=`.*only the inner part"),
        (_other_version, r"format version 1. Found 99.*release of modbalance that wrote it"),
        (_other_shape, r"first difference is parameter 1: shape \(7,\) in the checkpoint, shape \(4,\) here"),
        (_fewer_parameters, r"with 10 parameters. Found one with 9.*parameter 9: none in the checkpoint"),
        (_other_declared_state, r"method `memory` should hold \['mean', 'steps'\].*Found .*median.*another version"),
    ],
)
def test_a_state_that_does_not_fit_changes_nothing(spoil: Callable[[dict[str, Any]], None], words: str) -> None:
    model = multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 2))
    kept = copy.deepcopy(optimizer.state_dict())
    foreign = copy.deepcopy(kept)
    foreign["param_groups"][0]["lr"] = 7.0
    spoil(foreign)

    with pytest.raises(CheckpointError, match=words):
        optimizer.load_state_dict(foreign)

    assert_same_state(optimizer.state_dict(), kept)


def test_an_inner_state_that_does_not_fit_changes_nothing() -> None:
    model = multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 2))
    kept = copy.deepcopy(optimizer.state_dict())
    foreign = copy.deepcopy(kept)
    foreign["modbalance"]["epoch"] = 8
    foreign["param_groups"].append(foreign["param_groups"][0])

    with pytest.raises(ValueError, match="different number of parameter groups"):
        optimizer.load_state_dict(foreign)

    assert_same_state(optimizer.state_dict(), kept)


@pytest.mark.parametrize("key", ["version", "shapes", "epoch", "started_epoch", "steps", "unimodal", "methods"])
def test_a_state_that_lacks_something_changes_nothing(key: str) -> None:
    model = multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 2))
    kept = copy.deepcopy(optimizer.state_dict())
    foreign = copy.deepcopy(kept)
    foreign["param_groups"][0]["lr"] = 7.0
    foreign["modbalance"]["methods"]["memory"]["steps"] = 9
    foreign["modbalance"]["steps"] = 9
    del foreign["modbalance"][key]

    with pytest.raises(CheckpointError, match=f"{key}.*Found"):
        optimizer.load_state_dict(foreign)

    assert_same_state(optimizer.state_dict(), kept)


@pytest.mark.filterwarnings("ignore:`param_filter:modbalance.ModbalanceWarning")
@pytest.mark.parametrize(("saved", "loaded"), [("ogm", "none"), ("none", "ogm"), ("ogm", ["ogm", "ogm_ge"])])
def test_a_state_of_other_methods_is_refused(saved: str, loaded: Any) -> None:
    model, other = multimodal(), multimodal()
    state = balanced(model, saved).state_dict()
    optimizer = balanced(other, loaded)

    with pytest.raises(CheckpointError, match=rf"should be of the methods .*Found \['{saved}'\]"):
        optimizer.load_state_dict(state)
    optimizer.load_state_dict({key: value for key, value in state.items() if key != "modbalance"} | _own(optimizer))


def _own(optimizer: BalancedOptimizer) -> dict[str, Any]:
    return {"modbalance": optimizer.state_dict()["modbalance"]}
