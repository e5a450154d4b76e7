"""Small multimodal models: that of the recorded trajectories, and one with M modalities and any head."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def conv_encoder(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
    )


class FrameEncoder(nn.Module):
    """Runs a convolutional encoder frame by frame, (B, 3, T, H, W) -> (B, T, 8, H', W')."""

    def __init__(self) -> None:
        super().__init__()
        self.body = conv_encoder(3)

    def forward(self, video: Tensor) -> Tensor:
        frames = video.transpose(1, 2)
        return self.body(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])


class ConcatFusion(nn.Module):
    def __init__(self, sizes: Sequence[int] = (8, 8), classes: int = 6) -> None:
        super().__init__()
        self.fc_out = nn.Linear(sum(sizes), classes)

    def forward(self, *features: Tensor) -> Tensor:
        return self.fc_out(torch.cat(features, -1))


class SumFusion(nn.Module):
    def __init__(self, classes: int = 6) -> None:
        super().__init__()
        self.fc_x = nn.Linear(8, classes)
        self.fc_y = nn.Linear(8, classes)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.fc_x(audio) + self.fc_y(visual)


class SharedFusion(nn.Module):
    """One head for every modality, whose logits are averaged."""

    def __init__(self, size: int, classes: int) -> None:
        super().__init__()
        self.fc_out = nn.Linear(size, classes)

    def forward(self, *features: Tensor) -> Tensor:
        return torch.stack([self.fc_out(z) for z in features]).mean(0)


class AudioVisual(nn.Module):
    """The reference model of the trajectories: audio (B, H, W), visual (B, 3, T, H, W) -> logits (B, 6)."""

    def __init__(self, fusion: Callable[[], nn.Module] = ConcatFusion) -> None:
        super().__init__()
        self.audio_net = conv_encoder(1)
        self.visual_net = FrameEncoder()
        self.fusion_module = fusion()

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        heard = self.audio_net(audio.unsqueeze(1)).mean((2, 3))
        seen = self.visual_net(visual).mean((1, 3, 4))
        return self.fusion_module(heard, seen)


class FiLMFusion(nn.Module):
    """The first modality scales and shifts the sum of the others."""

    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__()
        self.film = nn.Linear(size, 2 * size)
        self.out = nn.Linear(size, classes)

    def forward(self, *features: Tensor) -> Tensor:
        gamma, beta = self.film(features[0]).chunk(2, -1)
        return self.out(gamma * sum(features[1:]) + beta)


class GatedFusion(nn.Module):
    """A gate from the first modality on a projection of each of the others."""

    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Linear(size, size) for _ in range(modalities))
        self.out = nn.Linear(size, classes)

    def forward(self, *features: Tensor) -> Tensor:
        first, *others = [projection(f) for projection, f in zip(self.projections, features, strict=True)]
        return self.out(first.sigmoid() * sum(others))


class AttentionFusion(nn.Module):
    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(size, 2, batch_first=True)
        self.out = nn.Linear(size, classes)

    def forward(self, *features: Tensor) -> Tensor:
        tokens = torch.stack(features, 1)
        attended, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.out(attended.mean(1))


class MLPFusion(nn.Sequential):
    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__(nn.Linear(modalities * size, 2 * size), nn.Tanh(), nn.Linear(2 * size, classes))

    def forward(self, *features: Tensor) -> Tensor:
        return super().forward(torch.cat(features, -1))


class LinearFusion(ConcatFusion):
    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__([size] * modalities, classes)


class OneHead(SharedFusion):
    def __init__(self, modalities: int, size: int, classes: int) -> None:
        super().__init__(size, classes)


HEADS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "concat": LinearFusion,
    "film": FiLMFusion,
    "gated": GatedFusion,
    "attention": AttentionFusion,
    "mlp": MLPFusion,
}


class Multimodal(nn.Module):
    """M linear encoders (`encoders.<name>`) of inputs (B, 5), without BatchNorm, and one of `HEADS` (`fusion`).

    With ``head="shared"`` the fusion is one head for every modality.
    """

    def __init__(
        self, modalities: Sequence[str] = ("a", "b"), head: str = "concat", size: int = 4, classes: int = 3
    ) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict(
            {name: nn.Sequential(nn.Linear(5, size), nn.Tanh(), nn.Linear(size, size)) for name in modalities}
        )
        self.fusion = (OneHead if head == "shared" else HEADS[head])(len(modalities), size, classes)

    @property
    def paths(self) -> dict[str, str]:
        return {name: f"encoders.{name}" for name in self.encoders}

    def forward(self, *inputs: Tensor) -> Tensor:
        features = [encoder(x) for encoder, x in zip(self.encoders.values(), inputs, strict=True)]
        return self.fusion(*features)


class Recording(nn.Module):
    """Batch norm, dropout and a buffer that is replaced; and records in which mode it ran."""

    seen: Tensor

    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(size)
        self.dropout = nn.Dropout(0.5)
        self.out = nn.Linear(size, out)
        self.register_buffer("seen", torch.zeros(()))
        self.modes: list[bool] = []

    def forward(self, *xs: Tensor) -> Tensor:
        self.modes.append(self.training)
        if self.training:
            self.seen = self.seen + len(xs[0])
        return self.out(self.dropout(self.norm(torch.cat(xs, -1))))
