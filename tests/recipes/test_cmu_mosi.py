"""The CMU-MOSI recipe: its packed files, the paper's model and every method that applies on the synthetic set."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import cmu_mosi
from recipe_common.cli import main
from recipe_common.data.datasets.cmu_mosi import FILES
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import resolve

from .one_batch_training import all_methods, train_briefly

NAMES = ("text", "audio", "vision")
COUNTS = {"train": 6, "valid": 3, "test": 4}
EXCLUDED = {
    "mslr": "it needs the accuracy of each modality, and a regression has errors instead",
    "relearning": "it needs one class per sample, and sentiment is a number",
    "lfm": "it needs classes or labels, and sentiment is a number",
    "mla": "needs one head for all modalities",
    "mmcosine": "it needs classes or labels, and sentiment is a number",
    "pmr": "it needs one class per sample, and sentiment is a number",
}


def contents(features: str) -> dict[str, dict[str, Any]]:
    """A file of random features; the first three steps of a segment are zero, as real ones are in front."""
    random = np.random.default_rng(0)
    shapes = FILES[features].shapes
    content: dict[str, dict[str, Any]] = {}
    for split, count in COUNTS.items():
        content[split] = {}
        for modality in NAMES:
            steps, size = getattr(shapes, modality)
            values = random.standard_normal((count, steps, size)).astype(np.float32)
            values[:, :3] = 0
            content[split][modality] = values
        content[split]["labels"] = np.linspace(-3, 3, count, dtype=np.float32).reshape(count, 1, 1)
        content[split]["id"] = np.array([f"{split}_{row}" for row in range(count)], "S")
    return content


def write(root: Path, features: str, content: dict[str, dict[str, Any]] | None = None) -> Path:
    path = root / FILES[features].name
    path.write_bytes(pickle.dumps(content or contents(features), protocol=4))
    return path


def load(data_root: Path | None, **changes: Any) -> Data:
    return cmu_mosi.load(settings(data_root, **changes))


def settings(data_root: Path | None, **changes: Any) -> Settings[cmu_mosi.MosiSettings]:
    return resolve({"data_root": data_root, **changes}, cmu_mosi.RECIPE)


def dropout_of(model: nn.Module, name: str) -> Any:
    return model.get_submodule(name).p


@pytest.mark.parametrize(
    ("features", "shapes"),
    [
        ("noalign", [(50, 300), (375, 5), (500, 20)]),
        ("aligned", [(50, 300), (50, 5), (50, 20)]),
        ("multibench", [(50, 300), (50, 74), (50, 35)]),
    ],
)
def test_every_packed_file_is_read(tmp_path: Path, features: str, shapes: list[tuple[int, int]]) -> None:
    path = write(tmp_path, features)
    for root in (tmp_path, path):
        data = load(root, features=features)
        *inputs, target = data.test[0, 3]
        assert [tuple(x.shape) for x in inputs] == shapes
        assert target.tolist() == [3]
        assert [len(part) for part in (data.train, data.val, data.test)] == [6, 3, 4]  # type: ignore[arg-type]
    assert data.modalities == ("text", "audio", "vision")
    assert not data.synthetic


def test_the_files_of_mult_are_taken_as_they_are(tmp_path: Path) -> None:
    content = contents("noalign")
    content["test"]["text"][1] = 0
    write(tmp_path, "noalign", content)
    data = load(tmp_path)
    text, audio, vision, _ = data.test[0, 0]
    np.testing.assert_array_equal(text.numpy(), content["test"]["text"][0])
    np.testing.assert_array_equal(audio.numpy(), content["test"]["audio"][0])
    np.testing.assert_array_equal(vision.numpy(), content["test"]["vision"][0])
    assert not data.test[0, 1][0].any()
    assert not data.skipped


def test_the_file_of_multibench_begins_with_the_first_word(tmp_path: Path) -> None:
    content = contents("multibench")
    content["test"]["text"][1] = 0
    write(tmp_path, "multibench", content)
    data = load(tmp_path, features="multibench")
    for values, name in zip(data.test[0, 0], NAMES, strict=False):
        np.testing.assert_array_equal(values[:47].numpy(), content["test"][name][0, 3:])
        assert not values[47:].any()
    assert len(data.test) == 3  # type: ignore[arg-type]
    assert data.skipped == ("test: test_1: no text",)


def test_silence_and_a_sentiment_of_zero(tmp_path: Path) -> None:
    content = contents("noalign")
    content["train"]["audio"][0, 5, 2] = -np.inf
    content["train"]["labels"][0] = 0
    write(tmp_path, "noalign", content)
    data = load(tmp_path)
    assert data.train[0, 0][1][5, 2] == 0
    assert data.train[0, 0][3].tolist() == [0]
    assert any("train: 6 segments" in line and "1 audio values not finite" in line for line in data.summary)


def test_without_validation_its_segments_are_for_training(tmp_path: Path) -> None:
    content = contents("aligned")
    write(tmp_path, "aligned", content)
    data = load(tmp_path, features="aligned", validation=False, select="test")
    assert (len(data.train), len(data.val)) == (9, 0)  # type: ignore[arg-type]
    np.testing.assert_array_equal(data.train[0, 6][0].numpy(), content["valid"]["text"][0])
    assert "validation segments are for training too" in data.summary


def test_a_folder_with_another_file(tmp_path: Path) -> None:
    write(tmp_path, "aligned")
    with pytest.raises(RecipeError, match=r"Found aligned \(mosi_data\.pkl\): add --features aligned"):
        load(tmp_path)


def test_a_folder_with_nothing_known(tmp_path: Path) -> None:
    (tmp_path / "other.pkl").touch()
    with pytest.raises(RecipeError, match=r"Found .*other\.pkl.*: put the file there"):
        load(tmp_path)


def test_the_wrong_file_by_the_right_name(tmp_path: Path) -> None:
    (tmp_path / "mosi_data_noalign.pkl").write_bytes(pickle.dumps(contents("aligned")))
    with pytest.raises(
        RecipeError, match=r"should hold.*audio \(N, 375, 5\).*Found .*audio \(N, 50, 5\).*: add --features aligned"
    ):
        load(tmp_path)


def test_labels_of_another_dataset(tmp_path: Path) -> None:
    content = contents("noalign")
    content["valid"]["labels"][1] = 4
    write(tmp_path, "noalign", content)
    with pytest.raises(RecipeError, match=r"Labels .* should be from -3 to 3.*Found 4 in row 1 of valid"):
        load(tmp_path)


def test_the_model_of_the_paper(tmp_path: Path) -> None:
    write(tmp_path, "noalign")
    model = cmu_mosi.build_model(settings(tmp_path), load(tmp_path))
    layer = 4 * (40 * 40 + 40) + 40 * 160 + 160 + 160 * 40 + 40 + 4 * 40
    inputs = (300 + 5 + 20) * 40 + 3 * 40
    assert sum(p.numel() for p in model.parameters()) == inputs + (3 * 5 + 3) * layer + 4 * 80 + 2 * 1640 + 41
    rates = [dropout_of(model, f"audio_net.encoder.layers.4.{name}") for name in ("dropout", "dropout1", "dropout2")]
    assert rates == [0.15, 0.1, 0.1]
    assert dropout_of(model, "vision_net.encoder.dropout") == 0.2
    assert dropout_of(model, "fusion_module.residual.2") == 0.1


def test_the_error_selects_unless_told_otherwise(tmp_path: Path) -> None:
    write(tmp_path, "noalign")
    task = load(tmp_path).task
    assert (task.headline.key, task.headline.higher_is_better, task.score) == ("mae", False, "regression")
    assert isinstance(task.loss(), nn.L1Loss)
    official = load(tmp_path, **cmu_mosi.RECIPE.protocols["official"]).task
    meter = official.meter()
    meter.update(torch.tensor([[0.5], [-0.5], [0.1], [-2.0]]), torch.tensor([[1.0], [0.0], [0.0], [2.0]]))
    assert meter.compute()[official.headline.key] == 0.5  # of the zeros, both negative, one is right


@pytest.mark.parametrize(("model", "widths"), [("gru", (600, 200, 70)), ("transformer", (600, 10, 40))])
def test_the_models_of_multibench(tmp_path: Path, model: str, widths: tuple[int, ...]) -> None:
    write(tmp_path, "multibench")
    data = load(tmp_path, features="multibench")
    network = cmu_mosi.build_model(settings(tmp_path, model=model), data).eval()
    *inputs, _ = data.test[0, 0]
    assert network(*(values[None] for values in inputs)).shape == (1, 1)
    shapes = [
        network.get_submodule(f"{name}_net")(values[None]).shape for name, values in zip(NAMES, inputs, strict=True)
    ]
    assert shapes == [(1, width) for width in widths]
    hidden, out = (layer for layer in network.get_submodule("fusion_module").modules() if isinstance(layer, nn.Linear))
    assert (hidden.in_features, hidden.out_features) == (sum(widths), {"gru": 870, "transformer": 256}[model])
    assert out.out_features == 1


def test_the_synthetic_set_is_a_file_of_its_own_kind() -> None:
    path = cmu_mosi.synthetic_root() / "mosi_data.pkl"
    content = pickle.loads(path.read_bytes())
    assert content["train"]["labels"].shape == (320, 1, 1)
    assert 0 in content["train"]["labels"]
    data = load(None)
    assert data.synthetic
    assert [tuple(x.shape) for x in data.train[0, 0]] == [(12, 24), (12, 12), (12, 16), (1,)]
    assert len(data.test) == 120  # type: ignore[arg-type]


@pytest.mark.slow
def test_the_synthetic_set_learns_in_a_short_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--epochs", "2", "--batch-size", "24", "--output", str(tmp_path)]
    assert main(cmu_mosi.RECIPE, arguments) == 0
    assert "SYNTHETIC DATA" in capsys.readouterr().out
    result = json.loads((tmp_path / "none" / "result.json").read_text())
    constant = np.abs(np.concatenate([load(None).test[0, row][3].numpy() for row in range(120)])).mean()
    assert result["test"]["test_mae"] < 0.8 * constant
    assert main(cmu_mosi.RECIPE, ["--eval", str(tmp_path / "none" / "best.pt"), "--output", str(tmp_path)]) == 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # S of CGGM may be nearly 0 on so small a batch
@pytest.mark.parametrize("method", [name for name in all_methods() if name not in EXCLUDED])
@pytest.mark.parametrize("changes", [{}, {"balanced": "encoder"}, {"model": "gru"}], ids=str)
def test_every_method_that_applies_trains(method: str, changes: dict[str, str]) -> None:
    small = settings(None, layers=1, fusion_layers=1, width=20, **changes)
    losses = train_briefly(cmu_mosi.RECIPE, small, load(None), method)
    assert all(np.isfinite(losses))


@pytest.mark.parametrize("method", list(EXCLUDED))
def test_what_does_not_apply_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str) -> None:
    assert main(cmu_mosi.RECIPE, ["--methods", method, "--output", str(tmp_path)]) == 2
    assert EXCLUDED[method] in capsys.readouterr().err
