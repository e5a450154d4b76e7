"""The CMU-MOSEI recipe: its data, tasks, models and runs."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cmu_mosei import RECIPE, SYNTHETIC, SYNTHETIC_SPEECH, synthetic_root
from modbalance import list_methods
from recipe_common.cli import main
from recipe_common.data.datasets.cmu_mosei import FILES
from recipe_common.errors import RecipeError
from recipe_common.models.guided_attention import GuidedAttentionNet
from recipe_common.settings.declaration import changed
from recipe_common.training.settings import choose_methods, excluded_methods
from recipes.call import settings_of, values_of
from recipes.two_step_training import suits, train

TINY = ["--width", "8", "--layers", "1"]
METHODS = ("none", *(each.name for each in list_methods() if each.method is not None))
RAW_SIZES = {"text": 300, "audio": 74, "vision": 713}
LABELS = np.array([-3, -0.5, 0, 0, 1, 3.0])


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both packed files with 6 segments per split, and the real shapes."""
    folder = tmp_path_factory.mktemp("mosei")
    random = np.random.default_rng(0)
    for features in ("aligned", "noalign"):
        name, shapes = FILES[features].name, FILES[features].shapes
        content: dict[str, dict[str, Any]] = {}
        for split in ("train", "valid", "test"):
            sizes = {modality: getattr(shapes, modality) for modality in ("text", "audio", "vision")}
            content[split] = {
                modality: random.standard_normal((6, *size)).astype(np.float32) for modality, size in sizes.items()
            }
            content[split] |= {"labels": LABELS.reshape(6, 1, 1), "id": [[f"v{row}", "0", "1"] for row in range(6)]}
        content["train"]["text"][0] = 0
        content["train"]["audio"][1, 0, 0] = -np.inf
        (folder / name).write_bytes(pickle.dumps(content, 4))
    return folder


def targets(part: Any) -> list[float]:
    return [part[0, index][-1].tolist() for index in range(len(part))]


def test_the_aligned_file(real: Path) -> None:
    data = RECIPE.load(settings_of(RECIPE, "--data-root", str(real)))
    text, audio, vision, target = data.train[0, 0]
    assert (text.shape, audio.shape, vision.shape) == ((50, 300), (50, 74), (50, 35))
    assert target.dtype == torch.int64
    assert audio[0, 0] == 0
    assert data.classes == ("negative", "positive")
    assert data.modalities == ("text", "audio", "vision")
    assert targets(data.train) == [0, 1, 1, 1, 1]
    assert targets(data.test) == [0, 0, 1, 1, 1, 1]
    assert data.task.headline.title == "Acc-2, 0 positive"
    train_line = (
        "train: 5 segments (aligned by word); 1 without text left out, such as v0 0 1; 1 audio values not finite"
    )
    assert any(line.startswith(train_line) for line in data.summary)
    assert "train: 2 positive, 2 of exactly 0, 1 negative" in data.summary


def raw_file(folder: Path, labels: tuple[int, ...] = (1, 7)) -> Path:
    """Write the file of MultiBench with 4 segments per split; the first label is the sentiment, others are emotions."""
    random = np.random.default_rng(0)
    content = {}
    for split in ("train", "valid", "test"):
        part: dict[str, Any] = {name: random.standard_normal((4, 50, size)) for name, size in RAW_SIZES.items()}
        part["labels"] = np.full((4, *labels), 2.5)
        part["labels"][..., 0] = np.array([-3, 0, 1, 3]).reshape(4, *[1] * (len(labels) - 1))
        content[split] = {**part, "id": [f"video[{row}]" for row in range(4)]}
    path = folder / "mosei_raw.pkl"
    path.write_bytes(pickle.dumps(content, 4))
    return path


@pytest.mark.parametrize("labels", [(1, 7), (1, 1), (7,)])
def test_the_file_of_multibench(tmp_path: Path, labels: tuple[int, ...]) -> None:
    path = raw_file(tmp_path, labels)
    for root in (tmp_path, path):
        data = RECIPE.load(
            settings_of(RECIPE, "--data-root", str(root), "--features", "multibench", "--task", "regression")
        )
        assert [tuple(values.shape) for values in data.train[0, 0][:3]] == [(50, 300), (50, 74), (50, 713)]
        assert [data.test[0, index][-1].tolist() for index in range(4)] == [[-3.0], [0.0], [1.0], [3.0]]
        assert any(line.startswith("train: 4 segments (MultiBench)") for line in data.summary)


