"""The table of methods and training stacks: what each cell runs, and what it is compared to."""

from __future__ import annotations

import functools
from collections.abc import Callable

import attrs
import torch

from modbalance import ModbalanceError
from modbalance._plugins import load_method
from stacks import frameworks, one_process, ranks
from stacks.training import Weights, distance, options_of, plain_loop
from support.stacks import CLIP

Training = Callable[[str], Weights]

PLAIN = "the plain loop"
CLIPPED = f"the plain loop with `opt.modulate()`, `clip_grad_norm_({CLIP})`, `opt.step()`"
JOINED = "the plain loop on the batches of both ranks together"
SUMS = "sums in another order"
CACHED = (
    "autocast casts a weight once for all passes of a step and adds up its gradients in the short type, which shows in "
    "`agm` alone; with `cache_enabled=False` it is 0"
)


@attrs.frozen
class Stack:
    """A training stack.

    Attributes:
        title: Head of its column.
        setting: What it is.
        train: Returns the weights after the training with a method.
        reference: The same for the training that it is compared to.
        reference_name: What that is.
        limit: Largest difference allowed.
        reason: Why a difference other than 0 is right.
        needs_cpu_fsdp: Whether it needs FSDP2 on CPUs, which torch 2.6 lacks.
        exemption: Rule of `modbalance.testing` for which a method may declare that it does not hold.
    """

    title: str
    setting: str
    train: Training
    reference: Training = plain_loop
    reference_name: str = PLAIN
    limit: float = 0.0
    reason: str = ""
    exemption: str = ""
    needs_cpu_fsdp: bool = False


def _mixed(title: str, dtype: torch.dtype, setting: str, by_hand: str, limit: float) -> Stack:
    return Stack(
        title,
        setting,
        functools.partial(one_process.autocast, dtype=dtype),
        functools.partial(one_process.casts_by_hand, dtype=dtype),
        f"a loop in single precision whose layers, but for the head of `mla`, cast inputs and weights by hand{by_hand}",
        limit,
        CACHED,
    )


def _framework(title: str, setting: str, train: Callable[..., Weights]) -> list[Stack]:
    clipped = functools.partial(train, clip=CLIP)
    reference = functools.partial(plain_loop, clip=CLIP)
    return [
        Stack(title, f"{setting}, without a clip", functools.partial(train, clip=None)),
        Stack(f"{title}, its clip", f"{setting}, which clips the norm to {CLIP}", clipped, reference, CLIPPED),
    ]


def _ranks(title: str, setting: str, name: str) -> Stack:
    train = functools.partial(ranks.trained, name)
    return Stack(title, setting, train, plain_loop, JOINED, 1e-6, SUMS, exemption="accumulation")


def _sharded(units: str, name: str) -> Stack:
    train = functools.partial(ranks.trained, name)
    reference = functools.partial(plain_loop, noise=False)
    setting = f"two processes, `fully_shard` on {units}; `ogm_ge` with `noise_scale=0`, since each rank draws its noise"
    return Stack(
        f"FSDP2: {name}",
        setting,
        train,
        reference,
        JOINED,
        1e-6,
        SUMS,
        exemption="accumulation",
        needs_cpu_fsdp=True,
    )


GROUPS: dict[str, list[Stack]] = {
    "One process": [
        Stack(
            "plain",
            "`zero_grad`, backward, `opt.step()`",
            one_process.plain,
            plain_loop,
            "the same with a further call of `opt.modulate()` before the step",
        ),
        _mixed("AMP bf16", torch.bfloat16, "`torch.autocast` around forward and criterion", "", 5e-4),
        _mixed(
            "AMP fp16",
            torch.float16,
            "`torch.autocast` around forward and criterion, and a GradScaler",
            ", with the loss scaled and the gradients unscaled by hand",
            1e-4,
        ),
        Stack(
            "accumulation",
            "two micro-batches per step",
            one_process.accumulation,
            reference_name="the plain loop with batches twice as large",
            limit=1e-6,
            reason=SUMS,
            exemption="accumulation",
        ),
        Stack(
            "own clip",
            f"`BalancedOptimizer(clip_grad_norm={CLIP})`",
            one_process.own_clip,
            functools.partial(plain_loop, clip=CLIP),
            CLIPPED,
        ),
        Stack("compile", '`torch.compile(model, backend="aot_eager")`', one_process.compiled, limit=1e-6, reason=SUMS),
        Stack(
            "resume",
            "a checkpoint in the middle of the second epoch, loaded by a new model and optimizer",
            one_process.resumed,
            reference_name="the plain loop without a stop",
        ),
        Stack(
            "checkpointing",
            "activation checkpointing of the encoders, `use_reentrant=False`",
            functools.partial(one_process.checkpointed, use_reentrant=False),
        ),
        Stack(
            "checkpointing, reentrant",
            "the same with `use_reentrant=True`",
            functools.partial(one_process.checkpointed, use_reentrant=True),
        ),
        Stack(
            'apply="update"',
            "coefficients on the update of plain SGD, without momentum, weight decay and clip",
            functools.partial(one_process.scaled, apply="update"),
            functools.partial(one_process.scaled, apply="gradient"),
            "the same with coefficients on the gradient, which is the same there; other optimizers: "
            "tests/unit/test_update_scaling.py",
            1e-6,
            SUMS,
        ),
        Stack(
            "SAM",
            "an inner optimizer with `first_step` and `second_step`",
            one_process.sam,
            one_process.sam_by_hand,
            "a loop that climbs by hand along modulated gradients, goes back, and steps with SGD",
            1e-6,
            "rounding of the way there and back",
        ),
    ],
    "Two processes": [
        _ranks("DDP", "DistributedDataParallel", "ddp"),
        _ranks("ZeRO", "DistributedDataParallel with a ZeroRedundancyOptimizer inside", "zero"),
        _sharded("the model", "model"),
        _sharded("each encoder, then the model", "encoders"),
        _sharded("each encoder and the fusion, then the model", "encoders and fusion"),
        _sharded("the model, with `reshard_after_forward=True`", "resharded"),
    ],
    "Frameworks": [
        *_framework("Lightning", "automatic optimization and `BalanceCallback`", frameworks.lightning_trainer),
        *_framework("Accelerate", "`accelerator.prepare` and `modulate_before_clip`", frameworks.accelerate),
        *_framework("Trainer", "the Trainer of Transformers and `BalanceCallback`", frameworks.huggingface_trainer),
    ],
}
STACKS = {stack.title: stack for group in GROUPS.values() for stack in group}


@attrs.frozen
class Cell:
    """Result of a method in a stack: the largest difference of a weight to the reference, or a refusal.

    Attributes:
        difference: Largest difference; ``None``: refused.
        note: The message of the refusal, or the declared reason why the difference may be larger than the limit.
    """

    difference: float | None
    note: str = ""


def cell(stack: Stack, method: str) -> Cell:
    """Train, and compare."""
    try:
        trained = stack.train(method)
    except ModbalanceError as error:
        return Cell(None, str(error))
    difference = distance(trained, stack.reference(method))
    return Cell(difference, _declared(stack, method) if difference > stack.limit else "")


def _declared(stack: Stack, method: str) -> str:
    if method == "none" or not stack.exemption:
        return ""
    return load_method(method)(**options_of(method)).exemptions().get(stack.exemption, "")
