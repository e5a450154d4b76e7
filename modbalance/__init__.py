"""Balanced multimodal learning in one line: wrap the optimizer, name the paper."""

from modbalance.errors import CheckpointError as CheckpointError
from modbalance.errors import ConfigError as ConfigError
from modbalance.errors import ModbalanceError as ModbalanceError
from modbalance.errors import ModbalanceWarning as ModbalanceWarning
from modbalance.errors import ObservationError as ObservationError
from modbalance.errors import PluginConflictError as PluginConflictError
from modbalance.errors import PluginLoadError as PluginLoadError
from modbalance.errors import UnknownMethodError as UnknownMethodError
from modbalance.hookspecs import hookimpl as hookimpl
from modbalance.method import Method as Method
from modbalance.method import WindowedMethod as WindowedMethod
from modbalance.method import option as option
from modbalance.method import state as state
from modbalance.optimizer import BalancedOptimizer as BalancedOptimizer
from modbalance.records import Batch as Batch
from modbalance.records import EpochData as EpochData
from modbalance.records import Step as Step
from modbalance.registry import list_methods as list_methods
from modbalance.run import Run as Run

__version__ = "0.1.0"
