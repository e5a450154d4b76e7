"""InfoReg: what is pulled, when, and what it needs."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer, ConfigError
from modbalance._plugins import load_method
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.training import Batch, assert_same, balanced, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()


def state(optimizer: BalancedOptimizer) -> dict[str, Any]:
    saved: dict[str, Any] = optimizer.state_dict()["modbalance"]["methods"]["inforeg"]
    return saved


def ahead(model: Multimodal, optimizer: BalancedOptimizer) -> str:
    """Return the modality with the larger score."""
    found = optimizer.metrics()
    return max(model.encoders, key=lambda name: found[f"inforeg/score/{name}"])


def test_the_encoder_that_is_ahead_is_pulled_towards_the_start_of_the_epoch() -> None:
    model = multimodal()
    data = batches(model, 2)
    optimizer = balanced(model, "inforeg", strength=0.5, unimodal_weight=0)
    criterion = optimizer.criterion(LOSS)
    start = weights(model)
    train(model, optimizer, data[:1], criterion)
    inputs, target = data[1]
    optimizer.zero_grad()
    criterion(model(*inputs), target).backward()
    plain = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    optimizer.modulate()
    of = ahead(model, optimizer)
    beta = optimizer.metrics()[f"inforeg/beta/{of}"]
    assert 0.5 < beta < 0.5 * math.e
    for name, p in model.named_parameters():
        pull = beta * (p.detach() - start[name]) if name.startswith(f"encoders.{of}.") else 0.0
        torch.testing.assert_close(p.grad, plain[name] + pull)


def test_a_strength_may_be_of_some_modalities_alone() -> None:
    for name in "ab":
        model = multimodal()
        optimizer = balanced(model, "inforeg", strength={name: 0.5})
        train(model, optimizer, batches(model, 3))
        other = {"a": "b", "b": "a"}[name]
        assert optimizer.metrics()[f"inforeg/beta/{other}"] == 0


def test_without_pull_and_unimodal_losses_it_is_the_inner_optimizer() -> None:
    model, plain = multimodal(), multimodal()
    data = batches(model, 4)
    train(model, balanced(model, "inforeg", strength=0, unimodal_weight=0), data)
    train(plain, sgd(plain), data)
    assert_same(weights(model), weights(plain))


def test_unimodal_losses_train_the_head() -> None:
    ends = []
    for weight in (0.0, 1.0):
        model = multimodal()
        train(model, balanced(model, "inforeg", strength=0, unimodal_weight=weight), batches(model, 1))
        ends.append(weights(model))
    assert not torch.equal(ends[0]["fusion.fc_out.weight"], ends[1]["fusion.fc_out.weight"])


def test_a_first_modality_that_does_not_learn_closes_the_window_and_is_counted() -> None:
    model = multimodal()
    for parameter in model.encoders["a"].parameters():
        parameter.requires_grad_(False)
    optimizer = balanced(model, "inforeg")
    criterion = optimizer.criterion(LOSS)
    for _ in range(2):
        train(model, optimizer, batches(model, 2), criterion)
        optimizer.end_epoch()
    found = optimizer.metrics()
    assert found["inforeg/open/b"] == 0
    assert found["inforeg/nonfinite/b"] == 1


def test_a_gradient_that_is_not_finite_stays_out_of_the_trace() -> None:
    model = multimodal()
    optimizer = balanced(model, "inforeg")
    criterion = optimizer.criterion(LOSS)
    data = batches(model, 3)
    train(model, optimizer, data[:2], criterion)
    before = state(optimizer)["sums"].clone()
    model.get_parameter("encoders.a.0.weight").register_hook(lambda gradient: gradient * math.inf)
    train(model, optimizer, data[2:], criterion)
    after = state(optimizer)["sums"]
    assert after[0] == before[0]
    assert after[1] > before[1]


@pytest.mark.parametrize("gap", ["sum", "mean"])
def test_samples_that_lack_a_modality_do_not_put_it_behind(gap: str) -> None:
    model = multimodal()
    optimizer = balanced(model, "inforeg", gap=gap)
    inputs, target = batches(model, 1)[0]
    present = {"a": torch.tensor([True] + [False] * 5)}
    optimizer.criterion(LOSS)(model(*inputs), target, present=present).backward()
    optimizer.modulate()
    found = optimizer.metrics()
    of = ahead(model, optimizer)
    assert found[f"inforeg/score/{of}"] > 0
    assert [name for name in "ab" if found[f"inforeg/beta/{name}"] > 0] == [of]


def test_parameters_that_come_in_the_epoch_are_not_pulled() -> None:
    model = multimodal()
    optimizer = balanced(model, "inforeg", strength=1e6, unimodal_weight=0)
    criterion = optimizer.criterion(LOSS)
    train(model, optimizer, batches(model, 1), criterion)
    late = {name: nn.Parameter(torch.ones(4)) for name in model.encoders}
    for name, encoder in model.encoders.items():
        encoder.register_parameter("late", late[name])
    optimizer.add_param_group({"params": [*late.values()]})
    inputs, target = batches(model, 2)[1]
    optimizer.zero_grad()
    (criterion(model(*inputs), target) + torch.stack([*late.values()]).sum()).backward()
    optimizer.modulate()
    for parameter in late.values():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, torch.ones(4))


@pytest.mark.parametrize(("words_used", "strength"), [(10, 5.0), (2, 0.0)])
def test_sparse_gradients_are_pulled_and_measured_as_dense_ones(words_used: int, strength: float) -> None:
    class Text(nn.Module):
        def __init__(self, sparse: bool) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.words = nn.Embedding(10, 4, sparse=sparse)
            self.numbers = nn.Linear(3, 4)
            self.head = nn.Linear(8, 3)

        def forward(self, words: Tensor, numbers: Tensor) -> Tensor:
            logits: Tensor = self.head(torch.cat([self.words(words).mean(1), self.numbers(numbers)], -1))
            return logits

    ends = []
    for sparse in (False, True):
        model = Text(sparse)
        optimizer = BalancedOptimizer(
            SGD(model.parameters(), lr=0.1),
            "inforeg",
            model=model,
            modalities={"text": "words", "table": "numbers"},
            fusion="head",
            feature_sizes={"text": 4, "table": 4},
            strength=strength,
        )
        criterion = optimizer.criterion(LOSS)
        generator = torch.Generator().manual_seed(1)
        for _ in range(4):
            words = (torch.arange(10) % words_used).reshape(5, 2)
            numbers = torch.randn(5, 3, generator=generator)
            optimizer.zero_grad()
            criterion(model(words, numbers), torch.randint(3, (5,), generator=generator)).backward()
            optimizer.step()
        optimizer.end_epoch()
        ends.append(weights(model) | {"trace": torch.tensor(optimizer.metrics()["inforeg/trace/text"])})
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name])


@pytest.mark.parametrize("in_the_middle", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(in_the_middle: bool) -> None:
    def run(model: nn.Module, optimizer: BalancedOptimizer, data: list[Batch], start: int, stop: int) -> None:
        criterion = optimizer.criterion(LOSS)
        for index in range(start, stop):
            train(model, optimizer, [data[index]], criterion)
            if index % 3 == 2:
                optimizer.end_epoch()

    whole, resumed = multimodal(), multimodal()
    data = batches(whole, 9)
    cut = 4 if in_the_middle else 3
    optimizer = balanced(whole, "inforeg")
    run(whole, optimizer, data, 0, cut)
    weights_then, saved = copy.deepcopy((whole.state_dict(), optimizer.state_dict()))
    run(whole, optimizer, data, cut, 9)
    resumed.load_state_dict(weights_then)
    other = balanced(resumed, "inforeg")
    other.load_state_dict(saved)
    run(resumed, other, data, cut, 9)
    assert_same(weights(whole), weights(resumed))


def test_a_step_reads_nothing_on_the_host() -> None:
    model = multimodal()
    optimizer = balanced(model, "inforeg")
    criterion = optimizer.criterion(LOSS)
    data = batches(model, 2)
    train(model, optimizer, data[:1], criterion)
    with CountOps() as ops:
        train(model, optimizer, data[1:], criterion)
    assert not READS & set(ops.ops)


def test_it_goes_with_ogm() -> None:
    model = multimodal()
    methods = [load_method("ogm").configure(param_filter="all"), load_method("inforeg").configure()]
    optimizer = balanced(model, methods)
    train(model, optimizer, batches(model, 3))
    found = optimizer.metrics()
    assert found["ogm/coefficient/a"] < 1 or found["ogm/coefficient/b"] < 1
    assert found["inforeg/beta/a"] > 0 or found["inforeg/beta/b"] > 0


@pytest.mark.parametrize("strength", [-1.0, math.nan, {"a": -0.1}, "strong"])
def test_strengths_are_numbers(strength: Any) -> None:
    with pytest.raises(ConfigError, match="Option `strength` of method `inforeg` should be a finite number >= 0"):
        balanced(multimodal(), "inforeg", strength=strength)


def test_an_unknown_modality_is_named() -> None:
    with pytest.raises(ConfigError, match="names 'c'"):
        balanced(multimodal(), "inforeg", strength={"c": 0.5})


def test_a_computed_loss_is_refused() -> None:
    model = multimodal()
    optimizer = balanced(model, "inforeg")
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    with pytest.raises(ConfigError, match="calls the loss on unimodal logits"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)
