"""What can be proven about the code of modules: no dependence on the mode, no random numbers, no state that changes.

Layers of torch are known by class. The code of user classes is read by its names: each must be a layer, a parameter, a
plain constant, a function of torch that is known to be deterministic, or code that is read in turn. All else counts as
unknown, and unknown code is never taken for pure.
"""

from __future__ import annotations

import dis
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, jit, nn

Members = dict[str, list[Any]]

_NAMES = (
    "AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d "
    "AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d LPPool1d LPPool2d Bilinear Linear Identity "
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Embedding EmbeddingBag "
    "CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU ReLU ReLU6 "
    "SELU SiLU Sigmoid Softmax Softmax2d Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold "
    "GroupNorm LayerNorm LocalResponseNorm RMSNorm CosineSimilarity PairwiseDistance "
    "ConstantPad1d ConstantPad2d ConstantPad3d ReflectionPad1d ReflectionPad2d ReflectionPad3d ReplicationPad1d "
    "ReplicationPad2d ReplicationPad3d ZeroPad2d Flatten Unflatten Fold Unfold Upsample UpsamplingBilinear2d "
    "UpsamplingNearest2d PixelShuffle PixelUnshuffle ChannelShuffle GRUCell LSTMCell RNNCell "
    "ModuleDict ModuleList ParameterDict ParameterList Sequential"
)
PLAIN = frozenset(getattr(nn, name) for name in _NAMES.split())
"""Layers that compute the same in both modes."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_NORMS = (
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)
MODED: dict[type[nn.Module], Callable[[Any], bool]] = {
    **{each: lambda module: module.p > 0 for each in _DROPOUTS},
    **{each: lambda module: module.running_mean is not None for each in _NORMS},
    **{each: lambda module: module.dropout > 0 for each in (nn.RNN, nn.LSTM, nn.GRU, nn.MultiheadAttention)},
    nn.TransformerEncoder: lambda module: _packs_padding(module),
    nn.RReLU: lambda module: module.lower != module.upper,
}
"""Layers with a mode, and whether their results depend on it with their current settings."""

_LIBRARIES = (torch, F, nn, math)
_PURE_PACKAGES = ("torch.nn.functional.", "torch.functional.", "einops.")
_BUILTIN_NAMES = (
    "abs all any bool dict divmod enumerate float int isinstance len list map max min pow range reversed round set "
    "slice sorted str sum super tuple zip AssertionError NotImplementedError RuntimeError TypeError ValueError"
)
_BUILTINS = frozenset(_BUILTIN_NAMES.split())
_METHODS = frozenset(
    ("append", "extend", "format", "get", "items", "join", "keys", "pop", "values", "children", "get_submodule")
)
"""Methods of containers, text and modules that are harmless."""
_DENIED = re.compile(
    r"drop|rand|bernoulli|multinomial|^normal_?$|log_normal|uniform|exponential_|cauchy|geometric_|poisson|rrelu|gumbel"
    r"|batch_norm|instance_norm|fractional|training|^train$|^eval$|grad_enabled|infer|seed|rng|generator|^Generator$"
    r"|attention|empty|^_C$|^ops$|jit|library|load|compile|^apply$|^modules$|^_|^(rnn|gru|lstm)"
)
"""Names of torch that may mean randomness, the mode, or code that is not read."""

_OF_EVERY_MODULE = frozenset((*vars(nn.Module()), "forward"))
_UNREAD = ("__call__", "__getattr__", "train", "eval")
"""Methods of modules whose replacement in a class is not read."""
_PLAIN_VALUES = (int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CHANGES = frozenset(("STORE_ATTR", "DELETE_ATTR", "STORE_GLOBAL", "DELETE_GLOBAL", "IMPORT_NAME"))


def modules_with_modes(modules: Sequence[nn.Module]) -> list[nn.Module] | None:
    """Return those of the modules whose settings decide, or ``None`` if one may depend on its mode all the same."""
    if any(isinstance(module, jit.ScriptModule) for module in modules):
        return None
    members = _members(modules)
    if not all(
        _is_readable(module, _Reader(members, in_place=bool(module._buffers or module._parameters)))
        for module in modules
    ):
        return None
    return [module for module in modules if type(module) in MODED]


def depends_on_mode(module: nn.Module) -> bool:
    """Return whether a module with a mode yields something else in training now than in evaluation."""
    return module.training and MODED[type(module)](module)


def hooks_of(module: nn.Module) -> list[Any]:
    """Return the hooks that may change what a module computes, but for those of this library."""
    hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
    return [hook for hook in hooks if not getattr(hook, "is_neutral", False)]


def _is_readable(module: nn.Module, reader: _Reader) -> bool:
    kind = type(module)
    if any(getattr(kind, name) is not getattr(nn.Module, name) for name in _UNREAD):
        return False
    if not all(reader.is_pure(hook) for hook in hooks_of(module)):
        return False
    replaced = module.__dict__.get("forward")
    if replaced is not None:
        return reader.is_pure(replaced)
    if kind is nn.TransformerEncoderLayer:
        return reader.is_pure_value(module.activation)
    return kind in PLAIN or kind in MODED or reader.is_pure(kind.forward)


def _members(modules: Sequence[nn.Module]) -> Members:
    """Return by name all that the user's modules have: attributes of their classes and their own."""
    members: Members = {}
    seen: set[type] = {nn.Module, *nn.Module.__mro__, *PLAIN}
    for module in modules:
        if type(module) in MODED:
            continue
        for kind in [each for each in type(module).__mro__ if each not in seen]:
            seen.add(kind)
            for name, value in vars(kind).items():
                members.setdefault(name, []).append(value)
        for name, value in vars(module).items():
            if name not in _OF_EVERY_MODULE:
                members.setdefault(name, []).append(value)
        for name in (*module._modules, *module._parameters, *module._buffers):
            members.setdefault(name, []).append(None)
    return members


