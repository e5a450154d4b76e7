"""Assembly of one run from its settings: model, optimizer, loss, schedule, loaders and evaluator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from math import ceil
from typing import Any

import attrs
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.parallel import DistributedDataParallel

from modbalance import BalancedOptimizer, ConfigError
from recipe_common.data.samples.seeding import derived_seed
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data, Recipe
from recipe_common.report.results import ONLY
from recipe_common.settings.declaration import walk
from recipe_common.settings.shared import Settings
from recipe_common.tasks.task import Task
from recipe_common.training.evaluate import Evaluator, as_returned
from recipe_common.training.loaders import Loaders, batches_per_epoch, build_loaders
from recipe_common.training.optimizers import Schedule, build_inner
from recipe_common.training.precision import Precision
from recipe_common.training.ranks import ALONE, Ranks
from recipe_common.training.settings import installed_methods
from recipe_common.training.work import EncoderCounter


@attrs.frozen
class Job:
    """One method on one dataset, ready to train.

    Attributes:
        method: Name of the balancing method.
        settings: All settings.
        model: The bare model.
        wrapped: The model as all ranks train it together; the bare one if this process is alone.
        forward: The wrapped model, compiled if the settings have ``compile``; training calls it.
        optimizer: The inner optimizer, wrapped.
        criterion: The loss of the task, wrapped.
        penalty: Term of the loss: a function of the model, after its forward, and the target.
        schedule: Changes the learning rate.
        scaler: Gradient scaler, inactive unless fp16.
        loaders: Training, validation and test batches.
        evaluator: Computes the scores.
        precision: Device and number format.
        classes: Class names.
        counter: Counts the samples that go through the encoders.
        ranks: The processes that train the model together.
    """

    method: str
    settings: Settings[Any]
    model: nn.Module
    wrapped: nn.Module
    forward: Callable[..., Tensor]
    optimizer: BalancedOptimizer
    criterion: Callable[[Tensor, Tensor], Tensor]
    penalty: Callable[[nn.Module, Tensor], Tensor] | None
    schedule: Schedule
    scaler: GradScaler
    loaders: Loaders
    evaluator: Evaluator
    precision: Precision
    classes: tuple[str, ...]
    counter: EncoderCounter
    ranks: Ranks

    def accumulating(self, is_last: bool) -> AbstractContextManager[None]:
        """Return the context of a forward and backward: ranks join their gradients after the last batch of a step."""
        if isinstance(self.wrapped, DistributedDataParallel) and not is_last:
            return self.wrapped.no_sync()
        return nullcontext()

    @property
    def task(self) -> Task:
        """Loss and metrics."""
        return self.evaluator.task


def build_job(
    recipe: Recipe,
    settings: Settings[Any],
    data: Data,
    precision: Precision,
    method: str,
    options: Mapping[str, Any],
    ranks: Ranks = ALONE,
) -> Job:
    """Build model, optimizer and loaders. Equal settings give equal initial weights for all methods."""
    model = build_model(recipe, settings, data, precision, method)
    wrapped = join(model, method, ranks)
    if settings.machine.compile:
        torch.compiler.reset()  # the code of earlier runs is of no use, and counts towards the limit of recompilations
    optimizer = build_optimizer(recipe, settings, wrapped, balancing(method), options)
    criterion = optimizer.criterion(data.task.loss().to(precision.device), score=data.task.score)
    seed = settings.optimisation.seed
    # Methods may draw different amounts while they are set up; training starts from one state.
    torch.manual_seed(seed if ranks.is_first else derived_seed(seed, ranks.rank))
    loaders = build_loaders(settings, data, precision, ranks)
    steps = ceil(batches_per_epoch(loaders.train, settings.data.limit_batches) / settings.optimisation.accumulate)
    return Job(
        method=method,
        settings=settings,
        model=model,
        wrapped=wrapped,
        forward=torch.compile(wrapped) if settings.machine.compile else wrapped,
        optimizer=optimizer,
        criterion=criterion,
        penalty=data.penalty,
        schedule=Schedule(settings.optimisation, optimizer, data.task.headline, steps),
        scaler=precision.scaler(),
        loaders=loaders,
        evaluator=build_evaluator(recipe, settings, data, model, precision, criterion.logits),
        precision=precision,
        classes=data.classes,
        counter=EncoderCounter(model, recipe.balance(settings)["modalities"]),
        ranks=ranks,
    )


def join(model: nn.Module, method: str, ranks: Ranks) -> nn.Module:
    """Return the model such that all ranks train it together."""
    if ranks.is_alone:
        return model
    # A run that trains a single modality uses no parameter of the other encoders.
    return DistributedDataParallel(model, find_unused_parameters=method.startswith(ONLY))


def balancing(method: str) -> str:
    """Return the method to wrap the optimizer for: none for a run that trains a single modality."""
    return "none" if method.startswith(ONLY) else method


def keep_only(fusion: nn.Module, modalities: Sequence[str], kept: str) -> None:
    """Replace the features of all modalities but one by zeros in front of ``fusion``, in training and evaluation."""

    def zero_others(module: nn.Module, features: tuple[Any, ...]) -> tuple[Any, ...]:
        pairs = zip(modalities, features, strict=True)
        return tuple(feature if name == kept else torch.zeros_like(feature) for name, feature in pairs)

    fusion.register_forward_pre_hook(zero_others)


def build_model(
    recipe: Recipe, settings: Settings[Any], data: Data, precision: Precision, method: str = "none"
) -> nn.Module:
    """Return a new model on its device, drawn from ``--seed``; for ``only:<modality>`` the others are zero in it."""
    torch.manual_seed(settings.optimisation.seed)
    model = recipe.build_model(settings, data).to(precision.device)
    if method.startswith(ONLY):
        keep_only(model.get_submodule(recipe.balance(settings)["fusion"]), data.modalities, method.removeprefix(ONLY))
    if precision.channels_last:
        model.to(memory_format=torch.channels_last)
    return model


def build_optimizer(
    recipe: Recipe, settings: Settings[Any], model: nn.Module, method: str, options: Mapping[str, Any]
) -> BalancedOptimizer:
    """Return the inner optimizer wrapped for ``method``.

    Raises:
        modbalance.ConfigError: The method refuses the model; the flag that would build another one is named.
    """
    inner = build_inner(settings.optimisation, model.parameters())
    described = {
        **recipe.balance(settings),
        **recipe.with_values(method, options),
        "apply": settings.optimisation.apply,
    }
    if (norm := settings.optimisation.clip_grad_norm) is not None:
        described["clip_grad_norm"] = norm
    try:
        return BalancedOptimizer(inner, method=method, model=model, **described)
    except ConfigError as error:
        if fix := fusion_that_suits(settings, method):
            raise ConfigError(f"{error} In this recipe: `{fix}`.") from error
        raise


def fusion_that_suits(settings: Settings[Any], method: str) -> str | None:
    """Return the flag by which the recipe builds the head that a method needs, unless that is what it has."""
    fusion = next((each for each in walk(settings) if each[0].name == "fusion"), None)
    if fusion is None or "shared_head" not in getattr(installed_methods().get(method), "needs", ()):
        return None
    flag, value = fusion
    return "--fusion shared" if "shared" in (flag.declaration.choices or ()) and value != "shared" else None


def build_evaluator(
    recipe: Recipe,
    settings: Settings[Any],
    data: Data,
    model: nn.Module,
    precision: Precision,
    predicted: Callable[[Tensor], Tensor],
) -> Evaluator:
    """Return the evaluator of ``model``; ``predicted`` is that of `Evaluator`."""
    fusion = model.get_submodule(recipe.balance(settings)["fusion"])
    return Evaluator(model, fusion, data.modalities, data.task, precision, predicted)


def build_predicted(
    recipe: Recipe, settings: Settings[Any], data: Data, model: nn.Module, method: str, options: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """Return how the output of a trained model becomes predictions; most methods leave it as it is."""
    kind = installed_methods().get(method)
    if kind is None or not kind.acts_in_eval:
        return as_returned
    return build_optimizer(recipe, settings, model, method, options).criterion(data.task.loss()).logits


def check_methods(
    recipe: Recipe,
    settings: Settings[Any],
    data: Data,
    precision: Precision,
    options: Mapping[str, Mapping[str, Any]],
) -> None:
    """Build the optimizer of each method, so that a wrong method or option fails before the first run.

    Raises:
        RecipeError: If a method is named twice.
        modbalance.ModbalanceError: If a method is unknown or its options are not valid.
    """
    methods = settings.run.methods
    if len(set(methods)) < len(methods):
        raise RecipeError(
            "`--methods` should name each method once",
            found=f"`{' '.join(methods)}`",
            fix=f"write `--methods {' '.join(dict.fromkeys(methods))}`",
        )
    model = build_model(recipe, settings, data, precision)
    for method in options:
        build_optimizer(recipe, settings, model, balancing(method), options[method]).remove()
