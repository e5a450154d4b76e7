"""Settings that all recipes share, in groups: runs, comparisons, data, optimisation and machine."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import attrs

from recipe_common.arguments import (
    factor_float,
    non_negative_float,
    non_negative_int,
    positive_float,
    positive_int,
    seed_int,
    share_float,
    thread_count,
)
from recipe_common.errors import RecipeError
from recipe_common.settings.declaration import flag, group

FAIR = "fair"
Own = TypeVar("Own")


@attrs.frozen
class MethodOption:
    """A value of ``--option``: ``NAME=VALUE``, or ``METHOD.NAME=VALUE`` for one method alone.

    Args:
        text: The value as it is typed.

    Raises:
        RecipeError: If the text has no name or no value.
    """

    text: str

    def __attrs_post_init__(self) -> None:
        if not self.text.partition("=")[0] or "=" not in self.text:
            raise RecipeError(
                "`--option` should be like name=value", found=f"`{self.text}`", fix="write `--option alpha=0.5`"
            )

    def __str__(self) -> str:
        return self.text

    @property
    def target(self) -> str:
        """``NAME`` or ``METHOD.NAME``."""
        return self.text.partition("=")[0]

    @property
    def method(self) -> str | None:
        """The one method that has the option; None for all methods that are trained."""
        method, dot, _ = self.target.rpartition(".")
        return method if dot else None

    @property
    def name(self) -> str:
        """Name of the option."""
        return self.target.rpartition(".")[2]

    @property
    def value(self) -> Any:
        """The value: a Python literal, or else the text itself."""
        text = self.text.partition("=")[2]
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text


@attrs.frozen(kw_only=True)
class RunSettings:
    """Methods, folders, and the steps between two readings of the loss and between two checkpoints."""

    title: ClassVar[str] = "run"

    methods: tuple[str, ...] = flag(
        ("none",),
        "methods to train; all: every one",
        aliases=("--method",),
        metavar="NAME",
        is_extended=True,
        is_identity=False,
    )
    option: tuple[MethodOption, ...] = flag(
        (), "option of the methods", metavar="NAME=VALUE", is_extended=True, is_identity=False
    )
    output: Path = flag(Path("runs"), "folder for results; default runs/RECIPE", metavar="DIR", is_identity=False)
    resume: bool = flag(False, "go on with the runs in the output folder", exclusive="existing", is_identity=False)
    update: bool = flag(
        False, "as --resume, and train runs of other settings anew", exclusive="existing", is_identity=False
    )
    overwrite: bool = flag(False, "delete these runs in the output folder", exclusive="existing", is_identity=False)
    eval: Path | None = flag(
        None, "evaluate a checkpoint on val and test; no training", metavar="CHECKPOINT", is_identity=False
    )
    log_every: int = flag(10, "steps between two readings of the loss", number=positive_int, metavar="STEPS")
    save_every: int = flag(
        0,
        "steps between two checkpoints; 0: each epoch",
        number=non_negative_int,
        metavar="STEPS",
        is_identity=False,
    )


@attrs.frozen(kw_only=True)
class ComparisonSettings:
    """Seeds, ceilings and processes of a comparison of several runs."""

    title: ClassVar[str] = "comparison"

    seeds: int | None = flag(
        None,
        "train every method N times, with the seeds --seed, --seed + 1, ...",
        number=positive_int,
        metavar="N",
        is_identity=False,
    )
    ceilings: bool = flag(False, "also train each modality by itself", is_identity=False)
    jobs: int | None = flag(
        None, "runs at a time, each in a process of its own", number=positive_int, metavar="N", is_identity=False
    )


@attrs.frozen(kw_only=True)
class DataSettings:
    """Data, their split, and the protocol of the evaluation."""

    title: ClassVar[str] = "data"

    data_root: Path | None = flag(
        None, "folder of the real data; without it a small synthetic set is written", metavar="DIR"
    )
    protocol: str = flag(
        FAIR, "fair: validation selects the epoch, the whole test split is scored once; others: the protocol of a paper"
    )
    select: str = flag("val", "split that selects the best epoch; papers use test", choices=("val", "test"))
    validation: bool = flag(True, "hold samples out of training that select the best epoch; the default")
    strict: bool = flag(False, "stop if a listed sample is absent or unreadable", is_identity=False)
    skip_bad: bool = flag(False, "leave unreadable files out instead of stopping")
    limit_batches: int | None = flag(None, "at most N batches per epoch and split", number=positive_int, metavar="N")
    drop_last: str = flag("none", "leave out a last batch that is not full", choices=("none", "train", "both"))

    @property
    def is_synthetic(self) -> bool:
        """Whether there are no real data."""
        return self.data_root is None


@attrs.frozen(kw_only=True)
class OptimisationSettings:
    """The inner optimizer, its schedule and the seed."""

    title: ClassVar[str] = "optimisation"

    epochs: int = flag(100, number=positive_int, is_identity=False)
    batch_size: int = flag(64, number=positive_int)
    optimizer: str = flag("sgd", choices=("sgd", "adam", "adamw"))
    lr: float = flag(1e-3, "learning rate", number=positive_float)
    momentum: float = flag(0.9, "momentum of SGD", number=share_float)
    weight_decay: float = flag(1e-4, number=non_negative_float)
    schedule: str = flag(
        "step",
        "how the learning rate changes",
        choices=("step", "multistep", "plateau", "cosine", "constant"),
    )
    step_size: int = flag(
        70, "step: epochs between two cuts of the learning rate", number=positive_int, metavar="EPOCHS"
    )
    milestones: tuple[int, ...] = flag((), "multistep: epochs at which it is cut", number=positive_int, metavar="EPOCH")
    gamma: float = flag(0.1, "step, multistep, plateau: factor of such a cut", number=factor_float)
    patience: int = flag(
        10, "plateau: epochs without a better score before it is cut", number=non_negative_int, metavar="EPOCHS"
    )
    warmup_epochs: int = flag(0, "cosine: epochs of a linear rise", number=non_negative_int, metavar="EPOCHS")
    warmup_lr: float = flag(0.0, "cosine: learning rate at which that begins", number=non_negative_float)
    final_lr: float = flag(0.0, "cosine: learning rate after the last epoch", number=non_negative_float)
    clip_grad_norm: float | None = flag(
        None, "clip the norm of the modulated gradient", number=positive_float, metavar="NORM"
    )
    apply: str = flag(
        "gradient",
        "what coefficients scale: gradients, or the update that the optimizer makes of them",
        choices=("gradient", "update"),
        is_identity=False,
    )
    accumulate: int = flag(1, "batches per optimizer step", number=positive_int, metavar="K")
    seed: int = flag(0, number=seed_int)


@attrs.frozen(kw_only=True)
class MachineSettings:
    """Device, processes, threads and number format."""

    title: ClassVar[str] = "machine"

    device: str = flag("auto", "cpu, cuda, cuda:1, ...; default: CUDA if available", is_identity=False)
    workers: int = flag(0, "processes that load data", number=non_negative_int, is_identity=False)
    threads: int | None = flag(
        None, "threads of torch; default: all cores, 1 with --seeds or --jobs", number=thread_count
    )
    amp: str = flag("off", "mixed precision", choices=("off", "bf16", "fp16"))
    channels_last: bool = flag(False)
    compile: bool = flag(False, "torch.compile the model")
    deterministic: bool = flag(True, "only deterministic convolutions on CUDA, so that --resume is exact")


@attrs.frozen(kw_only=True)
class Settings(Generic[Own]):
    """All settings of one call of a recipe, complete and checked.

    Attributes:
        run: Methods, folders, and the steps between two readings of the loss and between two checkpoints.
        comparison: Seeds, ceilings and processes of a comparison of several runs.
        data: Data, their split, and the protocol of the evaluation.
        optimisation: The inner optimizer, its schedule and the seed.
        machine: Device, processes, threads and number format.
        own: Settings of the dataset and the model, of the class that the recipe declares.
    """

    run: RunSettings = group(RunSettings)
    comparison: ComparisonSettings = group(ComparisonSettings)
    data: DataSettings = group(DataSettings)
    optimisation: OptimisationSettings = group(OptimisationSettings)
    machine: MachineSettings = group(MachineSettings)
    own: Own
