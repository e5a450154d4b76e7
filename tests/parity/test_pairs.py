"""A method beside OGM against both slow twins: OGM's coefficients scale the gradients of encoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer

from modbalance import Method
from modbalance._plugins import load_method
from parity.test_opm import Replayed
from parity.test_pmr import loader_of
from support.encoders import mixed
from support.models import Multimodal
from support.reference import dgl, inforeg, mmcosine, mmpareto, ogm_ge, opm, pmr
from support.training import Batch, assert_close, balanced, batches, sgd, train

pytestmark = pytest.mark.slow
STEPS, SIZE = 4, 5
Logits = Callable[[list[Tensor]], list[Tensor]]


@attrs.define
class BeforeTheStep:
    """An optimizer that does something before its step."""

    inner: Optimizer
    work: Callable[[], None]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def zero_grad(self) -> None:
        self.inner.zero_grad()

    def step(self) -> None:
        self.work()
        self.inner.step()


@attrs.define
class Together:
    """A model for a twin, and OGM's twin, whose coefficients are those of a batch before the step."""

    model: Multimodal
    unimodal: Logits
    k: list[float] = attrs.field(factory=list)
    seen: list[float] = attrs.field(factory=list)

    def encode(self, *inputs: Tensor) -> list[Tensor]:
        return [phi(x) for phi, x in zip(self.model.encoders.values(), inputs, strict=True)]

    def look(self, inputs: tuple[Tensor, ...], y: Tensor) -> None:
        with torch.no_grad():
            s = [ogm_ge.score(o_u, y) for o_u in self.unimodal(self.encode(*inputs))]
        self.k = ogm_ge.coefficients(ogm_ge.ratios(s), 0.8)
        self.seen += self.k

    def scale(self) -> None:
        for phi_u, k_u in zip(self.model.encoders.values(), self.k, strict=True):
            for parameter in phi_u.parameters():
                if parameter.grad is not None:
                    parameter.grad = k_u * parameter.grad

    @property
    def inner(self) -> Any:
        return BeforeTheStep(sgd(self.model), self.scale)

    @property
    def parts(self) -> dict[str, Any]:
        return {"encode": self.encode, "fusion": self.model.fusion}


def model_of(names: str) -> Multimodal:
    return mixed(names, ["layer norm"] * len(names), dtype=torch.float64)


def sliced(model: Multimodal) -> Logits:
    layer: Any = model.fusion
    return lambda z: ogm_ge.sliced(z, layer.fc_out.weight, layer.fc_out.bias)


def ours(names: str, method: Method, data: list[Batch], order: int, epochs: int = 1) -> Multimodal:
    """Train with a method and OGM."""
    model = model_of(names)
    ogm = load_method("ogm").configure(param_filter="all")
    optimizer = balanced(model, [method, ogm][::order])
    loader = loader_of(data)
    optimizer.begin(train=loader)
    criterion = optimizer.criterion(torch.nn.CrossEntropyLoss())
    for _ in range(epochs):
        train(model, optimizer, data, criterion)
        optimizer.end_epoch(train=loader)
    return model


def with_mmcosine(both: Together, data: list[Batch]) -> Method:
    layer: Any = both.model.fusion
    both.unimodal = lambda z: mmcosine.logits(z, layer.fc_out.weight, 10.0)
    inner = both.inner
    for inputs, y in data:
        both.look(inputs, y)
        inner.zero_grad()
        F.cross_entropy(torch.stack(both.unimodal(both.encode(*inputs))).sum(0), y).backward()
        inner.step()
    return load_method("mmcosine").configure()


def with_opm(both: Together, data: list[Batch]) -> Method:
    generator = torch.Generator().manual_seed(5)
    draws = [(step != 1, torch.rand(SIZE, len(data[0][0]), generator=generator) < 0.6) for step in range(STEPS)]
    layer: Any = both.model.fusion
    both.unimodal = lambda z: opm.slices(z, layer.fc_out.weight, layer.fc_out.bias)
    twin = opm.Twin(unimodal=both.unimodal, inner=both.inner, **both.parts)
    for (inputs, y), (executed, bits) in zip(data, draws, strict=True):
        both.look(inputs, y)
        twin.step(inputs, y, executed, bits.tolist())
    return Replayed(start_epoch=0, draws=draws)


def with_pmr(both: Together, data: list[Batch]) -> Method:
    twin = pmr.Twin(model=both.model, inner=both.inner, classes=3, alpha=2.0, fraction=0.5, **both.parts)
    twin.renew(data)
    for _ in range(2):
        for inputs, y in data:
            both.look(inputs, y)
            twin.step(inputs, y)
        twin.end_epoch_with(data)
    return load_method("pmr").configure(alpha=2.0, fraction=0.5)


def with_mmpareto(both: Together, data: list[Batch]) -> Method:
    encoders = [*both.model.encoders.values()]
    twin = mmpareto.Twin(encoders=encoders, unimodal=both.unimodal, inner=both.inner, heads="slice", **both.parts)
    for inputs, y in data:
        both.look(inputs, y)
        twin.step(inputs, y)
    return load_method("mmpareto").configure(heads="slice")


def with_dgl(both: Together, data: list[Batch]) -> Method:
    twin = dgl.Twin(
        unimodal=lambda z: dgl.zeroed(z, both.model.fusion), inner=both.inner, alpha=2.0, clip=None, **both.parts
    )
    for inputs, y in data:
        both.look(inputs, y)
        twin.step(inputs, y)
    return load_method("dgl").configure(alpha=2.0)


def with_inforeg(both: Together, data: list[Batch]) -> Method:
    """The pull comes after the coefficients, so that these do not scale it."""
    twin = inforeg.Twin(
        encoders=[*both.model.encoders.values()],
        unimodal=both.unimodal,
        inner=sgd(both.model),
        strength=[0.9] * len(both.model.encoders),
        before_regulation=both.scale,
        **both.parts,
    )
    for _ in range(2):
        twin.start_epoch()
        for inputs, y in data:
            both.look(inputs, y)
            twin.step(inputs, y)
        twin.end_epoch()
    return load_method("inforeg").configure(strength=0.9)


@pytest.mark.parametrize("names", ["ab", "abc"])
@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    "reference", [with_mmcosine, with_opm, with_pmr, with_mmpareto, with_dgl, with_inforeg], ids=lambda f: f.__name__
)
def test_a_method_beside_ogm_equals_both_twins(
    reference: Callable[[Together, list[Batch]], Method], order: int, names: str
) -> None:
    theirs = model_of(names)
    data = batches(theirs, STEPS, SIZE, dtype=torch.float64)
    both = Together(theirs, sliced(theirs))
    method = reference(both, data)
    epochs = len(both.seen) // (STEPS * len(names))

    assert min(both.seen) < 0.9
    assert_close(ours(names, method, data, order, epochs), theirs, 1e-10)
