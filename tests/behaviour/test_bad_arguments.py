"""Bad arguments get an error of the right class that says what was expected, what was found, and the fix."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from modbalance import (
    BalancedOptimizer,
    ConfigError,
    UnknownMethodError,
)
from modbalance_ogm_ge import OGM
from support.optimizers import Memory
from support.training import assert_same, balanced, batches, multimodal, sgd, train, weights

# Methods


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ogmge", r"'ogmge'.*Did you mean.*`ogm_ge`.*`modbalance methods`.*pip install"),
        ("nones", r"'nones'.*Did you mean.*`none`"),
        ("", r"named ''.*Known: .*`none`.*`ogm`, `ogm_ge`"),
        ("wholly different", r"Known: .*`none`.*`ogm`, `ogm_ge`"),
    ],
)
def test_unknown_method(name: str, words: str) -> None:
    with pytest.raises(UnknownMethodError, match=words):
        balanced(multimodal(), name)


@pytest.mark.parametrize("spec", [["ogm", "ogm"], [OGM(), "ogm"], [OGM(), OGM(alpha=0.1)]])
def test_method_given_twice(spec: list[Any]) -> None:
    with pytest.raises(ConfigError, match=r"Each method should be given once. Found 'ogm' 2 times"):
        balanced(multimodal(), spec)


@pytest.mark.parametrize("spec", [None, 3, OGM, [OGM], [None]])
def test_a_method_of_the_wrong_type(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"`method`.*name.*Method object.*Found"):
        balanced(multimodal(), spec)


@pytest.mark.parametrize("spec", [["ogm"], OGM(), [OGM(), "ogm_ge"]])
def test_options_beside_something_else_than_one_name(spec: Any) -> None:
    with pytest.raises(ConfigError, match=r"go with a single method name. Found \['alpha'\].*Method objects"):
        balanced(multimodal(), spec, alpha=0.5)


def test_options_beside_none() -> None:
    with pytest.raises(ConfigError, match=r"`none` has no options. Found \['alpha'\]"):
        balanced(multimodal(), "none", alpha=0.5)


def test_a_preset_beside_method_objects() -> None:
    with pytest.raises(ConfigError, match=r"`preset=` goes with names. Found a OGM: use its `configure`"):
        balanced(multimodal(), [OGM()], preset="paper")


# The wrapper's own arguments


@pytest.mark.parametrize("inner", [None, "SGD", SGD, [nn.Parameter(torch.ones(1))]])
def test_inner_is_no_optimizer(inner: Any) -> None:
    with pytest.raises(ConfigError, match=r"`inner` should be a torch optimizer, or a list of them. Found "):
        BalancedOptimizer(inner, "none")


def test_a_wrapper_around_a_wrapper() -> None:
    """Both would save under one key, so that the state of the inner one would be lost."""
    model = multimodal()

    with pytest.raises(ConfigError, match=r"`inner` .*Found BalancedOptimizer.*list.*`method=\["):
        balanced(model, "ogm", balanced(model, "ogm_ge"))


@pytest.mark.parametrize("norm", [0, 0.0, -1.0, float("nan")])
def test_clip_norm_out_of_range(norm: float) -> None:
    with pytest.raises(ConfigError, match=r"`clip_grad_norm` should be > 0. Found `clip_grad_norm = "):
        balanced(multimodal(), clip_grad_norm=norm)


@pytest.mark.parametrize("apply", ["updates", "gradients", None])
def test_unknown_way_to_apply(apply: Any) -> None:
    with pytest.raises(ConfigError, match=f"`apply` should be 'gradient' or 'update'. Found `apply = {apply!r}"):
        balanced(multimodal(), apply=apply)


@pytest.mark.parametrize("epoch", [-1, 1.0, "2", None, True])
def test_a_bad_epoch_is_refused_and_the_old_one_kept(epoch: Any) -> None:
    optimizer = balanced(multimodal())
    optimizer.epoch = 3

    with pytest.raises(ConfigError, match=r"`opt.epoch` should be an integer >= 0. Found "):
        optimizer.epoch = epoch

    assert optimizer.epoch == 3


# The model


@pytest.mark.parametrize(
    ("described", "words"),
    [
        (
            {"modalities": {"a": "encoder.a", "b": "encoders.b"}},
            r"\['a'\] names no submodule .*Did you mean.*`encoders.a`",
        ),
        (
            {"modalities": {"a": "encoders.a.9", "b": "encoders.b"}},
            r"Multimodal: 'encoders.a.9'. Did you mean `encoders.a",
        ),
        ({"modalities": {"a": "", "b": "encoders.b"}}, r"names no submodule of Multimodal: ''"),
        ({"modalities": {"a": 3, "b": "encoders.b"}}, r"\['a'\] should be a path or a module. Found 3 of type int"),
        ({"modalities": {"a": ["encoders.a", "enc"]}}, r"\['a'\] names no submodule of Multimodal: 'enc'"),
        ({"modalities": {}}, r"`modalities` should map each modality to its encoder.*Found `modalities = {}`"),
        (
            {"modalities": ["encoders.a", "encoders.b"]},
            r"`modalities` should map each modality.*Found `modalities = \[",
        ),
        ({"modalities": {"a": "encoders.a"}}, r"`ogm` needs at least 2 modalities. Found \['a'\]"),
        ({"fusion": "fusions"}, r"`fusion` names no submodule of Multimodal: 'fusions'. Did you mean `fusion"),
        ({"fusion": ["fusion", "head"]}, r"`fusion` names no submodule of Multimodal: 'head'"),
        ({"fusion": 7}, r"`fusion` should be a path or a module. Found 7 of type int"),
        ({"feature_sizes": [4]}, r"`feature_sizes` should give one size for each of \['a', 'b'\]. Found \[4\]"),
        ({"feature_sizes": {"a": 4, "c": 4}}, r"`feature_sizes` should give one size for each.*'c'"),
        ({"unimodal": "slices"}, r"`unimodal` should be .*Found `unimodal = 'slices'`. Did you mean `slice`"),
        ({"unimodal": {"a": "fusion.fc_out"}}, r"should name a head for each of \['a', 'b'\]. Found heads for \['a'\]"),
        (
            {"unimodal": {"a": "fusion.fc", "b": "fusion.fc_out"}},
            r"unimodal\['a'\] names no submodule.*`fusion.fc_out`",
        ),
        ({"unimodal": 3}, r"`unimodal` should be .*Found `unimodal = 3`"),
        ({"model": None}, r"\['a'\] names the submodule 'encoders.a', which needs `model=`. Found no model"),
        ({"mask_value": {"a": 0.0, "v": 1.0}}, r"`mask_value` should name modalities.*Found .*'v'"),
        ({"inputs": {"a": 0, "b": 1, "v": 2}}, r"`inputs` should .*Found .*'v'"),
        ({"inputs": {"a": 0}}, r"`inputs` should give the arguments of 'b'. Found {'a': 0}"),
    ],
)
def test_a_model_that_is_described_wrongly(described: dict[str, Any], words: str) -> None:
    model = multimodal()
    arguments: dict[str, Any] = {"model": model, "modalities": model.paths, "fusion": "fusion"} | described

    with pytest.raises(ConfigError, match=words):
        BalancedOptimizer(sgd(model), "ogm", **arguments)

    assert not model._forward_pre_hooks
    assert not model.fusion._forward_pre_hooks


def test_data_parallel() -> None:
    model = multimodal()

    with pytest.raises(ConfigError, match=r"Found nn.DataParallel.*use torchrun with DistributedDataParallel"):
        BalancedOptimizer(sgd(model), "ogm", model=nn.DataParallel(model), modalities=model.paths, fusion="fusion")


SHARED = {"a": ["encoders.a", "encoders.b.0"], "b": "encoders.b"}


@pytest.mark.parametrize("method", ["ogm", "ogm_ge", Memory()])
def test_encoders_that_share_a_parameter(method: Any) -> None:
    words = r"should not share parameters.*Found 'encoders.b.0.weight' in those of 'a' and 'b'.*a modality's own"
    with pytest.raises(ConfigError, match=words):
        balanced(multimodal(), method, modalities=SHARED)


def test_encoders_may_share_a_parameter_where_nothing_edits_it() -> None:
    plain, model = multimodal(), multimodal()

    train(model, balanced(model, "none", modalities=SHARED), batches(model, 2))

    assert_same(model, train(plain, sgd(plain), batches(plain, 2)))


def test_a_model_free_optimizer_without_modalities() -> None:
    model = multimodal()

    with pytest.raises(ConfigError, match=r"needs at least 2 modalities. Found \[\]: pass `modalities=.*'modality'"):
        BalancedOptimizer(sgd(model), "ogm")


def test_a_failed_construction_leaves_model_and_inner_optimizer_as_they_were() -> None:
    model = multimodal()
    inner = sgd(model)
    before, groups = weights(model), [set(group) for group in inner.param_groups]

    with pytest.raises(ConfigError):
        balanced(model, "ogm", inner, modalities=SHARED)

    assert_same(model, before)
    assert [set(group) for group in inner.param_groups] == groups
    assert [m for m in model.modules() if m._forward_pre_hooks or m._forward_hooks] == []
    assert_same(train(model, inner, batches(model, 1)), _plain_step())


def _plain_step() -> nn.Module:
    model = multimodal()
    return train(model, sgd(model), batches(model, 1))
