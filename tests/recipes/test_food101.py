"""The UPMC Food-101 recipe: both ways to train, its networks, its synthetic set, and bad input."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
import transformers
from PIL import Image

import food101
from recipe_common.cli import main
from recipe_common.data.datasets.food101.lists import read_titles
from recipe_common.data.datasets.food101.sources import PictureTransform, picture_entry_of, text_entry_of, token_source
from recipe_common.data.features.pictures import FrozenPictures
from recipe_common.data.features.store import prepare_features
from recipe_common.data.features.texts import FrozenTexts
from recipe_common.data.prepare.engine import checksum
from recipe_common.data.samples.lists import Row
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.food101 import NOTE, SyntheticDishes
from recipe_common.errors import RecipeError
from recipe_common.models.imagetext import TextEncoder, end_to_end_net, frozen_feature_net
from recipe_common.models.pretrained import load_network
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import resolve
from recipes.without_pictures import without_pictures

from .food101_tree import CLASSES, write_bert, write_kaggle, write_picture, write_vit


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    with without_pictures():
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_vit(folder / "vit")
    write_bert(folder / "bert")
    return folder


@pytest.fixture
def root(tmp_path: Path, models: Path) -> Path:
    """A tree of 16 and 8 samples, with features."""
    write_kaggle(tmp_path)
    make_features(tmp_path, models)
    return tmp_path


def make_features(root: Path, models: Path, **changes: Any) -> None:
    rows = read_titles(root, food101.CLASSES).rows
    networks = {
        FrozenPictures(models / "vit", **changes): [picture_entry_of(root, row) for row in rows],
        FrozenTexts(models / "bert", length=8): [text_entry_of(row) for row in rows],
    }
    prepare_features(root / "features", networks, workers=0)


def resolved(data_root: Path | None, **changes: Any) -> Settings[food101.FoodSettings]:
    return resolve({"data_root": data_root, **changes}, food101.RECIPE)


def load(data_root: Path | None, **changes: Any) -> Data:
    small = {} if data_root is None else {"text_length": 8, "val_share": 0.25}
    return food101.load(resolved(data_root, **{**small, **changes}))


def run(output: Path, *flags: str) -> int:
    return main(food101.RECIPE, ["--epochs", "1", "--limit-batches", "2", "--output", str(output), *flags])


def test_the_classes_are_those_of_food_101_in_ascii_order() -> None:
    assert len(food101.CLASSES) == len(set(food101.CLASSES)) == 101
    assert list(food101.CLASSES) == sorted(food101.CLASSES)
    assert food101.CLASSES.index("cheese_plate") + 1 == food101.CLASSES.index("cheesecake") == 17
    assert (food101.CLASSES[0], food101.CLASSES[-1]) == ("apple_pie", "waffles")
    assert {"creme_brulee", "cup_cakes", "macarons", "shrimp_and_grits"} <= set(food101.CLASSES)


def test_features_labels_and_splits_come_together(root: Path) -> None:
    data = load(root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [12, 4, 8]  # type: ignore[arg-type]
    assert data.classes == food101.CLASSES
    image, text, label = data.test[0, 0]
    assert (image.shape, text.shape) == ((5, 8), (8, 8))
    assert food101.CLASSES[label] == CLASSES[0]
    assert not data.synthetic
    assert "97 of 101 classes have no training sample" in " ".join(data.summary)
    assert torch.equal(data.train[3, 1][0], data.train[7, 1][0])


def test_the_features_become_settings_of_the_run(root: Path) -> None:
    chosen = load(root).chosen
    assert chosen["image_features"].startswith("image-")
    assert (root / "features" / chosen["text_features"] / "spec.json").is_file()
    again = resolved(root, text_length=8, val_share=0.25, image_features="image-000000000000")
    with pytest.raises(RecipeError, match="named image-000000000000"):
        food101.load(again)


def test_features_may_lie_elsewhere(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "features"
    (root / "features").rename(elsewhere)
    assert len(load(root, features=str(elsewhere)).test) == 8  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=rf"Found none: run `python recipes/food101\.py prepare --data-root {root}"):
        load(root)


def test_features_with_other_settings_are_not_taken(root: Path, models: Path) -> None:
    for flags in ({"keep": "cls"}, {"normalize": False}, {"text_length": 9}):
        with pytest.raises(RecipeError, match=r"should hold (image|text) features with"):
            load(root, **flags)
    make_features(root, models, normalize=False)
    names = [Path(load(root, normalize=flag).test.sources[0].where).name for flag in (True, False)]  # type: ignore[attr-defined]
    assert names[0] != names[1]


def test_samples_without_features_are_counted_and_listed(root: Path) -> None:
    write_picture(root / "images" / "train" / "gyoza" / "gyoza_9.jpg", 9)
    with (root / "texts" / "train_titles.csv").open("a", newline="") as lines:
        csv.writer(lines).writerow(("gyoza_9.jpg", "a new one", "gyoza"))
    with pytest.raises(RecipeError, match=r"`prepare` makes it"):
        load(root, min_found=1.0, validation=False, select="test")
    data = load(root, min_found=0.5, validation=False, select="test")
    assert data.skipped == (
        "train: train/gyoza_9.jpg: no image feature (`prepare` makes it)",
        "train: train/gyoza_9.jpg: no text feature (`prepare` makes it)",
    )


def test_pictures_and_tokens_are_read_from_end_to_end(root: Path, models: Path) -> None:
    (root / "images" / "test" / "gyoza" / "gyoza_0.jpg").unlink()
    changes = {"train": "end-to-end", "text_model": str(models / "bert"), "image_size": 32, "min_found": 0.5}
    data = load(root, **changes)
    assert data.skipped == ("test: test/gyoza_0.jpg: no jpg file",)
    image, text, _ = data.test[0, 0]
    assert (image.shape, text.shape, text.dtype) == ((3, 32, 32), (2, 8), torch.int64)
    assert not torch.equal(data.train[0, 0][0], data.train[1, 0][0])
    assert torch.equal(data.train[1, 0][0], data.train[1, 0][0])
    assert torch.equal(data.val[0, 0][0], data.val[1, 0][0])


def test_a_damaged_picture_stops_training_or_is_left_out(root: Path, models: Path) -> None:
    path = root / "images" / "test" / "gyoza" / "gyoza_1.jpg"
    path.write_bytes(path.read_bytes()[:60])
    changes = {"train": "end-to-end", "text_model": str(models / "bert"), "image_size": 32, "min_found": 0.5}
    with pytest.raises(RecipeError, match=r"gyoza_1\.jpg"):
        _ = load(root, **changes).test[0, 7]
    assert len(load(root, skip_bad=True, **changes).test) == 7  # type: ignore[arg-type]


def test_the_evaluation_picture_is_resized_and_normalised(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 0, size=(40, 20))
    with Image.open(tmp_path / "a.jpg") as picture:
        pixels = np.asarray(picture.resize((24, 24), Image.Resampling.BILINEAR), np.float32) / 255
    expected = (pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = PictureTransform(24)(tmp_path / "a.jpg")
    np.testing.assert_allclose(found.numpy().transpose(1, 2, 0), expected, atol=1e-5)


def test_a_training_picture_is_a_function_of_its_seed(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 0, size=(40, 40))
    transform = PictureTransform(24)
    state = torch.get_rng_state()
    pictures = [transform(tmp_path / "a.jpg", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.equal(pictures[0], pictures[2])
    upright = PictureTransform(24, angle=0.0)
    plain = upright(tmp_path / "a.jpg")
    seen = [upright(tmp_path / "a.jpg", seed=seed) for seed in range(8)]
    assert all(torch.allclose(each, plain) or torch.allclose(each, plain.flip(-1)) for each in seen)
    assert len({round(each[0, 0, 0].item(), 4) for each in seen}) == 2


def test_titles_become_ids_and_a_mask(models: Path) -> None:
    source = token_source(models / "bert", 6)
    row = Row("x", "gyoza", ("a.jpg", "RT #Apple pie https://x.y"))
    tokens = source.read(source.find(row), seed=None)
    assert tokens.tolist() == [[2, 5, 6, 3, 0, 0], [1, 1, 1, 1, 0, 0]]
    with pytest.raises(RecipeError, match="3 to 16 tokens"):
        token_source(models / "bert", 17)
    with pytest.raises(RecipeError, match=r"Found 2: give `--text-length 3`"):
        token_source(models / "bert", 2)


def test_sources_go_to_other_processes(root: Path, models: Path) -> None:
    for changes in ({}, {"train": "end-to-end", "text_model": str(models / "bert"), "image_size": 16}):
        part = load(root, **changes).train
        for one, other in zip(part[1, 2], pickle.loads(pickle.dumps(part))[1, 2], strict=True):
            assert torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def test_the_network_of_cggm_has_its_size() -> None:
    network = frozen_feature_net({"image": 768, "text": 768}, 101, 4, 2, 40, shared=False)
    encoder = 4 * 40 * 40 + 4 * 40 + 2 * 4 * 40 * 40 + 5 * 40 + 4 * 40  # attention, hidden layer of 160, two norms
    encoders = 2 * (4 * encoder + 80) + (2 * encoder + 80)
    rest = 2 * (768 * 40 + 40) + 2 * (40 * 40 + 40) + 40 * 101 + 101
    assert sum(parameter.numel() for parameter in network.parameters()) == encoders + rest
    assert network(torch.randn(2, 197, 768), torch.randn(2, 50, 768)).shape == (2, 101)
    rates = {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)}
    assert rates == {0.1, 0.15, 0.2}


def test_a_projection_may_be_shared() -> None:
    network = frozen_feature_net({"image": 8, "text": 8}, 3, 1, 1, 10, shared=True)
    image, text = (network.get_submodule(f"{modality}_net.projection") for modality in food101.MODALITIES)
    assert image is text
    with pytest.raises(RecipeError, match=r"one size\. Found .*'image': 8, 'text': 9.*--no-shared-projection"):
        frozen_feature_net({"image": 8, "text": 9}, 3, 1, 1, 10, shared=True)
    with pytest.raises(RecipeError, match=r"`--width` should be a multiple of 5\. Found 42"):
        frozen_feature_net({"image": 8, "text": 8}, 3, 1, 1, 42, shared=False)


def test_a_shared_projection_cannot_be_scaled_for_each_modality(root: Path) -> None:
    settings = resolved(root, text_length=8, val_share=0.25, shared_projection=True)
    with pytest.raises(RecipeError, match="--balanced encoder"):
        food101.build_model(settings, food101.load(settings))


def test_the_text_feature_is_the_pooled_one(models: Path) -> None:
    bert = load_network(models / "bert", pooler=True)
    encoder = TextEncoder(bert, size=5).eval()
    text = torch.tensor([[[2, 5, 3, 0], [1, 1, 1, 0]]])
    expected = bert(input_ids=text[:, 0], attention_mask=text[:, 1]).pooler_output @ encoder.linear.weight.T
    torch.testing.assert_close(encoder(text), expected + encoder.linear.bias)
    changed = text.clone()
    changed[0, 0, 3] = 7
    torch.testing.assert_close(encoder(changed), encoder(text))  # what is masked does not count
    assert not torch.equal(encoder.train()(text), encoder(text))


def test_a_text_encoder_without_pooler_gives_its_first_token(tmp_path: Path) -> None:
    config = transformers.ElectraConfig(
        vocab_size=20, embedding_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.ElectraModel(config).save_pretrained(tmp_path)
    electra = load_network(tmp_path, pooler=True)
    encoder = TextEncoder(electra, size=5).eval()
    text = torch.tensor([[[2, 5, 3], [1, 1, 1]]])
    states = electra(input_ids=text[:, 0], attention_mask=text[:, 1]).last_hidden_state
    torch.testing.assert_close(encoder(text), encoder.linear(states[:, 0]))


def test_the_end_to_end_network_joins_512_and_1024_features(models: Path) -> None:
    network = end_to_end_net(101, models / "bert", None)
    pictures, text = torch.randn(2, 3, 64, 64), torch.ones(2, 2, 4, dtype=torch.int64)
    assert network(pictures, text).shape == (2, 101)
    count = {name: sum(p.numel() for p in child.parameters()) for name, child in network.named_children()}
    assert count["image_net"] == 11_176_512  # torchvision's resnet18 without its classifier
    assert count["fusion_module"] == 1536 * 101 + 101


def test_resnet18_may_start_from_a_file(models: Path, tmp_path: Path) -> None:
    network = torchvision.models.resnet18(weights=None)
    torch.save(network.state_dict(), tmp_path / "resnet18.pth")
    encoder = end_to_end_net(101, models / "bert", tmp_path / "resnet18.pth").eval().get_submodule("image_net")
    network.fc = torch.nn.Identity()
    picture = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder(picture), network.eval()(picture))
    (tmp_path / "other.pth").write_bytes(b"x")
    with pytest.raises(RecipeError, match=r"other\.pth"):
        end_to_end_net(101, models / "bert", tmp_path / "other.pth")


def test_without_text_weights_training_says_how_to_get_them(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"--text-model google-bert/bert-base-uncased.*hf download"):
        load(root, train="end-to-end")


def test_the_synthetic_set_has_the_real_format(tmp_path: Path) -> None:
    data = load(None)
    assert [len(part) for part in (data.train, data.val, data.test)] == [324, 36, 96]  # type: ignore[arg-type]
    assert data.synthetic
    assert set(data.classes) < set(food101.CLASSES)
    assert list(data.classes) == sorted(data.classes)
    image, text, _ = data.train[0, 0]
    assert (image.shape, text.shape) == ((37, 48), (16, 48))
    synthetic = synthetic_folder("food101", food101.SYNTHETIC, food101.SYNTHETIC.write)
    assert (synthetic / "SYNTHETIC.txt").read_text() == NOTE
    modes = set()
    for path in (synthetic / "images" / "train").rglob("*.jpg"):
        with Image.open(path) as picture:
            modes.add(picture.mode)
    assert modes == {"RGB", "L", "CMYK"}
    text_of_list = (synthetic / "texts" / "train_titles.csv").read_text()
    assert '"""real"" ' in text_of_list
    assert ", eat, repeat" in text_of_list


