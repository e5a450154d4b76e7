"""Networks for a picture and a text. B batch, L tokens, C classes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from recipe_common.errors import RecipeError
from recipe_common.models.fusion import ConcatFusion, LateFusionNet
from recipe_common.models.msa import Dropouts, MSANet
from recipe_common.models.pretrained import load_network
from recipe_common.models.resnet import FEATURE_SIZE, PictureEncoder
from recipe_common.models.weights import load_resnet18

HEADS = 5
TEXT_SIZE = 1024
TEXT_DROPOUT = 0.5


def frozen_feature_net(
    sizes: Mapping[str, int], num_classes: int, layers: int, fusion_layers: int, width: int, *, shared: bool
) -> MSANet:
    """Return the network of Guo et al. (NeurIPS 2024) for Food-101, on the hidden states of frozen networks.

    Args:
        sizes: Feature sizes of image and text, in this order.
        num_classes: Number of classes.
        layers: Number of layers of the encoder of each modality.
        fusion_layers: Number of layers of the fusion encoder.
        width: Width of all encoders; a multiple of 5, the number of heads.
        shared: Whether text is projected by the layer of the images, as in the code of the authors.

    Raises:
        RecipeError: If `width` is no multiple of 5, or if a projection is shared by features of different sizes.
    """
    # Defaults of food_run.py in the code of Guo et al.
    dropouts = Dropouts(attention=0.2, relu=0.15, embedding=0.2, residual=0.15, output=0.1)
    network = MSANet(sizes, num_classes, layers, fusion_layers, HEADS, width, dropouts)
    if shared:
        if len(set(sizes.values())) > 1:
            raise RecipeError(
                "Features that share a projection should have one size",
                found=f"{dict(sizes)}",
                fix="write `--no-shared-projection`",
            )
        first, *others = (network.get_submodule(f"{modality}_net") for modality in sizes)
        for other in others:
            other.projection = first.projection
    return network


class TextEncoder(nn.Module):
    """Token ids to one feature vector: a transformer's pooled first token, a linear layer, dropout.

    Source: `text_encoder` of the code of BalanceBenchmark. Two things differ there: dropout stays on in evaluation, and
    BERT attends to the padding.

    Args:
        transformer: BERT or another encoder of the transformers library. For one without a pooler, such as ELECTRA,
            the last hidden state of the first token is used.
        size: Size of the feature vector.
        dropout: Dropout rate, 0 to 1.
    """

    def __init__(self, transformer: nn.Module, size: int = TEXT_SIZE, dropout: float = TEXT_DROPOUT) -> None:
        super().__init__()
        self.transformer = transformer
        self.linear = nn.Linear(_hidden_size(transformer), size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, text: Tensor) -> Tensor:
        """Token ids and mask, 1 where there is a token, int64 (B, 2, L) -> (B, size)."""
        ids, mask = text.unbind(dim=1)
        output = self.transformer(input_ids=ids, attention_mask=mask)
        pooled = getattr(output, "pooler_output", None)
        feature: Tensor = self.dropout(self.linear(output.last_hidden_state[:, 0] if pooled is None else pooled))
        return feature


def end_to_end_net(num_classes: int, text_model: Path, resnet: Path | None) -> LateFusionNet:
    """Return a network of ResNet-18, a pretrained text encoder and one linear layer, all of which are trained.

    Args:
        num_classes: Number of classes.
        text_model: Folder of the text encoder with its weights.
        resnet: File with a state dict of torchvision's `resnet18`; None: random weights.

    Raises:
        RecipeError: If one of these cannot be read, or has other weights.
    """
    picture = PictureEncoder(3)
    if resnet is not None:
        load_resnet18(picture.trunk, resnet)
    encoders = {"image": picture, "text": TextEncoder(load_network(text_model, pooler=True))}
    return LateFusionNet(encoders, ConcatFusion({"image": FEATURE_SIZE, "text": TEXT_SIZE}, num_classes))


def _hidden_size(transformer: nn.Module) -> int:
    config: Any = transformer.config
    return int(config.hidden_size)
