"""What a recipe hands to the shared trainer: facts about one dataset and its model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipe_common.tasks.task import Task, classification


@attrs.frozen
class Data:
    """A dataset, read and split.

    Attributes:
        train: Training samples. ``train[(epoch, index)]`` is a tuple: one tensor (or a tuple of them) per
            modality, then the target.
        val: Samples to select the best epoch with.
        test: Samples that are touched once, at the end.
        classes: Class names in the order of their indices; none for regression.
        modalities: Modality names in the order of the tensors of a sample.
        synthetic: Whether the data are synthetic, written by the recipe. The view says so.
        summary: Lines for the start of a run: what was found, what was skipped, which split is in use.
        task: What is trained and measured; default: to tell ``classes`` apart.
        excluded: Methods that do not apply to these data, and why.
        skipped: A line for each listed sample that is absent or unreadable.
        collate: Makes a batch of samples; default: torch's.
        penalty: Added to the loss in training: a function of the model, called after its forward, and the target.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    synthetic: bool
    summary: tuple[str, ...]
    task: Task = attrs.field(default=attrs.Factory(lambda self: classification(len(self.classes)), takes_self=True))
    excluded: Mapping[str, str] = attrs.field(factory=dict)
    skipped: tuple[str, ...] = attrs.field(default=())
    collate: Callable[[Any], Any] | None = attrs.field(default=None)
    penalty: Callable[[nn.Module, Tensor], Tensor] | None = attrs.field(default=None)


@attrs.frozen
class Recipe:
    """One dataset and the model that papers train on it.

    Attributes:
        name: Short name for files and messages, such as ``"cremad"``.
        title: One line for people.
        add_arguments: Adds the flags of the dataset and of the model. A flag that is not given must be None.
        defaults: Values of unset flags on real data: those of the paper.
        synthetic_defaults: What differs on the synthetic set, which is used without ``--data-root``.
        method_options: For each method, its options on this dataset.
        load: Reads the data once per call of the command line.
        build_model: Returns the network, with fresh weights drawn from torch's global generator.
        balance: Keyword arguments that describe the model to ``BalancedOptimizer``: ``modalities``, ``fusion``, ...
        synthetic_options: For each method, what of its options differs on the synthetic set; see `SYNTHETIC_OPTIONS`.
        option_values: Values of options that have no literal, by method, option and name: what stands on the command
            line and in run folders is the name.
        protocols: For each protocol besides ``fair``, the values of unset flags that reproduce what a paper did.
        subcommand: What is typed before the flags, where a script holds several recipes.
        commands: Sub-commands, such as ``prepare``. Each takes the arguments behind its name, returns an exit code.
    """

    name: str
    title: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    defaults: Mapping[str, Any]
    synthetic_defaults: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    load: Callable[[argparse.Namespace], Data]
    build_model: Callable[[argparse.Namespace, Data], nn.Module]
    balance: Callable[[argparse.Namespace], Mapping[str, Any]]
    synthetic_options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    option_values: Mapping[str, Mapping[str, Mapping[str, Any]]] = attrs.field(factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    subcommand: tuple[str, ...] = ()
    commands: Mapping[str, Callable[[list[str]], int]] = attrs.field(factory=dict)

    def with_values(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of ``method`` with values in the place of their names in ``option_values``."""
        values = self.option_values.get(method, {})
        return {
            option: values.get(option, {}).get(given, given) if isinstance(given, str) else given
            for option, given in options.items()
        }
