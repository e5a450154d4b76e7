"""Flags with numbers: valid values, and the messages for others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import pytest

import ave
import brats
import food101
import ucf101
import vggsound
from recipe_common import arguments
from recipe_common.cli import build_parser
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.datasets.ave.sound import EventSpectrogram
from recipe_common.data.readers.audio import AudioSettings, Fbank, Spectrogram, WindowSpectrogram
from recipe_common.data.samples.seeding import permutation
from recipe_common.errors import RecipeError
from recipe_common.settings.command_line import add_flags
from recipes.tiny_recipe import RECIPE


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("positive_int", ("1", "70"), ("0", "-1", "1.5", "nan", "many", "")),
        ("non_negative_int", ("0", "3"), ("-1", "0.5")),
        ("seed_int", ("0", "4294967295"), ("-1", "4294967296", "one")),
        ("positive_float", ("1e-9", "3"), ("0", "-0.1", "nan", "inf", "much")),
        ("non_negative_float", ("0", "1e30"), ("-1e-9", "nan", "inf")),
        ("thread_count", ("1", "1024"), ("0", "1025", "1e3")),
        ("share_float", ("0", "0.5", "1"), ("-0.1", "1.1", "nan")),
        ("factor_float", ("0.1", "1"), ("0", "1.1", "nan")),
    ],
)
def test_numbers_out_of_bounds_are_explained(kind: str, good: tuple[str, ...], bad: tuple[str, ...]) -> None:
    parse: Callable[[str], float] = getattr(arguments, kind)
    assert [parse(text) for text in good] == [float(text) for text in good]
    for text in bad:
        with pytest.raises(
            argparse.ArgumentTypeError, match=f"should be a .*number.*Found `{text}`: give such a number"
        ):
            parse(text)


@pytest.mark.parametrize(
    "flags",
    [
        *("--seed -1", "--lr nan", "--lr 0", "--lr -1", "--momentum 1.5", "--weight-decay -1", "--gamma nan"),
        *("--epochs 0", "--patience -1", "--warmup-epochs -1", "--warmup-lr -1", "--final-lr inf", "--save-every -1"),
        *(
            "--clip-grad-norm 0",
            "--workers -1",
            "--threads 0",
            "--threads 99999",
            "--cache-workers 0",
            "--cache-size 0",
        ),
        *("--audio-seconds 0", "--audio-seconds nan", "--audio-rate 0", "--n-fft 0", "--hop 0", "--mel-bins 0"),
        *("--fbank-frames 0", "--threads 99999"),
    ],
)
def test_flags_refuse_such_numbers(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser(RECIPE)
    add_flags(parser, AudioSettings)
    add_flags(parser, FeedSettings)
    with pytest.raises(SystemExit) as stopped:
        parser.parse_args(flags.split())
    assert stopped.value.code == 2
    flag, value = flags.split()
    assert f"argument {flag}: The value should be" in (error := capsys.readouterr().err)
    assert f"Found `{value}`: give" in error


@pytest.mark.parametrize(
    ("front_end", "values", "flag"),
    [
        (Spectrogram, {"n_fft": 1}, "--n-fft"),
        (WindowSpectrogram, {"seconds": 0.0}, "--audio-seconds"),
        (WindowSpectrogram, {"n_fft": 1}, "--n-fft"),
        (EventSpectrogram, {"seconds": float("inf")}, "--audio-seconds"),
        (EventSpectrogram, {"n_fft": 1}, "--n-fft"),
        (Fbank, {"bins": 3}, "--mel-bins"),
    ],
)
def test_front_ends_name_the_flag_of_a_number_that_they_refuse(
    front_end: Callable[..., Any], values: dict[str, float], flag: str
) -> None:
    with pytest.raises(RecipeError, match=rf"`{flag}` should be a finite number above \d. Found .*: give `{flag} \d"):
        front_end(**values)


@pytest.mark.parametrize("module", [ave, brats, food101, ucf101, vggsound], ids=lambda module: module.__name__)
def test_a_negative_seed_of_the_split_is_refused(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(module.RECIPE).parse_args(["--split-seed", "-1"])
    assert "argument --split-seed: The value should be a whole number from 0" in capsys.readouterr().err


def test_a_negative_seed_that_came_another_way_is_refused_where_it_is_used() -> None:
    with pytest.raises(RecipeError, match=r"Seeds should be at least 0\. Found -1: give "):
        permutation(3, -1)


def test_methods_may_be_named_one_by_one() -> None:
    given = build_parser(RECIPE).parse_args(["--methods", "none", "--method", "dgl", "ogm"])
    assert given.methods == ["none", "dgl", "ogm"]
