"""Balanced multimodal learning in one line: wrap the optimizer, name the paper.

The names in ``__all__``, with the public names of the modules among them, are the interface for users and plugin
authors (docs/plugin-api.md). Modules with a leading underscore may change at any time.
"""

from modbalance import auxiliary as auxiliary
from modbalance import coalitions as coalitions
from modbalance import diagnosis as diagnosis
from modbalance import gradients as gradients
from modbalance import loaders as loaders
from modbalance import results as results
from modbalance import scores as scores
from modbalance import sharding as sharding
from modbalance._plugins import list_methods as list_methods
from modbalance.context import Batch as Batch
from modbalance.context import EpochData as EpochData
from modbalance.context import Run as Run
from modbalance.context import Step as Step
from modbalance.diagnosis import Diagnosis as Diagnosis
from modbalance.diagnosis import diagnose as diagnose
from modbalance.errors import CaptureError as CaptureError
from modbalance.errors import CheckpointError as CheckpointError
from modbalance.errors import ConfigError as ConfigError
from modbalance.errors import ModbalanceError as ModbalanceError
from modbalance.errors import ModbalanceWarning as ModbalanceWarning
from modbalance.errors import ObservationError as ObservationError
from modbalance.errors import PluginConflictError as PluginConflictError
from modbalance.errors import PluginLoadError as PluginLoadError
from modbalance.errors import UnknownMethodError as UnknownMethodError
from modbalance.errors import suggest as suggest
from modbalance.hookspecs import hookimpl as hookimpl
from modbalance.method import PLUGIN_API as PLUGIN_API
from modbalance.method import Method as Method
from modbalance.method import WindowedMethod as WindowedMethod
from modbalance.method import between as between
from modbalance.method import ge as ge
from modbalance.method import gt as gt
from modbalance.method import integer as integer
from modbalance.method import kept as kept
from modbalance.method import one_of as one_of
from modbalance.method import option as option
from modbalance.method import optional as optional
from modbalance.method import state as state
from modbalance.optimizer import BalancedOptimizer as BalancedOptimizer
from modbalance.shadow import Shadow as Shadow

__all__ = [  # noqa: RUF022 - plain order, in which a constant stands among classes
    "BalancedOptimizer",
    "Batch",
    "CaptureError",
    "CheckpointError",
    "ConfigError",
    "Diagnosis",
    "EpochData",
    "Method",
    "ModbalanceError",
    "ModbalanceWarning",
    "ObservationError",
    "PLUGIN_API",
    "PluginConflictError",
    "PluginLoadError",
    "Run",
    "Shadow",
    "Step",
    "UnknownMethodError",
    "WindowedMethod",
    "auxiliary",
    "between",
    "coalitions",
    "diagnose",
    "diagnosis",
    "ge",
    "gradients",
    "gt",
    "hookimpl",
    "integer",
    "kept",
    "list_methods",
    "loaders",
    "one_of",
    "option",
    "optional",
    "results",
    "scores",
    "sharding",
    "state",
    "suggest",
]

__version__ = "0.1.0"
