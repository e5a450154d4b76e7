"""OPM: rates, draws, edge cases, refusals, composition and cost."""

from __future__ import annotations

import copy
import io
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import SGD

from modbalance import BalancedOptimizer, ConfigError
from modbalance._plugins import load_method
from modbalance_opm import OPM
from support.models import HEADS, Recording
from support.operation_counts import READS, CountOps
from support.ranks import on_ranks
from support.training import (
    assert_same,
    audio_visual,
    balanced,
    batches,
    multimodal,
    sgd,
    steps_on_fake_tensors,
    train,
    weights,
)

LOSS = nn.CrossEntropyLoss()


@attrs.define(eq=False, kw_only=True)
class Fixed(OPM):
    """Drops the samples whose number in the whole batch is even, where a modality has a rate."""

    executes: bool = True
    first: int = 0

    def draw(self, step: int, q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        odd = (torch.arange(shape[0]) + self.first) % 2 == 1
        return torch.tensor(self.executes), odd[:, None] | (q == 0)


def fixed(executes: bool = True, first: int = 0, **options: Any) -> Fixed:
    method = Fixed.configure(start_epoch=0, **options)
    method.executes, method.first = executes, first
    return method


def rates(s: list[float], **options: Any) -> list[float]:
    run: Any = type("Run", (), {"count_each": lambda *_: None})()
    return OPM.configure(**options).rates(run, torch.tensor(s, dtype=torch.float64)).tolist()


# Rates


def test_the_modality_ahead_gets_a_rate_that_grows_with_its_lead() -> None:
    tanh = torch.tensor(1.0).double().tanh().item()
    assert rates([0.4, 0.2]) == pytest.approx([0.5 * (1 + 0.5 * tanh), 0])
    assert rates([0.2, 0.2]) == [0, 0]
    assert rates([0.2, 0.4], lam=0) == [0, 0.5]
    assert rates([0.9, 0.1], q_base=0.9, lam=2) == [1, 0]


def test_of_several_modalities_those_above_the_mean_or_the_least_of_the_others() -> None:
    assert [q > 0 for q in rates([0.5, 0.4, 0.1])] == [True, True, False]
    assert [q > 0 for q in rates([0.5, 0.2, 0.1])] == [True, False, False]
    assert [q > 0 for q in rates([0.5, 0.2, 0.1], ratio="min")] == [True, True, False]


@pytest.mark.parametrize(
    ("s", "expected"),
    [([0.3, 0.0], [0.75, 0]), ([0.0, 0.0], [0, 0]), ([float("nan"), 0.3], [0, 0]), ([float("inf"), 0.3], [0, 0])],
)
def test_scores_that_cannot_be_compared(s: list[float], expected: list[float]) -> None:
    assert rates(s) == expected


def test_a_score_that_underflows_leaves_finite_weights_and_is_counted() -> None:
    model = multimodal()
    optimizer = balanced(model, fixed())
    (inputs, _), target = batches(model, 1)[0], torch.zeros(6, dtype=torch.long)
    given = {"a": torch.zeros(6, 3), "b": torch.tensor([-1e4, 1e4, 0]).repeat(6, 1)}
    logits = model(*inputs)
    optimizer.criterion(LOSS)(logits, target, unimodal_logits=given).backward()
    optimizer.step()
    assert all(value.isfinite().all() for value in weights(model).values())
    metrics = optimizer.metrics()
    assert metrics["opm/rate/a"] == 0.75
    assert metrics["opm/degenerate/a"] == 1


@pytest.mark.parametrize("executes", [True, False])
@pytest.mark.parametrize("score", [1e-19, 1e-25, 1e-38, 0.0])
def test_a_score_near_zero_gives_the_encoders_no_gradient_through_the_rate(score: float, executes: bool) -> None:
    # The slope of s_i / s_j overflows there, while that of tanh is 0.
    ours, theirs = multimodal(), multimodal()
    (inputs, _), target = batches(ours, 1)[0], torch.zeros(6, dtype=torch.long)
    for model, theta_gradient in ((ours, True), (theirs, False)):
        optimizer = balanced(model, fixed(executes, theta_gradient=theta_gradient))
        logits = model(*inputs)
        z = model.encoders["b"](inputs[1]).sum(1)  # with a graph to the encoder
        lead = torch.tensor(score).log().clamp(min=-1e4)
        given = {"a": torch.zeros(6, 3), "b": torch.stack([z * 0 + lead, z * 0, z * 0 - 1e4], 1)}
        optimizer.criterion(LOSS)(logits, target, unimodal_logits=given).backward()
        optimizer.step()
    assert_same(ours, theirs)


def rate_and_gradient(s: list[float], dtype: torch.dtype) -> tuple[float, Tensor]:
    run: Any = type("Run", (), {"count_each": lambda *_: None})()
    live = torch.tensor(s, dtype=dtype, requires_grad=True)
    q = OPM.configure().rates(run, live)
    return q[0].item(), torch.autograd.grad(q[0], live)[0].double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("s", [[0.4, 0.2], [0.4, 0.1], [3e-30, 1e-30], [0.5, 1e-3], [0.5, 1e-25]])
def test_rates_have_a_gradient_up_to_the_lead_at_which_it_vanishes(s: list[float], dtype: torch.dtype) -> None:
    q, found = rate_and_gradient(s, dtype)
    r = torch.tensor(s[0] / s[1], dtype=torch.float64)
    slope = 0.25 / (r - 1).cosh() ** 2 if r < 32 else torch.zeros_like(r)
    assert q == pytest.approx(0.5 + 0.25 * (r - 1).tanh().item())
    torch.testing.assert_close(found, torch.stack([slope / s[1], -slope * r / s[1]]), rtol=1e-4, atol=1e-12)


def test_two_scores_near_zero_give_a_rate_without_gradient() -> None:
    q, gradient = rate_and_gradient([3e-43, 1e-43], torch.float32)
    assert q == 0.75
    assert gradient.tolist() == [0, 0]


# Features and loss


@pytest.mark.parametrize("head", HEADS)
def test_the_loss_is_that_of_the_features_that_are_left(head: str) -> None:
    model = multimodal("ab", head)
    inputs, target = batches(model, 1)[0]
    optimizer = balanced(model, fixed(theta_gradient=False))
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    metrics = optimizer.metrics()
    q = [metrics["opm/rate/a"], metrics["opm/rate/b"]]
    keep = torch.tensor([0.0, 1, 0, 1, 0, 1])[:, None]
    z = [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]
    z = [(each * keep if rate else each) / (1 - sum(q) / 2) for each, rate in zip(z, q, strict=True)]
    assert sorted(rate > 0 for rate in q) == [False, True]
    torch.testing.assert_close(loss, LOSS(model.fusion(*z), target))


def test_a_step_that_drops_nothing_is_the_plain_one_bit_for_bit() -> None:
    ours, plain = multimodal("abc"), multimodal("abc")
    data = batches(ours, 3)
    assert_same(train(ours, balanced(ours, fixed(executes=False)), data), train(plain, sgd(plain), data))
    never = multimodal("abc")
    assert_same(train(never, balanced(never, "opm", start_epoch=0, p_exe=0), data), plain)


def test_a_sample_keeps_its_only_modality() -> None:
    class All(Fixed):
        def draw(self, step: int, q: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
            return torch.tensor(True), (q == 0).expand(shape)

    model = multimodal()
    optimizer = balanced(model, All.configure(start_epoch=0, theta_gradient=False))
    seen: list[Tensor] = []
    hook = model.fusion.register_forward_pre_hook(lambda module, args: seen.extend(args))
    inputs, target = batches(model, 1)[0]
    alone = torch.tensor([True, False, False, False, False, False])
    criterion = optimizer.criterion(LOSS)
    criterion(model(*inputs), target, present={"a": ~alone})
    hook.remove()
    dropped = [(each == 0).all(1) for each in seen[-2:]]
    assert not (dropped[1] & alone).any()
    assert (dropped[0] | dropped[1])[1:].all()


def test_layers_of_the_fusion_are_run_as_in_training_and_keep_their_buffers() -> None:
    model = multimodal()
    model.fusion = Recording(8, 3)
    optimizer = balanced(model, fixed())
    train(model, optimizer, batches(model, 2))
    assert model.fusion.modes == [True] * len(model.fusion.modes)
    assert model.fusion.seen == 12
    assert model.fusion.norm.num_batches_tracked == 2


def test_token_sequences_lose_all_tokens_of_a_sample() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(8, 3)
            self.seen: list[Tensor] = []

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            self.seen += [a, b]
            return self.out(torch.cat([a, b], -1).mean(1))

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fusion = nn.Linear(5, 4), nn.Linear(5, 4), Tokens()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.fusion(self.a(a), self.b(b))

    model = Model()
    optimizer = BalancedOptimizer(
        sgd(model), fixed(), model=model, modalities={"a": "a", "b": "b"}, fusion="fusion", unimodal="zero"
    )
    optimizer.criterion(LOSS)(model(torch.randn(6, 2, 5), torch.randn(6, 2, 5)), torch.arange(6) % 3).backward()
    dropped = [(each == 0).flatten(1).all(1).tolist() for each in model.fusion.seen[-2:]]
    assert [True, False] * 3 in dropped


# Draws


def test_draws_have_the_rates_and_depend_on_seed_and_step() -> None:
    model = multimodal()
    (optimizer, other), data = (balanced(copy.deepcopy(model), "opm", start_epoch=0, seed=seed) for seed in (0, 1)), []
    shape, q = (4000, 2), torch.tensor([0.5, 0.0])
    for each in (optimizer, other):
        (method,) = each._lifecycle.methods
        run = each._lifecycle._runs["opm"]
        assert isinstance(method, OPM)
        method._drawing = run, 0, torch.device("cpu")
        draws = []
        for _ in range(200):
            executed, bits = method.draw(run.steps, q, shape)
            draws.append(bool(executed))
            each._lifecycle.training.steps += 1
        assert 0.6 < sum(draws) / 200 < 0.8
        assert bits[:, 1].all()
        assert bits[:, 0].float().mean() == pytest.approx(0.5, abs=0.04)
        data.append((draws, bits))
    assert data[0][0] != data[1][0]
    assert not torch.equal(data[0][1], data[1][1])


def test_resume_is_bitwise() -> None:
    model, other = multimodal("abc"), multimodal("abc", seed=3)
    data = batches(model, 6)
    optimizer, resumed = (balanced(each, "opm", start_epoch=0) for each in (model, other))
    train(model, optimizer, data[:3])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    other.load_state_dict(saved)
    resumed.load_state_dict(state)
    assert_same(train(other, resumed, data[3:]), train(model, optimizer, data[3:]))


# Ranks


def train_rank(rank: int, head: str) -> dict[str, Tensor]:
    bare = multimodal("abc", head, dtype=torch.float64)
    model = DistributedDataParallel(bare)
    optimizer = BalancedOptimizer(sgd(bare), fixed(first=3 * rank), model=model, modalities=bare.paths, fusion="fusion")
    part = slice(3 * rank, 3 * rank + 3)
    data = [(tuple(x[part] for x in xs), y[part]) for xs, y in batches(bare, 4, dtype=torch.float64)]
    train(model, optimizer, data)
    return dict(bare.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("head", ["concat", "gated"])
def test_two_ranks_equal_one_process_on_the_joined_batch(head: str) -> None:
    first, second = on_ranks(train_rank, head)
    alone = multimodal("abc", head, dtype=torch.float64)
    train(alone, balanced(alone, fixed()), batches(alone, 4, dtype=torch.float64))
    assert_same(first, second)
    for name, value in alone.state_dict().items():
        assert (first[name] - value).abs().max() <= 1e-12, name


# Composition and refusals


@pytest.mark.parametrize("order", [("opm", "ogm"), ("ogm", "opm")])
def test_ogm_beside_it_sees_the_features_before_the_drop(order: tuple[str, str]) -> None:
    built = {"opm": fixed(), "ogm": load_method("ogm").configure(param_filter="all")}
    model, alone = multimodal(), multimodal()
    inputs, target = batches(model, 1)[0]
    ratios = []
    for each, methods in ((model, [built[name] for name in order]), (alone, "ogm")):
        optimizer = balanced(each, methods)
        optimizer.criterion(LOSS)(each(*inputs), target).backward()
        optimizer.step()
        ratios.append([optimizer.metrics()[f"ogm/ratio/{name}"] for name in "ab"])
    assert ratios[0] == ratios[1]


@pytest.mark.parametrize("other", ["dgl", "agm"])
def test_methods_that_replace_features_or_logits_do_not_go_with_it(other: str) -> None:
    with pytest.raises(ConfigError, match=f"`opm`.*{other}|opm and {other}"):
        balanced(multimodal(), ["opm", other])


def test_there_is_no_paper_preset() -> None:
    with pytest.raises(ConfigError, match="`preset` of method `opm` should be 'official'"):
        balanced(multimodal(), "opm", preset="paper")


def test_a_fusion_is_needed() -> None:
    model = multimodal()
    with pytest.raises(ConfigError, match="`opm` needs `fusion=`"):
        BalancedOptimizer(SGD(model.parameters(), lr=0.1), "opm", model=model, modalities=model.paths)


def test_observe_comes_too_late() -> None:
    model = multimodal()
    optimizer = balanced(model, "opm", start_epoch=0)
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    with pytest.raises(ConfigError, match="`opm` replaces the logits"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)


@pytest.mark.parametrize("option", [{"q_base": 1.5}, {"lam": -1}, {"p_exe": 2}, {"theta_gradient": "no"}, {"seed": -1}])
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Option `{next(iter(option))}` of method `opm`"):
        balanced(multimodal(), "opm", **option)


# Cost


@pytest.mark.parametrize("options", [{}, {"theta_gradient": False}])
def test_no_host_read_and_no_further_encoder_pass(options: dict[str, Any]) -> None:
    def ops(method: str, **arguments: Any) -> Any:
        model = audio_visual()
        optimizer = balanced(model, method, **arguments)
        first, second = batches(model, 2, size=64)
        train(model, optimizer, [first])
        with CountOps() as counted:
            train(model, optimizer, [second])
        return counted.ops

    added = ops("opm", start_epoch=0, **options) - ops("none")
    assert 0 < added.total() <= (113 if not options else 82)
    assert not [name for name in added if name in READS or "conv" in name or "batch_norm" in name]


@pytest.mark.parametrize("unimodal", ["slice", "zero"])
def test_a_step_runs_on_fake_tensors(unimodal: str) -> None:
    assert steps_on_fake_tensors(lambda model: balanced(model, "opm", start_epoch=0, unimodal=unimodal)) == 2
