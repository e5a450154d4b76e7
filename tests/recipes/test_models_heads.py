"""A width that the attention heads cannot share is the error of a flag."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from recipe_common.errors import RecipeError
from recipe_common.models.guided_attention import GuidedAttentionNet
from recipe_common.models.imagetext import frozen_feature_net
from recipe_common.models.msa import MSANet
from recipe_common.models.sequence import TransformerEncoder

NETWORKS: dict[str, tuple[Callable[[int], nn.Module], int]] = {
    "iemocap, cmu_mosi": (lambda width: MSANet({"text": 3}, 2, 1, 1, width=width), 5),
    "food101": (lambda width: frozen_feature_net({"image": 3}, 2, 1, 1, width, shared=False), 5),
    "ur_funny, cmu_mosei": (lambda width: TransformerEncoder(3, width, heads=4, layers=1), 4),
    "cmu_mosei, AGM": (lambda width: GuidedAttentionNet(torch.zeros(3, 2), 2, 1, width=width, layers=1), 4),
}


@pytest.mark.parametrize(("build", "heads"), NETWORKS.values(), ids=NETWORKS)
def test_a_width_that_heads_cannot_share_is_explained(build: Callable[[int], nn.Module], heads: int) -> None:
    nearest = 41 + -41 % heads
    with pytest.raises(
        RecipeError, match=f"`--width` should be a multiple of {heads}. Found 41, .*: write `--width {nearest}`"
    ):
        build(41)
    build(nearest)