def test_the_flag_of_the_file_of_multibench_is_named(tmp_path: Path) -> None:
    path = raw_file(tmp_path)
    with pytest.raises(RecipeError, match=r"Found multibench \(mosei_raw\.pkl\): add --features multibench\.$"):
        RECIPE.load(settings_of(RECIPE, "--data-root", str(tmp_path)))
    with pytest.raises(RecipeError, match=r"Found MultiBench: .*vision \(N, 50, 713\): add --features multibench\.$"):
        RECIPE.load(settings_of(RECIPE, "--data-root", str(path)))


def test_the_protocol_of_balancebenchmark(real: Path) -> None:
    settings = settings_of(RECIPE, "--data-root", str(real), "--protocol", "official")
    assert values_of(settings, "mask", "drop_last", "select", "step") == (False, "both", "val", "last")
    data = RECIPE.load(settings)
    assert len(data.train) == 6  # type: ignore[arg-type]  # datasets have a length
    assert data.train[0, 0][1].shape == (500, 74)
    with torch.device("meta"):
        model = RECIPE.build_model(settings, data)
    layer = 4 * (1024 * 1024 + 1024) + 2 * 1024 * 2048 + 2048 + 1024 + 4 * 1024
    assert size_of(model) == (300 + 74 + 35) * 1024 + 6 * layer + 3072 * 2 + 2


def size_of(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("given", "expected", "classes"),
    [
        (["--zero", "negative"], [0, 0, 0, 0, 1, 1], 2),
        (["--zero", "excluded"], [0, 0, 1, 1], 2),
        (["--task", "seven"], [0, 2, 3, 3, 4, 6], 7),
        (["--task", "regression"], [[-3.0], [-0.5], [0.0], [0.0], [1.0], [3.0]], 0),
    ],
)
def test_targets(real: Path, given: list[str], expected: list[Any], classes: int) -> None:
    settings = settings_of(RECIPE, "--data-root", str(real), *given)
    data = RECIPE.load(settings)
    assert targets(data.test) == expected
    assert len(data.classes) == classes
    rows = [0, 1, 4, 5] if len(expected) == 4 else range(6)  # neutral segments are left out of all modalities
    whole = RECIPE.load(settings_of(RECIPE, "--data-root", str(real)))
    for index, row in enumerate(rows):
        for one, other in zip(data.test[0, index][:3], whole.test[0, row][:3], strict=True):
            assert torch.equal(one, other)
    logits = RECIPE.build_model(settings_of(RECIPE, "--data-root", str(real), *given, *TINY), data)(
        *(values[None] for values in data.test[0, 0][:3])
    )
    assert logits.shape == (1, classes or 1)


def test_validation_segments_can_be_trained_on(real: Path) -> None:
    data = RECIPE.load(settings_of(RECIPE, "--data-root", str(real), "--no-validation", "--select", "test"))
    assert (len(data.train), len(data.val)) == (11, 0)  # type: ignore[arg-type]
    assert targets(data.train) == [0, 1, 1, 1, 1, 0, 0, 1, 1, 1, 1]


def test_the_loss_is_summed_where_agm_sums() -> None:
    logits, target = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 0])
    losses = {}
    for protocol in ("fair", "agm"):
        settings = settings_of(RECIPE, "--protocol", protocol)
        losses[protocol] = RECIPE.load(settings).task.loss()(logits, target).item()
    assert losses["agm"] == pytest.approx(2 * losses["fair"])


def test_the_protocol_of_agm(real: Path) -> None:
    settings = settings_of(RECIPE, "--protocol", "agm", "--data-root", str(real))
    assert values_of(settings, "model", "batch_loss", "optimizer", "seed") == ("agm", "sum", "sgd", 999)
    small = settings_of(RECIPE, "--model", "agm")
    data = RECIPE.load(small)
    assert data.modalities == ("text", "audio")
    text, audio, _ = data.train[0, 0]
    assert (text.shape, text.dtype, audio.shape) == ((16,), torch.int64, (16, SYNTHETIC_SPEECH.mels))
    small = changed(small, width=None, layers=None, tokens=60)
    with torch.device("meta"):
        model = RECIPE.build_model(small, data)
    assert isinstance(model, GuidedAttentionNet)
    words, size, mels = 29, SYNTHETIC_SPEECH.vector_size, SYNTHETIC_SPEECH.mels
    with torch.device("meta"):
        assert size_of(model) == size_of(GuidedAttentionNet(torch.zeros(words, size), mels, 2))
    assert dict(RECIPE.balance(small)["modalities"]) == {"text": "text_net", "audio": "audio_net"}


