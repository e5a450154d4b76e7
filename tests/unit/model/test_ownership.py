"""Which parameters belong to a modality and are modulated: looked up once, and anew when something changed."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modbalance import BalancedOptimizer
from support.training import assert_same, balanced, batches, multimodal, sgd, train, weights


class Filter:
    """Selects what requires a gradient, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, name: str, parameter: Tensor) -> bool:
        self.calls += 1
        return parameter.requires_grad


def names(optimizer: BalancedOptimizer, modality: str = "a") -> list[str]:
    return [name for name, _ in optimizer._lifecycle.run.parameters(modality)]


def test_a_filter_is_asked_once_for_each_parameter_and_epoch() -> None:
    model, selects = multimodal(), Filter()
    optimizer = balanced(model, "ogm_ge", param_filter=selects)
    in_setup = selects.calls

    train(model, optimizer, batches(model, 3))
    after_one = selects.calls - in_setup
    train(model, optimizer, batches(model, 3))
    assert (after_one, selects.calls - in_setup) == (8, 8)
    optimizer.end_epoch()
    train(model, optimizer, batches(model, 1))
    assert selects.calls - in_setup == 16


def test_a_parameter_that_thaws_is_modulated() -> None:
    model = multimodal()
    first = model.get_parameter("encoders.a.0.weight").requires_grad_(False)
    optimizer = balanced(model, "ogm", param_filter=Filter())
    reference = balanced(like := multimodal(), "ogm")
    like.get_parameter("encoders.a.0.weight").requires_grad_(False)
    one, two = batches(model, 2)

    train(model, optimizer, [one])
    train(like, reference, [one])
    for each in (first, like.get_parameter("encoders.a.0.weight")):
        each.requires_grad_(True)
    train(model, optimizer, [two])
    train(like, reference, [two])

    assert_same(model, like)


def test_an_exchanged_parameter_of_a_group_is_no_longer_one_of_the_encoder() -> None:
    model = multimodal()
    optimizer = balanced(model)
    assert len(names(optimizer)) == 4

    parameters = optimizer.param_groups[0]["params"]
    parameters[1] = nn.Parameter(parameters[1].detach().clone())

    assert names(optimizer) == ["encoders.a.0.weight", "encoders.a.2.weight", "encoders.a.2.bias"]


def test_a_removed_and_an_added_group_count() -> None:
    model = multimodal()
    weights_of_a = model.get_parameter("encoders.a.0.weight")
    optimizer = balanced(model, inner=torch.optim.SGD([weights_of_a, *model.fusion.parameters()], lr=0.1))
    assert names(optimizer) == ["encoders.a.0.weight"]

    optimizer.add_param_group({"params": [model.get_parameter("encoders.a.0.bias")]})
    assert names(optimizer) == ["encoders.a.0.weight", "encoders.a.0.bias"]
    optimizer.param_groups.pop()
    assert names(optimizer) == ["encoders.a.0.weight"]


def test_the_list_of_a_caller_is_a_copy() -> None:
    model = multimodal()
    optimizer = balanced(model)
    train(model, optimizer, batches(model, 1))

    optimizer._lifecycle.run.parameters("a").clear()

    assert len(names(optimizer)) == 4


def test_a_clip_is_that_of_torch() -> None:
    model, like = multimodal(), multimodal()
    data = batches(model, 2)
    train(model, balanced(model, "none", clip_grad_norm=0.05), data)
    optimizer, loss_fn = sgd(like), nn.CrossEntropyLoss()
    for inputs, target in data:
        optimizer.zero_grad()
        loss_fn(like(*inputs), target).backward()
        nn.utils.clip_grad_norm_(like.parameters(), 0.05)
        optimizer.step()

    assert_same(weights(model), weights(like))