def _packs_padding(module: nn.TransformerEncoder) -> bool:
    """Whether evaluation without gradients drops padded positions, whose outputs are zero then."""
    differentiable = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
    return bool(getattr(module, "use_nested_tensor", True)) and not differentiable


class _Reader:
    """Reads the code that runs in the forward of one module.

    Args:
        members: By name, what the modules of the model have; a name in code may stand for any of them.
        in_place: Whether code that writes into tensors counts as impure, since the module has some that stay.
    """

    def __init__(self, members: Members, *, in_place: bool) -> None:
        self.members = members
        self.in_place = in_place
        self.read: set[CodeType] = set()

    def is_pure(self, function: Any) -> bool:
        """Return whether nothing in a function, or in what it calls, can depend on the mode or on chance."""
        function = function.__func__ if isinstance(function, MethodType | staticmethod | classmethod) else function
        if not isinstance(function, FunctionType):
            return False
        code = function.__code__
        if code in self.read:
            return True
        self.read.add(code)
        names, cells = {*_names(code)}, dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        cells.pop("__class__", None)
        values = [cell.cell_contents for cell in cells.values()]
        values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
        return (
            not _changes_state(code, in_place=self.in_place)
            and all(self.is_pure_name(name, names, function.__globals__) for name in names)
            and all(self.is_pure_value(value) for value in values)
        )

    def is_pure_name(self, name: str, names: Collection[str], where: Mapping[str, Any]) -> bool:
        """Return whether a name among those of a function stands for something harmless, in every reading."""
        meanings = [*self.members.get(name, ()), *([where[name]] if name in where else ())]
        uses_torch = any(where.get(each) is library for each in names for library in _LIBRARIES)
        of_torch = [each for each in (Tensor, *(_LIBRARIES if uses_torch else ())) if hasattr(each, name)]
        if name == "training" or (of_torch and _DENIED.search(name)):
            return False
        if meanings:
            return all(self.is_pure_member(each) for each in meanings)
        return bool(of_torch) or name in _BUILTINS or name in _METHODS

    def is_pure_member(self, member: Any) -> bool:
        """Return whether an attribute of a class is harmless."""
        if isinstance(member, property):
            return member.fget is not None and self.is_pure(member.fget)
        if isinstance(member, staticmethod | classmethod):
            return self.is_pure(member)
        return self.is_pure_value(member)

    def is_pure_value(self, value: Any) -> bool:
        """Return whether an object is a constant, a deterministic function, or code that can be read."""
        if isinstance(value, _PLAIN_VALUES) or value is Tensor or any(value is each for each in _LIBRARIES):
            return True
        if isinstance(value, list | tuple):
            return all(self.is_pure_value(item) for item in value)
        if isinstance(value, dict):
            return all(self.is_pure_value(item) for item in value.values())
        if isinstance(value, nn.Module):
            return type(value) in PLAIN and not value._modules
        where = getattr(value, "__module__", None) or ""
        name = getattr(value, "__name__", "")
        if isinstance(value, BuiltinFunctionType) and (hasattr(torch, name) or hasattr(F, name) or where == "math"):
            return not _DENIED.search(name)
        if isinstance(value, FunctionType) and f"{where}.".startswith(_PURE_PACKAGES):
            return not _DENIED.search(name)
        return isinstance(value, FunctionType) and self.is_pure(value)


def _names(code: CodeType) -> Iterator[str]:
    """Yield all names in a function's code that are looked up, in nested functions too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _changes_state(code: CodeType, *, in_place: bool) -> bool:
    """Return whether code sets attributes or globals, or, if ``in_place``, may write into tensors that stay."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in _CHANGES or (in_place and instruction.opname == "STORE_SUBSCR"):
            return True
        name = instruction.argval
        if name == "__class__":  # loaded by `super()`, from Python 3.12 on
            continue
        if in_place and isinstance(name, str) and name.endswith("_") and instruction.opname.startswith("LOAD_"):
            return True
    return any(_changes_state(each, in_place=in_place) for each in code.co_consts if isinstance(each, CodeType))
