"""The IEMOCAP recipe: folds, what is reported, the paper's model and every method on the synthetic set."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import iemocap
from modbalance import BalancedOptimizer
from recipe_common.cli import main
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import Split
from recipe_common.errors import RecipeError
from recipe_common.models.msa import MSANet
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import resolve
from recipe_common.training.suitability import unsuited_methods

from .iemocap_tree import names, write_features, write_h5, write_list, write_tree
from .one_batch_training import all_methods, train_briefly


def load(data_root: Path | None, **changes: Any) -> Data:
    return iemocap.load(settings(data_root, **changes))


def settings(data_root: Path | None, **changes: Any) -> Settings[iemocap.IemocapSettings]:
    return resolve({"data_root": data_root, **changes}, iemocap.RECIPE)


def names_of(part: Any) -> list[str]:
    return [sample.name for sample in part.samples]


def test_the_tensors_and_classes_of_the_paper(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    data = load(tmp_path)
    *inputs, label = data.test[0, 3]
    assert [tuple(x.shape) for x in inputs] == [(22, 6), (350, 5), (50, 4)]
    assert data.classes[label] == "sad"
    assert data.modalities == ("text", "audio", "vision")
    assert names_of(data.train) + names_of(data.val) + names_of(data.test) == utterances
    assert not data.synthetic
    assert not data.skipped


def test_the_model_of_the_paper(tmp_path: Path) -> None:
    write_tree(tmp_path)
    model = iemocap.build_model(settings(tmp_path), load(tmp_path))
    layer = 4 * (40 * 40 + 40) + 40 * 160 + 160 + 160 * 40 + 40 + 4 * 40
    inputs = (6 + 5 + 4) * 40 + 3 * 40
    head = 2 * (40 * 40 + 40) + 40 * 4 + 4
    assert sum(p.numel() for p in model.parameters()) == inputs + (3 * 4 + 2) * layer + 4 * 80 + head
    assert model.get_submodule("text_net.encoder.layers.3.dropout1").p == 0.15
    assert model.get_submodule("fusion_module.residual.2").p == 0.2


def test_without_validation_its_utterances_are_for_training(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    data = load(tmp_path, validation=False, select="test")
    assert names_of(data.train) == utterances[:12]
    assert names_of(data.val) == []


def test_a_listed_utterance_without_features_is_counted(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    write_h5(tmp_path / "V" / "denseface.h5", {name: np.ones((3, 4)) for name in utterances[1:]})
    data = load(tmp_path, min_found=0.5)
    assert f"train: 7 of 8 listed samples; 1 without vision features, such as {utterances[0]}" in data.summary
    assert data.skipped == (f"train: {utterances[0]}: no vision features",)
    with pytest.raises(RecipeError, match=r"denseface\.h5 should hold at least 90% of the listed samples"):
        load(tmp_path)


def test_bad_features_are_left_out_on_request(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    bad = {name: np.full((3, 4), np.nan if name == utterances[0] else 1) for name in utterances}
    write_h5(tmp_path / "V" / "denseface.h5", bad)
    with pytest.raises(RecipeError, match="not finite"):
        load(tmp_path).train[0, 0]
    data = load(tmp_path, skip_bad=True, min_found=0.5)
    assert names_of(data.train) == utterances[1:8]
    assert len(data.skipped) == 1


def test_a_class_without_training_utterances_is_reported(tmp_path: Path) -> None:
    write_tree(tmp_path)
    write_list(tmp_path, "trn", names(8), [0, 1, 2, 0, 1, 2, 0, 1])
    assert "1 of 4 classes have no training sample: sad" in load(tmp_path).summary


def test_another_fold(tmp_path: Path) -> None:
    utterances = write_tree(tmp_path)
    write_features(tmp_path, utterances, fold=7)
    for part, of_part in (("trn", utterances[8:]), ("val", utterances[:4]), ("tst", utterances[4:8])):
        write_list(tmp_path, part, of_part, [index % 4 for index in range(len(of_part))], fold=7)
    data = load(tmp_path, fold=7)
    assert names_of(data.test) == utterances[4:8]
    assert "split: fold 7" in data.summary


def test_the_order_of_the_classes_is_checked_on_the_whole_corpus() -> None:
    def corpus(order: tuple[str, ...]) -> Split:
        sizes = iemocap.SIZES.values()
        return Split(tuple(Row(f"{i} {j}", order[i]) for i, size in enumerate(sizes) for j in range(size)), (), ())

    assert iemocap.check_sizes(corpus(("angry", "happy", "neutral", "sad"))) == ()
    assert iemocap.check_sizes(Split((Row("a", "sad"),), (), ())) == ()
    (line,) = iemocap.check_sizes(corpus(("angry", "happy", "sad", "neutral")))
    assert "neutral 1,084 (1,708 expected), sad 1,708 (1,084 expected); only the names are affected" in line


@pytest.mark.slow
def test_the_synthetic_set_learns_in_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "2", "--batch-size", "24", "--output", str(tmp_path)]
    assert main(iemocap.RECIPE, arguments) == 0
    assert "SYNTHETIC DATA" in capsys.readouterr().out
    result = json.loads((tmp_path / "none" / "result.json").read_text())
    assert result["test"]["test_accuracy"] > 0.5
    assert main(iemocap.RECIPE, ["--eval", str(tmp_path / "none" / "best.pt"), "--output", str(tmp_path)]) == 0


@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # S of CGGM may be nearly 0 on so small a batch
@pytest.mark.parametrize("method", all_methods())
@pytest.mark.parametrize("balanced", ["branch", "encoder"])
def test_every_method_trains(method: str, balanced: str) -> None:
    small = settings(None, layers=1, fusion_layers=1, width=20, balanced=balanced)
    extra = {"period": 1, "offset": -1} if method == "relearning" else {}
    if reason := {"mmcosine": "linear", "mla": "one head for all modalities"}.get(method):
        assert reason in unsuited_methods(iemocap.RECIPE, small, load(None), [method])[method]
        return
    losses = train_briefly(iemocap.RECIPE, small, load(None), method, **extra)
    assert all(np.isfinite(losses))


def test_ogm_scales_layers_that_are_no_convolutions() -> None:
    torch.manual_seed(0)
    described = {**iemocap.balance(settings(None)), **iemocap.RECIPE.method_options["ogm"]}
    model = MSANet({"text": 6, "audio": 5, "vision": 4}, 4, 1, 1, width=20)
    optimizer = BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=1.0), "ogm", model=model, **described)
    criterion = optimizer.criterion(nn.CrossEntropyLoss())
    criterion(model(torch.randn(4, 2, 6), torch.randn(4, 2, 5), torch.randn(4, 2, 4)), torch.arange(4)).backward()
    weights = {name: model.get_parameter(f"{name}_net.encoder.layers.0.linear1.weight") for name in iemocap.MODALITIES}
    wanted = {name: (weight.detach().clone(), weight.grad.clone()) for name, weight in weights.items()}  # type: ignore[union-attr]
    optimizer.step()
    coefficients = {name: optimizer.metrics()[f"ogm/coefficient/{name}"] for name in weights}
    assert min(coefficients.values()) < 1
    for name, (before, gradient) in wanted.items():
        torch.testing.assert_close(before - weights[name].detach(), coefficients[name] * gradient, rtol=1e-3, atol=1e-6)


def test_an_unpacked_folder_of_something_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(iemocap.RECIPE, ["--data-root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert ": unpack the features of MMIN there" in capsys.readouterr().err
