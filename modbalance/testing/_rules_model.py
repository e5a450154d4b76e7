"""Rules on models: frozen parts, parts that did not run, parts that are not known."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modbalance.errors import ConfigError, ObservationError
from modbalance.optimizer import BalancedOptimizer
from modbalance.testing._case import Case, Training, different, require_finite
from modbalance.testing._models import SmallModel
from modbalance.testing._report import RuleError
from modbalance.testing._rules import rule


@rule
def frozen_encoders(case: Case) -> None:
    """A frozen encoder stays as it is, and the others train; so does a head on frozen encoders.

    Pretrained encoders are often frozen: their parameters have no gradient.
    """
    names = case.smallest()
    for frozen in ((names[0],), names[1:], names):

        def freeze(model: SmallModel, frozen: tuple[str, ...] = frozen) -> None:
            for name in frozen:
                model.encoders[name].requires_grad_(False)

        training = case.training(prepare=freeze)
        before = training.weights()
        training.run()
        require_finite(training, f"with frozen encoders of {list(frozen)}")
        _require_still(training, before, frozen, "frozen")


@rule
def absent_gradients(case: Case) -> None:
    """An encoder that does not run in a step has no gradients, and stays as it is in that step.

    Modalities are missing for whole batches; `p.grad` is `None` then.
    """
    names = case.smallest()
    training = case.training()
    data = training.data(4)
    training.step(data[0])
    for name in names:
        before = training.weights()
        training.model.skipped = {name}
        training.optimizer.zero_grad()
        training.backward(data[1])
        training.optimizer.step()
        training.model.skipped = set()
        _require_still(training, before, (name,), "without gradients")
    training.run(data)
    require_finite(training, "after steps without the gradients of an encoder")


def _require_still(training: Training, before: dict[str, torch.Tensor], names: tuple[str, ...], why: str) -> None:
    after = training.weights()
    for name in names:
        if moved := different(after, before, among=f"encoders.{name}."):
            raise RuleError(
                f"weights of an encoder {why} that stay as they are",
                f"other values of {', '.join(moved[:3])}",
                "edit parameters of `step.parameters(modality)` alone, which have a gradient",
            )


@rule
def model_free(case: Case) -> None:
    """Without `model=` the method trains with the features that are given, or says by an error what it needs.

    Users whose model cannot be described give parameter groups, and features to the criterion.
    """
    model = case.training().model
    groups: list[dict[str, Any]] = [
        {"params": encoder.parameters(), "modality": name} for name, encoder in model.encoders.items()
    ]
    inner = torch.optim.SGD([*groups, {"params": model.fusion.parameters()}], lr=0.1)
    inputs, target = case.training().data(1)[0]
    try:
        optimizer = BalancedOptimizer(inner, case.build(), fusion=lambda *features: model.fusion(*features))
        criterion = optimizer.criterion(nn.CrossEntropyLoss())
        for _ in range(2):
            optimizer.zero_grad()
            encoded = zip(model.encoders.items(), inputs, strict=True)
            features = {name: encoder(x) for (name, encoder), x in encoded}
            criterion(model.fusion(*features.values()), target, features=features).backward()
            optimizer.step()
    except (ConfigError, ObservationError):
        return
    except Exception as error:
        raise RuleError(
            "a training without `model=`, or a ConfigError when the optimizer is built",
            f"{type(error).__name__}: {error}",
            'put "model" into `needs`, and the core refuses for you',
        ) from error
