"""Training flags are switched exactly, and what depends on them is read off the structure of a model."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modbalance._model.modes import ModeDependence, modules_of, switched
from recipe_common.models.clips import audio_visual_net
from support.encoders import mixed
from support.models import Multimodal
from support.training import balanced, multimodal

RATE = 0.5


def is_excluded(encoder: nn.Module) -> bool:
    """Return whether a model with this encoder is taken to compute the same in both modes."""
    model = multimodal()
    model.encoders["a"] = encoder
    return ModeDependence(model, [model.fusion]).is_excluded()


class Custom(nn.Module):
    """A layer, a parameter, a constant, a method and a helper function."""

    scale = 2.0

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(5, 4)
        self.shift = nn.Parameter(torch.zeros(4))
        self.activation = F.relu
        self.sizes = [4, 4]

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.project(x)) + self.shift
        parts = [part.squeeze(-1) for part in y.unsqueeze(-1).split(1, -1)]
        return halved(torch.cat(parts, -1)) * self.scale

    def project(self, x: Tensor) -> Tensor:
        projected: Tensor = self.fc(x.to(self.shift.dtype))
        return projected


class Derived(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def halved(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1) / 2


class Standardized(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight - self.weight.mean(), self.bias)


PURE: dict[str, Callable[[], nn.Module]] = {
    "custom": Custom,
    "derived": Derived,
    "derived from a layer": lambda: Standardized(5, 4),
    "dropout of nothing": lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.0)),
    "batch norm in evaluation": lambda: nn.BatchNorm1d(5).eval(),
    "batch norm without statistics": lambda: nn.BatchNorm1d(5, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm1d(5),
    "recurrent": lambda: nn.GRU(5, 4, num_layers=2),
    "attention": lambda: nn.MultiheadAttention(4, 2),
    "transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0),
    "frozen transformer": lambda: nn.TransformerEncoderLayer(4, 2, 8, dropout=0.1).eval(),
}


@pytest.mark.parametrize("name", PURE)
def test_independence_is_found(name: str) -> None:
    assert is_excluded(PURE[name]())


class AsksForItsMode(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if self.training else 2 * x)


class AsksByName(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * (1 + getattr(self, "train" + "ing")))


class AsksInAMethod(Custom):
    def project(self, x: Tensor) -> Tensor:
        return super().project(x + self.fc.training)


class DropsOut(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), RATE)


class DropsOutByAName(Custom):
    """The name of the function is that of a number that the module has, too."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = RATE

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(super().forward(x), self.dropout)


class DropsOutInAHelper(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return thinned(super().forward(x))


def thinned(x: Tensor) -> Tensor:
    return F.dropout(x)


class DropsOutInAttention(Custom):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x).unsqueeze(1)
        return F.scaled_dot_product_attention(y, y, y, None, RATE).squeeze(1)


class DropsOutByDefault(Custom):
    def forward(self, x: Tensor, last: Callable[[Tensor], Tensor] = F.dropout) -> Tensor:
        return last(super().forward(x))


class Noisy(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class NoisyInPlace(Custom):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + x.clone().normal_())


class Counting(Custom):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x * self.calls)


class Remembering(Custom):
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last.copy_(y.detach().mean(0))
        return y + self.last


class Switching(Custom):
    """Keeps the mode under another name."""

    learns = True

    def train(self, mode: bool = True) -> Switching:
        self.learns = mode
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (2 if self.learns else 1)


