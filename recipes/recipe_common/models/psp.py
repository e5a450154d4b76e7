"""Audio-visual event localisation with positive sample propagation, PSP (Zhou et al., CVPR 2021).

The network classifies, for each segment of a clip, the event that is both heard and seen. It is the one that Li et al.
(ICCV 2023) train on AVE, without the layers that their code builds and never calls. B batch, T segments (10 of one
second), P cells of a feature map (49), C classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HIDDEN = 128
FEATURE_SIZE = 2 * HIDDEN
EPSILON = 1e-8


class BiLSTM(nn.Module):
    """A bidirectional LSTM over segments."""

    def __init__(self, size: int, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.lstm = nn.LSTM(size, hidden, batch_first=True, bidirectional=True)

    def forward(self, segments: Tensor) -> Tensor:
        """(B, T, size) -> (B, T, 2 * hidden)."""
        states: Tensor = self.lstm(segments)[0]
        return states

    def train(self, mode: bool = True) -> BiLSTM:
        """Keep the LSTM in training mode, which changes nothing without dropout.

        cuDNN refuses a backward through an LSTM in evaluation mode, which some methods need.
        """
        super().train(mode)
        self.lstm.train()
        return self


class GuidedAttention(nn.Module):
    """Attention over the cells of a feature map, guided by the sound (Tian et al., ECCV 2018)."""

    def __init__(self, audio_size: int, visual_size: int, cells: int, hidden: int = 512) -> None:
        super().__init__()
        self.affine_audio = nn.Linear(audio_size, hidden)
        self.affine_visual = nn.Linear(visual_size, hidden)
        self.score_visual = nn.Linear(hidden, cells, bias=False)
        self.score_audio = nn.Linear(hidden, cells, bias=False)
        self.score = nn.Linear(cells, 1, bias=False)
        for layer in (self.affine_audio, self.affine_visual, self.score_visual, self.score_audio, self.score):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, audio: Tensor, cells: Tensor) -> Tensor:
        """(B, T, audio_size), (B, T, P, visual_size) -> the mean of the cells by attention, (B, T, visual_size)."""
        seen = self.score_visual(F.relu(self.affine_visual(cells)))
        heard = self.score_audio(F.relu(self.affine_audio(audio)))
        # As in their code, the scores of the audio are broadcast over the rows of the (P, P) scores.
        scores = self.score(torch.tanh(seen + heard.unsqueeze(-1))).squeeze(-1)
        return (scores.softmax(dim=-1).unsqueeze(-2) @ cells).squeeze(-2)


class GuidedVisualEncoder(nn.Module):
    """Feature maps to one feature per segment: attention by the sound, two linear layers, a bidirectional LSTM."""

    def __init__(self, audio_size: int, visual_size: int, cells: int) -> None:
        super().__init__()
        self.attention = GuidedAttention(audio_size, visual_size, cells)
        self.project = two_linear_layers(visual_size)
        self.recurrent = BiLSTM(HIDDEN)

    def forward(self, audio: Tensor, maps: Tensor) -> Tensor:
        """Projected audio (B, T, 128) and feature maps (B, T, H, W, visual_size) -> (B, T, 256)."""
        features: Tensor = self.recurrent(self.project(self.attention(audio, maps.flatten(2, -2))))
        return features


class PropagationFusion(nn.Module):
    """Adds to each segment the similar segments of the other modality, then classifies the mean of both.

    Attributes:
        similarity: Cosine similarity of the two features of each segment in the last forward, (B, T).
    """

    def __init__(self, num_classes: int, threshold: float, dropout: float, size: int = FEATURE_SIZE) -> None:
        super().__init__()
        self.threshold = threshold
        self.key_visual = nn.Linear(size, size, bias=False)
        self.key_audio = nn.Linear(size, size, bias=False)
        self.value_visual = nn.Linear(size, size, bias=False)
        self.value_audio = nn.Linear(size, size, bias=False)
        self.out_visual = nn.Linear(size, size, bias=False)
        self.out_audio = nn.Linear(size, size, bias=False)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.fc_hidden = nn.Linear(size, 64, bias=False)
        self.fc_out = nn.Linear(64, num_classes, bias=False)
        for layer in self.children():
            if isinstance(layer, nn.Linear):
                nn.init.xavier_uniform_(layer.weight)
        self.similarity: Tensor | None = None

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """(B, T, 256), (B, T, 256) -> logits (B, C, T)."""
        audio, visual = self.propagate(audio, visual)
        self.similarity = (F.normalize(audio, dim=-1) * F.normalize(visual, dim=-1)).sum(dim=-1)
        logits: Tensor = self.fc_out(F.relu(self.fc_hidden((audio + visual) / 2)))
        return logits.transpose(1, 2)

    def propagate(self, audio: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Return both features plus the similar segments of the other modality, (B, T, 256) each."""
        keys = self._active(self.key_visual, visual) @ self._active(self.key_audio, audio).transpose(1, 2)
        similar = F.relu(keys / audio.shape[-1] ** 0.5)
        heard = self._positive(similar) @ self._active(self.value_audio, audio)
        seen = self._positive(similar.transpose(1, 2)) @ self._active(self.value_visual, visual)
        return (
            self.norm(self._active(self.out_audio, audio + seen)),
            self.norm(self._active(self.out_visual, visual + heard)),
        )

    def _active(self, layer: nn.Module, values: Tensor) -> Tensor:
        active: Tensor = self.dropout(F.relu(layer(values)))
        return active

    def _positive(self, similar: Tensor) -> Tensor:
        """Return rows that sum to 1 over the pairs with a share above the threshold; all 0 if there is no such pair."""
        share = similar / (similar.sum(dim=-1, keepdim=True) + EPSILON)
        kept = share * (share > self.threshold)
        return kept / (kept.sum(dim=-1, keepdim=True) + EPSILON)


