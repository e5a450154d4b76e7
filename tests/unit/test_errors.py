"""The errors: their kinds and the form of their messages."""

from __future__ import annotations

import re

import pytest

import modbalance
from modbalance import (
    CheckpointError,
    ConfigError,
    ModbalanceError,
    ObservationError,
    PluginConflictError,
    PluginLoadError,
    UnknownMethodError,
)
from support.training import balanced, multimodal


def test_every_error_is_a_modbalance_error_and_of_a_familiar_kind() -> None:
    kinds = {
        ConfigError: ValueError,
        UnknownMethodError: LookupError,
        ObservationError: RuntimeError,
        CheckpointError: ValueError,
        PluginConflictError: Exception,
        PluginLoadError: Exception,
    }

    assert all(issubclass(error, ModbalanceError) and issubclass(error, kind) for error, kind in kinds.items())
    assert all(getattr(modbalance, error.__name__) is error for error in kinds)


def test_messages_are_plain_sentences() -> None:
    with pytest.raises(ConfigError) as caught:
        balanced(multimodal(), "ogm", alpha=-1)

    assert re.fullmatch(r"[ -~]+", str(caught.value))
    assert str(caught.value) == "Option `alpha` of method `ogm` should be a finite number > 0. Found `alpha = -1`."
