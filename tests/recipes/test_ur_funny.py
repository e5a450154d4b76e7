"""The UR-FUNNY recipe: its data, models and runs."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modbalance import list_methods
from recipe_common.cli import main
from recipe_common.data.datasets.ur_funny import PACKED, SIZES, STEPS
from recipe_common.data.samples.padding import trim_padding
from recipe_common.data.synthetic.sentiment import SyntheticSequences
from recipe_common.errors import RecipeError
from recipe_common.settings.declaration import changed
from recipe_common.training.settings import excluded_methods
from recipes.call import settings_of, values_of
from recipes.two_step_training import suits, train
from ur_funny import CLASSES, RECIPE, SYNTHETIC, synthetic_root

TINY = ["--width", "8", "--layers", "1"]


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed file of 8 punchlines per split with the real shapes."""
    folder = tmp_path_factory.mktemp("humor")
    random = np.random.default_rng(0)
    content = {}
    for split in ("train", "valid", "test"):
        arrays: dict[str, Any] = {name: random.standard_normal((8, STEPS, size)) for name, size in SIZES.items()}
        for row in range(8):
            for values in arrays.values():
                values[row, : 40 + row] = 0  # 10 - row words at the end
        labels = np.array([-1, 1] * 4).reshape(8, 1, 1)
        content[split] = {**arrays, "labels": labels, "id": np.arange(8)}
    content["train"]["text"][7] = 0
    (folder / PACKED).write_bytes(pickle.dumps(content, 2))
    return folder


def test_real_data(real: Path) -> None:
    data = RECIPE.load(settings_of(RECIPE, "--data-root", str(real)))
    assert (len(data.train), len(data.val), len(data.test)) == (7, 8, 8)  # type: ignore[arg-type]  # datasets have a length
    assert data.classes == CLASSES == ("none", "humour")
    assert data.modalities == ("text", "audio", "vision")
    assert not data.synthetic
    text, audio, vision, target = data.train[0, 1]
    assert (text.shape, audio.shape, vision.shape) == ((50, 300), (50, 81), (50, 371))
    assert text[:9].any(dim=1).all()
    assert not text[9:].any()
    assert target.item() == 1
    assert data.collate is trim_padding
    assert trim_padding([data.train[0, 3], data.train[0, 4]])[0].shape == (2, 7, 300)
    train = "train: 7 segments (packed by MultiBench); 1 without text left out, such as 7; 42.9% humour"
    assert train in data.summary


def test_validation_punchlines_can_be_trained_on(real: Path) -> None:
    data = RECIPE.load(settings_of(RECIPE, "--data-root", str(real), "--no-validation", "--select", "test"))
    assert (len(data.train), len(data.val), len(data.test)) == (15, 0, 8)  # type: ignore[arg-type]
    assert data.train[0, 7][3].item() == 0


def test_the_paper_model_and_hyper_parameters(real: Path) -> None:
    settings = settings_of(RECIPE, "--data-root", str(real))
    own = ("model", "fusion", "width", "layers", "mask")
    assert values_of(settings, *own) == ("agm", "concat", 768, 8, True)
    assert values_of(settings, "optimizer", "lr", "batch_size", "epochs") == ("sgd", 1e-4, 64, 100)
    official = settings_of(RECIPE, "--data-root", str(real), "--protocol", "official")
    assert values_of(official, "mask", "select", "validation") == (False, "val", True)
    layer = 4 * (768 * 768 + 768) + 2 * 768 * 2048 + 2048 + 768 + 4 * 768
    data = RECIPE.load(settings)
    with torch.device("meta"):
        for fusion, head in {
            "concat": 2304 * 2 + 2,
            "sum": 3 * (768 * 2 + 2),
            "maxout": 2 * 2304 + 2304 * 4096 + 4096 + 4096 + 2048 * 2048 + 2048 + 2048 + 1024 * 2 + 2,
        }.items():
            model = RECIPE.build_model(changed(settings, fusion=fusion), data)
            assert size_of(model) == sum(SIZES.values()) * 768 + 24 * layer + head


