"""NaN, infinities and 0/0 in statistics act as a coefficient of 1 and are counted; a loss raises if asked to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import ObservationError
from support.optimizers import model_free
from support.training import assert_same, balanced, batches, multimodal, sgd, train, weights


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("seen", ["logits", "score"])
def test_statistics_that_are_not_finite_leave_gradients_alone_and_are_counted(bad: float, seen: str) -> None:
    model, plain = multimodal(), multimodal()
    optimizer = model_free(model)
    inputs, target = batches(model, 1)[0]

    def score(logits: Tensor, target: Tensor) -> tuple[Tensor, None]:
        return logits[:, 0], None

    spoilt = torch.full((6, 3), bad)  # the softmax of three equal infinities is NaN
    criterion = optimizer.criterion(nn.CrossEntropyLoss(), score=score if seen == "score" else None)
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(*inputs), target, unimodal_logits={"a": spoilt, "b": torch.zeros(6, 3)}).backward()
        optimizer.step()

    train(plain, SGD(plain.parameters(), lr=0.1), [(inputs, target)] * 2)
    assert_same(model, plain)
    metrics = optimizer.metrics()
    assert (metrics["ogm/coefficient/a"], metrics["ogm/coefficient/b"]) == (1, 1)
    assert metrics["ogm/nonfinite/a"] + metrics["ogm/nonfinite/b"] >= 2


def _step_with_scores(a: float, b: float) -> dict[str, float]:
    model = multimodal()
    optimizer = model_free(model)
    inputs, target = batches(model, 1)[0]
    criterion = optimizer.criterion(nn.CrossEntropyLoss(), score=lambda logits, target: (logits[:, 0], None))
    given = {"a": torch.full((6, 3), a), "b": torch.full((6, 3), b)}
    criterion(model(*inputs), target, unimodal_logits=given).backward()
    optimizer.step()
    assert all(value.isfinite().all() for value in weights(model).values())
    return optimizer.metrics()


def test_nothing_over_nothing_gives_one_and_is_counted() -> None:
    metrics = _step_with_scores(0.0, 0.0)

    assert (metrics["ogm/coefficient/a"], metrics["ogm/coefficient/b"]) == (1, 1)
    assert (metrics["ogm/nonfinite/a"], metrics["ogm/nonfinite/b"]) == (1, 1)


def test_something_over_nothing_saturates_and_is_not_counted() -> None:
    metrics = _step_with_scores(0.5, 0.0)

    assert (metrics["ogm/coefficient/a"], metrics["ogm/coefficient/b"]) == (0, 1)
    assert (metrics["ogm/nonfinite/a"], metrics["ogm/nonfinite/b"]) == (0, 0)


def test_a_loss_that_is_not_finite_raises_only_if_asked_for() -> None:
    model, plain = multimodal(), multimodal()
    careful, bare = balanced(model, check_finite=True), sgd(plain)
    inputs, target = batches(model, 1)[0]
    nan = (inputs[0] * torch.nan, inputs[1])

    with pytest.raises(ObservationError, match=r"should be finite.*`check_finite=True`.*Found nan in epoch 0"):
        careful.criterion(nn.CrossEntropyLoss())(model(*nan), target)
    assert_same(model, plain)

    other = multimodal()
    train(other, balanced(other), [(nan, target)])
    train(plain, bare, [(nan, target)])
    for key, value in weights(plain).items():
        torch.testing.assert_close(weights(other)[key], value, rtol=0, atol=0, equal_nan=True)


def test_check_finite_changes_nothing_in_a_finite_run() -> None:
    model, alone = multimodal(), multimodal()
    data = batches(model, 2)

    assert_same(train(model, balanced(model, check_finite=True), data), train(alone, balanced(alone), data))
