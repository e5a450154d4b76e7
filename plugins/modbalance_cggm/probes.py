"""Probes of CGGM, classifiers of one modality's detached feature: modules, observation on a batch, optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Adam, Optimizer

from modbalance import Batch, ConfigError, Run
from modbalance.auxiliary import Auxiliary
from modbalance_cggm.heads import Metric, Sizes, measure_each

KINDS = ("linear", "mlp", "transformer")
Factory = Callable[[str, int, int], nn.Module]
Kind = str | Mapping[str, nn.Module] | Factory
MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


def is_probes(value: Any) -> str | None:
    """Check for a kind of probe, a mapping to modules or a factory."""
    is_mapping = isinstance(value, Mapping) and all(isinstance(probe, nn.Module) for probe in value.values())
    is_known = is_mapping or callable(value) or (isinstance(value, str) and value in KINDS)
    return None if is_known else f"one of {', '.join(map(repr, KINDS))}, a mapping to modules, or a factory"


def is_maker(value: Any) -> str | None:
    """Check for a callable that returns an optimizer."""
    return None if value is None or callable(value) else "None or a callable: parameters -> optimizer"


def default_optimizer(parameters: Iterable[Tensor]) -> Optimizer:
    """Adam at 5e-4, as for the authors' MOSI and IEMOCAP; fused, because plain Adam reads its step count."""
    return Adam(parameters, lr=5e-4, fused=True)


def feature_size(run: Run, feature: Tensor) -> int:
    """Return D of a feature (B, D), tokens (B, T, D) or a map (B, D, H, W)."""
    return feature.shape[-1 if feature.dim() <= 3 or run.feature_sizes else 1]


def maker(run: Run, kind: Kind, sizes: Sizes, widths: Sizes, outputs: int) -> Callable[[str], nn.Module]:
    """Return a function from modalities to their probes.

    Args:
        run: The run.
        kind: Value of `probes`.
        sizes: Size of each modality's feature.
        widths: Columns of the last layer's weight.
        outputs: Its rows.
    """
    if isinstance(kind, Mapping):
        if set(kind) != set(run.modalities):
            raise ConfigError(
                f"Option `probes` should hold a module for each of {list(run.modalities)}. Found {sorted(kind)}: "
                "pass one module by modality."
            )
        return kind.__getitem__
    if not isinstance(kind, str):
        return lambda name: kind(name, sizes[name], outputs)
    precision = torch.promote_types(next(run.optimized_parameters()).dtype, torch.float32)
    channels_last = bool(run.feature_sizes)

    def built_in(name: str) -> nn.Module:
        probe = Probe(kind, sizes[name], widths[name], outputs, channels_last)
        return probe if precision == torch.get_default_dtype() else probe.to(precision)

    return built_in


