"""LFM: weights, distances, the probe, edge cases, tasks, refusals, composition and cost."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning, ObservationError
from modbalance._plugins import load_method
from modbalance.scores import binary, kind_of, multilabel, regression
from modbalance_lfm import alignment
from modbalance_lfm.probe import first_half
from support.models import SumFusion
from support.operation_counts import READS, CountOps
from support.training import assert_same, audio_visual, balanced, batches, multimodal, sgd, train

LOSS = nn.CrossEntropyLoss()
LEARNED: dict[str, Any] = {"alpha": "learned", "alpha_lr": 0.5, "alpha_start": 0.6}


def weight_in(epoch: int, **options: Any) -> float:
    model = multimodal()
    optimizer = balanced(model, "lfm", **options)
    optimizer.epoch = epoch
    train(model, optimizer, batches(model, 1))
    return optimizer.metrics()["lfm/weight"]


def distance(logits: list[list[float]], divergence: str = "reversed") -> Tensor:
    p, q = (alignment.log_probabilities(torch.tensor([each]), "classes") for each in logits)
    return alignment.distance(p, q, divergence)


# Weights


@pytest.mark.parametrize(("epoch", "a0"), [(0, 0.204624), (50, 0.437), (130, 0.672), (183, 1.010540), (199, 0.916)])
def test_the_fitted_weight(epoch: int, a0: float) -> None:
    assert 1 - weight_in(epoch) == pytest.approx(a0, abs=5e-4)


def test_the_polynomial_is_stretched_to_other_lengths_and_bounded_there() -> None:
    assert weight_in(50, alpha_epochs=100) == pytest.approx(1 - 0.539, abs=5e-4)
    assert weight_in(183, alpha_epochs=201) == 0
    assert weight_in(183, alpha_epochs=200) < 0
    assert weight_in(366, alpha_epochs=400) == 0
    assert weight_in(183, alpha_clip=(0.1, 1.0)) == 0.1


def test_epochs_beyond_the_last_one_keep_its_weight_with_one_warning() -> None:
    model = multimodal()
    optimizer = balanced(model, "lfm")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for epoch in (199, 200, 250):
            optimizer.epoch = epoch
            train(model, optimizer, batches(model, 1))
            assert 1 - optimizer.metrics()["lfm/weight"] == pytest.approx(0.916, abs=5e-4)
    assert [each.category for each in caught if "alpha_epochs" in str(each.message)] == [ModbalanceWarning]


def test_the_heuristic_weight() -> None:
    assert weight_in(0, alpha="heuristic") == 0.95
    assert weight_in(2, alpha="heuristic") == pytest.approx(torch.tensor(-0.6).exp().item())
    assert weight_in(30, alpha="heuristic") == 0.05


# Distances


def test_equal_logits_have_distance_and_gradient_zero() -> None:
    o = torch.randn(4, 3, dtype=torch.float64)
    pair = {name: o.clone().requires_grad_() for name in "ab"}
    A = alignment.alignment(pair, "classes", "reversed", "sum", None, {})
    A.backward()
    assert A.item() == pytest.approx(0, abs=1e-15)
    assert all(each.grad is not None and each.grad.abs().max() < 1e-15 for each in pair.values())


@pytest.mark.parametrize("divergence", ["reversed", "js"])
def test_large_logits_are_finite(divergence: str) -> None:
    o = {name: (3000 * torch.randn(4, 5)).requires_grad_() for name in "ab"}
    A = alignment.alignment(o, "classes", divergence, "sum", None, {})
    A.backward()
    assert A.isfinite()
    assert all(each.grad is not None and each.grad.isfinite().all() for each in o.values())


def test_jensen_shannon_is_bounded_and_the_reversed_one_is_not() -> None:
    far = [[20.0, 0.0], [0.0, 20.0]]
    assert distance(far, "js").item() == pytest.approx(torch.tensor(2.0).log().item(), rel=1e-4)
    assert distance(far).item() > 5


def test_ignored_elements_and_absent_modalities_do_not_count() -> None:
    o = {name: torch.randn(4, 3, 2) for name in "ab"}
    y = torch.randint(3, (4, 2))
    y[1, 0] = 7
    present = {"a": torch.tensor([True, True, False, True])}
    counts = alignment.counted(y, o["a"], nn.CrossEntropyLoss(ignore_index=7))
    log_p, log_q = (alignment.log_probabilities(o[name], "classes") for name in "ab")
    each = alignment.distance(log_p, log_q, "reversed")
    found = alignment.alignment(o, "classes", "reversed", "sum", counts, present)
    kept = torch.cat([each[0], each[1, 1:], each[3]])
    torch.testing.assert_close(found, kept.mean())
    torch.testing.assert_close(alignment.fused(o, present)[2], o["b"][2])
    torch.testing.assert_close(alignment.fused(o, present)[0], (o["a"][0] + o["b"][0]) / 2)


def test_an_absent_modality_gets_no_gradient() -> None:
    model = multimodal()
    criterion = balanced(model, "lfm").criterion(LOSS)
    inputs, y = batches(model, 1)[0]
    criterion(model(*inputs), y, present={"a": torch.zeros(6, dtype=torch.bool)}).backward()
    gradients = [p.grad for p in model.encoders["a"].parameters()]
    assert all(g is None or not g.any() for g in gradients)


# Tasks


def test_a_loss_or_a_score_tells_what_logits_are_of() -> None:
    assert kind_of(nn.CrossEntropyLoss()) == "classes"
    assert kind_of(nn.BCEWithLogitsLoss()) == kind_of(F.binary_cross_entropy_with_logits) == "labels"
    assert kind_of(len, binary) == kind_of(None, multilabel) == "labels"
    assert kind_of(nn.MSELoss()) == kind_of(len, regression) == "numbers"


def test_labels_are_compared_one_by_one() -> None:
    model = multimodal()
    optimizer = balanced(model, "lfm")
    inputs, _ = batches(model, 1)[0]
    seen: list[Tensor] = []

    def loss(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(logits)
        return F.binary_cross_entropy_with_logits(logits, target)

    criterion = optimizer.criterion(loss, score="multilabel")
    criterion(model(*inputs), torch.ones(6, 3))
    z = [phi(x) for phi, x in zip(model.encoders.values(), inputs, strict=True)]
    weight, bias = model.get_parameter("fusion.fc_out.weight"), model.get_parameter("fusion.fc_out.bias")
    p, q = ((z_i @ w.T + bias / 2).sigmoid() for z_i, w in zip(z, weight.chunk(2, 1), strict=True))
    m = (p + q) / 2
    A = m * (m.log() - p.log() / 2 - q.log() / 2)
    A = A + (1 - m) * ((1 - m).log() - (1 - p).log() / 2 - (1 - q).log() / 2)
    assert optimizer.metrics()["lfm/alignment"] == pytest.approx(A.mean().item(), rel=1e-4)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.SmoothL1Loss()])
def test_losses_of_numbers_are_refused(loss: nn.Module) -> None:
    model = multimodal()
    criterion = balanced(model, "lfm").criterion(loss, score="regression")
    inputs, _ = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="`lfm` compares the distributions"):
        criterion(model(*inputs), torch.zeros(6, 3))


# Evaluation


@pytest.mark.parametrize("fused", ["mean", "model"])
def test_evaluation_follows_the_option(fused: str) -> None:
    model = audio_visual(SumFusion)
    heads = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}
    criterion = balanced(model, "lfm", fused=fused, unimodal=heads).criterion(LOSS)
    inputs, y = batches(model, 1)[0]
    model.eval()
    with torch.no_grad():
        logits = model(*inputs)
        found = criterion(logits, y)
    torch.testing.assert_close(found, LOSS(logits / 2 if fused == "mean" else logits, y))


# The probe


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_pass_of_the_probe_moves_buffers_before_the_first_forward(compiled: bool) -> None:
    model = audio_visual()
    alone = copy.deepcopy(model)
    wrapped: Any = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    probe, y = batches(model, 1, size=4, seed=5)[0]
    optimizer = BalancedOptimizer(
        sgd(model),
        "lfm",
        model=wrapped,
        modalities={"audio": "audio_net", "visual": "visual_net"},
        fusion="fusion_module",
        probe=(*probe, y),
        **LEARNED,
    )
    criterion = optimizer.criterion(LOSS)
    data = batches(model, 3)
    inputs, target = data[0]
    criterion(wrapped(*inputs), target).backward()
    alone(*[x[:2] for x in probe])
    alone(*inputs)
    for name, expected in alone.named_buffers():
        torch.testing.assert_close(model.get_buffer(name), expected)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(wrapped(*inputs), target).backward()
        optimizer.step()
        optimizer.end_epoch()
    assert int(model.get_buffer("audio_net.1.num_batches_tracked")) == 5
    torch.compiler.reset()


@pytest.mark.parametrize("options", [{"probe_mode": "eval"}, {"dry_run": True}])
def test_buffers_stay_in_eval_mode_and_in_a_dry_run(options: dict[str, Any]) -> None:
    model = audio_visual()
    train(model, balanced(model, "lfm", **LEARNED, **options), batches(model, 2))
    assert int(model.get_buffer("audio_net.1.num_batches_tracked")) == 2


def test_the_probe_leaves_gradients_and_modes_alone() -> None:
    model = audio_visual()
    optimizer = balanced(model, "lfm", **LEARNED)
    model.audio_net[1].eval()
    criterion = optimizer.criterion(LOSS)
    inputs, y = batches(model, 1)[0]
    logits = model(*inputs)
    assert all(p.grad is None for p in model.parameters())
    assert [model.audio_net[1].training, model.visual_net.body[1].training] == [False, True]
    assert int(model.get_buffer("audio_net.1.num_batches_tracked")) == 0
    criterion(logits, y).backward()


def test_lambda_is_halved_before_use_in_every_twentieth_epoch() -> None:
    model = multimodal()
    optimizer = balanced(model, "lfm", **LEARNED)
    for epoch, rate in ((0, 0.5), (19, 0.5), (20, 0.25), (21, 0.25), (40, 0.125)):
        optimizer.epoch = epoch
        before = optimizer.metrics().get("lfm/weight", LEARNED.get("alpha_start", 0.95))
        train(model, optimizer, batches(model, 1))
        found = optimizer.metrics()
        assert found["lfm/weight"] == pytest.approx(min(0.95, before - rate * found["lfm/gradient"]), abs=1e-6)


def test_a_resumed_run_needs_no_data() -> None:
    def built(seed: int = 0) -> tuple[Any, Any]:
        model = multimodal(seed=seed)
        inputs, y = batches(model, 1, seed=4)[0]
        return model, balanced(model, "lfm", probe=(*inputs, y) if seed == 0 else None, **LEARNED)

    whole, optimizer = built()
    data = batches(whole, 3)
    train(whole, optimizer, data[:2])
    optimizer.end_epoch()
    saved = copy.deepcopy([whole.state_dict(), optimizer.state_dict()])
    train(whole, optimizer, data[2:])
    resumed, other = built(seed=7)
    resumed.load_state_dict(saved[0])
    other.load_state_dict(saved[1])
    train(resumed, other, data[2:])
    assert_same(resumed, whole)
    assert other.metrics()["lfm/weight"] == optimizer.metrics()["lfm/weight"]


def test_the_parameter_can_be_named() -> None:
    found = {
        weight_in(0, **LEARNED, alpha_parameter=name) for name in (None, "encoders.a.0.weight", "encoders.b.0.bias")
    }
    assert len(found) == 2
    with pytest.raises(ConfigError, match="`alpha_parameter` of method `lfm` names no parameter"):
        balanced(multimodal(), "lfm", **LEARNED, alpha_parameter="encoders.a.0.wieght")


def test_attention_is_differentiated_twice() -> None:
    model = multimodal("ab", "attention")
    optimizer = balanced(model, "lfm", **LEARNED)
    train(model, optimizer, batches(model, 1))
    assert optimizer.metrics()["lfm/weight"] != LEARNED["alpha_start"]


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ([torch.zeros(1, 5), torch.zeros(1, dtype=torch.long)], "at least 2 samples"),
        ([torch.zeros(4, 5), torch.zeros(3, dtype=torch.long)], "one row per sample"),
        ([], "one row per sample"),
    ],
)
def test_probes_that_have_no_half_are_refused(batch: list[Tensor], message: str) -> None:
    model = multimodal()
    optimizer = balanced(model, "lfm", probe=batch, **LEARNED)
    optimizer.criterion(LOSS)
    with pytest.raises(ConfigError, match=message):
        model(*batches(model, 1)[0][0])


def test_half_of_nested_batches() -> None:
    run: Any = type("Run", (), {"gather_rows": staticmethod(lambda rows: rows)})()
    batch = ({"x": torch.arange(5), "scale": torch.tensor(2.0)}, [torch.arange(5)], "name")
    found = first_half(run, batch)
    assert isinstance(found, list)
    assert found[0]["x"].tolist() == found[1][0].tolist() == [0, 1]
    assert found[0]["scale"] == 2
    assert found[2] == "name"


def test_a_probe_and_a_loss_are_asked_for() -> None:
    model = multimodal()
    optimizer = balanced(model, "lfm", **LEARNED)
    with pytest.raises(ObservationError, match=r"`opt\.criterion"):
        model(*batches(model, 1)[0][0])
    optimizer._lifecycle.methods[0].samples = []  # type: ignore[attr-defined]
    optimizer.criterion(LOSS)
    with pytest.raises(ObservationError, match=r"`opt.begin\(val=loader\)`"):
        model(*batches(model, 1)[0][0])


@pytest.mark.parametrize(
    "option", [{"alpha": "no"}, {"alpha_clip": (1, 0)}, {"alpha_rate": 0}, {"probe": 3}, {"preset": "paper"}]
)
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}` of method `lfm`"):
        balanced(multimodal(), "lfm", **option)


# Composition and cost


@pytest.mark.parametrize("other", ["agm", "mmcosine", "opm"])
def test_methods_that_replace_logits_do_not_go_with_it(other: str) -> None:
    with pytest.raises(ConfigError, match="At most one method should replace the logits"):
        balanced(multimodal(), ["lfm", other])


@pytest.mark.parametrize("fused", ["mean", "model"])
def test_dgl_beside_it_is_refused_since_its_cut_would_have_no_effect(fused: str) -> None:
    model = multimodal()
    lfm, dgl = load_method("lfm").configure(fused=fused), load_method("dgl").configure()
    with pytest.raises(ConfigError, match=r"`lfm` should stand without .*`modbalance_features`.* Found dgl"):
        balanced(model, [lfm, dgl])


def test_ogm_beside_it_scales_the_gradients_of_both_losses() -> None:
    one, two = multimodal(), multimodal()
    both = [load_method("lfm").configure(), load_method("ogm").configure(param_filter="all")]
    (inputs, y), alone = batches(one, 1)[0], balanced(one, "lfm")
    for model, optimizer in ((one, alone), (two, balanced(two, both))):
        optimizer.criterion(LOSS)(model(*inputs), y).backward()
        optimizer.modulate()
        found = optimizer.metrics()
    for name in "ab":
        pairs = zip(one.encoders[name].parameters(), two.encoders[name].parameters(), strict=True)
        for p, q in pairs:
            assert p.grad is not None
            assert q.grad is not None
            torch.testing.assert_close(q.grad, p.grad * found[f"ogm/coefficient/{name}"])


def test_no_host_read_and_no_further_encoder_pass() -> None:
    def ops(method: str, **options: Any) -> Any:
        model = audio_visual()
        optimizer = balanced(model, method, **options)
        train(model, optimizer, batches(model, 1))
        with CountOps() as counted:
            train(model, optimizer, batches(model, 1))
        return counted.ops

    for options in ({}, LEARNED):
        added = ops("lfm", **options) - ops("none")
        assert added.total() > 0
        assert not [name for name in added if name in READS or "conv" in name or "batch_norm" in name]


def test_a_resumed_training_reads_its_probe_as_the_first_one_did() -> None:
    def batch(model: Any, seed: int) -> dict[str, Any]:
        inputs, y = batches(model, 1, seed=seed)[0]
        return {"inputs": inputs, "label": y}

    def forward(model: Any, item: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return model(*item["inputs"]), item["label"]

    def begun(model: Any) -> Any:
        optimizer = BalancedOptimizer(
            sgd(model), "lfm", model=model, modalities=model.paths, fusion="fusion", alpha="learned"
        )
        return optimizer, optimizer.criterion(LOSS)

    model, other = multimodal(), multimodal()
    optimizer, criterion = begun(model)
    optimizer.begin(val=[batch(model, 4)], forward=forward)
    train(model, optimizer, batches(model, 2), criterion)
    optimizer.end_epoch()
    weights_then, saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, batches(model, 2), criterion)

    other.load_state_dict(weights_then)
    resumed, again = begun(other)
    resumed.load_state_dict(saved)
    resumed.begin(val=[batch(model, 5)], forward=forward)
    train(other, resumed, batches(other, 2), again)
    assert_same(other, model)
