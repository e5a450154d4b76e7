"""The CH-SIMS recipe: its files, the labels of each modality, metrics, models and runs."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ch_sims
from recipe_common.cli import main
from recipe_common.data.datasets.ch_sims import FILES
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.tasks.sims import METRICS, sims_metrics, sims_regression
from recipes.call import settings_of, values_of

from .mmsa_files import mmsa_content, write, write_bert
from .one_batch_training import all_methods, train_briefly

RECIPE = ch_sims.RECIPE
SHAPES = {"v1": ((400, 33), (55, 709), (39, 768)), "v2": ((925, 25), (232, 177), (50, 768))}
EXCLUDED = {
    "mslr": "it needs the accuracy of each modality, and a regression has errors instead",
    "relearning": "it needs one class per sample, and sentiment is a number",
    "lfm": "it needs classes or labels, and sentiment is a number",
    "mla": "needs one head for all modalities",
    "mmcosine": "it needs classes or labels, and sentiment is a number",
    "pmr": "it needs one class per sample, and sentiment is a number",
}
MODALITIES = ("text", "audio", "vision")


def contents(version: str = "v1", **options: Any) -> dict[str, dict[str, Any]]:
    audio, vision, text = SHAPES[version]
    return mmsa_content(audio, vision, text=text, bound=1.0, **{"own_labels": True, **options})


def load(*arguments: object) -> Data:
    return RECIPE.load(settings_of(RECIPE, *map(str, arguments)))


@pytest.mark.parametrize("version", list(SHAPES))
@pytest.mark.parametrize("folder", [".", "Processed"])
def test_both_versions_are_read(tmp_path: Path, version: str, folder: str) -> None:
    content = contents(version)
    path = write(tmp_path / folder / FILES[version].name, content)
    for root in (tmp_path, path):
        data = load("--data-root", root, "--features", version)
        text, audio, vision, target = data.test[0, 3]
        of_audio, of_vision, of_text = SHAPES[version]
        assert (text.shape, audio.shape, vision.shape) == (of_text, of_audio, of_vision)
        assert target.tolist() == [1]
        assert not text[6:].any()
        assert [len(part) for part in (data.train, data.val, data.test)] == [6, 3, 4]  # type: ignore[arg-type]
        own: Any = data.test
        for modality, letter in zip(MODALITIES, "TAV", strict=True):
            expected = content["test"][f"regression_labels_{letter}"]
            np.testing.assert_array_equal(own.own_targets[modality], expected[:, None])
    assert data.modalities == MODALITIES
    assert not any("labels of single modalities" in line for line in data.summary)


def test_a_file_without_labels_of_each_modality(tmp_path: Path) -> None:
    write(tmp_path / "unaligned_39.pkl", contents(own_labels=False))
    data = load("--data-root", tmp_path)
    own: Any = data.test
    assert dict(own.own_targets) == {}
    (notice,) = [line for line in data.summary if "labels of single modalities" in line]
    assert "no regression_labels_T, regression_labels_A, regression_labels_V in this file" in notice
    assert "scored against the joint label alone (unaligned_39.pkl of MMSA has these labels)" in notice


def test_a_file_of_the_extraction_script(tmp_path: Path) -> None:
    """Lists of labels, tokens in columns, and other numbers of steps, as `DataPre.py` writes them."""
    content = mmsa_content((120, 33), (31, 709), text=(20, 768), bound=1.0)
    for part in content.values():
        part["regression_labels"] = part["regression_labels"].tolist()
        part["text_bert"] = part["text_bert"].transpose(0, 2, 1)
    path = write(tmp_path / "features.pkl", content)
    with pytest.raises(RecipeError, match=r"Found features\.pkl: .* point --data-root at it if it has another name"):
        load("--data-root", tmp_path)
    assert load("--data-root", path).train[0, 0][1].shape == (120, 33)


def test_the_other_version_is_told_apart(tmp_path: Path) -> None:
    path = write(tmp_path / "ch-simsv2s.pkl", contents("v2"))
    with pytest.raises(RecipeError, match=r"Found v2 \(ch-simsv2s\.pkl\): add --features v2\.$"):
        load("--data-root", tmp_path)
    with pytest.raises(RecipeError, match=r"Found CH-SIMS v2\(s\): .*: add --features v2\.$"):
        load("--data-root", path)


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            lambda c: c["train"].update(vision=c["train"]["vision"][..., :35]),
            r"vision \(N, T, 709\)\. Found .*55, 35\)",
        ),
        (lambda c: c["valid"]["regression_labels"].__setitem__(0, -3), "from -1 to 1. Found -3 in row 0 of valid"),
        (lambda c: c["test"]["regression_labels_A"].__setitem__(1, 2), "from -1 to 1. Found 2 in row 1 of test"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: Any, found: str) -> None:
    content = contents()
    change(content)
    write(tmp_path / "unaligned_39.pkl", content)
    with pytest.raises(RecipeError, match=found):
        load("--data-root", tmp_path)


def test_text_by_a_local_encoder(tmp_path: Path) -> None:
    write(tmp_path / "unaligned_39.pkl", contents())
    bert = write_bert(tmp_path / "bert")
    assert load("--data-root", tmp_path, "--text-model", bert).train[0, 0][0].shape == (39, 16)
    with pytest.raises(RecipeError, match=r"hf download google-bert/bert-base-chinese --local-dir DIR"):
        load("--data-root", tmp_path, "--text-model", tmp_path / "absent")


def test_without_validation_its_segments_are_for_training(tmp_path: Path) -> None:
    write(tmp_path / "unaligned_39.pkl", contents())
    data = load("--data-root", tmp_path, "--no-validation", "--select", "test")
    assert (len(data.train), len(data.val)) == (9, 0)  # type: ignore[arg-type]
    assert "validation segments are for training too" in data.summary


def test_metrics_by_hand() -> None:
    prediction = torch.tensor([[-0.8], [-0.1], [0.0], [0.05], [0.7], [5.0]])
    target = torch.tensor([[-1.0], [-0.6], [0.2], [-0.0], [0.6], [1.0]])
    found = sims_metrics(prediction, target)
    # Positive: predictions 0, 0, 0, 1, 1, 1 of the truth 0, 0, 1, 0, 1, 1.
    assert found["acc2"] == pytest.approx(4 / 6)
    assert found["weighted_f1"] == pytest.approx(2 / 3)
    # Three classes: 0, 0, 1, 1, 2, 2 of 0, 0, 2, 1, 2, 2; five: 0, 1, 2, 2, 3, 4 of 0, 1, 3, 2, 3, 4.
    assert found["acc3"] == found["acc5"] == pytest.approx(5 / 6)
    assert found["mae"] == pytest.approx((0.2 + 0.5 + 0.2 + 0.05 + 0.1 + 0) / 6)
    clamped = np.array([-0.8, -0.1, 0.0, 0.05, 0.7, 1.0])
    assert found["corr"] == pytest.approx(np.corrcoef(clamped, target[:, 0])[0, 1], rel=1e-6)


def test_the_edges_of_classes_belong_to_the_class_below() -> None:
    edges = torch.tensor([[-0.7], [-0.1], [0.1], [0.7], [0.0]])
    assert sims_metrics(edges, torch.tensor([[-1.0], [-0.6], [0.0], [0.2], [0.0]]))["acc5"] == 1
    assert sims_metrics(edges, torch.tensor([[-1.0], [-1.0], [0.0], [1.0], [0.0]]))["acc3"] == 1
    assert sims_metrics(edges[4:], torch.tensor([[-1.0]]))["acc2"] == 1


def test_the_metric_that_selects() -> None:
    task = sims_regression()
    assert task.headline.key == "mae"
    assert {metric.key for metric in task.metrics} == {metric.key for metric in METRICS}
    assert isinstance(task.loss(), nn.L1Loss)
    assert sims_regression("acc3").chance == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="`headline` should be one of acc2, acc3"):
        sims_regression("acc7")


def test_the_model_of_the_authors(tmp_path: Path) -> None:
    write(tmp_path / "unaligned_39.pkl", contents())
    settings = settings_of(RECIPE, "--data-root", tmp_path)
    assert values_of(settings, "optimizer", "lr", "weight_decay", "batch_size", "seed") == (
        "adam",
        5e-3,
        5e-3,
        128,
        1111,
    )
    model = RECIPE.build_model(settings, RECIPE.load(settings))

    def averaged(size: int, width: int) -> int:
        return 2 * size + size * width + width + 2 * (width * width + width)

    text = 4 * 128 * (768 + 128 + 2) + 128 * 256 + 256
    fusion = 416 * 32 + 32 + 32 * 32 + 32 + 32 + 1
    expected = text + averaged(33, 32) + averaged(709, 128) + fusion
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("protocol", ["fair", "official"])
def test_padding_counts_in_the_code_of_the_authors_alone(protocol: str) -> None:
    settings = settings_of(RECIPE, "--protocol", protocol)
    data = RECIPE.load(settings)
    model = RECIPE.build_model(settings, data).eval()
    inputs = [values[None] for values in data.train[0, 1][:3]]
    longer = [torch.cat([values, torch.zeros(1, 5, values.shape[2])], dim=1) for values in inputs]
    with torch.no_grad():
        is_same = torch.allclose(model(*inputs), model(*longer), atol=1e-6)
    assert is_same == (protocol == "fair")


def test_the_synthetic_set_is_a_file_of_its_own_kind() -> None:
    content = pickle.loads((ch_sims.synthetic_root() / "unaligned_39.pkl").read_bytes())
    train = content["train"]
    real = {"raw_text", "audio", "vision", "id", "text", "text_bert", "audio_lengths", "vision_lengths", "annotations"}
    labels = {
        f"{kind}_labels{letter}" for kind in ("classification", "regression") for letter in ("", "_T", "_A", "_V")
    }
    assert set(train) == real | labels
    assert train["text_bert"].shape == (320, 3, 10)
    assert np.isneginf(train["audio"]).sum() == 1
    assert (train["regression_labels"] == 0).any()
    for letter in "TAV":
        assert (train["regression_labels"] != train[f"regression_labels_{letter}"]).mean() > 0.3
    data = load()
    assert data.synthetic
    assert [tuple(values.shape) for values in data.train[0, 0]] == [(10, 24), (16, 12), (12, 16), (1,)]


@pytest.mark.slow
def test_a_run_reports_each_modality_against_both_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "4", "--output", str(tmp_path)]
    assert main(RECIPE, arguments) == 0
    out = capsys.readouterr().out
    assert "Each modality alone, against the joint label and against its own" in out
    test = json.loads((tmp_path / "none" / "result.json").read_text())["test"]
    for modality in MODALITIES:
        for metric in METRICS:
            assert f"test_{metric.key}_{modality}" in test
            assert f"test_{metric.key}_{modality}_own" in test
    # The features of a modality express its own label.
    assert test["test_acc2_text_own"] > test["test_acc2_text"] > 0.6
    with (tmp_path / "none" / "metrics.csv").open(newline="") as file:
        assert {"val_acc2_text", "val_acc2_text_own"} <= set(next(csv.DictReader(file)))
    markdown = (tmp_path / "comparison.md").read_text()
    assert (
        f"| none | text | own | {test['test_mae_text_own']:.3f} | {100 * test['test_acc2_text_own']:.1f}% |" in markdown
    )
    assert main(RECIPE, ["--eval", str(tmp_path / "none" / "best.pt"), "--output", str(tmp_path)]) == 0
    assert "against its own" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # what scaling means to Adam
@pytest.mark.parametrize("method", [name for name in all_methods() if name not in EXCLUDED])
@pytest.mark.parametrize("model", ["dnn", "cggm"])
def test_every_method_that_applies_trains(method: str, model: str) -> None:
    small = settings_of(RECIPE, "--model", model, "--layers", "1", "--fusion-layers", "1", "--width", "20")
    losses = train_briefly(RECIPE, small, load(), method)
    assert all(np.isfinite(losses))


@pytest.mark.parametrize("method", list(EXCLUDED))
def test_what_does_not_apply_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    assert main(RECIPE, ["--methods", method, "--output", str(tmp_path)]) == 2
    assert EXCLUDED[method] in capsys.readouterr().err
