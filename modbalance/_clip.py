"""The clip of the joint gradient norm that a step makes: the user's own, or that of the method's preset."""

from __future__ import annotations

from weakref import ReferenceType, WeakKeyDictionary, ref

from torch import nn

_LATEST: WeakKeyDictionary[nn.Module, ReferenceType[Clip]] = WeakKeyDictionary()
"""By model, the clip that came last in a step."""


class Clip:
    """The largest norm that gradients may have in a step.

    Attributes:
        own: The user's `clip_grad_norm`, or ``None``.
        norm: The norm in force; ``None``: no clip.
    """

    def __init__(self, own: float | None, preset: float | None) -> None:
        self.own = own
        self.norm = preset if own is None else own
        self._has_acted = False

    def drop_preset(self) -> None:
        """Leave the user's own clip, if any."""
        self.norm = self.own

    def alternates(self, model: nn.Module | None) -> bool:
        """Note that a step of a model takes this clip; return whether one of another optimizer does in turn with it.

        An optimizer that takes the place of an earlier one does not alternate with it.
        """
        if model is None or self.norm is None or self.own is not None:
            return False
        latest = _LATEST.get(model)
        other = None if latest is None else latest()
        _LATEST[model] = ref(self)
        had_acted, self._has_acted = self._has_acted, True
        return had_acted and other is not None and other is not self
