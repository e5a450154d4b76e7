"""Compiled code and hooks: code that torch compiled before a hook was there must not run in its place.

By default torch does not check whether a module has got hooks since it was compiled, and runs code that was compiled
for one instance of a class on all others: hooks of another optimizer's model, or of a later moment, never fire.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import CodeType, FunctionType
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

# The compiler takes seconds to import, and is there once an optimizer is built: it is imported in functions.

FIX = "build BalancedOptimizer before the first compiled call, or call `torch.compiler.reset()` after building it"

REPORTS_CHANGES = sys.version_info[:3] != (3, 13, 0)
"""Whether Python reports each change of an attribute: 3.13.0 does not, https://github.com/python/cpython/issues/125608."""


def respect_hooks(model: nn.Module) -> None:
    """Let code that is compiled from now on check for hooks, in all of the process, and drop that of these classes.

    Dropped code is compiled again at the next call. Code is left that this does not find: of a function around the
    model, and of what follows a graph break. On Python 3.13.0 all attributes are checked, which takes longer.
    """
    from torch._dynamo import config
    from torch._dynamo.eval_frame import remove_from_cache

    config.skip_nnmodule_hook_guards = False
    if not REPORTS_CHANGES and hasattr(config, "use_recursive_dict_tags_for_guards"):  # older ones check all
        config.use_recursive_dict_tags_for_guards = False
    for code in _codes(model):
        remove_from_cache(code)


def is_compiled(model: nn.Module) -> bool:
    """Return whether there is compiled code of a class of the model's modules."""
    from torch._dynamo.eval_frame import _debug_get_cache_entry_list

    return any(_debug_get_cache_entry_list(code) for code in _codes(model))


def compiled_form(model: nn.Module | None) -> nn.Module | None:
    """Return the module that `torch.compile` made of a model, or ``None``; DDP around it is taken off."""
    if isinstance(model, DistributedDataParallel):
        return compiled_form(cast(nn.Module, model.module))
    return model if model is not None and hasattr(model, "_orig_mod") else None


def uncompiled() -> AbstractContextManager[None]:
    """Return a context in which compiled modules run as plain ones: for passes that never come again."""
    return cast(AbstractContextManager[None], torch.compiler.set_stance("force_eager"))


def _codes(model: nn.Module) -> Iterator[CodeType]:
    """Yield the code objects at which torch keeps compiled code of a model, wrapped or compiled in place or not."""
    classes = {DistributedDataParallel, *(type(module) for module in model.modules())}
    functions = {nn.Module._call_impl, *(getattr(each, "forward", None) for each in classes)}
    yield from (function.__code__ for function in functions if isinstance(function, FunctionType))
