"""Sequence models: shapes, parameter counts, padding that does not show, and modalities that are all zeros."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recipe_common.models.fusion import ConcatFusion, LateFusionNet, SumFusion
from recipe_common.models.guided_attention import Block, GuidedAttentionNet
from recipe_common.models.sequence import GRUEncoder, TransformerEncoder, padding

Encoder = Callable[[bool], nn.Module]
ENCODERS: dict[str, Encoder] = {
    "first": lambda mask: TransformerEncoder(5, 8, 2, 2, step="first", mask=mask),
    "last": lambda mask: TransformerEncoder(5, 8, 2, 2, step="last", mask=mask),
    "gru": lambda mask: GRUEncoder(5, 8, mask=mask),
}


def encoder(name: str, mask: bool) -> nn.Module:
    torch.manual_seed(0)
    return ENCODERS[name](mask).eval()


def sequences(steps: int = 6) -> Tensor:
    return torch.randn(3, steps, 5, generator=torch.Generator().manual_seed(1))


def padded(values: Tensor, front: int, behind: int) -> Tensor:
    return nn.functional.pad(values, (0, 0, front, behind))


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def layer_size(width: int, hidden: int) -> int:
    attention = 4 * width * width + 4 * width
    return attention + 2 * width * hidden + hidden + width + 4 * width


def test_padding_is_what_is_all_zero_unless_everything_is() -> None:
    values = torch.ones(3, 4, 2)
    values[0, :2] = 0
    values[1, 3, 0] = 0  # one feature is not all of them
    values[2] = 0
    assert padding(values).tolist() == [[True, True, False, False], [False] * 4, [False] * 4]


@pytest.mark.parametrize("name", ENCODERS)
def test_padding_at_the_end_does_not_show(name: str) -> None:
    net, values = encoder(name, mask=True), sequences()
    expected = net(values)
    assert expected.shape == (3, 8)
    torch.testing.assert_close(net(padded(values, 0, 5)), expected)
    mixed = torch.cat([padded(values[:1], 0, 2), sequences(8)[1:]])  # lengths that differ
    torch.testing.assert_close(net(mixed)[:1], expected[:1])


@pytest.mark.parametrize("name", ["first", "last"])
def test_padding_in_front_does_not_show(name: str) -> None:
    net, values = encoder(name, mask=True), sequences()
    torch.testing.assert_close(net(padded(values, 4, 0)), net(values))


@pytest.mark.parametrize("name", ENCODERS)
def test_without_a_mask_padding_shows_as_in_the_papers(name: str) -> None:
    masked, plain, values = encoder(name, mask=True), encoder(name, mask=False), sequences()
    torch.testing.assert_close(plain(values), masked(values))
    assert (plain(padded(values, 0, 5)) - masked(values)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("mask", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_modality_of_zeros_gives_finite_features_and_gradients(name: str, mask: bool, training: bool) -> None:
    net = encoder(name, mask).train(training)
    values = torch.cat([sequences()[:1], torch.zeros(2, 6, 5)])
    feature = net(values)
    assert feature.isfinite().all()
    feature.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())
    if not training:
        # A sequence of nothing is the same sequence at any length, so that one sample of zeros can stand for all.
        torch.testing.assert_close(feature[1], feature[2])
        if name != "gru":
            torch.testing.assert_close(net(torch.zeros(1, 1, 5))[0], feature[2])


@pytest.mark.parametrize("name", ["first", "last"])
def test_inference_kernels_agree_with_training_ones(name: str) -> None:
    net, values = encoder(name, mask=True), padded(sequences(), 2, 3)
    with torch.no_grad():
        fast = net(values)
    torch.testing.assert_close(fast, net(values).detach(), atol=1e-5, rtol=1e-5)


def test_the_transformer_against_its_definition() -> None:
    net = encoder("last", mask=True)
    assert isinstance(net, TransformerEncoder)
    values = sequences()
    hidden = values @ net.conv.weight[:, :, 0].T
    for layer in net.transformer.layers:
        assert isinstance(layer, nn.TransformerEncoderLayer)
        attention = layer.self_attn
        query, key, value = (hidden @ attention.in_proj_weight.T + attention.in_proj_bias).chunk(3, dim=2)
        heads = []
        for part in (slice(0, 4), slice(4, 8)):
            scores = query[..., part] @ key[..., part].transpose(1, 2) / 4**0.5
            heads.append(scores.softmax(dim=2) @ value[..., part])
        hidden = layer.norm1(hidden + attention.out_proj(torch.cat(heads, dim=2)))
        hidden = layer.norm2(hidden + layer.linear2(layer.linear1(hidden).clamp(min=0)))
    torch.testing.assert_close(net(values), hidden[:, -1])


def test_sizes_of_the_papers_encoders() -> None:
    agm = TransformerEncoder(371, 768, 4, 8)
    assert num_parameters(agm) == 371 * 768 + 8 * layer_size(768, 2048)
    gru = GRUEncoder(300, 600)
    assert num_parameters(gru) == 3 * (300 * 600 + 600 * 600 + 2 * 600)


def test_heads_and_the_whole_network() -> None:
    sizes = {"text": 8, "audio": 8, "vision": 8}
    values = [sequences()] * 3
    for head, size in (
        (ConcatFusion(sizes, 2), 24 * 2 + 2),
        (ConcatFusion(sizes, 2, hidden=7), 24 * 7 + 7 + 7 * 2 + 2),
        (SumFusion(sizes, 2), 3 * (8 * 2 + 2)),
    ):
        net = LateFusionNet({modality: encoder("first", mask=True) for modality in sizes}, head).eval()
        assert num_parameters(head) == size
        logits = net(*values)
        features = [net.get_submodule(f"{modality}_net")(values[0]) for modality in sizes]
        assert logits.shape == (3, 2)
        torch.testing.assert_close(logits, head(*features))
    total = sum(head.get_submodule(f"fc_{modality}")(features[0]) for modality in sizes)
    torch.testing.assert_close(logits, total)
    with pytest.raises(ValueError, match="Found 1 inputs"):
        net(values[0])


def test_an_unknown_step_is_named() -> None:
    with pytest.raises(ValueError, match=r"`step` should be one of first, last\. Found `step = 'middle'`"):
        TransformerEncoder(5, 8, 2, 1, step="middle")


def guided(tokens: int = 6) -> Any:
    torch.manual_seed(0)
    vectors = torch.randn(11, 4)
    return GuidedAttentionNet(vectors, 5, 2, tokens=tokens, width=8, layers=3, heads=2, hidden=16).eval()


def test_size_of_the_guided_attention_network() -> None:
    net = GuidedAttentionNet(torch.zeros(100, 300), 80, 2)
    width, hidden = 512, 1024
    lstm = 4 * (300 * width + width * width + 2 * width)
    linear = 80 * width + width
    guided_layer = layer_size(width, hidden) + 4 * width * width + 4 * width + 2 * width
    blocks = 6 * (layer_size(width, hidden) + guided_layer)
    means = 5 * 2 * (width * hidden + hidden + hidden * 60 + 60 + 2 * width)
    pools = 2 * (width * hidden + hidden + hidden + 1 + width * 2 * width + 2 * width)
    head = 2 * 2 * width + 2 * width * 2 + 2
    assert num_parameters(net) == 100 * 300 + lstm + linear + blocks + means + pools + head


def test_word_vectors_are_copied_and_trained() -> None:
    vectors = torch.randn(11, 4)
    net: Any = GuidedAttentionNet(vectors, 5, 2, tokens=6, width=8, layers=1, heads=2, hidden=16)
    torch.testing.assert_close(net.text_net.embedding.weight.detach(), vectors)
    net(torch.randint(1, 11, (2, 6)), sequences()[:2]).sum().backward()
    assert net.text_net.embedding.weight.grad is not None
    assert net.text_net.embedding.weight.data_ptr() != vectors.data_ptr()


def test_guided_attention_looks_at_real_tokens_only() -> None:
    net = guided()
    text, audio = torch.tensor([[3, 4, 5, 0, 0, 0]]), sequences()[:1]
    audio[:, 4:] = 0
    features = net.text_net(text), net.audio_net(audio)
    assert features[0].shape == features[1].shape == (1, 6, 8)
    assert features[0][:, 3:].abs().max() == features[1][:, 4:].abs().max() == 0
    logits = net(text, audio)
    assert logits.shape == (1, 2)
    torch.testing.assert_close(logits, net.fusion_module(*features))
    block = net.fusion_module.blocks[0]
    assert isinstance(block, Block)
    is_padding = (padding(features[0]), padding(features[1]))
    seen = block(*features, *is_padding)
    other = (features[0].clone(), features[1].clone())
    other[0][:, 3:] = 7.0  # what stands in padded tokens
    unseen = block.self_attention(other[0], src_key_padding_mask=is_padding[0])[:, :3]
    torch.testing.assert_close(unseen, block.self_attention(features[0], src_key_padding_mask=is_padding[0])[:, :3])
    assert seen[0].shape == seen[1].shape == (1, 6, 8)


@pytest.mark.parametrize("training", [True, False])
def test_guided_attention_survives_masked_modalities(training: bool) -> None:
    net = guided().train(training)
    text, audio = torch.randint(1, 11, (2, 6)), sequences()[:2]
    for inputs in ((torch.zeros_like(text), audio), (text, torch.zeros_like(audio))):
        logits = net(*inputs)
        logits.sum().backward()
        assert logits.isfinite().all()
    logits = net.fusion_module(torch.zeros(2, 6, 8), net.audio_net(audio))
    assert logits.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in net.parameters())
