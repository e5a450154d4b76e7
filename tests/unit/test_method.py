"""Options of methods and their checks; classes that are not yet methods."""

from __future__ import annotations

from typing import Any, ClassVar

import attrs
import pytest
import torch
from torch import Tensor

from modbalance import ConfigError, Method, PluginLoadError, gt, option, state
from modbalance._plugins import check_method
from modbalance_ogm_ge import OGMGE
from support.training import balanced, multimodal


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"alhpa": 1.0}, "Method `ogm` has no option `alhpa`. Did you mean `alpha`"),
        ({"zzz": 1.0}, "has no option `zzz`. Known: `alpha`, `end_epoch`"),
        ({"noise_on": "both"}, "Method `ogm` has no option `noise_on`"),
        ({"alpha": 0.0}, r"Option `alpha` of method `ogm` should be a finite number > 0. Found `alpha = 0.0`"),
        ({"alpha": -1}, "should be a finite number > 0. Found `alpha = -1`"),
        ({"alpha": float("inf")}, "should be a finite number > 0. Found `alpha = inf`"),
        ({"alpha": float("nan")}, "should be a finite number > 0. Found `alpha = nan`"),
        ({"alpha": "0.8"}, "should be a finite number > 0. Found `alpha = '0.8'`"),
        ({"alpha": True}, "should be a finite number > 0. Found `alpha = True`"),
        ({"alpha": None}, "should be a finite number > 0. Found `alpha = None`"),
        ({"start_epoch": -1}, "`start_epoch` of method `ogm` should be an integer >= 0. Found `start_epoch = -1`"),
        ({"start_epoch": 1.0}, "should be an integer >= 0. Found `start_epoch = 1.0`"),
        ({"end_epoch": 1.5}, "`end_epoch` of method `ogm` should be None or an integer >= 0"),
        ({"start_epoch": 5, "end_epoch": 4}, r"`end_epoch`.*should be >= start_epoch = 5. Found `end_epoch = 4`"),
        ({"param_filter": "convs"}, r"should be one of 'conv', 'matrix', 'all' or a callable. Found .* 'convs'"),
        ({"param_filter": ["conv"]}, r"should be one of 'conv', 'matrix', 'all' or a callable"),
        ({"ratio": "max"}, "`ratio` of method `ogm` should be one of 'mean_others', 'min'. Found `ratio = 'max'`"),
        ({"tie": None}, "`tie` of method `ogm` should be one of 'first', 'last', 'none'"),
        ({"ratio_shift": 2}, "`ratio_shift` of method `ogm` should be one of 0, 1. Found `ratio_shift = 2`"),
        ({"preset": "papper"}, "`preset` should be 'official' or 'paper'. Found `preset = 'papper'`"),
    ],
)
def test_bad_options(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        balanced(multimodal(), "ogm", **options)


@pytest.mark.parametrize(
    ("option", "value"),
    [("noise_scale", -0.1), ("noise_scale", float("nan")), ("seed", -1), ("seed", 0.5), ("noise_source", "clean")],
)
def test_bad_options_of_method_objects(option: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"`{option}` of method `ogm_ge` should be .* Found `{option} = "):
        OGMGE(**{option: value})


# Classes


@attrs.define(eq=False, kw_only=True)
class Stateful(Method):
    name = "stateful"

    alpha: float = option(1.0, gt(0), "strength")
    mean: Tensor | None = state(None)


def test_a_repr_shows_options_and_no_state() -> None:
    method = Stateful(alpha=2.0)
    method.mean = torch.ones(3)

    assert repr(method) == "Stateful(alpha=2.0)"


def test_a_method_is_exempt_from_no_rule() -> None:
    assert Stateful().exemptions() == {}


class Unmarked(Method):
    name: ClassVar[str] = "unmarked"
    alpha: float = attrs.field(default=1.0)


@attrs.define(eq=False, kw_only=True)
class Nameless(Method):
    alpha: float = 1.0


@attrs.define(eq=False, kw_only=True)
class Needy(Method):
    name: ClassVar[str] = "needy"
    needs = frozenset({"unimodal_logit"})


@pytest.mark.parametrize(
    ("method", "words"),
    [
        (Unmarked, r"`Unmarked` declares options.*`@attrs.define\(eq=False, kw_only=True\)`"),
        (Nameless, "`Nameless` should have a `name`"),
        (Needy, "`needy` needs an unknown `unimodal_logit`. Did you mean `unimodal_logits`"),
    ],
)
def test_a_class_that_is_no_method_yet(method: type[Method], words: str) -> None:
    with pytest.raises(PluginLoadError, match=words):
        check_method(method)