def test_the_synthetic_set_is_small_deterministic_and_in_both_formats(tmp_path: Path) -> None:
    root = synthetic_root()
    assert sum(file.stat().st_size for file in root.iterdir()) < 3e6
    names = {file.name for file in root.iterdir()}
    parts = {f"{split}_{what}.p" for split in ("train", "valid", "test") for what in ("sentences", "mels", "sentiment")}
    assert names == {"mosei_senti_data.pkl", "token_to_ix.pkl", "train_glove.npy", *parts}
    SYNTHETIC.write(tmp_path / "mosei_senti_data.pkl")
    SYNTHETIC_SPEECH.write(tmp_path)
    for name in names:
        digests = {hashlib.sha256((folder / name).read_bytes()).hexdigest() for folder in (root, tmp_path)}
        assert len(digests) == 1
    train = pickle.loads((root / "mosei_senti_data.pkl").read_bytes())["train"]
    assert train["labels"].shape == (320, 1, 1)
    assert (train["labels"] == 0).sum() > 2
    assert np.isneginf(train["audio"]).sum() == 1
    assert train["id"].shape == (320, 3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("given", [[], ["--task", "seven"], ["--model", "agm"]])
def test_every_method_trains(method: str, given: list[str]) -> None:
    settings = settings_of(RECIPE, *given, *TINY)
    data = RECIPE.load(settings)
    assert method not in excluded_methods(settings, data)
    if suits(RECIPE, settings, data, method):
        train(RECIPE, settings, data, method)
    else:
        assert method == "mla" or (method, given) == ("mmcosine", ["--model", "agm"])


@pytest.mark.parametrize("model", ["transformer", "agm"])
def test_methods_for_regression(model: str) -> None:
    settings = settings_of(RECIPE, "--task", "regression", "--model", model, "--option", "cggm.metric=sign", *TINY)
    data = RECIPE.load(settings)
    methods, left_out = choose_methods(["all"], excluded_methods(settings, data))
    assert set(METHODS) - set(methods) == {"lfm", "mmcosine", "mslr", "pmr", "relearning"}
    assert len(left_out) == 5
    settings = changed(settings, methods=methods)
    for method in methods:
        if method == "mla":
            assert not suits(RECIPE, settings, data, method)
        else:
            train(RECIPE, settings, data, method)
    without_option = RECIPE.load(settings_of(RECIPE, "--task", "regression", *TINY))
    assert "--option cggm.metric=sign" in without_option.excluded["cggm"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # what scaling means to Adam
def test_the_command_line(tmp_path: Path) -> None:
    given = ["--epochs", "2", "--limit-batches", "12", "--output", str(tmp_path)]
    assert main(RECIPE, given) == 0
    scores = json.loads((tmp_path / "none" / "result.json").read_text())["test"]
    assert {"test_accuracy", "test_macro_f1", "test_weighted_f1", "test_accuracy_audio"} <= set(scores)
    assert scores["test_accuracy"] > 0.65


@pytest.mark.slow
def test_the_command_line_in_a_regression(tmp_path: Path) -> None:
    given = ["--task", "regression", "--zero", "excluded", "--epochs", "1", "--limit-batches", "3", *TINY]
    assert main(RECIPE, [*given, "--output", str(tmp_path)]) == 0
    scores = json.loads((tmp_path / "none" / "result.json").read_text())["test"]
    assert {"test_acc2_nonzero", "test_acc7", "test_mae", "test_corr", "test_acc2_nonzero_text"} <= set(scores)


def test_errors_reach_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["--data-root", str(tmp_path), "--output", str(tmp_path / "out")]) == 2
    assert "should hold mosei_senti_data.pkl" in capsys.readouterr().err
