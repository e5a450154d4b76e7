"""Auxiliary modules, isolated random numbers, and samples that lack a modality."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from modbalance import Batch, ConfigError, Run
from modbalance.auxiliary import Auxiliary, batch_rng, isolated_rng
from modbalance.scores import row_mask
from support.training import assert_same, balanced, multimodal

CPU = torch.device("cpu")


def run_of(names: str = "ab") -> Run:
    return balanced(multimodal(names), "none")._lifecycle.run


def probe(name: str) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def adam(parameters: Iterable[Tensor]) -> Optimizer:
    return Adam(parameters, lr=0.1)


def built(make: Callable[[str], nn.Module] = probe) -> Auxiliary:
    return Auxiliary.build(run_of(), make, adam)


def stepped(auxiliary: Auxiliary, steps: int = 2) -> Auxiliary:
    for step in range(steps):
        for module in auxiliary.modules.values():
            module(torch.full((2, 4), float(step)) + torch.eye(2, 4)).square().sum().backward()
        auxiliary.optimizer.step()
        auxiliary.optimizer.zero_grad()
    return auxiliary


# Random numbers


def test_an_isolated_stream_leaves_the_users_alone_and_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    with isolated_rng(CPU, 7):
        first = torch.rand(3)
    untouched = torch.rand(3)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(3), untouched)
    with isolated_rng(CPU, 7):
        assert torch.equal(torch.rand(3), first)
    with isolated_rng(CPU, 8):
        assert not torch.equal(torch.rand(3), first)


def test_without_a_seed_the_stream_goes_on_inside_and_is_restored() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with isolated_rng(CPU):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)


def test_a_stream_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), isolated_rng(CPU, 7):
        torch.rand(len([0]) // 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.cuda
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_stream_of_a_device_is_isolated_too(device: str) -> None:
    torch.cuda.manual_seed(1)
    with isolated_rng(torch.device(device), 7):
        first = torch.rand(3, device=device)
    untouched = torch.rand(3, device=device)
    torch.cuda.manual_seed(1)
    assert torch.equal(torch.rand(3, device=device), untouched)
    with isolated_rng(torch.device(device), 7):
        assert torch.equal(torch.rand(3, device=device), first)


def test_streams_of_batches_differ_by_step_micro_batch_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of()
    drawn = []
    for rank in range(2):
        monkeypatch.setattr(Run, "rank", property(partial(lambda rank, _: rank, rank)))
        for run._training.steps in range(2):
            for index in range(2):
                with batch_rng(Batch(run, index=index)):
                    drawn.append(tuple(F.dropout(torch.ones(64), 0.5).tolist()))
    assert len(set(drawn)) == len(drawn) == 8


# Samples that lack a modality


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2, 2)])
def test_gradients_stop_at_samples_that_lack_the_modality(shape: tuple[int, ...]) -> None:
    there = torch.tensor([True, False, True, False])
    tensor = torch.randn(shape, requires_grad=True)
    batch = Batch(run_of(), present={"a": there})
    kept = batch.where_present("a", tensor)
    assert torch.equal(kept, tensor)
    kept.sum().backward()
    assert torch.equal(tensor.grad, row_mask(there, tensor).expand(shape).float())  # type: ignore[arg-type]
    assert batch.where_present("b", tensor) is tensor


def test_what_is_not_finite_in_an_absent_sample_has_no_gradient() -> None:
    tensor = torch.tensor([[1.0], [0.0]], requires_grad=True)
    kept = Batch(run_of(), present={"a": torch.tensor([True, False])}).where_present("a", 1 / tensor)
    kept.square().where(kept.isfinite(), 0).sum().backward()
    assert tensor.grad is not None
    assert tensor.grad[0] == -2


# Auxiliary modules


def test_random_weights_depend_on_the_modality_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = built()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    second = built()
    for name in "ab":
        assert_same(first.modules[name], second.modules[name])
    assert not torch.equal(first.modules["a"][0].weight, first.modules["b"][0].weight)  # type: ignore[index]


def test_one_optimizer_has_the_parameters_that_require_a_gradient() -> None:
    def partly_frozen(name: str) -> nn.Module:
        module = nn.Linear(4, 3)
        module.bias.requires_grad_(False)
        return module

    auxiliary = built(partly_frozen)
    (group,) = auxiliary.optimizer.param_groups
    assert [id(p) for p in group["params"]] == [id(auxiliary.modules[name].weight) for name in "ab"]
    assert list(auxiliary.trained("a")) == ["weight"]


def test_a_module_without_parameters_to_train_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"The classifier of 'a' should have parameters to train. Found none: pass"):
        Auxiliary.build(run_of(), lambda name: nn.Identity(), adam, "classifier")


def test_modules_follow_their_tensors() -> None:
    auxiliary = built()
    auxiliary.follow(dict.fromkeys("ab", torch.zeros(2, 4)))
    assert auxiliary.modules["a"][0].weight.device.type == "cpu"  # type: ignore[index]
    auxiliary.follow({"a": torch.zeros(2, device="meta"), "b": torch.zeros(2)})
    assert [next(auxiliary.modules[name].parameters()).device.type for name in "ab"] == ["meta", "cpu"]


def test_modules_are_those_of_rank_0(monkeypatch: pytest.MonkeyPatch) -> None:
    auxiliary, of_rank_0 = built(), stepped(built())
    sources = iter([t for m in of_rank_0.modules.values() for t in (*m.parameters(), *m.buffers())])
    run = run_of()
    monkeypatch.setattr(Run, "broadcast", lambda _, tensor: tensor.copy_(next(sources).detach()))
    auxiliary.share(run)
    for name in "ab":
        assert_same(auxiliary.modules[name], of_rank_0.modules[name])


def test_a_restored_state_goes_on_bitwise_and_is_a_copy() -> None:
    auxiliary = stepped(built())
    saved = auxiliary.state_dict()
    kept = copy.deepcopy(saved)
    other = built()
    other.load_state_dict(saved)
    stepped(auxiliary)
    stepped(other)
    for name in "ab":
        assert_same(other.modules[name], auxiliary.modules[name])
        assert_same_weights(saved["weights"][name], kept["weights"][name])


def assert_same_weights(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_state_fits_modules_of_its_names_and_shapes_alone() -> None:
    auxiliary = built()
    assert auxiliary.fits(stepped(built()).state_dict())
    assert not auxiliary.fits(built(lambda name: nn.Linear(4, 3)).state_dict())
    assert not auxiliary.fits(built(lambda name: nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))).state_dict())
    other = Auxiliary.build(run_of("abc"), probe, lambda parameters: SGD(parameters, lr=0.1))
    assert not auxiliary.fits(other.state_dict())
