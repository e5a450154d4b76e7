"""A sound method, and for each rule of `modbalance.testing` methods like it that break just that rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor

from modbalance import Batch, Method, Run, Step, WindowedMethod, gradients, gt, hookimpl, option, state

defined = attrs.define(eq=False, kw_only=True)


@defined
class Sound(WindowedMethod):
    """Scales each encoder by how far its score lies behind the mean of all so far."""

    name = "sound"
    needs = frozenset({"unimodal_logits", "target"})
    min_modalities = 2

    gamma: float = option(1.0, gt(0), "strength, dimensionless, > 0")
    mean: Tensor | None = state(None)

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        scores = [batch.score(logits, name) for name, logits in batch.unimodal_logits.items()]
        return {"score": torch.stack([s for s, _ in scores]), "count": torch.stack([n for _, n in scores])}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        score = step.stats["score"] / step.stats["count"]
        mean = score.mean() if self.mean is None else self.mean
        return dict(zip(step.run.modalities, (mean / score) ** self.gamma, strict=True))

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        score = (step.stats["score"] / step.stats["count"]).mean()
        self.mean = score if self.mean is None else 0.9 * self.mean + 0.1 * score


BROKEN: list[tuple[str, type[Method], str]] = []
"""The rule that is broken, the method, and a pattern of what is found."""


def breaks(rule: str, found: str) -> Any:
    """Return a decorator that declares a class a method and notes which rule it breaks."""

    def note(cls: type[Method]) -> type[Method]:
        method: type[Method] = defined(cls)
        BROKEN.append((rule, method, found))
        return method

    return note


@breaks("declarations", found=r"none on `WithoutSummary`")
class WithoutSummary(Sound):
    pass


@breaks("presets", found=r"`strength = 0.0`")
class PaperOutOfRange(Sound):
    """Has a value of the paper that its own check refuses."""

    strength: float = option(1.0, gt(0), "strength", paper=0.0)


@breaks("presets", found=r"none for \['strength'\]")
class OptionWithoutWords(Sound):
    """Says nothing about an option."""

    strength: float = option(1.0, gt(0), " ")


@breaks("refused_options", found=r"accepted")
class AnyOption(Sound):
    """Admits any value."""

    strength: float = option(1.0, lambda value: None, "strength")


@breaks("refused_options", found=r"TypeError")
class LateOption(Sound):
    """Fails in arithmetic instead of in a check."""

    strength: float = option(1.0, lambda value: None if value > 0 else "a number > 0", "strength")


@breaks("representation", found=r"without start_epoch=0")
class SilentRepr(Sound):
    """Has a repr of its own, without options."""

    def __repr__(self) -> str:
        return "SilentRepr"


@breaks("representation", found=r"counted=4")
class StateInRepr(Sound):
    """Shows a counter."""

    counted: int = attrs.field(default=0, init=False)

    @hookimpl
    def modbalance_epoch_end(self, run: Run) -> None:
        self.counted += 1


@breaks("acts", found=r"the same weights")
class Idle(Sound):
    """Does nothing."""

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        return {}


@breaks("window", found=r"difference of up to .* in encoders")
class Everlasting(Sound):
    """Acts outside of its window."""

    def is_active(self, epoch: int) -> bool:
        return True


@breaks("dry_run", found=r"difference of up to .* in encoders")
class WetRun(Sound):
    """Shrinks weights in a dry run too."""

    @hookimpl
    def modbalance_epoch_end(self, run: Run) -> None:
        with torch.no_grad():
            for name in run.modalities:
                for _, parameter in run.parameters(name):
                    parameter.mul_(0.9)


@breaks("removal", found=r"8 hooks")
class Sticky(Sound):
    """Registers hooks on the user's parameters."""

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        for name in run.modalities:
            for _, parameter in run.parameters(name):
                if parameter.requires_grad:
                    parameter.register_hook(lambda gradient: gradient * 0.5)


@breaks("random_numbers", found=r"states of torch$")
class Dicing(Sound):
    """Draws from the global generator."""

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name in step.run.modalities:
            for parameter in step.parameters(name):
                gradients.values(parameter).mul_(1 + torch.rand(()))


