"""Declarations of a recipe on its data: the task, methods that do not apply, samples left out, protocols, penalties."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from torch import Tensor, nn

from recipe_common.cli import main
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.shared import Settings
from recipe_common.tasks.task import CollectingMeter, Metric, Task, classification
from recipes import tiny_recipe
from recipes.tiny_recipe import RECIPE, TinyDataset, TinyNet
from recipes.without_pictures import without_pictures

pytestmark = pytest.mark.slow

ERROR = Metric("mae", "MAE", percent=False, higher_is_better=False)


@pytest.fixture(autouse=True)
def _no_pictures(request: pytest.FixtureRequest) -> Iterator[None]:
    with nullcontext() if "pictures" in request.keywords else without_pictures():
        yield


def with_data(**changes: Any) -> Recipe:
    def load(settings: Settings[Any]) -> Data:
        return attrs.evolve(tiny_recipe.load(settings), **changes)

    return attrs.evolve(RECIPE, load=load)


def run(recipe: Recipe, output: Path, *flags: str) -> int:
    return main(recipe, ["--output", str(output), "--epochs", "1", *flags])


def result(output: Path, method: str = "none") -> dict[str, Any]:
    content: dict[str, Any] = json.loads((output / method / "result.json").read_text())
    return content


class Regression(TinyDataset):
    """The class index as a number of shape (1,)."""

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Any]:
        audio, visual, label = super().__getitem__(key)
        return audio, visual, torch.tensor([float(label)])


class OneOutput(TinyNet):
    def __init__(self) -> None:
        super().__init__()
        self.head.linear = nn.Linear(12, 1)


def absolute_error(logits: Tensor, target: Tensor) -> dict[str, float]:
    return {"mae": (logits - target).abs().mean().item()}


def regression_recipe() -> Recipe:
    task = Task((ERROR,), nn.L1Loss, lambda: CollectingMeter(absolute_error), score="regression")
    data = with_data(task=task, classes=(), train=Regression(22), val=Regression(12), test=Regression(12))
    return attrs.evolve(data, build_model=lambda args, data: OneOutput())


def test_regression_selects_the_lowest_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    methods = ["none", "ogm_ge", "dgl", "agm"]
    assert run(regression_recipe(), tmp_path, "--epochs", "3", "--methods", *methods) == 0
    for method in methods:
        content = result(tmp_path, method)
        errors = [row["val_mae"] for row in content["history"]]
        assert content["best"]["val_mae"] == min(errors)
        assert content["test"]["test_loss"] == pytest.approx(content["test"]["test_mae"])
    assert "MAE" in capsys.readouterr().out


@pytest.mark.pictures
def test_regression_is_drawn_and_evaluated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(regression_recipe(), tmp_path) == 0
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    assert main(regression_recipe(), ["--eval", str(tmp_path / "none" / "best.pt")]) == 0
    assert f"{result(tmp_path)['test']['test_mae']:.3f}" in capsys.readouterr().out


def test_a_method_that_does_not_apply_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = with_data(excluded={"relearning": "it clusters classes, and here are none"})
    assert run(recipe, tmp_path, "--methods", "relearning") == 2
    assert "Found relearning (it clusters classes, and here are none): leave it out." in capsys.readouterr().err
    assert run(recipe, tmp_path, "--methods", "all") == 0
    assert "left out: relearning: it clusters classes" in capsys.readouterr().out
    assert not (tmp_path / "relearning").exists()
    assert (tmp_path / "mslr").exists()


def test_samples_left_out_are_listed_and_strict_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = with_data(skipped=("train: a: no wav file", "test: b: no frames"))
    assert run(recipe, tmp_path) == 0
    assert (tmp_path / "skipped.txt").read_text() == "train: a: no wav file\ntest: b: no frames\n"
    assert "2 listed samples are absent or unreadable" in capsys.readouterr().out
    assert run(recipe, tmp_path / "strict", "--strict") == 2
    assert "test: b: no frames" in capsys.readouterr().err
    assert not (tmp_path / "strict").exists()


def test_a_protocol_sets_flags_that_are_not_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = attrs.evolve(
        with_data(val=TinyDataset(0)),
        protocols={"official": {"select": "test", "validation": False, "drop_last": "both", "lr": 0.3}},
    )
    assert run(recipe, tmp_path, "--protocol", "official", "--lr", "0.2") == 0
    out = capsys.readouterr().out
    assert "selected on the TEST split" in out
    assert "Protocol `official`" in out
    settings = json.loads((tmp_path / "none" / "config.json").read_text())["settings"]
    assert (settings["lr"], settings["select"], settings["drop_last"]) == (0.2, "test", "both")
    assert run(recipe, tmp_path / "relearning", "--protocol", "official", "--methods", "relearning") == 2
    assert "--no-validation leaves none" in capsys.readouterr().err


def test_no_validation_needs_another_split_to_select_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(RECIPE, tmp_path, "--no-validation") == 2
    assert "--select test" in capsys.readouterr().err


@pytest.mark.parametrize(("flag", "steps", "scored"), [("none", 6, 11), ("train", 5, 11), ("both", 5, 8)])
def test_the_last_batch_may_be_left_out(
    tmp_path: Path, flag: str, steps: int, scored: int, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []
    task = attrs.evolve(
        classification(len(tiny_recipe.CLASSES)),
        meter=lambda: CollectingMeter(lambda logits, target: count(logits, seen)),
    )
    recipe = with_data(task=task, test=TinyDataset(11), val=TinyDataset(11))
    assert run(recipe, tmp_path, "--drop-last", flag, "--log-every", "1") == 0
    assert set(seen) == {scored}
    assert f"1 epochs of {steps} steps" in capsys.readouterr().out


def count(logits: Tensor, seen: list[int]) -> dict[str, float]:
    seen.append(len(logits))
    return {"accuracy": 0.0, "macro_f1": 0.0, "weighted_f1": 0.0, "map": 0.0}


def test_a_penalty_changes_what_is_trained(tmp_path: Path) -> None:
    def penalty(model: nn.Module, target: Tensor) -> Tensor:
        total: Tensor = sum((p.square().sum() for p in model.parameters()), torch.zeros(()))
        return 0.1 * total

    assert run(RECIPE, tmp_path / "plain") == 0
    assert run(with_data(penalty=penalty), tmp_path / "shrunk", "--methods", "none", "dgl") == 0
    plain, shrunk = (
        torch.load(tmp_path / name / "none" / "last.pt", weights_only=True) for name in ("plain", "shrunk")
    )
    assert norm(shrunk["model"]) < norm(plain["model"])


def norm(weights: Mapping[str, Tensor]) -> float:
    return sum(tensor.square().sum().item() for name, tensor in weights.items() if name.endswith("weight"))


def test_batches_may_be_made_by_the_recipe(tmp_path: Path) -> None:
    def collate(samples: list[tuple[Tensor, Tensor, int]]) -> list[Tensor]:
        audio, visual, target = zip(*samples, strict=True)
        return [torch.stack(audio), 0 * torch.stack(visual), torch.tensor(target)]

    assert run(with_data(collate=collate), tmp_path, "--workers", "1") == 0
    assert run(RECIPE, tmp_path / "other") == 0
    assert result(tmp_path)["test"] != result(tmp_path / "other")["test"]


def test_cosine_makes_the_number_of_epochs_a_part_of_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(RECIPE, tmp_path, "--schedule", "cosine", "--final-lr", "0.001") == 0
    assert main(RECIPE, ["--output", str(tmp_path), "--epochs", "2", "--schedule", "cosine", "--resume"]) == 2
    assert "epochs was 1, now 2" in capsys.readouterr().err