def test_the_synthetic_set_is_always_the_same(tmp_path: Path) -> None:
    synthetic = SyntheticDishes(sizes=(2, 1))
    sums = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        synthetic.write(tmp_path / name)
        sums.append(checksum(tmp_path / name))
    assert sums[0] == sums[1]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")  # S of CGGM may be nearly 0 on so small a batch
def test_all_methods_run_on_the_synthetic_set(tmp_path: Path) -> None:
    assert run(tmp_path, "--methods", "all", "--seed", "0") == 0
    results = [json.loads((tmp_path / method / "result.json").read_text()) for method in ("none", "cggm", "relearning")]
    assert all(0 <= each["test"]["test_accuracy"] <= 1 for each in results)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::modbalance.ModbalanceWarning")
@pytest.mark.parametrize("protocol", ["official", "end-to-end", "benchmark"])
def test_every_protocol_runs(tmp_path: Path, protocol: str) -> None:
    assert run(tmp_path, "--protocol", protocol, "--methods", "cggm", "--limit-batches", "1") == 0
    settings = json.loads((tmp_path / "cggm" / "config.json").read_text())["settings"]
    expected = {**food101.RECIPE.protocols[protocol], **food101.RECIPE.synthetic_defaults}
    assert {name: settings[name] for name in expected if name in settings} == {
        name: value for name, value in expected.items() if name in settings
    }


@pytest.mark.slow
def test_real_data_are_trained_on_and_evaluated(root: Path, tmp_path: Path) -> None:
    flags = ["--data-root", str(root), "--text-length", "8", "--val-share", "0.25", "--batch-size", "4"]
    assert run(tmp_path / "run", *flags) == 0
    checkpoint = str(tmp_path / "run" / "none" / "best.pt")
    assert main(food101.RECIPE, ["--eval", checkpoint]) == 0


@pytest.mark.parametrize("protocol", ["fair", *food101.RECIPE.protocols])
def test_the_description_of_the_model_fits_it(root: Path, models: Path, protocol: str) -> None:
    changes = {"text_length": 8, "val_share": 0.25, "normalize": True, "text_model": str(models / "bert")}
    settings = resolved(root, protocol=protocol, **changes)
    model = food101.build_model(settings, food101.load(settings))
    description = food101.balance(settings)
    paths = [*description["modalities"].values(), description["fusion"]]
    assert all(list(model.get_submodule(path).parameters()) for path in paths)
