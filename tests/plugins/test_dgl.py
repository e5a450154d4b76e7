"""DGL: what its cut and its constants do to gradients, and what it needs."""

from __future__ import annotations

import copy
import io
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from modbalance import BalancedOptimizer, ConfigError
from modbalance._plugins import load_method
from support.models import HEADS, ConcatFusion, Multimodal, SumFusion
from support.operation_counts import READS, CountOps
from support.training import (
    assert_close,
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


def gradients(model: nn.Module, method: Any = "dgl", **arguments: Any) -> dict[str, Tensor | None]:
    """Return the gradients of one batch after modulation."""
    optimizer = balanced(model, method, **arguments)
    inputs, target = batches(model, 1)[0]
    optimizer.criterion(LOSS)(model(*inputs), target).backward()
    optimizer.modulate()
    return {name: p.grad for name, p in model.named_parameters()}


def by_hand(model: Multimodal, alpha: float) -> dict[str, Tensor]:
    """Return the gradients that the equations of the paper ask for, each loss on its own."""
    inputs, target = batches(model, 1)[0]
    fused = torch.autograd.grad(LOSS(model(*inputs), target), list(model.fusion.parameters()))
    expected = {f"fusion.{name}": g for (name, _), g in zip(model.fusion.named_parameters(), fused, strict=True)}
    for index, (modality, encoder) in enumerate(model.encoders.items()):
        z = encoder(inputs[index])
        alone = [z if i == index else torch.zeros_like(z) for i in range(len(inputs))]
        own = torch.autograd.grad(alpha * LOSS(model.fusion(*alone), target), list(encoder.parameters()))
        names = [f"encoders.{modality}.{name}" for name, _ in encoder.named_parameters()]
        expected |= dict(zip(names, own, strict=True))
    return expected


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("names", ["ab", "abcd"])
def test_encoders_learn_from_their_own_loss_and_the_fusion_from_the_fused_one(head: str, names: str) -> None:
    model = multimodal(names, head)
    expected = by_hand(copy.deepcopy(model), 3.0)
    for name, gradient in gradients(model, alpha=3.0).items():
        assert gradient is not None
        torch.testing.assert_close(gradient, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_callable_fusion_is_constant_for_the_unimodal_losses() -> None:
    model, named = multimodal("abc", "mlp"), multimodal("abc", "mlp")
    found = gradients(model, fusion=lambda *features: model.fusion(*features))
    for name, expected in gradients(named).items():
        assert torch.equal(found[name], expected), name  # type: ignore[arg-type]


def test_own_heads_are_constants_wherever_they_are() -> None:
    model = multimodal()
    model.register_module("heads", nn.ModuleDict({name: nn.Linear(4, 3) for name in "ab"}))
    found = gradients(model, unimodal={"a": "heads.a", "b": "heads.b"})
    assert {name.split(".")[0] for name, gradient in found.items() if gradient is None} == {"heads"}
    for name, gradient in gradients(multimodal()).items():
        assert ("fusion" not in name) or torch.equal(found[name], gradient)  # type: ignore[arg-type]


def test_unused_parameters_keep_no_gradient_and_do_not_move() -> None:
    model = multimodal()
    model.fusion.register_module("unused", nn.Linear(2, 2))
    before = weights(model)
    optimizer = balanced(model, "dgl")
    train(model, optimizer, batches(model, 3))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) is ("unused" in name)
        assert torch.equal(parameter, before[name]) is ("unused" in name)


def test_what_does_not_enter_the_fusion_is_not_cut() -> None:
    class WithAuxiliary(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            features = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
            self.auxiliary = features[0].square().sum()
            return self.fusion(*features)

    model = WithAuxiliary()
    optimizer = balanced(model, "dgl")
    inputs, target = batches(model, 1)[0]
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    (own,) = torch.autograd.grad(loss, model.get_parameter("encoders.a.0.weight"), retain_graph=True)
    (loss + model.auxiliary).backward()
    auxiliary = model.get_parameter("encoders.a.0.weight").grad
    assert auxiliary is not None
    assert (auxiliary - own).abs().max() > 0.1


def test_features_keep_their_way_back_for_other_methods() -> None:
    methods = [load_method("ogm").configure(param_filter="all"), load_method("dgl").configure()]
    found = gradients(multimodal(), methods)
    plain = gradients(multimodal())
    changed = [name for name in plain if not torch.equal(found[name], plain[name])]  # type: ignore[arg-type]
    assert changed
    assert all(name.startswith("encoders.") for name in changed)


def test_the_last_layer_in_use_is_the_one_behind_the_projections() -> None:
    model = multimodal("ab", "gated")
    model.fusion.register_module("unused", nn.Linear(2, 2))
    model.get_parameter("fusion.out.weight").requires_grad_(False)
    found = gradients(model, detach_at="projected")
    assert {name for name, g in found.items() if g is not None and "fusion" in name} == {"fusion.out.bias"}


def test_requires_grad_is_as_it_was() -> None:
    model = multimodal("ab", "mlp")
    frozen = model.fusion.get_parameter("0.bias").requires_grad_(False)
    train(model, balanced(model, "dgl"), batches(model, 1))
    assert not frozen.requires_grad
    assert all(p.requires_grad for p in model.parameters() if p is not frozen)


def test_requires_grad_is_as_it_was_after_an_error() -> None:
    model = multimodal()
    optimizer = balanced(model, "dgl", unimodal=lambda features: {}[next(iter(features))])
    inputs, target = batches(model, 1)[0]
    with pytest.raises(KeyError):
        optimizer.criterion(LOSS)(model(*inputs), target)
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("part", ["encoders.a", "encoders", "fusion"])
def test_frozen_parts_stay_as_they_are(part: str) -> None:
    model = multimodal()
    before = weights(model)
    model.get_submodule(part).requires_grad_(False)
    train(model, balanced(model, "dgl"), batches(model, 2))
    same = {name for name, value in weights(model).items() if torch.equal(value, before[name])}
    assert same == {name for name in before if name.startswith(part)}


def test_absent_samples_teach_an_encoder_nothing() -> None:
    model = multimodal()
    there = torch.tensor([True, True, False, True, False, True])
    optimizer = balanced(model, "dgl", clip_grad_norm=1e9)
    criterion = optimizer.criterion(LOSS)
    found = []
    for value in (0.0, 100.0):
        (a, b), target = batches(model, 1)[0]
        a = torch.where(there[:, None], a, value)
        optimizer.zero_grad()
        criterion(model(a, b), target, present={"a": there}).backward()
        found.append([p.grad.clone() for p in model.encoders.parameters() if p.grad is not None])
    for first, second in zip(*found, strict=True):
        torch.testing.assert_close(first, second)


# Loss, clip, dry run


def test_the_term_is_named_and_each_modality_logged() -> None:
    model = multimodal()
    optimizer = balanced(model, "dgl", alpha=2.0)
    inputs, target = batches(model, 1)[0]
    loss = optimizer.criterion(LOSS)(model(*inputs), target)
    metrics = optimizer.metrics()
    assert metrics["dgl/loss/unimodal"] == pytest.approx(2 * (metrics["dgl/loss/a"] + metrics["dgl/loss/b"]))
    assert loss.item() == pytest.approx(LOSS(model(*inputs), target).item() + metrics["dgl/loss/unimodal"])


@pytest.mark.parametrize(
    ("arguments", "clip"),
    [({}, 40.0), ({"preset": "paper"}, None), ({"clip_grad_norm": 7.0}, 7.0), ({"dry_run": True}, None)],
)
def test_the_preset_clips(arguments: dict[str, Any], clip: float | None) -> None:
    assert balanced(multimodal(), "dgl", **arguments)._clip_grad_norm == clip


def test_dry_run_leaves_loss_and_weights_alone() -> None:
    model, plain = audio_visual(), audio_visual()
    data = batches(model, 3)
    optimizer = balanced(model, "dgl", detach_at="projected", dry_run=True)
    train(model, optimizer, data)
    assert_same(model, train(plain, sgd(plain), data))
    assert optimizer.metrics()["dgl/loss/unimodal"] > 0


def test_dry_run_of_unimodal_losses_that_are_not_finite() -> None:
    model = multimodal()
    optimizer = balanced(model, "dgl", dry_run=True, unimodal=lambda z: {k: f[:, :3] * torch.nan for k, f in z.items()})
    inputs, target = batches(model, 1)[0]
    target = target % 2
    assert torch.equal(optimizer.criterion(LOSS)(model(*inputs), target), LOSS(model(*inputs), target))


def test_resume_in_the_middle_of_an_epoch_is_bitwise() -> None:
    model, other = audio_visual(SumFusion), audio_visual(SumFusion, seed=3)
    heads: dict[str, Any] = {"unimodal": {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}}
    data = batches(model, 4)
    optimizer, resumed = balanced(model, "dgl", **heads), balanced(other, "dgl", **heads)
    train(model, optimizer, data[:2])
    file = io.BytesIO()
    torch.save((model.state_dict(), optimizer.state_dict()), file)
    file.seek(0)
    saved, state = torch.load(file, weights_only=True)
    other.load_state_dict(saved)
    resumed.load_state_dict(state)
    assert_same(train(other, resumed, data[2:]), train(model, optimizer, data[2:]))


# Cost


def ops(method: str, **arguments: Any) -> Counter[str]:
    model = audio_visual()
    optimizer = balanced(model, method, **arguments)
    train(model, optimizer, batches(model, 1, size=64))
    with CountOps() as counted:
        train(model, optimizer, batches(model, 1, size=64, seed=2))
    return counted.ops


@pytest.mark.parametrize("arguments", [{}, {"detach_at": "projected"}, {"preset": "paper"}])
def test_no_host_read_and_no_further_encoder_pass(arguments: dict[str, Any]) -> None:
    added = ops("dgl", **arguments) - ops("none")
    assert 0 < added.total() <= 100
    assert not [name for name in added if name in READS or "conv" in name or "batch_norm" in name]


@pytest.mark.parametrize("unimodal", ["auto", "slice", "zero"])
def test_a_step_runs_on_fake_tensors(unimodal: str) -> None:
    assert steps_on_fake_tensors(lambda model: balanced(model, "dgl", unimodal=unimodal)) == 2


@pytest.mark.slow
def test_a_compiled_model_trains_as_the_eager_one_without_graph_breaks() -> None:
    torch._dynamo.reset()
    model, eager = audio_visual(), audio_visual()
    data = batches(model, 3)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    described: dict[str, Any] = {"model": compiled, "fusion": "fusion_module"}
    modalities = {"audio": "audio_net", "visual": "visual_net"}
    optimizer = BalancedOptimizer(sgd(model), "dgl", modalities=modalities, **described)
    criterion = optimizer.criterion(LOSS)
    for inputs, target in data:
        optimizer.zero_grad()
        criterion(compiled(*inputs), target).backward()
        optimizer.step()
    torch._dynamo.reset()
    assert_close(model, train(eager, balanced(eager, "dgl"), data), atol=1e-6)


def test_losses_outside_of_autocast_are_all_in_the_type_of_the_fused_logits() -> None:
    model = multimodal()
    by_hand = copy.deepcopy(model)
    inputs, target = batches(model, 1)[0]
    seen: list[torch.dtype] = []

    def loss_fn(logits: Tensor, target: Tensor) -> Tensor:
        seen.append(logits.dtype)
        return LOSS(logits, target)

    def features_of(model: Multimodal) -> list[Tensor]:
        return [encoder(each) for encoder, each in zip(model.encoders.values(), inputs, strict=True)]

    with torch.autocast("cpu", torch.bfloat16):
        a, b = features_of(by_hand)
        fused = by_hand.fusion(a.detach(), b.detach())
        alone = [by_hand.fusion(a, torch.zeros_like(b)), by_hand.fusion(torch.zeros_like(a), b)]
    optimizer = balanced(model, "dgl", clip_grad_norm=1e6)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(*inputs)
    optimizer.criterion(loss_fn)(logits.float(), target).backward()
    LOSS(fused.float(), target).backward()
    fusion = [p.grad.clone() for p in by_hand.fusion.parameters() if p.grad is not None]
    (4.0 * torch.stack([LOSS(each.float(), target) for each in alone]).sum()).backward()

    assert seen == [torch.float32] * 3
    for mine, theirs in zip(model.encoders.parameters(), by_hand.encoders.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-6, atol=1e-7)
    for parameter, expected in zip(model.fusion.parameters(), fusion, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-7)


def test_autocast_reaches_the_unimodal_logits() -> None:
    model = multimodal("ab", "mlp")
    seen = []
    model.get_submodule("fusion.2").register_forward_hook(lambda module, args, output: seen.append(output.dtype))
    optimizer = balanced(model, "dgl")
    inputs, target = batches(model, 1)[0]
    with torch.autocast("cpu", torch.bfloat16):
        output = model(*inputs)
    optimizer.criterion(LOSS)(output.float(), target).backward()
    assert seen == [torch.bfloat16] * 3


# What it needs


def test_model_free_use_says_what_is_missing() -> None:
    groups = [{"params": [nn.Parameter(torch.ones(2))], "modality": name} for name in "ab"]
    with pytest.raises(ConfigError, match=r"`dgl` runs parts of the model itself.*pass `model=`"):
        BalancedOptimizer(SGD(groups, lr=0.1), "dgl")


@pytest.mark.parametrize(("detach_at", "callable_helps"), [("features", True), ("projected", False)])
def test_a_fusion_is_needed(detach_at: str, callable_helps: bool) -> None:
    model = multimodal()

    def build(fusion: Any) -> BalancedOptimizer:
        return BalancedOptimizer(
            sgd(model), "dgl", model=model, modalities=model.paths, fusion=fusion, detach_at=detach_at
        )

    with pytest.raises(ConfigError, match=r"`dgl` needs `fusion=`") as caught:
        build(None)
    assert ("callable" in str(caught.value)) is callable_helps
    if not callable_helps:
        with pytest.raises(ConfigError, match=r"`dgl` needs `fusion=`"):
            build(lambda a, b: model.fusion(a, b))


@pytest.mark.parametrize("option", [{"alpha": 0}, {"alpha": float("nan")}, {"detach_at": "fusion"}])
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"Option `{next(iter(option))}` of method `dgl`"):
        balanced(multimodal(), "dgl", **option)


def test_observe_cannot_call_the_loss_again() -> None:
    model = multimodal()
    optimizer = balanced(model, "dgl")
    inputs, target = batches(model, 1)[0]
    logits = model(*inputs)
    with pytest.raises(ConfigError, match=r"use `opt.criterion\(loss_fn\)`"):
        optimizer.observe(LOSS(logits, target), logits=logits, target=target)


def test_slices_share_the_bias_where_asked_for() -> None:
    model, zero = multimodal(), multimodal()
    assert isinstance(model.fusion, ConcatFusion)
    halves, full = gradients(model, unimodal="slice"), gradients(zero)
    assert not torch.equal(halves["encoders.a.0.weight"], full["encoders.a.0.weight"])  # type: ignore[arg-type]
    for name in ("fusion.fc_out.weight", "fusion.fc_out.bias"):
        assert torch.equal(halves[name], full[name])  # type: ignore[arg-type]
