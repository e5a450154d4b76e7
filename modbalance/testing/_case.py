"""One method with its options, and trainings of the small model with it or with the bare optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance.method import Method
from modbalance.optimizer import BalancedOptimizer
from modbalance.testing._models import Batch, ModelFactory, SharedHeadModel, SmallModel, batches, seeded
from modbalance.testing._report import RuleError

TWO = ("left", "right")
NAMES = (*TWO, "upper", "lower")
EPOCHS, STEPS, VALIDATION = 4, 2, 2


@attrs.frozen(eq=False)
class Case:
    """A method under test.

    Attributes:
        method: Its class.
        options: Options by name, and ``preset``.
        model: Makes the model for the names of modalities; default: the small model, with the fusion that the
            method needs.
    """

    method: type[Method]
    options: Mapping[str, Any] = attrs.field(factory=dict)
    model: ModelFactory = attrs.field()

    @model.default
    def _suited(self) -> ModelFactory:
        return SharedHeadModel if "shared_head" in self.method.needs else SmallModel

    def build(self, **options: Any) -> Method:
        """Return a method object; ``options`` go before those of the case, and these before the short values."""
        declared = self.method.options().items()
        short = {name: field.metadata["short"] for name, field in declared if "short" in field.metadata}
        return self.method.configure(**(short | dict(self.options) | options))

    def smallest(self) -> tuple[str, ...]:
        """Return names for two modalities, or for as many as the method needs."""
        return NAMES[: max(2, self.method.min_modalities)]

    def training(self, modalities: Sequence[str] | None = None, **arguments: Any) -> Training:
        """Return a training with the method."""
        method = arguments.pop("method", None) or self.build()
        return Training(self.model, modalities or self.smallest(), method, **arguments)

    def bare(self, modalities: Sequence[str] | None = None, **arguments: Any) -> Training:
        """Return a training with the inner optimizer alone."""
        return Training(self.model, modalities or self.smallest(), None, **arguments)


class Training:
    """A model with an optimizer, which is the bare one where there is no method.

    Args:
        make: Makes the model.
        modalities: Names of the modalities.
        method: A method, or several.
        dtype: Type of parameters and inputs.
        seed: Seed of the weights.
        prepare: Called with the model before the optimizer is built.
        wrap: Wraps the model, as DDP and `torch.compile` do.
        loss_fn: The loss.
        order: Puts modality number ``order[i]`` at place ``i``, in the model and in its data.
        arguments: Further arguments of `BalancedOptimizer`.
    """

    def __init__(
        self,
        make: ModelFactory,
        modalities: Sequence[str],
        method: Any,
        *,
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        prepare: Callable[[SmallModel], object] = lambda model: None,
        wrap: Callable[[Any], Any] = lambda model: model,
        loss_fn: nn.Module | None = None,
        order: Sequence[int] | None = None,
        **arguments: Any,
    ) -> None:
        self.dtype = dtype
        self.order = order
        self.model = seeded(make, modalities, seed, dtype)
        if order is not None:
            self.model.reordered(order)
        prepare(self.model)
        self.wrapped = wrap(self.model)
        self.inner = SGD(self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
        self.optimizer: Any = self.inner
        self.criterion: Any = loss_fn or nn.CrossEntropyLoss()
        if method is not None:
            described = {"model": self.wrapped, "modalities": self.model.paths, "fusion": "fusion"}
            self.optimizer = BalancedOptimizer(self.inner, method, **(described | arguments))
            self.criterion = self.optimizer.criterion(self.criterion)
            loader = [(*inputs, target) for inputs, target in self.data(STEPS)]
            self.optimizer.begin(train=loader, val=loader)

    def data(self, count: int = EPOCHS * STEPS, size: int = 6) -> list[Batch]:
        """Return ``count`` batches that fit the model."""
        drawn = batches(len(self.model.encoders), count, size, self.dtype)
        order = self.order or range(len(self.model.encoders))
        return [(tuple(inputs[index] for index in order), target) for inputs, target in drawn]

    def backward(self, batch: Batch, scale: float = 1.0) -> None:
        """Run forward and backward on one batch."""
        inputs, target = batch
        (self.criterion(self.wrapped(*inputs), target) * scale).backward()

    def step(self, batch: Batch) -> None:
        """Take one step."""
        self.optimizer.zero_grad()
        self.backward(batch)
        self.optimizer.step()

    def end_epoch(self, data: Iterable[Batch]) -> None:
        """End an epoch, with these batches as training data; a bare optimizer knows no epochs.

        Labels of the validation data are those of other samples, so that training makes the results on them worse.
        """
        if isinstance(self.optimizer, BalancedOptimizer):
            train = [(*inputs, target) for inputs, target in data]
            val = [(*inputs, target.roll(1)) for inputs, target in self.data(VALIDATION)]
            self.optimizer.end_epoch(train=train, val=val)

    def run(self, data: Sequence[Batch] | None = None, start: int = 0, stop: int | None = None) -> Training:
        """Take a step for each of some batches; epochs have two. Returns the training."""
        data = self.data() if data is None else data
        for index, batch in enumerate(data[start:stop], start):
            self.step(batch)
            if index % STEPS == STEPS - 1:
                self.end_epoch(data[index + 1 - STEPS : index + 1])
        return self

    def weights(self) -> dict[str, Tensor]:
        """Return copies of parameters and buffers, by name."""
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}

    def saved(self) -> dict[str, Any]:
        """Return the state that the methods save."""
        saved: dict[str, Any] = self.optimizer.state_dict()["modbalance"]
        return saved


def different(
    actual: Mapping[str, Any], expected: Mapping[str, Any], tolerance: float | None = None, among: str = ""
) -> list[str]:
    """Return the paths of values that differ: bit for bit, or by more than an absolute ``tolerance``."""
    one, two = dict(_leaves(actual)), dict(_leaves(expected))
    paths = [path for path in {**one, **two} if path.startswith(among)]
    return [path for path in paths if not (path in one and path in two and _same(one[path], two[path], tolerance))]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what nested mappings and sequences hold, by path; empty ones count as values."""
    named = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list | tuple) else ()
    if not named:
        yield path, value
    for key, item in named:
        yield from _leaves(item, f"{path}/{key}" if path else str(key))


