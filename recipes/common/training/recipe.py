"""What a recipe hands to the shared trainer: facts about one dataset and its model."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import nn
from torch.utils.data import Dataset


@attrs.frozen
class Data:
    """A dataset, read and split.

    Attributes:
        train: Training samples. ``train[(epoch, index)]`` is a tuple: one tensor per modality, then the class index.
        val: Samples to select the best epoch with.
        test: Samples that are touched once, at the end.
        classes: Class names in the order of their indices.
        modalities: Modality names in the order of the tensors of a sample.
        generated: Whether the data were made up by the recipe. The view says so.
        summary: Lines for the start of a run: what was found, what was skipped, which split is in use.
    """

    train: Dataset[Any]
    val: Dataset[Any]
    test: Dataset[Any]
    classes: tuple[str, ...]
    modalities: tuple[str, ...]
    generated: bool
    summary: tuple[str, ...]


@attrs.frozen
class Recipe:
    """One dataset and the model that papers train on it.

    Attributes:
        name: Short name for files and messages, such as ``"cremad"``.
        title: One line for people.
        add_arguments: Adds the flags of the dataset and of the model. A flag that is not given must be None.
        defaults: Values of unset flags on real data: those of the paper.
        generated_defaults: What differs on the generated set, which is used without ``--data-root``.
        method_options: For each method, its options on this dataset.
        method_defaults: For each method, the defaults of its own paper, for when it is trained alone on real data;
            methods that are compared share ``defaults``.
        load: Reads the data once per call of the command line.
        build_model: Returns the network, with fresh weights drawn from torch's global generator.
        balance: Keyword arguments that describe the model to ``BalancedOptimizer``: ``modalities``, ``fusion``, ...
        generated_options: For each method, what of its options differs on the generated set.
        commands: Sub-commands, such as ``prepare``. Each takes the arguments behind its name, returns an exit code.
    """

    name: str
    title: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    defaults: Mapping[str, Any]
    generated_defaults: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    load: Callable[[argparse.Namespace], Data]
    build_model: Callable[[argparse.Namespace, Data], nn.Module]
    balance: Callable[[argparse.Namespace], Mapping[str, Any]]
    method_defaults: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    generated_options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    commands: Mapping[str, Callable[[list[str]], int]] = attrs.field(factory=dict)