@pytest.mark.parametrize(
    ("name", "encoders", "head"),
    [
        ("gru", {"text": (300, 600), "audio": (81, 256), "vision": (371, 512)}, 1368 * 512 + 512 + 512 * 2 + 2),
        ("transformer", {"text": (300, 600), "audio": (81, 100), "vision": (371, 400)}, 1100 * 256 + 256 + 256 * 2 + 2),
    ],
)
def test_models_of_multibench(real: Path, name: str, encoders: dict[str, tuple[int, int]], head: int) -> None:
    settings = settings_of(RECIPE, "--data-root", str(real), "--model", name)
    model = RECIPE.build_model(settings, RECIPE.load(settings))

    def size(features: int, width: int) -> int:
        if name == "gru":
            return 3 * width * (features + width + 2)
        layer = 4 * (width * width + width) + 2 * width * 2048 + 2048 + width + 4 * width
        return features * width + 5 * layer

    assert size_of(model) == sum(size(*of_encoder) for of_encoder in encoders.values()) + head


def test_heads_belong_to_models(real: Path) -> None:
    settings = settings_of(RECIPE, "--data-root", str(real), "--model", "gru", "--fusion", "sum")
    with pytest.raises(RecipeError, match=r"head of --model gru. Found --fusion sum: leave --fusion out"):
        RECIPE.build_model(settings, RECIPE.load(settings))


def test_the_synthetic_set_is_small_deterministic_and_in_the_real_format(tmp_path: Path) -> None:
    path = synthetic_root() / PACKED
    assert path.stat().st_size < 4e6
    SYNTHETIC.write(tmp_path / "again.pkl")
    digests = {hashlib.sha256(file.read_bytes()).hexdigest() for file in (path, tmp_path / "again.pkl")}
    assert len(digests) == 1
    SyntheticSequences(parts=(3, 3, 3), two_classes=True, seed=1).write(tmp_path / "other.pkl")
    content = pickle.loads((tmp_path / "other.pkl").read_bytes())
    assert {name: sorted(split) for name, split in content.items()} == {
        key: ["audio", "id", "labels", "text", "vision"] for key in ("train", "valid", "test")
    }
    train = content["train"]
    assert train["text"].shape == (3, 12, 24)
    assert train["labels"].shape == (3, 1, 1)
    assert set(np.unique(train["labels"])) <= {-1.0, 1.0}
    assert np.isneginf(train["audio"]).sum() == 1
    assert not train["text"][-1].any()


METHODS = ("none", *(each.name for each in list_methods() if each.method is not None))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("fusion", ["concat", "sum", "maxout"])
def test_every_method_trains_every_head(method: str, fusion: str) -> None:
    settings = settings_of(RECIPE, "--fusion", fusion, *TINY)
    data = RECIPE.load(settings)
    assert method not in excluded_methods(settings, data)
    if suits(RECIPE, settings, data, method):
        train(RECIPE, settings, data, method)
    else:
        assert method == "mla" or (method, fusion != "concat") == ("mmcosine", True)


@pytest.mark.slow
@pytest.mark.parametrize("given", [["--no-mask"], ["--model", "gru"], ["--model", "transformer"]])
def test_agm_trains_the_other_models(given: list[str]) -> None:
    settings = settings_of(RECIPE, *given, *TINY)
    train(RECIPE, settings, RECIPE.load(settings), "agm")


def test_ogm_scales_the_encoders() -> None:
    settings = settings_of(RECIPE, *TINY)
    data = RECIPE.load(settings)
    plain, scaled = (train(RECIPE, settings, data, method) for method in ("none", "ogm"))
    pairs = zip(plain.named_parameters(), scaled.parameters(), strict=True)
    moved = {name.split(".")[0] for (name, one), other in pairs if not torch.equal(one, other)}
    assert moved & {"text_net", "audio_net", "vision_net"}


@pytest.mark.slow
def test_the_command_line(tmp_path: Path) -> None:
    assert main(RECIPE, ["--epochs", "2", "--limit-batches", "12", "--output", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "none" / "result.json").read_text())["test"]
    assert {"test_accuracy", "test_macro_f1", "test_accuracy_text", "test_accuracy_vision"} <= set(scores)
    assert scores["test_accuracy"] > 0.65
    checkpoint = str(tmp_path / "none" / "best.pt")
    assert main(RECIPE, ["--eval", checkpoint, "--output", str(tmp_path / "eval")]) == 0


def test_errors_reach_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["--data-root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "should hold humor.pkl, or the files of the release" in capsys.readouterr().err.replace("\n", " ")
