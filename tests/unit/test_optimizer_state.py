"""State of a BalancedOptimizer in state dicts, files, deep copies and pickles, bit for bit."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR
from torch.optim.swa_utils import AveragedModel

from modbalance import BalancedOptimizer, ModbalanceWarning
from support.models import AudioVisual
from support.optimizers import INNER, Memory, assert_same_state, inner_of, model_free, wrap
from support.training import assert_same, audio_visual, balanced, batches, multimodal, train, weights

METHODS: dict[str, Any] = {"none": "none", "ogm_ge": "ogm_ge", "memory": Memory(decay=0.5)}
over_all = pytest.mark.parametrize("name", INNER)
over_methods = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)


def _pickled(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


over_copies = pytest.mark.parametrize("copied", [copy.deepcopy, _pickled], ids=["deepcopy", "pickle"])


def _reloaded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    torch.save(state, folder / "state.pt")
    loaded: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True)
    return loaded


# State dicts


@over_all
@over_methods
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(name: str, method: Any, tmp_path: Path) -> None:
    model, resumed = multimodal(), multimodal(seed=9)
    optimizer = wrap(model, name, method)
    train(model, optimizer, batches(model, 3))
    optimizer.end_epoch()

    other = wrap(resumed, name, method)
    other.load_state_dict(_reloaded(optimizer.state_dict(), tmp_path))
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))

    assert other.epoch == 1
    rest = batches(model, 3, seed=2)
    assert_same(train(resumed, other, rest), train(model, optimizer, rest))
    assert_same_state(other.state_dict(), optimizer.state_dict())


def test_a_state_with_averages_matters_for_the_rest_of_the_run() -> None:
    """The twin of the test above: without the state of the method the two runs do differ."""
    model, resumed = multimodal(), multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 3))

    other = balanced(resumed, Memory())
    with pytest.warns(ModbalanceWarning):
        other.load_state_dict(copy.deepcopy(inner_of(optimizer).state_dict()))
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    rest = batches(model, 1, seed=2)
    train(resumed, other, rest)
    train(model, optimizer, rest)

    assert not torch.equal(weights(resumed)["encoders.a.0.weight"], weights(model)["encoders.a.0.weight"])


def test_the_state_is_that_of_torch_plus_one_key() -> None:
    model = multimodal()
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))

    saved = optimizer.state_dict()

    assert set(saved) == {"state", "param_groups", "modbalance"}
    assert_same_state({k: saved[k] for k in ("state", "param_groups")}, inner_of(optimizer).state_dict())
    assert inner_of(balanced(multimodal(), "none")).load_state_dict(saved) is None


def test_a_plain_inner_state_loads_with_a_warning() -> None:
    model, other = multimodal(), multimodal()
    plain = INNER["SGD"](model.parameters())
    train(model, plain, batches(model, 2))
    optimizer = balanced(other)
    optimizer.epoch = 3

    with pytest.warns(ModbalanceWarning, match=r"holds nothing of modbalance.*inner optimizer is restored") as given:
        optimizer.load_state_dict(plain.state_dict())

    assert len(given) == 1
    assert given[0].filename == __file__
    assert_same_state(inner_of(optimizer).state_dict(), plain.state_dict())


def test_without_a_method_a_plain_inner_state_loads_silently() -> None:
    model, other = multimodal(), multimodal()
    plain = INNER["SGD"](model.parameters())
    train(model, plain, batches(model, 2))
    optimizer = balanced(other, "none")

    optimizer.load_state_dict(plain.state_dict())

    assert_same_state(inner_of(optimizer).state_dict(), plain.state_dict())


def test_the_key_of_modbalance_alone_leaves_the_inner_optimizer_as_it_is() -> None:
    model, other = multimodal(), multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 3))
    optimizer.epoch = 4
    target = balanced(other, Memory())
    train(other, target, batches(other, 1, seed=5))
    kept = copy.deepcopy(inner_of(target).state_dict())

    target.load_state_dict({"modbalance": optimizer.state_dict()["modbalance"]})

    assert_same_state(inner_of(target).state_dict(), kept)
    assert target.epoch == 4
    ours, theirs = target.state_dict()["modbalance"], optimizer.state_dict()["modbalance"]
    assert_same_state(ours, theirs)


def test_a_saved_state_does_not_move_with_the_run() -> None:
    model = multimodal()
    optimizer = balanced(model, Memory())
    train(model, optimizer, batches(model, 2))
    saved = optimizer.state_dict()["modbalance"]
    kept = copy.deepcopy(saved)

    train(model, optimizer, batches(model, 2, seed=2))

    assert_same_state(saved, kept)
    assert optimizer.state_dict()["modbalance"]["steps"] == 4


# Copies


@over_all
@over_methods
@over_copies
def test_a_copy_goes_on_as_the_original(name: str, method: Any, copied: Callable[[Any], Any]) -> None:
    model = multimodal()
    optimizer = wrap(model, name, method)
    train(model, optimizer, batches(model, 2))

    twin, other = copied((model, optimizer))
    rest = batches(model, 2, seed=2)
    before = weights(twin)
    train(model, optimizer, rest)
    assert_same(twin, before)
    train(twin, other, rest)

    assert_same(twin, model)
    assert other.metrics() == optimizer.metrics()
    assert_same_state(other.state_dict(), optimizer.state_dict())


@over_copies
def test_a_copy_made_with_its_scheduler_and_criterion_goes_on_as_the_original(copied: Callable[[Any], Any]) -> None:
    model = multimodal()
    optimizer = balanced(model, "ogm_ge")
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    scheduler = StepLR(optimizer, 1, gamma=0.5)
    train(model, optimizer, batches(model, 2), criterion)
    scheduler.step()

    copies = copied((model, optimizer, scheduler, criterion))
    rest = batches(model, 2, seed=2)
    for each, its_optimizer, its_scheduler, its_criterion in ((model, optimizer, scheduler, criterion), copies):
        train(each, its_optimizer, rest[:1], its_criterion)
        its_scheduler.step()
        train(each, its_optimizer, rest[1:], its_criterion)

    assert_same(copies[0], model)
    assert copies[1].param_groups[0]["lr"] == optimizer.param_groups[0]["lr"] == 0.025
    assert copies[1].metrics() == optimizer.metrics()


@over_copies
def test_a_copy_without_a_model_goes_on_as_the_original(copied: Callable[[Any], Any]) -> None:
    model = multimodal()
    optimizer = model_free(model)
    twin, other = copied((model, optimizer))
    inputs, target = batches(model, 1)[0]

    for each, its_optimizer in ((model, optimizer), (twin, other)):
        criterion = its_optimizer.criterion(nn.CrossEntropyLoss())
        given = {name: x[:, :3] for name, x in zip("ab", inputs, strict=True)}
        criterion(each(*inputs), target, unimodal_logits=given).backward()
        its_optimizer.step()

    assert_same(twin, model)
    assert other.metrics() == optimizer.metrics()


def test_copying_leaves_the_class_and_later_optimizers_alone() -> None:
    step = BalancedOptimizer.step
    model, later = multimodal(), multimodal()

    copy.deepcopy(balanced(model))

    assert BalancedOptimizer.step is step
    train(later, balanced(later), batches(later, 1))


def test_a_copy_in_the_middle_of_a_step_begins_that_step_anew() -> None:
    model = multimodal()
    optimizer = balanced(model)
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()

    twin, other = copy.deepcopy((model, optimizer))

    assert other.state_dict()["modbalance"]["steps"] == 0
    rest = batches(model, 1, seed=2)
    fresh = multimodal()
    assert_same(train(twin, other, rest), train(fresh, balanced(fresh), rest))


@pytest.mark.parametrize("make", [multimodal, audio_visual])
def test_a_copied_model_carries_inert_hooks(make: Callable[[], nn.Module]) -> None:
    model, alone = make(), make()
    optimizer, reference = balanced(model), balanced(alone)
    averaged, pickled = AveragedModel(model), _pickled(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    criterion, expected = (each.criterion(nn.CrossEntropyLoss()) for each in (optimizer, reference))

    for inputs, target in batches(model, 3):
        for each, its_optimizer, its_criterion in ((model, optimizer, criterion), (alone, reference, expected)):
            its_optimizer.zero_grad()
            output = each(*inputs)
            if each is model:  # forwards of copies between that of the model and its criterion
                averaged(*inputs)
                pickled(*(2 * x for x in inputs))
            its_criterion(output, target).backward()
            its_optimizer.step()
        averaged.update_parameters(model)

    assert_same(model, alone)
    assert optimizer.metrics() == reference.metrics()


def test_removed_hooks_leave_a_plain_model_and_a_plain_optimizer() -> None:
    model, plain = audio_visual(), audio_visual()
    optimizer = balanced(model)
    optimizer.remove()

    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    assert sum(hooks) == 0
    assert isinstance(model, AudioVisual)
    train(plain, INNER["SGD"](plain.parameters()), batches(plain, 2))
    assert_same(train(model, optimizer, batches(model, 2)), plain)
