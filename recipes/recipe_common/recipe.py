"""The interface between a recipe script and the shared code: facts about one dataset and its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from torch import Tensor, nn
from torch.utils.data import Dataset

from recipe_common.settings.declaration import Flag, flags_of
from recipe_common.settings.shared import Settings
from recipe_common.tasks.task import Task, classification


@attrs.frozen
class Data:
    """A dataset, read and split.

    Attributes:
        train: Training samples. ``train[(epoch, index)]`` is a tuple: one tensor (or a tuple of them) per
            modality, then the target.
        val: Samples that select the best epoch.
        test: Samples that are evaluated once, at the end.
        classes: Class names in the order of their indices; none for regression.
        modalities: Modality names in the order of the tensors of a sample.
        synthetic: Whether the data are synthetic, written by the recipe; tables and pictures are marked accordingly.
        summary: Lines for the start of a run: what was found, what was skipped, which split is in use.
        task: Loss and metrics; default: those of a classification into ``classes``.
        excluded: Methods that do not apply to these data for another reason than `Task.lacks`, and why.
        skipped: A line for each listed sample that is absent or unreadable.
        collate: Makes a batch of samples; default: the function of torch.
        penalty: Term of the training loss: a function of the model, called after its forward, and the target.
        chosen: Values of settings that were not given and that follow from the data, such as a file that was found.
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
    chosen: Mapping[str, Any] = attrs.field(factory=dict)


@attrs.frozen
class Recipe:
    """One dataset and the model that papers train on it.

    Attributes:
        name: Short name for files and messages, such as ``"cremad"``.
        title: One line for ``--help`` and for reports.
        settings: Class of the settings of the dataset and of the model, with their defaults.
        defaults: Values of other settings on real data: those of the paper.
        synthetic_defaults: Values that differ on the synthetic set, which is used without ``--data-root``.
        method_options: For each method, its options on this dataset.
        load: Reads the data once per call of the command line.
        build_model: Returns the network, with fresh weights drawn from torch's global generator.
        balance: Keyword arguments that describe the model to ``BalancedOptimizer``: ``modalities``, ``fusion``, ...
        synthetic_options: For each method, its options that differ on the synthetic set; an option with a ``short``
            value has that value there without being listed.
        option_values: Values of options that have no literal, by method, option and name. The command line and run
            folders have the name.
        protocols: For each protocol besides ``fair``, the values of settings that reproduce the code of a paper.
        subcommand: Words in front of the flags, where a script holds several recipes.
        commands: Sub-commands, such as ``prepare``: functions from the arguments behind the name to an exit code.

    Raises:
        ValueError: If a table of values names no setting.
        RecipeError: If it has a value of another type or out of bounds.
    """

    name: str
    title: str
    settings: type[Any]
    defaults: Mapping[str, Any]
    synthetic_defaults: Mapping[str, Any]
    method_options: Mapping[str, Mapping[str, Any]]
    load: Callable[[Settings[Any]], Data]
    build_model: Callable[[Settings[Any], Data], nn.Module]
    balance: Callable[[Settings[Any]], Mapping[str, Any]]
    synthetic_options: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    option_values: Mapping[str, Mapping[str, Mapping[str, Any]]] = attrs.field(factory=dict)
    protocols: Mapping[str, Mapping[str, Any]] = attrs.field(factory=dict)
    subcommand: tuple[str, ...] = ()
    commands: Mapping[str, Callable[[list[str]], int]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        known = self.flags
        for values in (self.defaults, self.synthetic_defaults, *self.protocols.values()):
            for name, value in values.items():
                if name not in known:
                    raise ValueError(f"Recipe `{self.name}` has no setting `{name}`.")
                known[name].check(value)

    @property
    def flags(self) -> dict[str, Flag]:
        """All settings of the recipe by name, the shared ones first."""
        return flags_of(Settings, self.settings)

    def with_values(self, method: str, options: Mapping[str, Any]) -> dict[str, Any]:
        """Return options of ``method`` with values in the place of their names in ``option_values``."""
        values = self.option_values.get(method, {})
        return {
            option: values.get(option, {}).get(given, given) if isinstance(given, str) else given
            for option, given in options.items()
        }
