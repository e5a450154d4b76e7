"""DeepLabV3+ and the U-Nets: sizes, dilations, and the same decoder as with two maps per modality."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recipe_common.models.deeplab import BACKBONES, DeepLabDecoder, DeepLabEncoder, deeplab
from recipe_common.models.unet import unet

MODALITIES = ("flair", "t1ce", "t1", "t2")


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def encoder() -> DeepLabEncoder:
    """One bottleneck per stage but the last one, so that it is quick."""
    torch.manual_seed(0)
    return DeepLabEncoder((1, 1, 1, 3)).eval()


def bottleneck(before: int, width: int) -> int:
    """Weights of a bottleneck block with its batch norms, and of the shortcut where the width changes."""
    after = 4 * width
    shortcut = before * after + 2 * after if before != after else 0
    return before * width + 9 * width**2 + width * after + 4 * width + 2 * after + shortcut


def test_the_size_of_the_papers_network() -> None:
    with torch.device("meta"):
        model = deeplab(MODALITIES, 4)
    stem = 49 * 64 + 128
    trunk = 0
    before = 64
    for width, count in zip((64, 128, 256, 512), (3, 4, 23, 3), strict=True):
        trunk += bottleneck(before, width) + (count - 1) * bottleneck(4 * width, width)
        before = 4 * width
    aspp = 256 * 2048 * (1 + 3 * 9 + 1) + 1280 * 256 + 6 * 512
    decoder = 1024 * 48 + 96 + 9 * 1072 * 256 + 512 + 9 * 256 * 256 + 512 + 256 * 4 + 4
    assert parameters(model.get_submodule("flair_net")) == stem + trunk + aspp
    assert parameters(model) == 4 * (stem + trunk + aspp) + decoder == 235_226_980


def test_the_last_stage_is_dilated_by_2_4_8_and_nothing_else_is(encoder: DeepLabEncoder) -> None:
    convolutions = [layer for layer in encoder.high.modules() if isinstance(layer, nn.Conv2d)]
    dilated = [layer for layer in convolutions if layer.dilation != (1, 1)]
    assert [layer.dilation for layer in dilated] == [(2, 2), (4, 4), (8, 8)]
    assert [layer.padding for layer in dilated] == [(2, 2), (4, 4), (8, 8)]
    assert all(layer.stride == (1, 1) and layer.kernel_size == (3, 3) for layer in dilated)
    rates = [layer.dilation[0] for layer in encoder.aspp.modules() if isinstance(layer, nn.Conv2d)]
    assert rates == [1, 2, 4, 6, 1, 1]  # the last two: of the mean over the picture, and the projection


def test_an_encoder_gives_the_aspp_map_beside_the_low_level_map(encoder: DeepLabEncoder) -> None:
    picture = torch.randn(2, 1, 64, 96)
    with torch.no_grad():
        feature = encoder(picture)
        low = encoder.low(encoder.stem(picture))
        high = encoder.high(low)
        deep = encoder.aspp(high)
    assert (low.shape, high.shape, deep.shape) == ((2, 256, 16, 24), (2, 2048, 4, 6), (2, 256, 4, 6))
    assert feature.shape == (2, 512, 16, 24)
    torch.testing.assert_close(feature[:, 256:], low)
    # With aligned corners, those of the small map are those of the large one.
    torch.testing.assert_close(feature[:, :256, ::15, ::23], deep[:, :, ::3, ::5])


def two_map_decoder(decoder: DeepLabDecoder, deep: list[Tensor], low: list[Tensor], size: tuple[int, int]) -> Tensor:
    """The paper's order: join first, then bring the ASPP maps to the size of the low-level maps."""
    reduced = decoder.reduce_low(torch.cat(low, 1))
    resized = F.interpolate(torch.cat(deep, 1), size=reduced.shape[2:], mode="bilinear", align_corners=True)
    logits = decoder.layers(torch.cat([resized, reduced], 1))
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=True)


def test_one_tensor_per_modality_computes_what_two_maps_do(encoder: DeepLabEncoder) -> None:
    decoder = DeepLabDecoder(2, 4).eval()
    pictures = [torch.randn(1, 1, 64, 32) for _ in range(2)]
    with torch.no_grad():
        logits = decoder(*map(encoder, pictures))
        low = [encoder.low(encoder.stem(picture)) for picture in pictures]
        deep = [encoder.aspp(encoder.high(each)) for each in low]
        expected = two_map_decoder(decoder, deep, low, (64, 32))
    assert logits.shape == (1, 4, 64, 32)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_weights_start_as_in_the_papers_code(encoder: DeepLabEncoder) -> None:
    torch.manual_seed(1)
    first = encoder.stem.get_parameter("0.weight")
    assert first.std().item() == pytest.approx((2 / (49 * 64)) ** 0.5, rel=0.1)  # by fan-out
    decoder = DeepLabDecoder(4, 4)
    convolutions = [layer for layer in decoder.modules() if isinstance(layer, nn.Conv2d)]
    for layer in convolutions[1:3]:
        assert layer.weight.std().item() == pytest.approx((2 / (9 * layer.in_channels)) ** 0.5, rel=0.05)
    drops = [layer.p for layer in decoder.modules() if isinstance(layer, nn.Dropout)]
    assert drops == [0.5, 0.1]
    assert [layer.bias is None for layer in convolutions] == [True, True, True, False]


@pytest.mark.slow
def test_the_whole_network_trains() -> None:
    torch.manual_seed(0)
    model = deeplab(("a", "b"), 3, "resnet50")
    logits = model(torch.randn(2, 1, 32, 32), torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 3, 32, 32)
    F.cross_entropy(logits, torch.randint(3, (2, 32, 32))).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert set(BACKBONES) == {"resnet50", "resnet101"}


def test_unets_are_joined_at_full_resolution() -> None:
    torch.manual_seed(0)
    model = unet(MODALITIES, 4, width=4)
    pictures = [torch.randn(2, 1, 32, 48) for _ in MODALITIES]
    features = [model.get_submodule(f"{name}_net")(x) for name, x in zip(MODALITIES, pictures, strict=True)]
    assert [feature.shape for feature in features] == [(2, 4, 32, 48)] * 4
    logits = model(*pictures)
    assert logits.shape == (2, 4, 32, 48)
    logits.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    fusion = model.fusion_module
    assert parameters(fusion) == 9 * 16 * 4 + 2 * 4 + 4 * 4 + 4


def test_unets_of_the_default_width_have_26_million_weights() -> None:
    with torch.device("meta"):
        assert parameters(unet(MODALITIES, 4)) == 26_144_136
