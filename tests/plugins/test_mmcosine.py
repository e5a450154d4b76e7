"""MMCosine: edge cases, evaluation, composition and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modbalance import ConfigError, ModbalanceWarning
from modbalance._plugins import load_method
from modbalance_mmcosine import contrast, normalized
from support.models import SumFusion
from support.operation_counts import READS, CountOps
from support.reference.mmcosine import nce
from support.training import assert_same, audio_visual, balanced, batches, multimodal, train, weights

LOSS = nn.CrossEntropyLoss()


def test_a_zero_feature_has_no_gradient() -> None:
    x = torch.tensor([[0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    found = normalized(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert torch.equal(found.detach(), torch.tensor([[0.0, 0.0], [0.6, 0.8]]))
    assert torch.equal(gradient[0], torch.zeros(2))
    assert gradient[1].abs().max() > 0


def test_a_batch_of_one_class_has_a_finite_contrast() -> None:
    a, b = torch.randn(4, 3), torch.randn(4, 3)
    counts = torch.ones(4, dtype=torch.bool)
    assert contrast(a, b, torch.zeros(4, dtype=torch.long), counts, 0.1).isfinite()


def test_features_of_zero_are_at_the_distance_of_the_authors_code_in_the_contrast() -> None:
    a, b = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    a[1], b[1], b[3] = 0, 0, 0
    y, counts = torch.tensor([0, 1, 0, 1, 2]), torch.ones(5, dtype=torch.bool)
    x, x_twin = (a.clone().requires_grad_() for _ in range(2))
    ours, twin = contrast(x, b, y, counts, 0.1), nce([x_twin, b], y, 0.1)
    torch.testing.assert_close(ours, twin)
    gradients = [torch.autograd.grad(loss, z)[0] for loss, z in ((ours, x), (twin, x_twin))]
    is_zero = torch.arange(5) == 1
    torch.testing.assert_close(gradients[0][~is_zero], gradients[1][~is_zero])
    assert not gradients[0][is_zero].any()


def test_samples_without_a_class_or_a_modality_leave_the_contrast() -> None:
    a, b, y = torch.randn(6, 3), torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    counts = torch.tensor([True, False, True, True, False, True])
    some = contrast(a[counts], b[counts], y[counts], torch.ones(4, dtype=torch.bool), 0.1)
    torch.testing.assert_close(contrast(a, b, y, counts, 0.1), some)


def test_a_modality_that_a_sample_lacks_has_logits_of_zero_and_no_gradient() -> None:
    model = multimodal()
    inputs, target = batches(model, 1)[0]
    optimizer = balanced(model, "mmcosine")
    nobody = {"a": torch.zeros(6, dtype=torch.bool)}
    optimizer.criterion(LOSS)(model(*inputs), target, present=nobody).backward()
    assert all(not p.grad.any() for p in model.encoders["a"].parameters() if p.grad is not None)
    assert any(p.grad.any() for p in model.encoders["b"].parameters() if p.grad is not None)


def test_the_contrast_needs_class_indices() -> None:
    model = multimodal()
    criterion = balanced(model, "mmcosine", nce=0.5).criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="`nce` of method `mmcosine` needs one class index per sample"):
        criterion(model(*inputs), torch.nn.functional.one_hot(target, 3).float())


def test_the_bias_stays_as_it_is_and_has_no_gradient() -> None:
    model = multimodal("abc")
    before = weights(model)
    train(model, balanced(model, "mmcosine"), batches(model, 3))
    assert torch.equal(model.get_parameter("fusion.fc_out.bias"), before["fusion.fc_out.bias"])
    assert model.get_parameter("fusion.fc_out.bias").grad is None
    assert not torch.equal(model.get_parameter("fusion.fc_out.weight"), before["fusion.fc_out.weight"])


@pytest.mark.parametrize("eval_logits", ["linear", "cosine"])
def test_evaluation_follows_the_option_and_leaves_training_alone(eval_logits: str) -> None:
    model = multimodal()
    optimizer = balanced(model, "mmcosine", eval_logits=eval_logits)
    criterion = optimizer.criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    trained = criterion(model(*inputs), target)
    model.eval()
    with torch.no_grad():
        logits = model(*inputs)
        found = criterion(logits, target)
    torch.testing.assert_close(found, LOSS(logits, target) if eval_logits == "linear" else trained.detach())
    model.train()
    trained.backward()
    optimizer.step()


def test_own_heads_that_are_added() -> None:
    model = audio_visual(SumFusion)
    heads = {"audio": "fusion_module.fc_x", "visual": "fusion_module.fc_y"}
    optimizer = balanced(model, "mmcosine", heads=heads)
    before = weights(model)
    train(model, optimizer, batches(model, 2))
    for name in ("fc_x", "fc_y"):
        assert not torch.equal(weights(model)[f"fusion_module.{name}.weight"], before[f"fusion_module.{name}.weight"])
        assert torch.equal(weights(model)[f"fusion_module.{name}.bias"], before[f"fusion_module.{name}.bias"])


def test_samples_without_a_modality_are_evaluated_as_they_are_trained() -> None:
    model = multimodal()
    criterion = balanced(model, "mmcosine", eval_logits="cosine").criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    present = {"b": torch.arange(len(target)) > 2}
    trained = criterion(model(*inputs), target, present=present)
    assert not torch.equal(trained, criterion(model(*inputs), target))
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(criterion(model(*inputs), target, present=present), trained.detach())
        predicted = criterion.logits(model(*inputs), present=present)
        torch.testing.assert_close(LOSS(predicted, target), trained.detach())
        with pytest.raises(ConfigError, match="should name modalities"):
            criterion(model(*inputs), target, present={"c": present["b"]})


class Shared(nn.Module):
    """One layer that takes the feature of each modality alone."""

    def __init__(self, size: int = 8) -> None:
        super().__init__()
        self.fc = nn.Linear(size, 6)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        size = self.fc.in_features
        return (self.fc(audio[:, :size]) + self.fc(visual[:, :size])) / 2


def test_a_head_that_modalities_share_is_the_head_of_each() -> None:
    named, found = audio_visual(Shared), audio_visual(Shared)
    heads = dict.fromkeys(("audio", "visual"), "fusion_module.fc")
    train(named, balanced(named, "mmcosine", heads=heads), batches(named, 3))
    train(found, balanced(found, "mmcosine"), batches(found, 3))
    assert_same(found, named)


def test_a_layer_that_takes_a_part_of_each_feature_is_refused() -> None:
    model = audio_visual(lambda: Shared(5))
    with pytest.raises(ConfigError, match=r"linear on the features side by side, or on each.*widths \[8, 8\]"):
        train(model, balanced(model, "mmcosine"), batches(model, 1))


@pytest.mark.parametrize("order", [("mmcosine", "ogm"), ("ogm", "mmcosine")])
def test_ogm_beside_it_compares_cosines(order: tuple[str, str]) -> None:
    built = {"mmcosine": load_method("mmcosine").configure(), "ogm": load_method("ogm").configure(param_filter="all")}
    model = multimodal()
    optimizer = balanced(model, [built[name] for name in order])
    inputs, target = batches(model, 1)[0]
    z = [phi(x).detach() for phi, x in zip(model.encoders.values(), inputs, strict=True)]
    weight = model.get_parameter("fusion.fc_out.weight").detach().clone()
    train(model, optimizer, [(inputs, target)])
    scores = [
        (10 * nn.functional.cosine_similarity(z_i[:, None], w_i[None], dim=-1)).softmax(1)[range(6), target].sum()
        for z_i, w_i in zip(z, weight.chunk(2, 1), strict=True)
    ]
    assert optimizer.metrics()["ogm/ratio/a"] == pytest.approx((scores[0] / scores[1]).item(), rel=1e-5)


@pytest.mark.parametrize("other", ["dgl", "agm", "opm"])
def test_methods_that_replace_features_or_logits_do_not_go_with_it(other: str) -> None:
    with pytest.raises(ConfigError, match=r"`mmcosine`|At most one method"):
        balanced(multimodal(), ["mmcosine", other])


@pytest.mark.parametrize("head", ["mlp", "gated", "attention"])
def test_heads_of_several_layers_are_refused(head: str) -> None:
    with pytest.raises(ConfigError, match="`mmcosine` needs a last layer that is linear"):
        balanced(multimodal("ab", head), "mmcosine")


def test_losses_of_numbers_are_refused() -> None:
    model = multimodal()
    criterion = balanced(model, "mmcosine").criterion(nn.MSELoss(), score="regression")
    inputs, _ = batches(model, 1)[0]
    with pytest.raises(ConfigError, match="a loss or a score of numbers, MSELoss"):
        criterion(model(*inputs), torch.zeros(6, 3))


def test_a_scale_that_bounds_every_probability_is_warned_of() -> None:
    model = multimodal()
    criterion = balanced(model, "mmcosine", scale=0.1).criterion(LOSS)
    inputs, target = batches(model, 1)[0]
    with pytest.warns(ModbalanceWarning, match="below log C"):
        criterion(model(*inputs), target)


@pytest.mark.parametrize("option", [{"scale": 0}, {"nce": -1}, {"eval_logits": "no"}, {"preset": "paper"}])
def test_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"`{next(iter(option))}` of method `mmcosine`"):
        balanced(multimodal(), "mmcosine", **option)


def test_no_host_read_and_no_further_encoder_pass() -> None:
    def ops(method: str) -> Any:
        model = audio_visual()
        optimizer = balanced(model, method)
        train(model, optimizer, batches(model, 1))
        with CountOps() as counted:
            train(model, optimizer, batches(model, 1))
        return counted.ops

    added = ops("mmcosine") - ops("none")
    assert added.total() > 0
    assert not [name for name in added if name in READS or "conv" in name or "batch_norm" in name]
