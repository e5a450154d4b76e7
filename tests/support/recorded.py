"""The models of the recorded runs, with the modules of the authors' heads."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from support.models import AudioVisual, ConcatFusion, SumFusion


class Concat(ConcatFusion):
    """Has a layer that no forward uses, as the authors' head."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_auxi = nn.Linear(16, 6)


class Gated(nn.Module):
    """Audio gates visual; a modality alone gates itself."""

    def __init__(self) -> None:
        super().__init__()
        self.fc_x, self.fc_y, self.fc_out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 6)

    def forward(self, audio: Tensor, visual: Tensor) -> Tensor:
        return self.paired(self.fc_x(audio), self.fc_y(visual))

    def paired(self, u_a: Tensor, u_v: Tensor) -> Tensor:
        return self.fc_out(u_a.sigmoid() * u_v)

    def alone(self, z: list[Tensor]) -> list[Tensor]:
        return [self.paired(u, u) for u in (self.fc_x(z[0]), self.fc_y(z[1]))]

    def cut(self, z: list[Tensor]) -> Tensor:
        return self.paired(self.fc_x(z[0]).detach(), self.fc_y(z[1]).detach())


class Recorded(AudioVisual):
    """The reference model with the fusion first, the order in which the recorded clip summed its norms."""

    def __init__(self, fusion: Callable[[], nn.Module]) -> None:
        super().__init__(fusion)
        modules = {name: self._modules.pop(name) for name in ("audio_net", "visual_net")}
        self._modules.update(modules)


FUSIONS: dict[str, Callable[[], nn.Module]] = {"concat": Concat, "sum": SumFusion, "gated": Gated}