@attrs.define(eq=False)
class Probes(Auxiliary):
    """The probes of all modalities at work."""

    _has_buffers: dict[str, bool] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        Auxiliary.__attrs_post_init__(self)
        self._has_buffers = {name: next(probe.buffers(), None) is not None for name, probe in self.modules.items()}

    def _buffers(self, name: str) -> Iterable[tuple[str, Tensor]]:
        return self.modules[name].named_buffers() if self._has_buffers[name] else ()

    @property
    def may_draw(self) -> bool:
        """Whether a forward may take random numbers; the user's modules may."""
        return not all(isinstance(probe, Probe) and not probe.draws for probe in self.modules.values())

    def observe(self, batch: Batch, metric: str | Metric, in_eval: bool) -> dict[str, Tensor]:
        """Return metrics, losses and gradients of all probes on one batch, as sums over its samples.

        Keys are, (M,) each: ``metric`` and the ``count`` of its elements, ``loss`` and the number of ``samples``,
        ``calls``; and ``gradient/<modality>/<name>`` and ``buffer/<modality>/<name>``.

        Args:
            batch: The batch; with its task loss.
            metric: The metric epsilon_i.
            in_eval: Whether it is measured in eval mode, in a second forward.
        """
        count, z = len(batch.logits), batch.require_features()
        buffers = {name: {k: b.clone() for k, b in self._buffers(name)} for name in self.modules}
        if not count:
            return self._nothing(batch, buffers)
        o = {name: self._logits(name, z[name], batch.logits, buffers[name]) for name in self.modules}
        losses = batch.losses(o)
        gradients = self._gradients(losses, count)
        moved = {f"buffer/{name}/{key}": b.double() for name, each in buffers.items() for key, b in each.items()}
        if in_eval:
            o = {name: self._logits(name, z[name], batch.logits, buffers[name], training=False) for name in o}
        o = {name: o_i.detach() for name, o_i in o.items()}
        ignore_index = getattr(batch.run.loss_fn, "ignore_index", -100)
        measured, counted = measure_each(metric, o, batch.target, batch.present, ignore_index)
        samples = self._samples(batch, measured)
        loss = torch.stack([loss.detach() for loss in losses.values()]).double() * samples
        sums = {"metric": measured, "count": counted, "loss": loss, "samples": samples}
        calls = {"calls": torch.ones_like(samples)} if moved else {}  # the divisor of buffers alone
        return sums | calls | gradients | moved

    def _gradients(self, losses: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
        """Return the gradient of each probe's loss by its own parameters, times the number of samples."""
        named = {(name, key): p for name in losses for key, p in self.trained(name).items()}
        if len({*map(id, named.values())}) == len(named):
            found = torch.autograd.grad([*losses.values()], [*named.values()], allow_unused=True)
        else:  # probes that share parameters
            found = tuple(
                torch.autograd.grad(losses[name], p, allow_unused=True, retain_graph=True)[0]
                for (name, _), p in named.items()
            )
        filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, named.values(), strict=True)]
        scaled = torch._foreach_mul(filled, count)
        return {f"gradient/{name}/{key}": g for (name, key), g in zip(named, scaled, strict=True)}

    def _samples(self, batch: Batch, like: Tensor) -> Tensor:
        """Return the number of samples that have each modality, (M,)."""
        if not batch.present:
            return torch.full_like(like, len(batch.logits))
        everyone = like.new_full((), len(batch.logits))
        there = [batch.present.get(name) for name in self.modules]
        return torch.stack([everyone if mask is None else mask.sum(dtype=like.dtype).to(like.device) for mask in there])

    def _nothing(self, batch: Batch, buffers: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Return what `observe` does for a batch without samples."""
        zeros = batch.logits.new_zeros(len(self.modules), dtype=torch.float64)
        counted = any(self._has_buffers.values())
        sums = dict.fromkeys(("metric", "count", "loss", "samples", *["calls"] * counted), zeros)
        sums |= {f"gradient/{n}/{k}": torch.zeros_like(p) for n in self.modules for k, p in self.trained(n).items()}
        return sums | {
            f"buffer/{name}/{key}": torch.zeros_like(b, dtype=torch.float64)
            for name, each in buffers.items()
            for key, b in each.items()
        }

    def step(self, sums: Mapping[str, Tensor]) -> None:
        """Take a step by the mean gradients, and set buffers to the mean of those that the forwards left."""
        means = self.mean_gradients(sums)
        trained = [self._parameters[name][key] for name, key in means]
        for parameter, mean in zip(trained, means.values(), strict=True):
            parameter.grad = mean.to(parameter)
        for i, name in enumerate(self.modules):
            for key, buffer in self._buffers(name):
                calls = sums["calls"][i]
                buffer.copy_(torch.where(calls > 0, sums[f"buffer/{name}/{key}"] / calls, buffer))
        self.optimizer.step()
        for parameter in trained:
            parameter.grad = None

    def mean_gradients(self, sums: Mapping[str, Tensor]) -> dict[tuple[str, str], Tensor]:
        """Return by modality and name the mean gradient of a parameter over the samples."""
        named = [(i, name, key) for i, name in enumerate(self.modules) for key in self.trained(name)]
        samples = sums["samples"].clamp(min=1).unbind()
        means = torch._foreach_div(
            [sums[f"gradient/{name}/{key}"] for _, name, key in named], [samples[i] for i, _, _ in named]
        )
        return {(name, key): mean for (_, name, key), mean in zip(named, means, strict=True)}

    def last_gradient(self, means: Mapping[tuple[str, str], Tensor], name: str, weight: Tensor) -> Tensor:
        """Return the mean gradient by the weight of a probe's last layer, zero where it is frozen; (C, K)."""
        keys = [key for key, parameter in self.trained(name).items() if parameter is weight]
        found = [means[name, key] for key in keys]
        return (found or [torch.zeros_like(weight)])[0].flatten(1).to(weight.dtype)

    def _logits(
        self, name: str, feature: Tensor, like: Tensor, buffers: dict[str, Tensor], *, training: bool = True
    ) -> Tensor:
        """Run one probe in the precision of its weights; ``buffers`` change, those of the probe do not."""
        module = self.modules[name]
        z = feature.detach().to(self.first(name).dtype)
        given = (z, like) if isinstance(module, Probe) else (z,)
        if not (training and module.training):
            module.train(training)
        # The call for buffers alone: it takes longer than a linear probe.
        output: Tensor = functional_call(module, buffers, given) if buffers else module(*given)
        if not training:
            module.train()
        if output.shape != like.shape:
            raise ConfigError(
                f"The probe of {name!r} should return logits of shape {tuple(like.shape)}, as the model does. Found "
                f"{tuple(output.shape)}: pass a probe with as many outputs."
            )
        return output.to(like.device)


class Probe(nn.Module):
    """A classifier of one feature, (B, D), tokens (B, T, D) or a map (B, D, H, W), to logits of a given shape.

    Where the logits are vectors, "linear" and "mlp" classify the mean over tokens or space, and "transformer" token 0;
    where they are maps, each position is classified, and the result is interpolated to the size of the logits.

    Args:
        kind: "linear"; "mlp": one hidden layer; "transformer": two pre-norm layers, then one layer applied twice.
        size: D.
        width: Columns of the last layer's weight.
        outputs: C, its rows.
        channels_last: Whether D is the last dimension of maps too.
    """

    def __init__(self, kind: str, size: int, width: int, outputs: int, channels_last: bool = False) -> None:
        super().__init__()
        self.channels_last = channels_last
        self.draws = kind == "transformer"
        self.body: nn.Module = nn.Identity()
        if kind == "mlp":
            self.body = nn.Sequential(nn.Linear(size, width), nn.ReLU())
        elif kind == "transformer":
            self.body = TokenEncoder(size, width)
        self.out_layer = nn.Linear(size if kind == "linear" else width, outputs)

    def forward(self, feature: Tensor, like: Tensor) -> Tensor:
        """Return logits of the shape of ``like``."""
        maps = feature if self.channels_last or feature.dim() <= 3 else feature.movedim(1, -1)
        tokens = maps.flatten(1, -2) if maps.dim() > 2 else maps.unsqueeze(1)
        if like.dim() <= 2:
            if tokens.shape[1] > 1 and not isinstance(self.body, TokenEncoder):
                tokens = tokens.mean(1, keepdim=True)
            return self.out_layer(self.body(tokens)[:, 0]).reshape(like.shape)
        logits = self.out_layer(self.body(tokens)).unflatten(1, maps.shape[1:-1]).movedim(-1, 1)
        mode = ("linear", "bilinear", "trilinear")[like.dim() - 3]
        return F.interpolate(logits, like.shape[2:], mode=mode, align_corners=False)


class TokenEncoder(nn.Module):
    """The paper's probe on tokens, (B, T, D) -> (B, T, K): positions, two pre-norm layers, x -> relu(P P x)."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.project = nn.Identity() if size == width else nn.Linear(size, width)
        heads = next(n for n in (5, 4, 3, 2, 1) if width % n == 0)
        layers = [
            nn.TransformerEncoderLayer(width, heads, 4 * width, 0.1, batch_first=True, norm_first=True) for _ in "12"
        ]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(width))
        self.proj1 = nn.Linear(width, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return encoded tokens."""
        x = self.project(tokens)
        x = self.layers(math.sqrt(x.shape[-1]) * x + _positions(x))
        return F.relu(self.proj1(self.proj1(x)))


def _positions(tokens: Tensor) -> Tensor:
    """Return sinusoidal positions, (T, K)."""
    length, width = tokens.shape[1:]
    half = torch.arange((width + 1) // 2, device=tokens.device, dtype=tokens.dtype)
    rate = torch.exp(half * (-2 * math.log(1e4) / width))
    angle = torch.arange(length, device=tokens.device, dtype=tokens.dtype)[:, None] * rate
    return torch.cat([angle.sin(), angle.cos()], 1)[:, :width]