class PSPNet(nn.Module):
    """PSP network: classifies, for each segment of a clip, the event that is both heard and seen.

    The attention of the visual encoder is guided by the sound, so the visual features depend on the sound too.

    Args:
        audio_size: Size of the audio feature of a segment.
        visual_size: Channels of the feature map of a segment.
        num_classes: Number of classes C, background included.
        cells: Number of cells P, height times width of a feature map.
        threshold: Share of a segment's similarity above which a segment of the other modality counts as positive.
        dropout: Probability that a unit of the fusion is dropped.

    Attributes:
        similarity: Cosine similarity of the two features of each segment in the last forward in training, (B, T).
    """

    def __init__(
        self,
        audio_size: int = 128,
        visual_size: int = 512,
        num_classes: int = 29,
        *,
        cells: int = 49,
        threshold: float = 0.099,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.audio_project = two_linear_layers(audio_size)
        self.audio_net = BiLSTM(HIDDEN)
        self.visual_net = GuidedVisualEncoder(HIDDEN, visual_size, cells)
        self.fusion_module = PropagationFusion(num_classes, threshold, dropout)
        self.similarity: Tensor | None = None

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        """Audio features (B, T, audio_size), feature maps (B, T, H, W, visual_size) -> logits (B, C, T)."""
        projected = self.audio_project(audio)
        logits: Tensor = self.fusion_module(self.audio_net(projected), self.visual_net(projected, visual))
        if self.training:  # methods run parts of the network again, and the whole of it in evaluation mode
            self.similarity = self.fusion_module.similarity
        return logits


def two_linear_layers(size: int) -> nn.Sequential:
    """Return the projection of the authors' code: two linear layers without biases, and nothing between them."""
    return nn.Sequential(nn.Linear(size, 2 * HIDDEN, bias=False), nn.Linear(2 * HIDDEN, HIDDEN, bias=False))


class PairLoss:
    """Loss term that spreads the similarity of both modalities evenly over the segments of the event (Eq. 8, 9).

    Args:
        weight: Weight of the term; 100 in the code of Zhou et al. and of Li et al.
    """

    def __init__(self, weight: float = 100.0) -> None:
        self.weight = weight

    def __call__(self, model: nn.Module, target: Tensor) -> Tensor:
        """Return the weighted loss of the last batch of a `PSPNet`, 0-dim, and free its graph; classes (B, T)."""
        assert isinstance(model, PSPNet)
        similarity, model.similarity = model.similarity, None
        assert similarity is not None, "the model has not run in training mode"
        return self.weight * F.mse_loss(spread(similarity), event_share(target))


def spread(similarity: Tensor) -> Tensor:
    """Return the share of each segment in the sum of the positive similarities, (B, T)."""
    positive = F.relu(similarity)
    return positive / (positive.sum(dim=-1, keepdim=True) + EPSILON)


def event_share(target: Tensor) -> Tensor:
    """Return 1/n for each of the n segments of the event and 0 for background, (B, T).

    The event is the class of the lowest index in the clip: background is the last class. A clip of background alone
    counts as an event of ten segments, as in the code of Zhou et al. and of Li et al.
    """
    in_event = (target == target.amin(dim=1, keepdim=True)).float()
    return in_event / in_event.sum(dim=1, keepdim=True)
