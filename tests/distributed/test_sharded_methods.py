"""Under `fully_shard`, each method trains as without: the same weights after the same global batches, or a refusal."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import SGD, AdamW, Optimizer

from modbalance import BalancedOptimizer, ConfigError, sharding
from support.models import ConcatFusion, Multimodal
from support.ranks import on_ranks
from support.training import batches, multimodal

pytestmark = [pytest.mark.slow, pytest.mark.cpu_fsdp]

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", {}),
    "mslr": ("mslr", {"memory": 1, "init": {"a": 0.5}}),
    "mslr, on the learning rate": ("mslr", {"memory": 1, "init": {"a": 0.5}, "mode": "lr"}),
    "mses": ("mses", {"patience": 0}),
    "mses, measured by the user": ("mses", {"patience": 0}),
    "mses, by modality": ("mses", {"patience": 0, "rewind": "modality"}),
    "ogm": ("ogm", {"param_filter": "all"}),
    "ogm, zeroed features": ("ogm", {"param_filter": "all", "unimodal": "zero"}),
    "ogm, own heads": ("ogm", {"param_filter": "all", "unimodal": "heads"}),
    "ogm_ge without noise": ("ogm_ge", {"param_filter": "all", "noise_scale": 0.0}),
    "ogm, on the update": ("ogm", {"param_filter": "all", "apply": "update"}),
    "cggm": ("cggm", {}),
    "agm": ("agm", {"clip_trigger": 1e-3, "clip_norm": 0.1}),
    "agm, joined passes": ("agm", {"coalitions": "joined"}),
    "dgl": ("dgl", {}),
    "relearning": ("relearning", {"period": 1, "reset_momentum": True}),
}
LOSSES = [{"loss": {"a": loss, "b": 1.0}} for loss in (1.0, 2.0, 3.0)]
METRICS: dict[str, list[Any]] = {"mses, measured by the user": LOSSES, "mses, by modality": LOSSES}
SHARDINGS = ("model", "encoders", "encoders and fusion", "model, resharded")


def shard(model: Multimodal, how: str) -> None:
    """Shard a model over two ranks: as one unit, with units inside of it, or sharded again after its forward."""
    # Here and not above: it came with torch 2.6.
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (2,))
    units = [*model.encoders.values()] if how.startswith("encoders") else []
    for unit in [*units, model.fusion] if how.endswith("fusion") else units:
        fully_shard(unit, mesh=mesh)
    if how.endswith("resharded"):
        fully_shard(model, mesh=mesh, reshard_after_forward=True)
    else:
        fully_shard(model, mesh=mesh)


def with_heads() -> Multimodal:
    """Return a small model with a further head for each modality, which its forward leaves alone."""
    model = multimodal()
    torch.manual_seed(3)
    heads = {name: nn.Linear(4, 3) for name in model.paths}
    model.heads = nn.ModuleDict(heads)
    return model


def built(model: Multimodal, method: str, **options: Any) -> BalancedOptimizer:
    if options.get("unimodal") == "heads":
        options["unimodal"] = {name: f"heads.{name}" for name in model.paths}
    inner: Optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    if options.get("apply") == "update":
        inner = AdamW(model.parameters(), lr=0.01, weight_decay=0.3)
    return BalancedOptimizer(inner, method, model=model, modalities=model.paths, fusion="fusion", **options)


def whole(model: nn.Module) -> dict[str, Tensor]:
    sharding.reshard(model)
    return {name: sharding.whole(p).detach().clone() for name, p in model.named_parameters()}


def trained(rank: int, how: str, label: str) -> dict[str, Tensor]:
    """Return the weights after three epochs of two steps each, on all of each batch or on one half of it per rank."""
    model, (method, options) = with_heads(), METHODS[label]
    data, unseen = batches(model, 6, size=8), batches(model, 3, size=8, seed=2)
    if how:
        shard(model, how)
        data, unseen = (
            [(tuple(x[rank::2] for x in inputs), target[rank::2]) for inputs, target in each] for each in (data, unseen)
        )
    optimizer = built(model, method, **options)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    train, val = ([(*inputs, target) for inputs, target in each] for each in (data, unseen))
    for step, (inputs, target) in enumerate(data):
        optimizer.zero_grad()
        criterion(model(*inputs), target).backward()
        optimizer.step()
        if step % 2:
            if step > 1:
                with torch.no_grad():
                    model(*inputs)  # an evaluation of the user's, which may leave weights gathered
            optimizer.end_epoch(train=train, val=val, metrics=METRICS.get(label, [None] * 3)[step // 2])
    return whole(model)


def all_trained(rank: int, how: str) -> dict[str, dict[str, Tensor] | str]:
    """Return the weights by method, or its error."""
    found: dict[str, dict[str, Tensor] | str] = {}
    for label in METHODS:
        try:
            found[label] = trained(rank, how, label)
        except (ConfigError, RuntimeError, NotImplementedError) as error:
            found[label] = repr(error)
    return found


@functools.cache
def on_two_ranks(how: str) -> list[dict[str, dict[str, Tensor] | str]]:
    return on_ranks(all_trained, how)


@functools.cache
def unsharded(label: str) -> dict[str, Tensor]:
    return trained(0, "", label)


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


@pytest.mark.filterwarnings("ignore:The logits of each coalition:modbalance.ModbalanceWarning")
@pytest.mark.parametrize("label", METHODS)
@pytest.mark.parametrize("how", SHARDINGS)
def test_a_sharded_training_equals_the_one_of_a_whole_model(how: str, label: str) -> None:
    first, second = (each[label] for each in on_two_ranks(how))

    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    assert distance(first, second) == 0
    assert distance(first, unsharded(label)) <= 1e-5


def test_the_table_in_the_docs_names_what_is_tested_here() -> None:
    lines = (Path(__file__).parents[2] / "docs" / "usage.md").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| under `fully_shard` |"))
    header, _, *rest = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[start:]]
    rows = list(itertools.takewhile(bool, rest))

    assert len(header) == 1 + len(SHARDINGS)
    assert {name.strip("`") for row in rows for name in row[0].split(", ")} == {name for name, _ in METHODS.values()}
    assert all(cell.startswith("works") for row in rows for cell in row[1:])


@pytest.mark.parametrize("label", [label for label in METHODS if label != "none"])
def test_the_methods_act_in_these_trainings(label: str) -> None:
    assert distance(unsharded(label), unsharded("none")) > 1e-3


# Refusals, before anything is changed


def refused(rank: int, method: str, options: dict[str, Any], is_mixed: bool) -> list[str | float]:
    """Return the error of the construction or the first criterion, and how far the weights moved."""
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    model = multimodal()
    before = whole(model)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if is_mixed else None)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)), mp_policy=policy, reshard_after_forward=True)
    inputs, target = batches(model, 1)[0]
    error = ""
    try:
        criterion = built(model, method, **options).criterion(nn.CrossEntropyLoss())
        criterion(model(*inputs), target)
    except ConfigError as caught:
        error = str(caught)
    return [error, distance(whole(model), before)]


@pytest.mark.parametrize(
    ("method", "options", "is_mixed", "named"),
    [
        ("cggm", {"direction": "gradient"}, False, ["`cggm`", "`direction`", "`fully_shard`", "leave it out"]),
        ("agm", {"coalitions": "factored"}, False, ["trains it", "`fully_shard`", "`reshard_after_forward=False`"]),
        ("dgl", {}, True, ["`MixedPrecisionPolicy`", "`fully_shard` on the fusion", "`reshard_after_forward=False`"]),
    ],
)
def test_what_would_be_wrong_is_refused(method: str, options: dict[str, Any], is_mixed: bool, named: list[str]) -> None:
    for error, moved in on_ranks(refused, method, options, is_mixed):
        assert [each for each in named if each not in error] == []
        assert moved == 0


# Noise


class Wide(nn.Module):
    """A model whose encoders have shards with gradients of quite different size."""

    def __init__(self) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({name: nn.Linear(40, 63) for name in "ab"})
        self.fusion = ConcatFusion((63, 63), 3)
        self.register_buffer("size", torch.linspace(0.1, 5, 63))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        logits: Tensor = self.fusion(self.size * self.encoders["a"](a), self.size * self.encoders["b"](b))
        return logits


def wide_optimizer(model: Wide, noise_scale: float) -> BalancedOptimizer:
    return BalancedOptimizer(
        SGD(model.parameters(), lr=0.1),
        "ogm_ge",
        model=model,
        modalities={name: f"encoders.{name}" for name in "ab"},
        fusion="fusion",
        param_filter="all",
        noise_scale=noise_scale,
        seed=3,
    )


def gradients_of(model: Wide, optimizer: BalancedOptimizer, *, step: bool = False) -> dict[str, Tensor]:
    """Return the whole modulated gradients of the encoders."""
    generator = torch.Generator().manual_seed(5)
    inputs = [torch.randn(16, 40, generator=generator) for _ in "ab"]
    target = torch.randint(3, (16,), generator=generator)
    optimizer.zero_grad()
    optimizer.criterion(nn.CrossEntropyLoss())(model(*inputs), target).backward()
    optimizer.step() if step else optimizer.modulate()
    named = model.encoders.named_parameters()
    return {name: sharding.whole(p.grad).clone() for name, p in named if p.grad is not None}


def noisy(rank: int, ranks: int, mesh_shape: tuple[int, ...], only_a: bool) -> dict[str, Any]:
    """Return noise of one step by parameter, standard deviations of its gradients, and what the random state was."""
    from torch.distributed.fsdp import fully_shard

    def made(noise_scale: float) -> tuple[Wide, BalancedOptimizer]:
        torch.manual_seed(0)
        model = Wide()
        mesh = init_device_mesh("cpu", mesh_shape, mesh_dim_names=("replicate", "shard")[-len(mesh_shape) :])
        for unit in [model.encoders["a"]] if only_a else [model.encoders["a"], model.encoders["b"], model]:
            fully_shard(unit, mesh=mesh)
        return model, wide_optimizer(model, noise_scale)

    plain_model, plain = made(0.0)
    modulated = gradients_of(plain_model, plain)
    model, optimizer = made(1.0)
    torch.manual_seed(rank + 10)
    before = torch.get_rng_state()
    with_noise = gradients_of(model, optimizer)
    untouched = bool(torch.equal(torch.get_rng_state(), before))

    gradients_of(model, optimizer, step=True)
    saved = optimizer.state_dict()
    later = gradients_of(model, optimizer)
    resumed_model, resumed = made(1.0)
    with torch.no_grad():
        for ours, theirs in zip(resumed_model.parameters(), model.parameters(), strict=True):
            sharding.local(ours).copy_(sharding.local(theirs))
    resumed.load_state_dict(saved)
    torch.manual_seed(99)
    again = gradients_of(resumed_model, resumed)
    return {
        "noise": {name: with_noise[name] - modulated[name] for name in modulated},
        "later": later,
        "again": again,
        "untouched": untouched,
        "modulated": modulated,
    }


@functools.cache
def noise_of(mesh_shape: tuple[int, ...], only_a: bool = False) -> list[dict[str, Any]]:
    return on_ranks(noisy, 2, mesh_shape, only_a)


def test_noise_is_that_of_the_full_gradient_and_differs_between_shards() -> None:
    first, second = noise_of((2,))
    for name in ("a.weight", "b.weight"):
        noise, gradient = first["noise"][name].double(), first["modulated"][name].double()
        assert torch.equal(first["noise"][name], second["noise"][name])
        sigma = noise.std()
        halves = noise[:32], noise[32:]
        for half in halves:
            assert abs(half.std() / sigma - 1) < 4 / (2 * half.numel()) ** 0.5
            assert abs(half.mean() / sigma) < 4 / half.numel() ** 0.5
        assert gradient[:32].std() < 0.6 * gradient[32:].std()  # or the test would not tell whose sigma it is
        together = torch.stack([halves[0][:31].flatten(), halves[1].flatten()])
        assert abs(torch.corrcoef(together)[0, 1]) < 4 / together.shape[1] ** 0.5
    a, b = (first["noise"][name].flatten() for name in ("a.weight", "b.weight"))
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 4 / len(a) ** 0.5


@pytest.mark.parametrize(("mesh_shape", "only_a"), [((2,), False), ((2, 1), False), ((2,), True)])
def test_noise_is_equal_on_ranks_resumed_and_not_of_the_global_random_state(
    mesh_shape: tuple[int, ...], only_a: bool
) -> None:
    first, second = noise_of(mesh_shape, only_a)
    for rank in (first, second):
        assert rank["untouched"]
        for name, gradient in rank["later"].items():
            assert torch.equal(gradient, rank["again"][name])
    for name, noise in first["noise"].items():
        assert torch.equal(noise, second["noise"][name])
        assert noise.abs().max() > 0


def stds(rank: int) -> list[Tensor]:
    """Return standard deviations of sharded tensors and those of the same tensors whole."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    from modbalance import gradients

    mesh, grid = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (2, 1))
    torch.manual_seed(0)
    full = [torch.linspace(0, 3, size[0]).view(-1, *[1] * (len(size) - 1)) + torch.randn(size) for size in SIZES]
    laid_out = [
        *[distribute_tensor(each, mesh, [Shard(0)]) for each in full],
        *[distribute_tensor(each, mesh, [Replicate()]) for each in full],
        *[distribute_tensor(each, grid, [Shard(0), Shard(0)]) for each in full],
        *[distribute_tensor(each, grid, [Replicate(), Shard(0)]) for each in full],
        *full,
    ]
    return [gradients.std(laid_out), torch.cat([gradients.std(full)] * 5)]


SIZES = [(6, 4), (7, 3), (1,), (1, 5), (3,)]


def test_the_standard_deviation_of_shards_is_that_of_the_whole() -> None:
    for found, expected in on_ranks(stds):
        assert torch.allclose(found, expected, rtol=1e-6, atol=0)
