"""What a method says about itself: summary, source, page, inputs and hooks."""

from __future__ import annotations

import inspect
import re
import sys

from modbalance.hookspecs import HOOKS
from modbalance.method import Method

_SOURCE = re.compile(r"Source: (.+?)(?=\n\n|\Z)", re.DOTALL)
_TITLE = re.compile(r'(.+?, ".+?", .+?\d{4})\b', re.DOTALL)
_PAGE = re.compile(r"docs/methods/\w+\.md")
TOUCHES = {
    "modbalance_inputs": "inputs",
    "modbalance_features": "features",
    "modbalance_takeover": "loss",
    "modbalance_logits": "logits",
    "modbalance_losses": "loss",
    "modbalance_coefficients": "gradients of encoders",
    "modbalance_gradients": "gradients",
    "modbalance_epoch_end": "between epochs",
}
"""What a hook may change."""


def summary(method: type[Method]) -> str:
    """Return the first paragraph of the docstring of the class."""
    own = vars(method).get("__doc__")  # not that of a base class, which `getdoc` would take
    return inspect.cleandoc(own or "").split("\n\n")[0].replace("\n", " ")


def source(method: type[Method]) -> str | None:
    """Return the paragraph that begins with ``Source:`` in the docstring of the method's module, or None."""
    found = _SOURCE.search(_module_docstring(method))
    return None if found is None else " ".join(found[1].split())


def paper(method: type[Method]) -> str | None:
    """Return authors, title, place and year of the source; all of it where it is not in that form."""
    given = source(method)
    found = given and _TITLE.match(given)
    return found[1] if found else given


def page(method: type[Method]) -> str | None:
    """Return the page of the docs that the module names, with equations and deviations, or None."""
    found = _PAGE.search(_module_docstring(method))
    return found and found[0]


def hooks(method: type[Method]) -> list[str]:
    """Return the hooks that the class implements, in firing order."""
    return [hook for hook in HOOKS if hook != "modbalance_methods" and hasattr(method, hook)]


def touches(method: type[Method]) -> list[str]:
    """Return what the hooks of the class may change."""
    return [words for hook, words in TOUCHES.items() if hook in hooks(method)]


def _module_docstring(method: type[Method]) -> str:
    return sys.modules[method.__module__].__doc__ or ""