@breaks("evaluation", found=r"methods/sound/seen")
class Peeping(Sound):
    """Counts evaluations as steps."""

    acts_in_eval = True
    seen: int = state(0)

    @hookimpl
    def modbalance_logits(self, batch: Batch) -> Tensor | None:
        self.seen += 1
        return None


@breaks("batches_unchanged", found=r"edited")
class InPlace(Sound):
    """Edits the user's inputs."""

    @hookimpl
    def modbalance_inputs(self, inputs: Mapping[str, Any]) -> None:
        for value in inputs.values():
            value.mul_(0.5)


@breaks("resumption", found=r"difference of up to .* in encoders")
class Forgetful(Sound):
    """Keeps its mean outside of the state."""

    _mean: Tensor | None = attrs.field(default=None, init=False, repr=False)

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        score = step.stats["score"] / step.stats["count"]
        self._mean = score if self._mean is None else 0.5 * self._mean + 0.5 * score
        return dict(zip(step.run.modalities, self._mean.mean() / score, strict=True))


@breaks("skipped_step", found=r"difference of up to .* in encoders")
class Hasty(Sound):
    """Takes over state before the step has happened."""

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        sums = Sound.modbalance_observe(self, batch)
        self.mean = (sums["score"] / sums["count"]).mean() + (0 if self.mean is None else self.mean)
        return sums


@breaks("independence", found=r"difference of up to .* in encoders")
class Shared(Sound):
    """Counts the steps of all objects together."""

    counts: ClassVar[dict[str, int]] = {}

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        self.counts["steps"] = self.counts.get("steps", 0) + 1
        return {name: torch.full((), 1 / self.counts["steps"]) for name in step.run.modalities}


@breaks("composition", found=r"were lost")
class Restoring(Sound):
    """Puts gradients back that it kept before the other method acted."""

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        k = Sound.modbalance_coefficients(self, step)
        for name, value in k.items():
            step.cache[name] = [(p, p.grad * value) for p in step.parameters(name) if p.grad is not None]
        return k

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name in step.run.modalities:
            for parameter, kept in step.cache[name]:
                parameter.grad.copy_(kept)


@breaks("number_of_modalities", found=r"too many values to unpack")
class ForTwo(Sound):
    """Unpacks two scores."""

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        a, b = step.stats["score"]
        return dict(zip(step.run.modalities, (b / a, a / b), strict=True))


@breaks("renaming", found=r"parameter 0")
class Alphabetical(Sound):
    """Sorts the names."""

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        return dict(zip(sorted(step.run.modalities), Sound.modbalance_coefficients(self, step).values(), strict=True))


@breaks("order_of_modalities", found=r"difference of up to .* in encoders")
class AgainstTheFirst(Sound):
    """Compares with the first modality."""

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        score = step.stats["score"]
        return dict(zip(step.run.modalities, score[0] / score, strict=True))


@breaks("accumulation", found=r"difference of up to .* in encoders")
class FirstMicroBatch(Sound):
    """Looks at the first micro-batch alone."""

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        return {name: value * (batch.index == 0) for name, value in Sound.modbalance_observe(self, batch).items()}


@breaks("batch_of_one", found=r"NaN")
class Spread(Sound):
    """Divides gradients by the spread of the features over the batch."""

    needs = frozenset({"unimodal_logits", "target", "features"})

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        spread = torch.stack([each.detach().var(0).mean() for each in batch.features.values()])
        return Sound.modbalance_observe(self, batch) | {"spread": spread}

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name, spread in zip(step.run.modalities, step.stats["spread"], strict=True):
            gradients.scale_(step.parameters(name), 1 / (1 + spread))


@breaks("empty_batch", found=r"NaN")
class MeanOverNone(Sound):
    """Scales gradients by a mean over no samples."""

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name, score in zip(step.run.modalities, step.stats["score"] / step.stats["count"], strict=True):
            gradients.scale_(step.parameters(name), score)