class Norm(nn.BatchNorm1d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


class CallsAnother(Custom):
    """The method of the inner module has the name of one of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = AsksInAMethod()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner.project(x)


class Loading(Custom):
    def forward(self, x: Tensor) -> Tensor:
        import random

        return super().forward(x) * random.random()


def hooked(hook: Callable[..., Any]) -> nn.Module:
    module = Custom()
    module.fc.register_forward_hook(hook)
    return module


def replaced(module: nn.Module) -> nn.Module:
    module.forward = lambda x: x + module.training
    return module


IMPURE: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm1d(5),
    "dropout": lambda: nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.1)),
    "random slope": nn.RReLU,
    "recurrent with dropout": lambda: nn.LSTM(5, 4, 2, dropout=0.1),
    "attention with dropout": lambda: nn.MultiheadAttention(4, 2, dropout=0.1),
    "random pooling": lambda: nn.FractionalMaxPool2d(2, 2).eval(),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(5, 4)),
    "unknown activation": lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, activation=lambda x: F.dropout(x)),
    "transformer with another forward": lambda: replaced(nn.TransformerEncoderLayer(4, 2, 8, 0.0)),
    "a hook that drops": lambda: hooked(lambda module, args, output: F.dropout(output)),
    "a callable object as a hook": lambda: hooked(nn.Dropout()),
    "a forward of its own": lambda: replaced(Custom()),
    "compiled in TorchScript": lambda: torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.Dropout())),
} | {
    kind.__name__: kind
    for kind in (
        *(AsksForItsMode, AsksByName, AsksInAMethod, DropsOut, DropsOutByAName, DropsOutInAHelper, DropsOutInAttention),
        *(DropsOutByDefault, Noisy, NoisyInPlace, Counting, Remembering, Switching, CallsAnother, Loading),
    )
}
IMPURE["derived batch norm"] = lambda: Norm(5)


@pytest.mark.parametrize("name", IMPURE)
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_independence_is_not_assumed(name: str) -> None:
    assert not is_excluded(IMPURE[name]())


def test_the_model_itself_is_read() -> None:
    class Augmenting(Multimodal):
        def forward(self, *inputs: Tensor) -> Tensor:
            return super().forward(*(x + self.training for x in inputs))

    model = Augmenting()
    assert not ModeDependence(model, [model.fusion]).is_excluded()


def test_the_fusion_may_depend_on_its_mode() -> None:
    model = mixed("ab", ["layer norm", "layer norm"])
    model.fusion = nn.Sequential(nn.Linear(8, 3), nn.Dropout())
    assert ModeDependence(model, [model.fusion]).is_excluded()
    assert not ModeDependence(model, []).is_excluded()


def test_a_module_of_the_fusion_that_runs_before_it_too_counts() -> None:
    model = mixed("ab", ["layer norm", "layer norm"])
    dropout = nn.Dropout()
    model.encoders["a"].append(dropout)  # type: ignore[operator]
    model.fusion = nn.Sequential(nn.Linear(8, 3), dropout)
    assert not ModeDependence(model, [model.fusion]).is_excluded()


def test_later_changes_are_seen() -> None:
    model = mixed("ab", ["layer norm", "batch norm"])
    modes = ModeDependence(model, [model.fusion])
    assert not modes.is_excluded()
    model.encoders["b"].eval()
    assert modes.is_excluded()
    handle = model.encoders["a"].register_forward_hook(lambda module, args, output: output + module.training)
    assert not modes.is_excluded()
    handle.remove()
    assert modes.is_excluded()
    model.encoders["a"] = nn.Dropout()
    assert not modes.is_excluded()


def test_residual_networks_in_evaluation_are_read() -> None:
    model = audio_visual_net(6)
    modes = ModeDependence(model, [model.fusion_module])
    assert not modes.is_excluded()
    model.eval()
    assert modes.is_excluded()


def test_padding_that_is_dropped_without_gradients_counts() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1)
    assert is_excluded(encoder)
    with torch.no_grad():
        assert not is_excluded(encoder)


def test_an_optimizer_with_unpicklable_hooks_is_copied() -> None:
    model = mixed("ab", ["layer norm", "layer norm"])
    optimizer = balanced(model, "agm", coalitions="factored")
    modes = optimizer._lifecycle.training.structure.modes
    assert modes is not None
    assert modes.is_excluded()
    copied = pickle.loads(pickle.dumps(modes))
    assert copied.is_excluded()
    assert copy.deepcopy(modes).is_excluded()


# Flags


def flags(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_modules_are_those_of_torch() -> None:
    model = audio_visual_net(6)
    assert {*modules_of([model])} == {*model.modules()}
    assert len(modules_of([model, model])) == len([*model.modules()])
    assert not {*modules_of([model], [model.fusion_module])} & {*model.fusion_module.modules()}


@pytest.mark.parametrize("training", [True, False, None])
def test_flags_are_switched_and_restored(training: bool | None) -> None:
    model = mixed("ab", ["batch norm", "dropout"])
    model.encoders["a"].eval()
    before = flags(model)
    with switched([model], training):
        assert flags(model) == (before if training is None else [training] * len(before))
    assert flags(model) == before


def test_flags_are_restored_after_an_error() -> None:
    model = mixed("ab", ["batch norm", "dropout"])
    with pytest.raises(ZeroDivisionError), switched([model], False):
        raise ZeroDivisionError
    assert all(flags(model))


def test_a_class_with_its_own_train_has_it_called() -> None:
    class Frozen(nn.Sequential):
        def train(self, mode: bool = True) -> Frozen:
            super().train(mode)
            self[0].eval()
            return self

    model = nn.ModuleList([Frozen(nn.BatchNorm1d(2), nn.Dropout()), nn.Dropout()]).eval()
    with switched([model], True):
        assert flags(model) == [True, True, False, True, True]
    assert not any(flags(model))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_flags_of_torchscript_are_switched() -> None:
    model = torch.jit.script(nn.Sequential(nn.Dropout(1.0)))
    with switched([model], False):
        assert torch.equal(model(torch.ones(3)), torch.ones(3))
    assert torch.equal(model(torch.ones(3)), torch.zeros(3))
