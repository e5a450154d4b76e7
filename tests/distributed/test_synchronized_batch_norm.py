"""Models with SyncBatchNorm, whose forward and backward wait for all ranks: each rank runs as many passes.

The class is torch's own; its kernels are those of `support.synchronized`, since torch has none for a CPU.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from contract.test_conformance import OPTIONS
from modbalance._plugins import load_method
from modbalance.testing._case import STEPS, Case, Training, different
from modbalance.testing._models import Batch, SharedHeadModel, SmallModel
from support.ranks import on_ranks
from support.synchronized import allow_on_cpu

pytestmark = pytest.mark.slow


class NormalizingEncoders(SmallModel):
    """Batch norm in the encoders."""

    def encoder(self) -> nn.Module:
        convolution, *rest = super().encoder().children()
        return nn.Sequential(convolution, nn.BatchNorm2d(3), *rest)


class NormalizingEncodersOneHead(NormalizingEncoders, SharedHeadModel):
    """Batch norm in the encoders, and one head for every modality."""


class Normalizing(NormalizingEncoders):
    """Batch norm in the encoders and in the fusion."""

    def head(self, size: int) -> nn.Module:
        return nn.Sequential(nn.BatchNorm1d(size), super().head(size))


MORE: dict[str, list[dict[str, Any]]] = {
    "agm": [{"masked_mode": "train"}],
    "cggm": [{"direction": "gradient"}],
    "relearning": [{"period": 1, "n_init": 1, "recalibrate_bn": True, "blend_buffers": True}],
}


def models(name: str, index: int) -> list[type[SmallModel]]:
    """Return the models of a method: all options with norms everywhere; where it suits none, in the encoders alone."""
    if name == "mla":
        return [NormalizingEncodersOneHead]
    if name == "mmcosine":  # needs a linear fusion
        return [NormalizingEncoders]
    return [NormalizingEncoders, Normalizing] if index == 0 else [Normalizing]


CASES: dict[str, tuple[str, Mapping[str, Any], type[SmallModel]]] = {
    f"{name} {index}{' fusion' if model is Normalizing else ''}": (name, options, model)
    for name in OPTIONS
    for index, options in enumerate([*OPTIONS[name], *MORE.get(name, [])])
    for model in models(name, index)
}
"""By name, number of the options and place of the norms: method, options, model."""
OF_ONE_RANK = {
    "opm": "each rank draws the modalities that its samples lose",
    "cggm 2": "each rank draws the dropout of its probes",
    "mmcosine 1": "the samples of a rank are contrasted with each other",
}
"""What depends on the samples of a rank alone, with or without batch norm."""


def case_of(key: str) -> Case:
    name, options, model = CASES[key]
    if name == "cggm" and model is Normalizing and not options.get("probes"):
        options = {**options, "probes": "mlp"}
    return Case(load_method(name), options, model)


def training_of(key: str, **arguments: Any) -> Training:
    # The gradient of a bias before a batch norm is zero but for rounding.
    return case_of(key).training(dtype=torch.float64, **arguments)


def is_of_one_rank(key: str) -> bool:
    return any(key.startswith(each) for each in OF_ONE_RANK)


def convert(model: nn.Module) -> None:
    for name, child in list(model.named_children()):
        setattr(model, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))


def train(training: Training, data: list[Batch], missing: bool = False) -> dict[str, Any]:
    """Return weights, buffers and state; in every second step the samples lack the last modality if ``missing``."""
    name = [*training.model.encoders][-1]
    for index, (inputs, target) in enumerate(data):
        training.optimizer.zero_grad()
        there = torch.tensor(not (missing and index % STEPS)).expand(len(target))
        training.criterion(training.wrapped(*inputs), target, present={name: there}).backward()
        training.optimizer.step()
        if index % STEPS == STEPS - 1:
            training.end_epoch(data[index + 1 - STEPS : index + 1])
    return {"weights": training.weights(), "state": training.saved()["methods"]}


def shares(training: Training, rank: int, situation: str) -> list[Batch]:
    """Return the samples of a rank; where "empty", those of rank 1 in the first step of each epoch go to rank 0."""
    data = [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in training.data(size=8)]
    if situation != "empty":
        return data
    for index in range(0, len(data), STEPS):
        inputs, target = training.data(size=8)[index]
        mine = slice(None) if rank == 0 else slice(0)
        data[index] = tuple(x[mine] for x in inputs), target[mine]
    return data


def train_rank(rank: int, situation: str) -> dict[str, Any]:
    library = allow_on_cpu(pytest.MonkeyPatch())
    results = {}
    for key in CASES:
        training = training_of(key, wrap=DistributedDataParallel, prepare=convert)
        missing = situation == "missing" and rank == 1
        results[key] = train(training, shares(training, rank, situation), missing)
    del library
    return results


def assert_alike(ranks: list[dict[str, Any]]) -> None:
    first, second = ranks
    assert {key: paths for key in CASES if (paths := different(second[key], first[key]))} == {}
    finite = {key: all(value.isfinite().all() for value in first[key]["weights"].values()) for key in CASES}
    assert [key for key in CASES if not finite[key]] == []


def test_two_ranks_train_as_one_process_with_batch_norm_on_the_joined_batch() -> None:
    ranks = on_ranks(train_rank, "even")
    assert_alike(ranks)
    far = {}
    for key in CASES:
        training = training_of(key)
        alone = train(training, training.data(size=8))
        if paths := different(ranks[0][key]["weights"], alone["weights"], 1e-9):
            far[key] = paths
    assert {key: paths for key, paths in far.items() if not is_of_one_rank(key)} == {}
    assert [key for key in CASES if is_of_one_rank(key) and key not in far] == []


@pytest.mark.parametrize("situation", ["missing", "empty"])
def test_ranks_stay_equal_where_one_lacks_a_modality_or_all_samples(situation: str) -> None:
    assert_alike(on_ranks(train_rank, situation))


def recalibrate_rank(rank: int) -> dict[str, Any]:
    """Estimate the statistics anew where rank 0 has a batch more; none has a sample that the other has, too."""
    library = allow_on_cpu(pytest.MonkeyPatch())
    case = Case(load_method("relearning"), {"offset": -1, "n_init": 1, "recalibrate_bn": True}, Normalizing)
    training = case.training(method=case.build(period=1), wrap=DistributedDataParallel, prepare=convert)
    training.end_epoch(shares(training, rank, "even")[: 3 - rank])
    del library
    return training.weights()


def test_statistics_are_estimated_anew_on_the_batches_that_every_rank_has() -> None:
    first, second = on_ranks(recalibrate_rank)
    assert different(second, first) == []
    assert {int(value) for name, value in first.items() if name.endswith("num_batches_tracked")} == {2}
