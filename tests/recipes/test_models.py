"""The networks have the shapes, sizes and initial weights of the paper."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import FUSIONS, ConcatFusion, FiLMFusion, GatedFusion, SharedFusion, SumFusion
from recipe_common.models.initialise import initialise
from recipe_common.models.resnet import PictureEncoder, VisualEncoder

SIZE, CLASSES, BATCH = 5, 3, 4
SIZES = {"audio": SIZE, "visual": SIZE}


@pytest.fixture
def features() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(BATCH, SIZE), torch.randn(BATCH, SIZE)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_logits_have_one_column_per_class(fusion: str) -> None:
    model = audio_visual_net(6, fusion).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, 1, 65, 40), torch.randn(2, 3, 2, 32, 32))
    assert logits.shape == (2, 6)


def test_children_have_the_names_that_recipes_refer_to() -> None:
    assert [name for name, _ in audio_visual_net(6).named_children()] == ["audio_net", "visual_net", "fusion_module"]


def test_encoder_has_the_size_of_resnet18_without_its_classifier() -> None:
    # torchvision's ResNet-18 has 11,689,512 parameters, 513,000 of them in the classifier.
    assert _size(VisualEncoder()) == 11_689_512 - 513_000
    assert _size(PictureEncoder()) == 11_689_512 - 513_000 - 2 * 64 * 7 * 7


def test_feature_of_a_clip_is_the_mean_over_its_frames() -> None:
    torch.manual_seed(0)
    encoder = VisualEncoder().eval()
    clip = torch.randn(2, 3, 3, 32, 32)
    with torch.no_grad():
        frame_by_frame = torch.stack([encoder(clip[:, :, t : t + 1]) for t in range(3)]).mean(dim=0)
        torch.testing.assert_close(encoder(clip), frame_by_frame)


def test_audio_feature_is_the_mean_over_frequency_and_time() -> None:
    torch.manual_seed(0)
    encoder = PictureEncoder().eval()
    spectrogram = torch.randn(2, 1, 65, 40)
    with torch.no_grad():
        maps = encoder.trunk(spectrogram)
        assert maps.shape == (2, 512, 3, 2)
        torch.testing.assert_close(encoder(spectrogram), maps.flatten(2).mean(dim=2))


def test_concat_adds_the_shares_of_both_halves(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = features
    head = ConcatFusion(SIZES, CLASSES)
    weight, bias = head.fc_out.weight, head.fc_out.bias
    expected = audio @ weight[:, :SIZE].T + visual @ weight[:, SIZE:].T + bias
    torch.testing.assert_close(head(audio, visual), expected)


def test_shared_is_the_mean_of_one_layer_on_each_feature(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = features
    head = SharedFusion(SIZES, CLASSES)
    torch.testing.assert_close(head(audio, visual), head.fc_out((audio + visual) / 2))
    assert _size(head) == CLASSES * (SIZE + 1)


def test_sum_adds_the_logits_of_both_branches(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = features
    head = SumFusion(SIZES, CLASSES)
    heard, seen = head.get_submodule("fc_audio")(audio), head.get_submodule("fc_visual")(visual)
    torch.testing.assert_close(head(audio, visual), heard + seen)


def test_film_scales_and_shifts_the_visual_feature(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = features
    head = FiLMFusion(SIZES, CLASSES)
    parameters = audio @ head.fc_film.weight.T + head.fc_film.bias
    gamma, beta = parameters[:, :SIZE], parameters[:, SIZE:]
    torch.testing.assert_close(head(audio, visual), head.fc_out(gamma * visual + beta))


def test_gate_of_the_audio_multiplies_the_visual_projection(features: tuple[torch.Tensor, torch.Tensor]) -> None:
    audio, visual = features
    head = GatedFusion(SIZES, CLASSES)
    expected = head.fc_out(head.fc_value(visual) / (1 + torch.exp(-head.fc_gate(audio))))
    torch.testing.assert_close(head(audio, visual), expected)


def test_initialisation_has_the_spread_of_its_formulas() -> None:
    torch.manual_seed(0)
    linear, convolution, norm = nn.Linear(300, 200), nn.Conv2d(16, 64, 3, bias=False), nn.BatchNorm2d(8)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    initialise(nn.ModuleList([linear, convolution, norm]))
    assert linear.weight.std().item() == pytest.approx((2 / (300 + 200)) ** 0.5, rel=0.02)
    assert convolution.weight.std().item() == pytest.approx((2 / (64 * 3 * 3)) ** 0.5, rel=0.03)
    assert linear.bias.eq(0).all()
    assert norm.weight.eq(1).all()
    assert norm.bias.eq(0).all()


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
