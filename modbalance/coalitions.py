"""Logits of every coalition of modalities: whole passes of the model, or one pass of each encoder.

Passes in eval mode that keep their graph are guarded: activation checkpointing would recompute them in training mode,
and batch norm reads its running statistics again in the backward.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from modbalance._model.compiled import uncompiled
from modbalance._model.forward import Args, Kwargs, map_tensors, tensors_in, with_samples
from modbalance._model.modes import modules_of
from modbalance._model.recomputed import recomputed
from modbalance._model.unimodal import ABSTAIN, NO, YES, agreement
from modbalance.context import Batch
from modbalance.errors import ConfigError, ObservationError

__all__ = ["Coalition", "choose", "factored", "full", "guard_buffers", "joined", "proper"]

Coalition = tuple[str, ...]
JOINED_ELEMENTS = 1 << 17
"""Most numbers in the inputs of a joined pass: above, operations last longer than their launch."""
Features = Mapping[str, Tensor]

FALLBACK = (
    "The logits of each coalition of modalities are computed by the whole model, since {reason}. Where encoders are "
    "independent, and `fusion=` turns their features into the logits, each encoder needs one pass for all coalitions."
)
_RECOMPUTED = (
    "A pass in eval mode should not be recomputed in the backward, where the model is in training mode again. Found "
    "activation checkpointing, or other hooks on saved tensors, in the model: switch it off, or let no gradient "
    "through such passes{hint}."
)


def proper(modalities: Sequence[str]) -> Iterator[Coalition]:
    """Yield the coalitions of 1 to M - 1 modalities, each in fusion order."""
    for size in range(1, len(modalities)):
        yield from combinations(modalities, size)


def full(
    batch: Batch, *, training: bool = False, no_gradient: str = "", recompute: bool = False, compiled: bool = True
) -> dict[Coalition, Tensor]:
    """Return the logits of the proper coalitions by one pass of the whole model for each, 2^M - 2 in all.

    Args:
        batch: The batch.
        training: Mode of the passes.
        no_gradient: The option of the method that lets no gradient through them, for messages.
        recompute: Whether each pass runs again in the backward, one after the other, instead of keeping its graph.
        compiled: Whether a compiled model runs as such; else nothing is compiled for passes that never come again.

    Raises:
        ObservationError: The model recomputes activations, which passes in eval mode do not survive.
    """

    def run(S: Coalition, batch: Batch, _: Features | None) -> tuple[Tensor]:
        with nullcontext() if training else _without_recomputation(no_gradient):
            return (batch.coalition_logits(S, training=training),)

    with nullcontext() if compiled else uncompiled():
        passes = {S: functools.partial(run, S) for S in proper(batch.run.modalities)}
        return {S: (_recomputed(each, batch) if recompute else each(batch, None))[0] for S, each in passes.items()}


def joined(batch: Batch, *, no_gradient: str = "", recompute: bool = False) -> dict[Coalition, Tensor]:
    """Return what `full` does in eval mode, by one pass of the whole model on all coalitions as one batch.

    Exact where samples do not depend on each other. It saves launches, which is what small models spend their time on;
    inputs of more than `JOINED_ELEMENTS` numbers in all, and those that cannot be concatenated, take one pass each.
    Arguments and errors are those of `full`.
    """
    coalitions = [*proper(batch.run.modalities)]
    inputs = _joined_inputs(batch, coalitions)
    if inputs is None:
        return full(batch, no_gradient=no_gradient, recompute=recompute)

    def run(batch: Batch, _: Features | None) -> tuple[Tensor, ...]:
        rerun, watch = batch.run._training.rerun, batch.run._training.watch
        args, kwargs = (_joined_inputs(batch, coalitions) if recompute else inputs) or ((), {})
        with _without_recomputation(no_gradient), watch.paused():
            together = rerun.model(batch._require_inputs(), args, kwargs, training=False)
        return _separated(together, len(coalitions), batch.logits)

    f = _recomputed(run, batch) if recompute else run(batch, None)
    return dict(zip(coalitions, f, strict=True))


def factored(batch: Batch, *, no_gradient: str = "", recompute: bool = False) -> dict[Coalition, Tensor]:
    """Return the logits of the proper coalitions in eval mode by one pass of each encoder, and one of a masked sample.

    Exact where features depend on the input of their own modality and of their own sample alone. Where they do not
    depend on the mode either, the features of the forward stand for those of its pass. Arguments and errors are those
    of `full`.
    """

    def run(batch: Batch, reused: Features | None) -> tuple[Tensor, ...]:
        with _without_recomputation(no_gradient):
            # In halves, the pass that comes first takes less memory beside the graph of the forward.
            parts = 2 if recompute and not torch.is_grad_enabled() else 1
            return tuple(_fused(batch, *_features_in_eval(batch, reused, parts=parts)).values())

    reused = _reusable(batch)
    f = _recomputed(run, batch, reused) if recompute else run(batch, reused)
    return dict(zip(proper(batch.run.modalities), f, strict=True))


def choose(batch: Batch, expected: Mapping[Coalition, Tensor], *, hint: str = "") -> str:
    """Return "factored" if that form is exact, "full" with a warning if not, "auto" if this batch does not show it.

    Each encoder must be blind to the inputs of the others, and both forms must yield the same. Two host reads; all
    ranks agree.

    Args:
        batch: The batch to compare on.
        expected: The logits that `full` returned for it.
        hint: Last sentence of the warning, such as the option for the full form.
    """
    with uncompiled():
        vote, reason = _vote(batch, expected)
    verdict = batch.run._training.ranks.minimum(vote, batch.logits.device)
    if verdict == NO:
        reason = reason if vote == NO else "another rank found a reason"
        batch.run.warn(" ".join([FALLBACK.format(reason=reason), hint]).strip())
    return {NO: "full", ABSTAIN: "auto", YES: "factored"}[verdict]


def guard_buffers(output: Tensor, model: nn.Module) -> None:
    """Raise an ObservationError in the backward of ``output`` if a buffer changed since now, or changes meanwhile.

    Batch norm in eval mode reads its running statistics again in the backward. Autograd does not notice that a forward
    in training mode has changed them, and the gradients come out wrong; the batch counter beside them does show it.
    """
    buffers = [
        (module, name, buffer, buffer._version)
        for module in modules_of([model])
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]

    def check() -> None:
        for module, name, buffer, version in buffers:
            if buffer._version != version:
                path = next(path for path, each in model.named_modules() if each is module)
                full_name = f"{path}.{name}" if path else name
                raise ObservationError(
                    "The backward should follow the criterion call, before the model runs in training mode again. "
                    f"Found that the buffer {full_name!r} changed since: take the backward of each batch before the "
                    "next forward, and do not checkpoint the activations of a model with batch norm."
                )

    def on_gradient(gradient: Tensor) -> None:
        check()
        Variable._execution_engine.queue_callback(check)

    if buffers:
        output.register_hook(on_gradient)  # type: ignore[no-untyped-call]


def _fused(batch: Batch, seen: Features, masked: Features) -> dict[Coalition, Tensor]:
    """Return the logits of the proper coalitions, from features of the batch and of one masked sample."""
    absent = {name: masked[name].expand_as(feature) for name, feature in seen.items()}
    fuse = batch.run._training.rerun.fuse
    return {
        S: fuse({i: seen[i] if i in S else absent[i] for i in seen}, batch.forward, training=False)
        for S in proper(batch.run.modalities)
    }


def _joined_inputs(batch: Batch, coalitions: Sequence[Coalition]) -> tuple[Args, Kwargs] | None:
    """Return the inputs with the modalities outside of each coalition masked, one after the other, if they are few."""
    structure, forward = batch.run._training.structure, batch._require_inputs()
    args, kwargs = forward.inputs or ((), {})
    if len(coalitions) * sum(t.numel() for t in tensors_in((args, kwargs))) > JOINED_ELEMENTS:
        return None
    parts = [structure.inputs.masked(args, kwargs, structure.modalities, S) for S in coalitions]
    return functools.reduce(lambda value, more: value and with_samples(value, more), parts)


def _separated(together: Tensor, count: int, logits: Tensor) -> tuple[Tensor, ...]:
    """Return the parts of logits (count B, C, ...), which look like ``logits``, (B, C, ...)."""
    if together.shape != (count * len(logits), *logits.shape[1:]):
        raise ConfigError(
            f"The model should return {count * len(logits)} rows of logits for {count} batches as one. Found the shape "
            f"{tuple(together.shape)}, and {tuple(logits.shape)} for one batch: its samples are not separate, so that "
            "each coalition needs a pass of its own (`coalitions='full'`)."
        )
    return together.tensor_split(count)


def _reusable(batch: Batch) -> Features | None:
    """Return the features of the forward, if the model yields the same in eval mode, by its structure."""
    structure, features = batch.run._training.structure, batch._require_inputs().features
    is_complete = features.keys() == set(structure.modalities)
    return features if is_complete and structure.modes is not None and structure.modes.is_excluded() else None


def _recomputed(
    run: Callable[[Batch, Features | None], Sequence[Tensor]], batch: Batch, reused: Features | None = None
) -> tuple[Tensor, ...]:
    """Return what ``run`` makes of a batch and features that stand for those in eval mode; its graph is made later."""
    # Copies, since what is computed from the outputs is kept in the batch and its forward: memory would go in circles.
    model, kept, forward = batch.run.model, copy.copy(batch), copy.copy(batch._require_inputs())
    kept.forward, kept._caches = forward, {}
    inputs, names = tensors_in(forward.inputs), [*(reused or ())]

    def again(*tensors: Tensor) -> Sequence[Tensor]:
        rest, view = iter(tensors), copy.copy(kept)
        view.forward = copy.copy(forward)
        if any(tensor.requires_grad for tensor in inputs):
            view.forward.replace_inputs(*map_tensors(forward.inputs, lambda _: next(rest)))
        return run(view, dict(zip(names, tensors[len(inputs) :], strict=True)) or None)

    parameters = [] if model is None else model.parameters()
    return recomputed(again, parameters, [*inputs, *(reused or {}).values()])


def _features_in_eval(batch: Batch, reused: Features | None = None, *, parts: int = 1) -> tuple[Features, Features]:
    """Return the features of the batch, (B, ..., D_i), and of one masked sample, (1, ..., D_i), with graph.

    Args:
        batch: The batch.
        reused: Features that stand for those of a pass in eval mode.
        parts: Number of passes, one after the other, into which that pass is split where that is possible.
    """
    structure, forward = batch.run._training.structure, batch._require_inputs()
    args, kwargs = forward.inputs or ((), {})
    first_args, first_kwargs = map_tensors((args, kwargs), _first)
    first = structure.inputs.masked(first_args, first_kwargs, structure.modalities, ())
    if reused is not None:
        return reused, _run_encoders(batch, *first)
    sizes = {len(feature) for feature in forward.features.values() if feature.dim()}
    both = with_samples((args, kwargs), first) if len(sizes) == 1 else None
    if both is None or {len(t) - 1 for t in tensors_in(both)} != sizes:
        return _run_encoders(batch, args, kwargs), _run_encoders(batch, *first)
    (size,), features = sizes, _run_in_parts(batch, both, parts)
    pairs = {name: feature.tensor_split([size]) for name, feature in features.items()}
    return {name: seen for name, (seen, _) in pairs.items()}, {name: masked for name, (_, masked) in pairs.items()}


def _run_in_parts(batch: Batch, inputs: Any, count: int) -> Features:
    def part(index: int) -> Any:
        return map_tensors(inputs, lambda tensor: tensor.tensor_split(count)[index])

    found = [_run_encoders(batch, *part(index)) for index in range(count)]
    return {name: torch.cat([each[name] for each in found]) for name in found[0]} if count > 1 else found[0]


def _run_encoders(batch: Batch, args: Args, kwargs: Kwargs) -> Features:
    """Return the features of a pass of the model in eval mode, with graph.

    Raises:
        ObservationError: No hook saw the features.
    """
    training = batch.run._training
    with training.watch.separately() as seen:
        training.rerun.model(batch._require_inputs(), args, kwargs, training=False)
    if not seen.features:
        raise ObservationError(training.structure.explain_missing_features(ran=True))
    return seen.features


def _vote(batch: Batch, expected: Mapping[Coalition, Tensor]) -> tuple[int, str]:
    try:
        with _without_recomputation(""):
            seen, masked = _features_in_eval(batch)
            versions = [feature._version for feature in seen.values()]
            found = torch.stack([*_fused(batch, seen, masked).values()])
        if versions != [feature._version for feature in seen.values()]:
            return NO, "the fusion changes its features in place"
        precision = found.dtype if batch.forward is None else batch.forward.precision(found.dtype)
        vote = agreement(found, torch.stack([*expected.values()]), precision)
        mixing = None if vote == ABSTAIN else _why_not_separate(batch)
    except (ConfigError, RuntimeError, ValueError) as error:
        return NO, f"the other form fails ({error})"
    return (NO, mixing) if mixing is not None else (vote, "both forms yield different logits")


def _why_not_separate(batch: Batch) -> str | None:
    """Return a reason why the features of a modality may depend on more than its own input, or ``None``.

    With NaN in the place of all other inputs, features must stay as they were: NaN gets through a gate that is
    still closed, too. Integers become zero instead, which shows less. One pass per modality, one host read.
    """
    training, forward = batch.run._training, batch._require_inputs()
    structure = training.structure
    args, kwargs = forward.inputs or ((), {})
    inputs = structure.inputs.read(args, kwargs, structure.modalities)
    if {id(t) for t in tensors_in((args, kwargs))} - {id(t) for t in tensors_in(tuple(inputs.values()))}:
        return "the model takes tensors that belong to no modality (name theirs in `inputs=`)"
    with torch.no_grad():
        features, differences = _run_encoders(batch, args, kwargs), []
        if set(features) != set(inputs):
            return "the model does not call its fusion"
        for name, feature in features.items():
            poison = {other: map_tensors(value, _poison) for other, value in inputs.items() if other != name}
            changed = structure.inputs.write(args, kwargs, structure.modalities, poison)
            near = torch.isclose(_run_encoders(batch, *changed)[name], feature, rtol=1e-3, atol=1e-5, equal_nan=False)
            differences.append(~near.all())
    differs = torch.stack(differences).tolist()
    mixing = [name for name, found in zip(features, differs, strict=True) if found]
    return f"the features of {mixing[0]!r} depend on the input of another modality" if mixing else None


@contextmanager
def _without_recomputation(no_gradient: str) -> Iterator[None]:
    """Raise an ObservationError if the body uses activation checkpointing, which works by hooks on saved tensors.

    Where such hooks are on already, around the body, the body is not watched.
    """
    message = _RECOMPUTED.format(hint=f" (`{no_gradient}`)" if no_gradient else "")
    with ExitStack() as stack:
        with suppress(RuntimeError):
            stack.enter_context(torch.autograd.graph.disable_saved_tensors_hooks(message))
        try:
            yield
        except RuntimeError as error:
            if str(error) != message:
                raise
            raise ObservationError(message) from None


def _first(value: Tensor) -> Tensor:
    return value[:1] if value.dim() else value


def _poison(value: Tensor) -> Tensor:
    return torch.full_like(value, torch.nan) if value.is_floating_point() else torch.zeros_like(value)
