"""The network of event localisation, against plain loops, and its two losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from recipe_common.models.psp import BiLSTM, GuidedAttention, PairLoss, PropagationFusion, PSPNet, event_share

BACKGROUND = 28


def small() -> PSPNet:
    torch.manual_seed(0)
    return PSPNet(6, 5, 4, cells=9)


def inputs(batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 10, 6, generator=generator), torch.randn(batch, 10, 3, 3, 5, generator=generator).relu()


def weights(layer: nn.Module) -> NDArray[np.float64]:
    assert isinstance(layer.weight, Tensor)
    return layer.weight.detach().double().numpy()


def relu(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(values, 0)


def test_sizes_of_the_paper() -> None:
    model = PSPNet()
    assert model(torch.zeros(1, 10, 128), torch.zeros(1, 10, 7, 7, 512)).shape == (1, 29, 10)
    projections = (128 * 256 + 256 * 128) + (512 * 256 + 256 * 128)
    attention = (128 * 512 + 512) + (512 * 512 + 512) + 2 * 512 * 49 + 49
    recurrent = 2 * 2 * (4 * 128 * (128 + 128) + 2 * 4 * 128)
    fusion = 6 * 256 * 256 + 2 * 256 + 256 * 64 + 64 * 29
    assert sum(p.numel() for p in model.parameters()) == projections + attention + recurrent + fusion


def test_every_parameter_is_trained() -> None:
    model, pairs = small(), PairLoss()
    target = torch.tensor([[0] * 6 + [3] * 4, [2] * 10])
    loss = F.cross_entropy(model(*inputs()), target) + pairs(model, target)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_attention_follows_the_equations() -> None:
    torch.manual_seed(0)
    attention = GuidedAttention(3, 5, cells=4, hidden=7).double()
    audio, cells = torch.randn(1, 1, 3).double(), torch.randn(1, 1, 4, 5).double()
    heard = weights(attention.score_audio) @ relu(
        weights(attention.affine_audio) @ audio[0, 0].numpy() + attention.affine_audio.bias.detach().numpy()
    )
    scores = []
    for cell in range(4):
        seen = weights(attention.score_visual) @ relu(
            weights(attention.affine_visual) @ cells[0, 0, cell].numpy() + attention.affine_visual.bias.detach().numpy()
        )
        scores.append(float((weights(attention.score) @ np.tanh(seen + heard[cell]))[0]))
    share = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(attention(audio, cells)[0, 0].detach().numpy(), share @ cells[0, 0].numpy(), atol=1e-12)


def test_propagation_follows_the_equations() -> None:
    torch.manual_seed(0)
    fusion = PropagationFusion(3, threshold=0.2, dropout=0.0, size=8).double()
    audio, visual = torch.randn(1, 5, 8).double(), torch.randn(1, 5, 8).double()
    a, v = audio[0].numpy(), visual[0].numpy()
    keys = relu(v @ weights(fusion.key_visual).T) @ relu(a @ weights(fusion.key_audio).T).T / np.sqrt(8)

    def added(similar: NDArray[np.float64], values: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = []
        for row in similar:
            share = row / row.sum()
            kept = np.where(share > 0.2, share, 0)
            rows.append(kept / kept.sum() @ values if kept.any() else np.zeros(8))
        return np.stack(rows)

    def normal(values: NDArray[np.float64]) -> NDArray[np.float64]:
        centred = values - values.mean(1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-6)

    visual_out = normal(relu((v + added(keys, relu(a @ weights(fusion.value_audio).T))) @ weights(fusion.out_visual).T))
    audio_out = normal(
        relu((a + added(keys.T, relu(v @ weights(fusion.value_visual).T))) @ weights(fusion.out_audio).T)
    )
    hidden = relu((audio_out + visual_out) / 2 @ weights(fusion.fc_hidden).T)
    logits = fusion(audio, visual)[0].T.detach().numpy()
    np.testing.assert_allclose(logits, hidden @ weights(fusion.fc_out).T, atol=1e-5)
    lengths = np.linalg.norm(audio_out, axis=1) * np.linalg.norm(visual_out, axis=1)
    assert fusion.similarity is not None
    np.testing.assert_allclose(
        fusion.similarity[0].detach().numpy(), (audio_out * visual_out).sum(1) / lengths, atol=1e-5
    )


def test_absent_modality_gives_finite_logits_and_gradients() -> None:
    fusion = small().fusion_module
    feature = torch.randn(2, 10, 256, requires_grad=True)
    for pair in ((feature, torch.zeros_like(feature)), (torch.zeros_like(feature), feature)):
        logits = fusion(*pair)
        (gradient,) = torch.autograd.grad(logits.square().sum(), feature)
        assert torch.isfinite(gradient).all()
        assert gradient.any()


def test_visual_features_depend_on_the_sound_and_not_the_other_way_round() -> None:
    model = small().eval()
    audio, visual = inputs()
    seen: list[tuple[Tensor, Tensor]] = []
    model.fusion_module.register_forward_pre_hook(lambda _, features: seen.append(features))
    for pair in ((audio, visual), (-audio, visual), (audio, visual + 1)):
        model(*pair)
    assert not torch.allclose(seen[0][1], seen[1][1])
    assert torch.equal(seen[0][0], seen[2][0])


def test_similarity_is_that_of_the_forward_in_training() -> None:
    model = small()
    audio, visual = inputs()
    model(audio, visual)
    kept = model.similarity
    assert kept is not None
    assert kept.shape == (2, 10)
    model.eval()(audio, 0 * visual)  # as the masked passes of AGM
    model.fusion_module(torch.zeros(2, 10, 256), torch.zeros(2, 10, 256))
    assert model.similarity is kept


def test_lstm_stays_in_training_mode_for_cudnn() -> None:
    model = small().eval()
    lstms = [module.lstm for module in model.modules() if isinstance(module, BiLSTM)]
    assert len(lstms) == 2
    assert all(lstm.training and lstm.dropout == 0 for lstm in lstms)
    assert not model.fusion_module.dropout.training


def test_share_of_the_event() -> None:
    target = torch.tensor([[BACKGROUND, 4, 4, BACKGROUND], [BACKGROUND] * 4, [7] * 4])
    expected = torch.tensor([[0, 0.5, 0.5, 0], [0.25] * 4, [0.25] * 4])
    assert torch.equal(event_share(target), expected)


def test_pair_loss_by_hand_and_let_go() -> None:
    model, pairs = small(), PairLoss(weight=100.0)
    target = torch.tensor([[1, 3]])
    model.similarity = torch.tensor([[0.6, 0.2]])
    assert pairs(model, target).item() == pytest.approx(100 * ((0.75 - 1) ** 2 + 0.25**2) / 2)
    assert model.similarity is None
    model.similarity = torch.tensor([[-0.6, -0.2]])
    assert pairs(model, target).item() == pytest.approx(100 * 1 / 2)
