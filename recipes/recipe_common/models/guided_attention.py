"""Guided-attention transformer for text and audio, as in Li et al. (ICCV 2023) for CMU-MOSEI.

B batch, T tokens of both modalities, C outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recipe_common.models.fusion import LateFusionNet
from recipe_common.models.heads import check_width
from recipe_common.models.sequence import padding


class GuidedAttentionNet(LateFusionNet):
    """Text and audio encoders, and a stack of self- and guided-attention blocks on their tokens.

    The inputs are word indices (B, T), 0 behind the last word, and audio (B, T, D).

    Source: `Model_LA` of the code of Li et al. (ICCV 2023), after Delbrouck et al., "A Transformer-based joint-encoding
    for Emotion Recognition and Sentiment Analysis", Challenge-HML 2020. The encoders are `text_net` and `audio_net`;
    `fusion_module`, in which the modalities are joined, is most of the network. Two things differ: padding is
    recognised by tokens of 0, so that a modality that is masked does not reveal it, and layer norm is that of torch.

    Args:
        vectors: Initial word vectors (V, D_text); row 0 is that of padding, too.
        audio_size: Features of an audio step.
        outputs: Number of outputs C.
        tokens: Tokens T of both modalities.
        width: Width of all tokens; a multiple of `heads`.
        layers: Blocks.
        heads: Attention heads.
        hidden: Hidden width of the feed-forward parts.
        dropout: Rate of all dropouts, 0 to 1.

    Raises:
        RecipeError: If `width` is no multiple of `heads`.
    """

    def __init__(
        self,
        vectors: Tensor,
        audio_size: int,
        outputs: int,
        *,
        tokens: int = 60,
        width: int = 512,
        layers: int = 6,
        heads: int = 4,
        hidden: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        encoders = {"text": WordEncoder(vectors, width), "audio": FrameEncoder(audio_size, width)}
        super().__init__(encoders, GuidedFusion(outputs, tokens, width, layers, heads, hidden, dropout))


class WordEncoder(nn.Module):
    """Encoder of word indices: word vectors and an LSTM, (B, T) -> (B, T, width); padding becomes 0."""

    def __init__(self, vectors: Tensor, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vectors.shape[0], vectors.shape[1], _weight=vectors.clone())
        self.lstm = nn.LSTM(vectors.shape[1], width, batch_first=True)

    def forward(self, text: Tensor) -> Tensor:
        """(B, T) -> (B, T, width)."""
        states, _ = self.lstm(self.embedding(text))
        return states * (text != 0)[..., None]


class FrameEncoder(nn.Module):
    """Encoder of audio steps: one linear layer, (B, T, D) -> (B, T, width); padding becomes 0."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(size, width)

    def forward(self, audio: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, width)."""
        is_real = (audio != 0).any(dim=2, keepdim=True)
        return self.linear(audio) * is_real


class GuidedFusion(nn.Module):
    """Blocks on both token sequences, their weighted means, and a linear layer on the norm of the sum, (B, C)."""

    def __init__(
        self, outputs: int, tokens: int, width: int, layers: int, heads: int, hidden: int, dropout: float
    ) -> None:
        super().__init__()
        check_width(width, heads)
        self.blocks = nn.ModuleList(
            Block(tokens if index < layers - 1 else None, width, heads, hidden, dropout) for index in range(layers)
        )
        self.pool_text = Pooling(1, width, hidden, dropout)
        self.pool_audio = Pooling(1, width, hidden, dropout)
        self.project_text = nn.Linear(width, 2 * width)
        self.project_audio = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.fc_out = nn.Linear(2 * width, outputs)

    def forward(self, text: Tensor, audio: Tensor) -> Tensor:
        """Tokens (B, T, width) of text and audio to outputs (B, C)."""
        # Padding is masked in the first block; behind it every token is a mean over the real ones.
        masks: tuple[Tensor | None, Tensor | None] = (padding(text), padding(audio))
        for block in self.blocks:
            text, audio = block(text, audio, *masks)
            masks = (None, None)
        pooled_text = self.project_text(self.pool_text(text, None).squeeze(1))
        pooled_audio = self.project_audio(self.pool_audio(audio, None).squeeze(1))
        outputs: Tensor = self.fc_out(self.norm(pooled_text + pooled_audio))
        return outputs


class Block(nn.Module):
    """Self-attention of text, guided attention of audio to text, then weighted means over the tokens of each.

    Args:
        tokens: Number of tokens of each sequence, and of means; None leaves the means out, as in the last block.
        width: Width of a token.
        heads: Attention heads.
        hidden: Hidden width of the feed-forward parts.
        dropout: Rate, 0 to 1.
    """

    def __init__(self, tokens: int | None, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_attention = nn.TransformerEncoderLayer(width, heads, hidden, dropout, batch_first=True)
        self.guided_attention = nn.TransformerDecoderLayer(width, heads, hidden, dropout, batch_first=True)
        self.means: nn.ModuleList | None = None
        if tokens is not None:
            self.means = nn.ModuleList(Pooling(tokens, width, hidden, dropout) for _ in range(2))
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.dropout = nn.Dropout(dropout)

    def forward(
        self, text: Tensor, audio: Tensor, text_padding: Tensor | None, audio_padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Tokens (B, T, width) and padding (B, T) of both -> new tokens of both."""
        attended_text = self.self_attention(text, src_key_padding_mask=text_padding)
        attended_audio = self.guided_attention(
            audio, text, tgt_key_padding_mask=audio_padding, memory_key_padding_mask=text_padding
        )
        both = (text + attended_text, audio + attended_audio)
        if self.means is None:
            return both
        text, audio = (
            norm(tokens + self.dropout(means(tokens, is_padding)))
            for tokens, is_padding, means, norm in zip(
                both, (text_padding, audio_padding), self.means, self.norms, strict=True
            )
        )
        return text, audio


class Pooling(nn.Module):
    """`count` weighted means over the tokens, (B, T, width) -> (B, count, width)."""

    def __init__(self, count: int, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.weigh = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, count))

    def forward(self, tokens: Tensor, is_padding: Tensor | None) -> Tensor:
        """Tokens (B, T, width), padding (B, T) -> (B, count, width)."""
        weights = self.weigh(tokens)
        if is_padding is not None:
            weights = weights.masked_fill(is_padding[..., None], float("-inf"))
        return torch.einsum("btk,btw->bkw", weights.softmax(dim=1), tokens)
