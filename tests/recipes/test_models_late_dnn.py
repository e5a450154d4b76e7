"""Encoders of averaged features and of the last step: padding does not count."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from recipe_common.models.late_dnn import DNNFusion, LSTMEncoder, MeanEncoder

ENCODERS: dict[str, Callable[[bool], nn.Module]] = {
    "mean": lambda mask: MeanEncoder(3, 32, 0.2, mask=mask),
    "lstm": lambda mask: LSTMEncoder(3, 5, 32, 0.2, mask=mask),
}


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize("mask", [True, False])
def test_padding(name: str, mask: bool) -> None:
    torch.manual_seed(0)
    encoder = ENCODERS[name](mask).eval()
    sequence = torch.randn(2, 6, 3)
    longer = torch.cat([sequence, torch.zeros(2, 4, 3)], dim=1)
    assert encoder(sequence).shape == (2, 32)
    assert torch.allclose(encoder(sequence), encoder(longer), atol=1e-6) == mask


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_modality_of_zeros_has_a_finite_feature(name: str) -> None:
    encoder = ENCODERS[name](True)
    assert encoder(torch.zeros(3, 6, 3)).isfinite().all()


def test_the_mean_is_that_of_real_steps() -> None:
    encoder = MeanEncoder(2, 32, 0.0).eval()
    sequence = torch.tensor([[[1.0, 3.0], [3.0, 5.0], [0.0, 0.0]]])
    torch.testing.assert_close(encoder(sequence), encoder(torch.tensor([[[2.0, 4.0]]])))


def test_the_head_joins_features() -> None:
    head = DNNFusion({"text": 3, "audio": 2}, 1, 4, 0.5)
    assert head(torch.randn(5, 3), torch.randn(5, 2)).shape == (5, 1)
    assert sum(parameter.numel() for parameter in head.parameters()) == 5 * 4 + 4 + 4 * 4 + 4 + 4 + 1