def _same(actual: Any, expected: Any, tolerance: float | None) -> bool:
    if tolerance is not None and isinstance(actual, float) and isinstance(expected, float):
        return abs(actual - expected) <= tolerance
    if not (isinstance(actual, Tensor) and isinstance(expected, Tensor)):
        return type(actual) is type(expected) and bool(actual == expected or actual != actual)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if tolerance is None:
        return torch.equal(actual.nan_to_num(), expected.nan_to_num())
    return bool(((actual.double() - expected.double()).abs() <= tolerance).all())


def require_same(
    actual: Mapping[str, Any], expected: Mapping[str, Any], words: str, fix: str, tolerance: float | None = None
) -> None:
    """Raise a RuleError where values differ; ``words`` say what is expected."""
    if paths := different(actual, expected, tolerance):
        one, two = dict(_leaves(actual)), dict(_leaves(expected))
        gaps = [gap for path in paths if (gap := _gap(one.get(path), two.get(path))) is not None]
        size = f" of up to {max(gaps):.2g}" if gaps else ""
        shown = ", ".join(paths[:4]) + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
        raise RuleError(words, f"a difference{size} in {shown}", fix)


def _gap(actual: Any, expected: Any) -> float | None:
    """Return the largest absolute difference of two tensors of one shape, or of two numbers."""
    tensors = [each for each in (actual, expected) if isinstance(each, Tensor) and each.numel()]
    if len(tensors) == 2 and tensors[0].shape == tensors[1].shape:
        return (tensors[0].double() - tensors[1].double()).abs().max().item()
    numbers = [each for each in (actual, expected) if isinstance(each, int | float)]
    return abs(numbers[0] - numbers[1]) if len(numbers) == 2 else None


def require_finite(training: Training, when: str) -> None:
    """Raise a RuleError where a weight is not finite."""
    if names := [name for name, value in training.weights().items() if not value.isfinite().all()]:
        raise RuleError(
            f"finite weights {when}",
            f"NaN or infinity in {', '.join(names[:4])}",
            "guard divisions and logarithms with `torch.where`; a mean over nothing is not a number",
        )