@breaks("double_precision", found=r"Float but found Double|must have the same dtype")
class SinglePrecision(Sound):
    """Adds a matrix of its own, in single precision."""

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name in step.run.modalities:
            for parameter in step.parameters(name):
                flat = gradients.values(parameter).view(-1)
                flat.addmv_(torch.eye(len(flat)), flat.clone())


@breaks("autocast", found=r"BFloat16")
class MixedPrecision(Sound):
    """Multiplies features in half precision by a matrix in single precision."""

    needs = frozenset({"unimodal_logits", "target", "features"})

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        weight = torch.ones(4, 1, dtype=next(batch.run.optimized_parameters()).dtype)
        sums = [(each.detach() @ weight).sum() for each in batch.features.values()]
        return Sound.modbalance_observe(self, batch) | {"features": torch.stack(sums)}


@breaks("frozen_encoders", found=r"other values of encoders.left")
class Thawing(Sound):
    """Decays the weights of frozen encoders too."""

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        Sound.modbalance_after_step(self, step)
        for name in step.run.modalities if not step.run.dry_run else ():
            for _, parameter in step.run.encoder_parameters(name):
                parameter.mul_(0.99)


@breaks("absent_gradients", found=r"NoneType")
class EveryGradient(Sound):
    """Expects a gradient of every parameter."""

    @hookimpl
    def modbalance_gradients(self, step: Step) -> None:
        for name in step.run.modalities:
            for _, parameter in step.run.parameters(name):
                if parameter.requires_grad:
                    parameter.grad.mul_(0.5)  # type: ignore[union-attr]


@breaks("model_free", found=r"NoneType")
class AsksTheModel(Sound):
    """Looks into a model that there may not be."""

    @hookimpl
    def modbalance_setup(self, run: Run) -> None:
        assert len([*run.model.modules()]) > 0  # type: ignore[union-attr]


@defined
class Reading(Sound):
    """Reads tensors on the host."""

    def read(self, score: Tensor) -> object:
        raise NotImplementedError

    @hookimpl
    def modbalance_after_step(self, step: Step) -> None:
        self.read(step.stats["score"])
        Sound.modbalance_after_step(self, step)


@breaks("no_host_read", found=r"_local_scalar_dense.* in broken_methods.py:")
class ReadsAnItem(Reading):
    """Reads by `item`."""

    def read(self, score: Tensor) -> object:
        return score[0].item()


@breaks("no_host_read", found=r"tolist in broken_methods.py")
class ReadsAList(Reading):
    """Reads by `tolist`."""

    def read(self, score: Tensor) -> object:
        return score.tolist()


@breaks("no_host_read", found=r"_local_scalar_dense.* in broken_methods.py")
class ReadsABranch(Reading):
    """Reads in a condition."""

    def read(self, score: Tensor) -> object:
        return 1 if score[0] > score[1] else 0


@breaks("no_host_read", found=r"cpu in broken_methods.py")
class ReadsACopy(Reading):
    """Copies to the host."""

    def read(self, score: Tensor) -> object:
        return score.cpu()


@breaks("no_host_read", found=r"index.Tensor in broken_methods.py")
class ReadsAMask(Reading):
    """Indexes by a mask, whose sum is the shape of the result."""

    def read(self, score: Tensor) -> object:
        return score[score > 0]


@breaks("compilation", found=r"Data-dependent|Dynamic control flow")
class Untraceable(Sound):
    """Branches on a value in the forward."""

    @hookimpl
    def modbalance_features(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: each if each.sum() > 0 else each.clone() for name, each in features.items()}


@breaks("equal_ranks", found=r"difference of up to .* in encoders")
class OwnSamples(Sound):
    """Builds coefficients from the samples of its rank."""

    _own: Tensor = attrs.field(factory=lambda: torch.ones(()), init=False, repr=False)

    @hookimpl
    def modbalance_observe(self, batch: Batch) -> dict[str, Tensor]:
        sums = Sound.modbalance_observe(self, batch)
        self._own = sums["score"] / sums["count"] + (self._own if batch.index else 0)
        return sums

    @hookimpl
    def modbalance_coefficients(self, step: Step) -> dict[str, Tensor]:
        return dict(zip(step.run.modalities, self._own.mean() / self._own, strict=True))
