"""Training flags of modules: they are switched and restored exactly, and it is known which results depend on them.

`nn.Module.train` sets each flag through `Module.__setattr__`, which takes longer than a small layer; flags are written
past it here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import jit, nn

from modbalance._model import purity


def modules_of(roots: Sequence[nn.Module], without: Collection[nn.Module] = ()) -> list[nn.Module]:
    """Return the modules under some roots, each once; ``without`` and what is under these alone is left out."""
    seen = {id(module) for module in without}
    waiting, found = list(roots), []
    while waiting:
        module = waiting.pop()
        if module is not None and id(module) not in seen:
            seen.add(id(module))
            found.append(module)
            waiting.extend(module._modules.values())  # type: ignore[arg-type]
    return found


@contextmanager
def switched(roots: Sequence[nn.Module], training: bool | None) -> Iterator[list[nn.Module]]:
    """Yield the modules under some roots, which run in the given mode meanwhile, ``None``: as they are.

    Flags are restored module by module. A class with a `train` of its own has it called.
    """
    modules = modules_of(roots)
    flags = [module.training for module in modules]
    try:
        if training is not None:
            _switch(roots, modules, training)
        yield modules
    finally:
        for module, flag in zip(modules, flags, strict=True):
            if module.training is not flag:
                _write(module, flag)


def _switch(roots: Sequence[nn.Module], modules: Sequence[nn.Module], training: bool) -> None:
    if any(type(module).train is not nn.Module.train for module in modules):
        for root in roots:
            root.train(training)
        return
    for module in modules:
        if module.training is not training:
            _write(module, training)


def _write(module: nn.Module, training: bool) -> None:
    if isinstance(module, jit.ScriptModule) or "training" not in module.__dict__:
        module.training = training
    else:
        module.__dict__["training"] = training


class ModeDependence:
    """Whether the features of a model may differ between training and evaluation, by its structure alone.

    The modules are looked through at each call, which is cheap; what their code does is read once.
    """

    def __init__(self, model: nn.Module, fusion: Sequence[nn.Module]) -> None:
        self._model = model
        self._fusion = fusion
        self._modules: list[nn.Module] = []
        self._hooks: list[object] = []
        self._watched: list[nn.Module] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_modules": [], "_hooks": [], "_watched": None}

    def is_excluded(self) -> bool:
        """Return whether training and evaluation compute equal features from equal inputs, in the current flags.

        Every module before the fusion must be of a class that is known not to look at its mode, be in evaluation
        already, or be user code that can be read in full and that neither asks for the mode nor draws numbers.
        """
        modules = modules_of([self._model], self._fusion)
        hooks = [hook for module in modules if _has_hooks(module) for hook in purity.hooks_of(module)]
        if modules != self._modules or hooks != self._hooks:
            self._modules, self._hooks = modules, hooks
            self._watched = purity.modules_with_modes(modules)
        return self._watched is not None and not any(purity.depends_on_mode(module) for module in self._watched)


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_pre_hooks or module._forward_hooks)
