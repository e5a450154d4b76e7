"""The AV-MNIST recipe: layouts, splits, models, the small set, and every kind of bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import av_mnist
from modbalance import BalancedOptimizer, ConfigError, list_methods
from recipe_common.cli import main
from recipe_common.data.synthetic.av_mnist import SyntheticDigits, enlarged, formants
from recipe_common.errors import RecipeError
from recipe_common.models.fusion import LateFusionNet
from recipe_common.models.maxout import MaxoutFusion
from recipe_common.models.small import SMALL_SIZE, SmallEncoder
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import resolve
from recipes.call import values_of

NUM_TRAIN, NUM_TEST = 40, 20
ALL = ["none", *(each.name for each in list_methods() if each.method is not None)]


def write_tree(folder: Path, image: str = "uint8", flat: bool = True, audio_size: int = 112) -> Path:
    random = np.random.default_rng(0)
    for name in ("image", "audio"):
        (folder / name).mkdir(parents=True)
    for part, size in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        pictures = random.integers(0, 256, (size, 784) if flat else (size, 28, 28)).astype(image)
        np.save(folder / "image" / f"{part}_data.npy", pictures)
        sounds = random.integers(0, 256, (size, audio_size, audio_size), dtype=np.uint8)
        np.save(folder / "audio" / f"{part}_data.npy", sounds)
        np.save(folder / f"{part}_labels.npy", np.arange(size) % 10)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "data")


def settings(data_root: Path | None, **changes: Any) -> Settings[av_mnist.AvMnistSettings]:
    return resolve({"data_root": data_root, "val_size": 10, **changes}, av_mnist.RECIPE)


def load(data_root: Path | None, **changes: Any) -> Data:
    return av_mnist.load(settings(data_root, **changes))


def sizes(data: Data) -> list[int]:
    return [len(part) for part in (data.train, data.val, data.test)]  # type: ignore[arg-type]


@pytest.mark.parametrize("inner", ["", "avmnist"])
@pytest.mark.parametrize(("image", "flat"), [("uint8", True), ("float64", True), ("uint8", False)])
def test_every_layout_gives_the_same_tensors(tmp_path: Path, inner: str, image: str, flat: bool) -> None:
    folder = write_tree(tmp_path / inner, image, flat)
    audio, picture, label = load(tmp_path).train[3, 7]
    assert (audio.shape, picture.shape, int(label)) == ((1, 112, 112), (1, 28, 28), 7)
    for tensor, name in ((audio, "audio"), (picture, "image")):
        expected = np.load(folder / name / "train_data.npy")[7].reshape(tensor.shape) / 255
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6)


def test_validation_is_on_the_last_training_rows(root: Path) -> None:
    data = load(root, val_size=7)
    assert sizes(data) == [33, 7, NUM_TEST]
    files = np.load(root / "audio" / "train_data.npy")
    np.testing.assert_allclose(data.val[0, 0][0][0].numpy(), files[33] / 255, rtol=1e-6)
    np.testing.assert_allclose(data.val[0, 6][0][0].numpy(), files[39] / 255, rtol=1e-6)


@pytest.mark.parametrize(
    ("flags", "real", "expected"),
    [
        ({}, (60_000, 10_000), (55_000, 5_000, 10_000)),
        ({"split": "agm"}, (60_000, 10_000), (54_000, 6_000, 9_000)),
        ({"protocol": "official"}, (60_000, 10_000), (54_000, 0, 9_000)),
        ({"validation": False, "select": "test"}, (60_000, 10_000), (60_000, 0, 10_000)),
        ({"protocol": "multibench"}, (60_000, 10_000), (55_000, 5_000, 10_000)),
    ],
)
def test_the_published_splits(
    root: Path, flags: dict[str, Any], real: tuple[int, int], expected: tuple[int, ...]
) -> None:
    rows, _ = av_mnist.choose_rows(settings(root, val_size=5_000, **flags), *real)
    assert tuple(len(rows[name]) for name in ("train", "val", "test")) == expected
    assert not set(rows["train"]) & set(rows["val"])


def test_the_protocols_are_those_of_the_papers(root: Path) -> None:
    agm = settings(root, protocol="official")
    names = ("lr", "batch_size", "epochs", "seed", "select")
    assert values_of(agm, *names) == (1e-4, 64, 99, 999, "test")
    multibench = settings(root, protocol="multibench")
    names = ("lr", "batch_size", "epochs", "momentum", "model")
    assert values_of(multibench, *names) == (0.1, 40, 30, 0.0, "lenet")


def test_a_validation_part_as_large_as_the_training_part_is_refused(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"more training rows than the 40 of --val-size. Found 40"):
        load(root, val_size=40)


@pytest.mark.parametrize("name", ["image/test_data.npy", "audio/train_data.npy", "test_labels.npy"])
def test_a_missing_file_is_named(root: Path, name: str) -> None:
    (root / name).unlink()
    with pytest.raises(RecipeError, match=rf"missing: {name}: point"):
        load(root)


def test_a_packed_download_is_to_be_unpacked(tmp_path: Path) -> None:
    (tmp_path / "avmnist.tar.gz").touch()
    with pytest.raises(RecipeError, match=r"Found avmnist\.tar\.gz; missing: image/train_data\.npy.*: unpack"):
        load(tmp_path)
    with pytest.raises(RecipeError, match="Found no such folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("audio/0_jackson_0.wav", "recordings are not read"),
        ("avmnist_audio_raw.tar.gz", "unpack"),
        ("train-images-idx3-ubyte.gz", "MNIST alone has no sound"),
        ("train_subset.csv", "another build of the set"),
    ],
)
def test_other_builds_are_named(tmp_path: Path, file: str, fix: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(RecipeError, match=f"missing: image/train_data.*: .*{fix}"):
        load(tmp_path)


def test_a_root_one_folder_too_deep_is_explained(root: Path) -> None:
    with pytest.raises(RecipeError, match="point --data-root to the folder above"):
        load(root / "image")


def test_pictures_rebuilt_from_principal_components_keep_their_sign(root: Path) -> None:
    """The mean is not added back by the script that makes the set, so half of the values are below 0."""
    path = root / "image" / "train_data.npy"
    pictures = np.load(path) - 120.0
    np.save(path, pictures)
    *_, image, _ = load(root).train[0, 0]
    np.testing.assert_allclose(image.numpy().reshape(-1), pictures[0] / 255, atol=1e-6)


@pytest.mark.parametrize("name", ["image/train_data.npy", "audio/train_data.npy", "train_labels.npy"])
def test_files_of_different_lengths_are_refused(root: Path, name: str) -> None:
    np.save(root / name, np.load(root / name)[:-1])
    with pytest.raises(RecipeError, match=r"equally many rows\. Found (40|39), (40|39) and (40|39) in"):
        load(root)


def test_labels_from_one_to_ten_are_refused(root: Path) -> None:
    np.save(root / "test_labels.npy", np.load(root / "test_labels.npy") + 1)
    with pytest.raises(RecipeError, match=r"test_labels\.npy should .* from 0 to 9\. Found 10 in row 9"):
        load(root)


def test_exchanged_files_are_refused(root: Path) -> None:
    for part in ("train", "test"):
        audio, image = root / "audio" / f"{part}_data.npy", root / "image" / f"{part}_data.npy"
        sounds, pictures = np.load(audio), np.load(image)
        np.save(audio, pictures)
        np.save(image, sounds)
    with pytest.raises(RecipeError, match=r"audio.*\(N, 112, 112\)\. Found \(40, 784\) \(pictures of 28 x 28"):
        load(root)


def test_a_download_that_was_cut_off_is_refused(root: Path) -> None:
    path = root / "audio" / "train_data.npy"
    path.write_bytes(path.read_bytes()[:5_000])
    with pytest.raises(RecipeError, match=r"audio.*train_data\.npy should be a complete npy file"):
        load(root)


def test_rows_that_are_not_finite_stop_or_are_skipped(root: Path) -> None:
    path = root / "image" / "train_data.npy"
    pictures = np.load(path).astype(np.float32)
    pictures[2, 5], pictures[39, 0] = np.nan, np.inf
    np.save(path, pictures)
    with pytest.raises(RecipeError, match=r"in row 2: .*--skip-bad"):
        load(root).train[0, 2]
    data = load(root, skip_bad=True)
    assert sizes(data) == [29, 9, NUM_TEST]
    assert data.skipped == ("train: row 2: NaN or infinity", "val: row 39: NaN or infinity")
    assert int(data.train[0, 2][2]) == 3


def test_a_digit_without_samples_is_reported(root: Path) -> None:
    labels = np.load(root / "train_labels.npy")
    np.save(root / "train_labels.npy", np.where(labels == 4, 5, labels))
    assert load(root).summary[-1] == "digit 4 has no training sample"


@pytest.mark.parametrize(
    ("flags", "parameters"),
    [
        # Twice ResNet-18 without its classifier, with a one-channel stem; then the head.
        ({"model": "resnet"}, 2 * 11_170_240 + 1024 * 10 + 10),
        ({"model": "resnet", "fusion": "sum"}, 2 * 11_170_240 + 2 * (512 * 10 + 10)),
        ({"model": "maxout"}, 2 * 11_170_240 + 1024 * 4096 + 4096 + 2048 * 2049 + 1025 * 10 + 2 * 4096),
        ({"model": "lenet"}, 221_874 + 13_938 + 241 * 100 + 101 * 10),
        ({"model": "small"}, 2 * (160 + 4_640 + 18_496 + 1024 * 64 + 64) + 128 * 10 + 10),
        ({"model": "small", "fusion": "sum"}, 2 * (160 + 4_640 + 18_496 + 1024 * 64 + 64) + 2 * 650),
    ],
)
def test_models_have_their_size_and_their_parts(root: Path, flags: dict[str, Any], parameters: int) -> None:
    chosen = settings(root, **flags)
    model = av_mnist.build_model(chosen, load(root, **flags)).eval()
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    with torch.no_grad():
        assert model(torch.rand(2, 1, 112, 112), torch.rand(2, 1, 28, 28)).shape == (2, 10)
    description = av_mnist.balance(chosen)
    paths = [*description["modalities"].values(), description["fusion"], *description.get("unimodal", {}).values()]
    assert all(model.get_submodule(path) is not None for path in paths)
    assert ("unimodal" in description) == (chosen.own.fusion == "sum")


def test_a_model_with_its_own_head_takes_no_other(root: Path) -> None:
    chosen = settings(root, model="maxout", fusion="sum")
    with pytest.raises(RecipeError, match=r"--model maxout can have\. Found --fusion sum"):
        av_mnist.build_model(chosen, load(root))


def test_lenets_refuse_pictures_that_vanish() -> None:
    chosen = settings(None, model="lenet")
    with pytest.raises(RecipeError, match=r"`--audio-size` should be at least 64 pixels.*Found 28"):
        av_mnist.build_model(chosen, load(None))


def narrow_maxout() -> torch.nn.Module:
    """The model maxout on small encoders, which take less time than two ResNet-18."""
    encoders = {name: SmallEncoder() for name in ("audio", "image")}
    return LateFusionNet(encoders, MaxoutFusion(dict.fromkeys(encoders, SMALL_SIZE), 10, hidden=(16, 8)))


@pytest.mark.parametrize("flags", [{"model": "maxout"}, {"model": "lenet"}, {"model": "small", "fusion": "sum"}])
@pytest.mark.parametrize("method", ALL)
def test_every_method_fits_every_head(root: Path, flags: dict[str, Any], method: str) -> None:
    chosen = settings(root, methods=(method,), **flags)
    model = av_mnist.build_model(chosen, load(root)) if chosen.own.model != "maxout" else narrow_maxout()
    options = {**av_mnist.balance(chosen), **av_mnist.RECIPE.method_options.get(method, {})}
    if reason := {"mmcosine": "a last layer that is linear", "mla": "one head for all modalities"}.get(method):
        with pytest.raises(ConfigError, match=reason):
            BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), method, model=model, **options)
        return
    optimizer = BalancedOptimizer(torch.optim.SGD(model.parameters(), lr=1e-3), method, model=model, **options)
    criterion = optimizer.criterion(torch.nn.CrossEntropyLoss())
    batch = (torch.rand(4, 1, 112, 112), torch.rand(4, 1, 28, 28), torch.arange(4))
    optimizer.begin(train=[batch], val=[batch])
    before = [parameter.clone() for parameter in model.parameters()]
    loss = criterion(model(torch.rand(4, 1, 112, 112), torch.rand(4, 1, 28, 28)), torch.arange(4))
    loss.backward()
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    assert any(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_a_method_of_one_head_trains_the_shared_one(root: Path) -> None:
    chosen = settings(root, methods=("mla",), model="small", fusion="shared")
    model = av_mnist.build_model(chosen, load(root))
    inner = torch.optim.SGD(model.parameters(), lr=1e-3)
    optimizer = BalancedOptimizer(inner, "mla", model=model, **av_mnist.balance(chosen))
    criterion = optimizer.criterion(torch.nn.CrossEntropyLoss())
    before = [parameter.clone() for parameter in model.parameters()]
    criterion(model(torch.rand(4, 1, 112, 112), torch.rand(4, 1, 28, 28)), torch.arange(4)).backward()
    optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_the_small_set_is_read_as_real_data_is() -> None:
    data = load(None, val_size=240)
    assert sizes(data) == [1_197, 240, 360]
    assert data.synthetic
    assert "real handwritten digits (scikit-learn), synthetic spectrograms" in data.summary[0]
    audio, picture, label = data.train[0, 0]
    assert (audio.shape, picture.shape) == ((1, 28, 28), (1, 28, 28))
    assert 0 <= int(label) <= 9


def test_the_small_set_is_the_same_every_time_and_holds_real_digits(tmp_path: Path) -> None:
    clean = SyntheticDigits(image_noise=0.0, image_size=8)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        clean.write(tmp_path / name)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.npy"))
    assert len(files) == 6
    assert all((tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files)
    written = np.concatenate([np.load(tmp_path / "one" / "image" / f"{part}_data.npy") for part in ("train", "test")])
    digits = (load_digits().data / 16 * 255).round()
    assert sorted(map(tuple, written.tolist())) == sorted(map(tuple, digits.astype(int).tolist()))


def test_labels_of_the_small_set_belong_to_its_pictures_and_sounds(tmp_path: Path) -> None:
    SyntheticDigits(image_noise=0.0, audio_noise=1e-3, image_size=8).write(tmp_path)
    bunch = load_digits()
    known: dict[tuple[int, ...], set[int]] = {}
    for picture, digit in zip((bunch.data / 16 * 255).round().astype(int), bunch.target, strict=True):
        known.setdefault(tuple(picture.tolist()), set()).add(int(digit))
    labels = np.load(tmp_path / "test_labels.npy")
    pictures = np.load(tmp_path / "image" / "test_data.npy")
    assert all(int(y) in known[tuple(x.tolist())] for x, y in zip(pictures, labels, strict=True))
    sounds = np.load(tmp_path / "audio" / "test_data.npy").astype(int)
    first = {int(y): sounds[labels == y][0] for y in np.unique(labels)}
    assert all(abs(x - first[int(y)]).max() <= 1 for x, y in zip(sounds, labels, strict=True))


def test_a_synthetic_word_is_standardised() -> None:
    word = formants(10, np.random.default_rng(0))
    assert word.shape == (10, 10)
    assert word.mean() == pytest.approx(0, abs=1e-12)
    assert word.std() == pytest.approx(1)


def test_enlarging_keeps_the_corners_and_the_range() -> None:
    small = np.array([[[0.0, 1.0], [2.0, -1.0]]])
    large = enlarged(small, 28)
    assert large.shape == (1, 28, 28)
    assert large.dtype == np.uint8
    assert [large[0, row, column] for row in (0, -1) for column in (0, -1)] == [0, 255, 255, 0]


@pytest.mark.slow
def test_a_short_run_on_the_small_set(tmp_path: Path) -> None:
    arguments = ["--epochs", "1", "--limit-batches", "2", "--methods", "dgl", "--output", str(tmp_path)]
    assert main(av_mnist.RECIPE, arguments) == 0
    result = json.loads((tmp_path / "dgl" / "result.json").read_text())
    assert 0 <= result["test"]["test_accuracy_audio"] <= 1


@pytest.mark.slow
def test_a_short_run_on_the_real_layout(root: Path, tmp_path: Path) -> None:
    arguments = ["--data-root", str(root), "--val-size", "10", "--model", "lenet", "--epochs", "1", "--batch-size", "8"]
    assert main(av_mnist.RECIPE, [*arguments, "--limit-batches", "2", "--output", str(tmp_path / "out")]) == 0


def test_a_method_that_needs_another_head_is_refused_with_the_flag(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--data-root", str(root), "--val-size", "10", "--methods", "mla", "--output", str(tmp_path / "runs")]
    assert main(av_mnist.RECIPE, call) == 2
    assert "In this recipe: `--fusion shared`." in " ".join(capsys.readouterr().err.split())
