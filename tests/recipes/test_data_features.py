"""Features of frozen networks: what they are, how they are kept, found and continued, and what can go wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections import namedtuple
from collections.abc import Iterable, Sequence
from pathlib import Path

import attrs
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from recipe_common.data.cache.shards import FORMAT, Shard, header_of, shard_name, write_shard
from recipe_common.data.cache.store import Entry
from recipe_common.data.datasets.food101.prepare import encode_main
from recipe_common.data.features.networks import FrozenNetwork
from recipe_common.data.features.pictures import FrozenPictures, picture_entry
from recipe_common.data.features.store import FeatureStore, find_store, prepare_features, shard_files
from recipe_common.data.features.texts import FrozenTexts, text_entry
from recipe_common.data.prepare.engine import read_manifest
from recipe_common.data.samples.lists import Row
from recipe_common.errors import RecipeError
from recipe_common.models.pretrained import identity, load_network, local_folder

from .food101_tree import CLASSES, write_bert, write_kaggle, write_picture, write_vit

COMMAND = "x prepare"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_vit(folder / "vit")
    write_bert(folder / "bert")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> list[Entry]:
    """Seven pictures of all colour models."""
    for number, mode in enumerate(["RGB", "L", "CMYK", "RGB", "RGB", "RGB", "RGB"]):
        write_picture(tmp_path / "pictures" / f"{number}.jpg", number, mode)
    return [picture_entry(tmp_path, f"pictures/{number}.jpg") for number in range(7)]


def prepare(root: Path, network: FrozenNetwork, entries: Sequence[Entry]) -> int:
    return prepare_features(root, {network: entries}, workers=0, shard_size=3)


def store_of(root: Path, network: FrozenNetwork) -> FeatureStore:
    return FeatureStore(root / network.store_name)


def numbers(paths: Iterable[Path]) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in paths)


def feature(store: FeatureStore, entry: Entry) -> torch.Tensor:
    position = store.find(entry)
    assert position is not None
    return store.read(position)


@pytest.mark.slow
def test_pictures_are_resized_normalised_and_encoded(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    network = FrozenPictures(models / "vit", batch_size=2)
    assert prepare(tmp_path / "features", network, pictures) == 0
    store = store_of(tmp_path / "features", network)
    assert (len(store), store.shape) == (7, (5, 8))
    vit = transformers.ViTModel.from_pretrained(models / "vit", add_pooling_layer=False).eval()
    for entry in pictures:
        with Image.open(entry.content) as picture:
            small = picture.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR)
        pixels = (np.asarray(small, np.float32) / 255 - 0.5) / 0.5
        with torch.no_grad():
            expected = vit(torch.from_numpy(pixels.transpose(2, 0, 1))[None]).last_hidden_state[0]
        found = feature(store, entry)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)


def test_pixels_may_stay_as_they_are(models: Path, pictures: list[Entry]) -> None:
    network = FrozenPictures(models / "vit", normalize=False)
    pixels = network.inputs([pictures[1].content])["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert torch.equal(pixels[:, 0], pixels[:, 2])  # a grey one


def test_the_statistics_of_the_network_count(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    config = folder / "preprocessor_config.json"
    config.write_text(json.dumps({"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 4]}))
    plain = FrozenPictures(folder, normalize=False).inputs([pictures[0].content])["pixel_values"]
    normal = FrozenPictures(folder).inputs([pictures[0].content])["pixel_values"]
    mean, deviation = torch.tensor([[0.1, 0.2, 0.3], [1.0, 2.0, 4.0]])[..., None, None]
    torch.testing.assert_close(normal[0], (plain[0] - mean) / deviation)
    config.write_text("{}")
    with pytest.raises(RecipeError, match=r"preprocessor_config\.json should have `image_mean` and `image_std`"):
        _ = FrozenPictures(folder).spec


def test_texts_are_cut_padded_and_encoded(tmp_path: Path, models: Path) -> None:
    network = FrozenTexts(models / "bert", length=6, batch_size=2)
    texts = ["Apple pie", "", "the best, the best, the best"]
    assert prepare(tmp_path, network, [text_entry(text) for text in texts]) == 0
    store = store_of(tmp_path, network)
    ids = [[2, 5, 6, 3, 0, 0], [2, 3, 0, 0, 0, 0], [2, 8, 7, 13, 8, 3]]
    mask = [[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0], [1] * 6]
    bert = transformers.BertModel.from_pretrained(models / "bert").eval()
    with torch.no_grad():
        expected = bert(torch.tensor(ids), torch.tensor(mask)).last_hidden_state
    for text, states in zip(texts, expected, strict=True):
        torch.testing.assert_close(feature(store, text_entry(text)), states, atol=2e-3, rtol=2e-3)


def test_the_first_token_alone_may_be_kept(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    everything, first = FrozenPictures(models / "vit"), FrozenPictures(models / "vit", keep="cls")
    for network in (everything, first):
        prepare(tmp_path / "features", network, pictures[:2])
    stores = [store_of(tmp_path / "features", network) for network in (everything, first)]
    assert stores[1].shape == (1, 8)
    assert torch.equal(feature(stores[1], pictures[0]), feature(stores[0], pictures[0])[:1])


def test_all_that_matters_is_part_of_the_name(tmp_path: Path, models: Path) -> None:
    other = write_vit(tmp_path / "other", seed=1)
    renamed = shutil.copytree(models / "vit", tmp_path / "renamed")
    base = FrozenPictures(models / "vit")
    assert FrozenPictures(renamed, device="cpu", batch_size=3).store_name == base.store_name
    texts = FrozenTexts(models / "bert", length=8)
    changed = [
        FrozenPictures(other),
        attrs.evolve(base, keep="cls"),
        attrs.evolve(base, normalize=False),
        texts,
        attrs.evolve(texts, length=9),
    ]
    assert len({each.store_name for each in (base, *changed)}) == 6
    (renamed / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0] * 3, "image_std": [1] * 3}))
    assert FrozenPictures(renamed).store_name != base.store_name


def test_a_kill_costs_the_unfinished_shard(
    tmp_path: Path, models: Path, pictures: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, root = FrozenPictures(models / "vit"), tmp_path / "features"
    encode = FrozenPictures.encode

    def dies(self: FrozenNetwork, entries: Sequence[Entry]) -> object:
        if entries[0] is pictures[3]:
            raise KeyboardInterrupt
        return encode(self, entries)

    monkeypatch.setattr(FrozenPictures, "encode", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare(root, network, pictures)
    (root / network.store_name / ".shard-00001-half.safetensors.partial").write_bytes(b"half")
    monkeypatch.setattr(FrozenPictures, "encode", encode)
    first = shard_files(root / network.store_name)[0]
    written = first.stat().st_mtime_ns
    assert len(store_of(root, network)) == 3
    assert prepare(root, network, pictures) == 0
    assert numbers(shard_files(first.parent)) == ["shard-00000", "shard-00001", "shard-00002"]
    assert first.stat().st_mtime_ns == written
    assert len(store_of(root, network)) == 7


def test_what_is_added_later_is_encoded_and_nothing_else(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    network, root = FrozenPictures(models / "vit"), tmp_path / "features"
    prepare(root, network, pictures[:4])
    assert prepare(root, network, [*pictures, *pictures]) == 0
    sizes = [len(shard.keys) for shard in store_of(root, network).shards]
    assert sizes == [3, 1, 3]


def test_a_replaced_picture_is_noticed(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    network, root = FrozenPictures(models / "vit"), tmp_path / "features"
    prepare(root, network, pictures)
    before = feature(store_of(root, network), pictures[0])
    write_picture(tmp_path / pictures[0].name, 99, size=(40, 40))
    replaced = picture_entry(tmp_path, pictures[0].name)
    assert store_of(root, network).find(replaced) is None
    assert prepare(root, network, [replaced, *pictures[1:]]) == 0
    assert not torch.equal(feature(store_of(root, network), replaced), before)


def test_features_serve_without_the_pictures(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    network = FrozenPictures(models / "vit")
    prepare(tmp_path / "features", network, pictures)
    shutil.rmtree(tmp_path / "pictures")
    entry = picture_entry(tmp_path, pictures[0].name)
    assert entry.stamp is None
    assert feature(store_of(tmp_path / "features", network), entry).shape == (5, 8)


def test_bad_pictures_are_left_out_listed_and_tried_again(
    tmp_path: Path, models: Path, pictures: list[Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    network, root, path = FrozenPictures(models / "vit"), tmp_path / "features", tmp_path / pictures[1].name
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    assert prepare(root, network, pictures) == 1
    assert f"{path}: {path} should be a readable picture" in capsys.readouterr().out
    assert str(path) in (root / "unreadable_image.txt").read_text()
    assert store_of(root, network).find(pictures[1]) is None
    assert prepare(root, network, pictures) == 1
    assert len(shard_files(root / network.store_name)) == 3
    path.write_bytes(whole)
    assert prepare(root, network, pictures) == 0
    assert not (root / "unreadable_image.txt").exists()
    assert len(store_of(root, network)) == 7


def test_a_shard_of_bad_pictures_is_empty(tmp_path: Path, models: Path, pictures: list[Entry]) -> None:
    (tmp_path / pictures[0].name).write_bytes(b"nothing")
    network = FrozenPictures(models / "vit")
    assert prepare(tmp_path / "features", network, [picture_entry(tmp_path, pictures[0].name)]) == 1
    store = store_of(tmp_path / "features", network)
    assert (len(store), store.shape) == (0, None)
    assert list(store.unreadable) == [picture_entry(tmp_path, pictures[0].name).key]


def test_a_store_goes_to_other_processes_without_open_files(
    tmp_path: Path, models: Path, pictures: list[Entry]
) -> None:
    network = FrozenPictures(models / "vit")
    prepare(tmp_path / "features", network, pictures)
    store = store_of(tmp_path / "features", network)
    expected = feature(store, pictures[4])
    assert torch.equal(feature(pickle.loads(pickle.dumps(store)), pictures[4]), expected)


def test_a_store_is_a_source(tmp_path: Path, models: Path) -> None:
    network = FrozenTexts(models / "bert", length=4)
    prepare(tmp_path, network, [text_entry("a")])
    source = store_of(tmp_path, network).source("text", lambda row: text_entry(row.name))
    assert source.find(Row("b", "x")) is None
    position = source.find(Row("a", "x"))
    assert torch.equal(source.read(position, seed=1), source.read(position, seed=None))
    assert source.where == str(tmp_path / network.store_name)


def test_features_are_found_by_their_settings(tmp_path: Path, models: Path) -> None:
    networks = [FrozenTexts(models / "bert", length=length) for length in (4, 6)]
    for network in networks:
        prepare(tmp_path, network, [text_entry("a")])
    found = find_store(tmp_path, "text", {"keep": "all", "length": 6}, None, COMMAND)
    assert found.folder.name == networks[1].store_name
    both = r"(?=.*text-.*length 4\))(?=.*text-.*length 6\))"  # in the order of digests, which depend on versions
    with pytest.raises(RecipeError, match=rf"length 9\. Found {both}.*; text-.*: run `x prepare`"):
        find_store(tmp_path, "text", {"keep": "all", "length": 9}, None, COMMAND)
    with pytest.raises(RecipeError, match=r"Found none: run `x prepare`"):
        find_store(tmp_path, "image", {"keep": "all", "normalize": True}, None, COMMAND)


def test_features_of_two_networks_are_never_mixed_up(tmp_path: Path, models: Path) -> None:
    networks = [FrozenTexts(folder, length=4) for folder in (models / "bert", write_bert(tmp_path / "other", seed=1))]
    for network in networks:
        prepare(tmp_path / "features", network, [text_entry("a")])
    settings = networks[0].settings
    with pytest.raises(RecipeError, match=r"should hold one set .*--text-features NAME"):
        find_store(tmp_path / "features", "text", settings, None, COMMAND)
    chosen = networks[1].store_name
    assert find_store(tmp_path / "features", "text", settings, chosen, COMMAND).folder.name == chosen
    with pytest.raises(RecipeError, match="named text-nothing"):
        find_store(tmp_path / "features", "text", settings, "text-nothing", COMMAND)


def test_damaged_files_are_named(tmp_path: Path, models: Path) -> None:
    network = FrozenTexts(models / "bert", length=4)
    prepare(tmp_path, network, [text_entry(text) for text in "abcd"])
    store = store_of(tmp_path, network)
    first, second = (shard.path for shard in store.shards)
    header = header_of({"format": FORMAT}, Shard(second).keys)
    other = second.with_name(shard_name("shard-00001", header))
    write_shard(other, header, [[torch.zeros(5, 8, dtype=torch.float16)]])
    second.unlink()
    with pytest.raises(
        RecipeError, match=r"shard-00001-\w+\.safetensors should .* features of shape \(5, 8\), others have \(4, 8\)"
    ):
        FeatureStore(store.folder)
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(RecipeError, match=r"shard-00000-\w+\.safetensors should .*: remove it .*run prepare again"):
        FeatureStore(store.folder)
    with pytest.raises(RecipeError, match=r"shard-00000"):
        pickle.loads(pickle.dumps(store)).read((0, 0))
    (store.folder / "spec.json").write_text("{}")
    with pytest.raises(RecipeError, match=r"spec\.json"):
        find_store(tmp_path, "text", network.settings, None, COMMAND)


def test_features_of_a_former_version_are_named_with_the_fix_and_prepared_anew(tmp_path: Path, models: Path) -> None:
    network = FrozenTexts(models / "bert", length=4)
    prepare(tmp_path, network, [text_entry("a")])
    (shard,) = shard_files(tmp_path / network.store_name)
    shard.rename(shard.with_name("shard-00000.h5"))
    with pytest.raises(RecipeError, match=r"of a former version, such as shard-00000\.h5: remove .*run `x prepare`"):
        find_store(tmp_path, "text", network.settings, None, COMMAND)
    assert prepare(tmp_path, network, [text_entry("a")]) == 0
    assert len(find_store(tmp_path, "text", network.settings, None, COMMAND)) == 1


def test_a_full_disk_is_foreseen(
    tmp_path: Path, models: Path, pictures: list[Entry], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(559))
    with pytest.raises(RecipeError, match=r"should have room for the features, .*--keep cls"):
        prepare(tmp_path / "features", FrozenPictures(models / "vit"), pictures)  # 7 * 5 * 8 * 2 = 560 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(560))
    assert prepare(tmp_path / "features", FrozenPictures(models / "vit"), pictures) == 0


def test_networks_that_do_not_fit_are_refused(tmp_path: Path, models: Path) -> None:
    with pytest.raises(RecipeError, match="no `image_size`"):
        _ = FrozenPictures(models / "bert").spec
    with pytest.raises(RecipeError, match="no `max_position_embeddings`"):
        _ = FrozenTexts(models / "vit").spec
    with pytest.raises(RecipeError, match="3 to 16 tokens"):
        _ = FrozenTexts(models / "bert").spec
    with pytest.raises(RecipeError, match=r"`--device tape` should .*: use `--device cpu`"):
        prepare(tmp_path, FrozenTexts(models / "bert", length=4, device="tape"), [])


def test_features_that_are_not_finite_are_refused(tmp_path: Path, models: Path) -> None:
    folder = shutil.copytree(models / "bert", tmp_path / "bert")
    bert = transformers.BertModel.from_pretrained(folder)
    with torch.no_grad():
        bert.embeddings.LayerNorm.weight.fill_(float("inf"))
    bert.save_pretrained(folder)
    with pytest.raises(RecipeError, match="should return finite features"):
        prepare(tmp_path / "features", FrozenTexts(folder, length=4), [text_entry("a")])


def test_weights_that_are_absent_are_told_how_to_get(tmp_path: Path, models: Path) -> None:
    name = "google/vit-base-patch16-224"
    fix = rf"hf download {name} --local-dir DIR`, and write `--image-model DIR`"
    for model in (str(tmp_path / "nothing"), "nobody/no-such-network", "no/such/name"):
        with pytest.raises(RecipeError, match=rf"Found neither that folder nor {model} in .*cache.*{fix}"):
            local_folder(model, "--image-model", name)
    folder = shutil.copytree(models / "vit", tmp_path / "vit")
    assert local_folder(str(folder), "--image-model", name) == folder
    (folder / "model.safetensors").unlink()
    with pytest.raises(RecipeError, match=rf"Found {folder} without weights"):
        local_folder(str(folder), "--image-model", name)


def test_weights_that_are_damaged_are_refused(tmp_path: Path, models: Path) -> None:
    folder = shutil.copytree(models / "bert", tmp_path / "bert")
    weights = transformers.BertModel.from_pretrained(folder).state_dict()
    del weights["encoder.layer.0.output.dense.weight"]
    transformers.BertModel.from_pretrained(models / "bert").save_pretrained(folder, state_dict=weights)
    with pytest.raises(RecipeError, match=r"1 weights are missing, such as encoder\.layer\.0\.output\.dense\.weight"):
        load_network(folder)
    (folder / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(RecipeError, match=r"should hold a whole network"):
        load_network(folder)


def test_a_pooler_is_needed_only_where_it_is_used(tmp_path: Path, models: Path) -> None:
    transformers.BertModel.from_pretrained(models / "bert", add_pooling_layer=False).save_pretrained(tmp_path)
    assert not load_network(tmp_path).training
    with pytest.raises(RecipeError, match=r"missing, such as pooler"):
        load_network(tmp_path, pooler=True)


def test_the_identity_is_that_of_the_content(tmp_path: Path, models: Path) -> None:
    copy = shutil.copytree(models / "bert", tmp_path / "bert")
    assert identity(copy) == identity(models / "bert")
    (copy / "README.md").write_text("notes")
    assert identity(copy) == identity(models / "bert")
    (copy / "vocab.txt").write_text((copy / "vocab.txt").read_text().replace("apple", "pear"))
    assert identity(copy) != identity(models / "bert")


@pytest.mark.slow
def test_the_command_writes_features_and_a_manifest_and_verifies(
    tmp_path: Path, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_kaggle(tmp_path, train=2, test=1)
    (tmp_path / "images" / "test" / "gyoza" / "gyoza_0.jpg").unlink()
    flags = ["--data-root", str(tmp_path), "--workers", "1"]
    chosen = ["--image-model", str(models / "vit"), "--text-model", str(models / "bert"), "--text-length", "8"]
    command = ["x prepare", [*flags, *chosen], CLASSES, "vit", "bert"]
    assert encode_main(*command) == 0  # type: ignore[arg-type]
    output = capsys.readouterr().out
    assert "11 of 12 listed pictures are in" in output
    assert "11 of 11 different images are in" in output
    recorded = read_manifest(tmp_path / "features")
    assert numbers(map(Path, recorded)) == ["shard-00000"] * 2
    assert all(len(each["sha256"]) == 64 for each in recorded.values())
    assert encode_main("x prepare", [*flags, "--verify"], CLASSES, "vit", "bert") == 0
    image = find_store(tmp_path / "features", "image", {"keep": "all", "normalize": True}, None, COMMAND)
    image.shards[0].path.write_bytes(b"damaged")
    assert encode_main("x prepare", [*flags, "--verify"], CLASSES, "vit", "bert") == 1
