"""The BraTS recipe: layouts, splits, protocols, the synthetic set, every kind of bad input, and the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from sklearn.model_selection import train_test_split
from torch.utils.data import default_collate

import brats
from modbalance import BalancedOptimizer
from recipe_common.cli import main
from recipe_common.data.datasets.brats import MODALITIES, split_cases
from recipe_common.data.readers.volumes import AllSlices, LabelledSlices
from recipe_common.data.synthetic.brats import CONTRAST, SYNTHETIC, SyntheticBrains
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.errors import RecipeError, require
from recipe_common.recipe import Data
from recipe_common.settings.shared import Settings
from recipe_common.training.settings import identity, options_of, resolve
from recipes.one_batch_training import all_methods
from recipes.without_pictures import without_pictures

from .brats_tree import PARTS, SHAPE, case_name, synthetic_case, write_folders, write_h5, write_raw


@pytest.fixture(autouse=True)
def _no_pictures() -> Iterator[None]:
    """Drawing takes longer than training here, and has tests of its own."""
    with without_pictures():
        yield


SMALL = {"crop": 16, "eval_crop": 32}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """The folders of the CGGM code: 5, 2 and 3 cases."""
    write_folders(tmp_path / "data")
    return tmp_path / "data"


def settings(data_root: Path | None, **changes: Any) -> Settings[brats.BratsSettings]:
    return resolve({"data_root": data_root, **changes}, brats.RECIPE)


def load(data_root: Path | None, **changes: Any) -> Data:
    return brats.load(settings(data_root, **({} if data_root is None else SMALL), **changes))


def case_names(part: Any) -> list[str]:
    return [case.path.name.removesuffix("_mri_norm2.h5") for case in part.cases]


@pytest.mark.parametrize("valid", ["valid", "val"])
def test_the_folders_are_the_split(tmp_path: Path, valid: str) -> None:
    write_folders(tmp_path, {"train": 5, valid: 2, "test": 3})
    (tmp_path / "test" / "._BraTS2021_00009_mri_norm2.h5").touch()
    data = load(tmp_path)
    assert [case_names(part) for part in (data.train, data.val, data.test)] == [
        [case_name(number) for number in numbers] for numbers in (range(5), (5, 6), (7, 8, 9))
    ]
    assert (data.modalities, data.synthetic, data.skipped) == (("flair", "t1ce", "t1", "t2"), False, ())
    assert "cases: train 5 of 5, val 2 of 2, test 3 of 3" in data.summary
    assert f"split: folders train, {valid}, test" in data.summary


def test_all_slices_of_all_cases_are_evaluated_whole(root: Path) -> None:
    data = load(root)
    assert isinstance(data.val, AllSlices)
    assert (len(data.train), len(data.val), len(data.test)) == (5, 2 * SHAPE[2], 3 * SHAPE[2])  # type: ignore[arg-type]
    image, label = synthetic_case(6)
    *images, classes = data.val[0, SHAPE[2] + 4]
    assert [each.shape for each in images] == [(1, 32, 32)] * 4
    np.testing.assert_array_equal(torch.cat(images)[:, 6:26, 4:28].numpy(), image[..., 4])
    np.testing.assert_array_equal(classes[6:26, 4:28].numpy(), label[..., 4])


def test_the_meter_scores_volumes(root: Path) -> None:
    data = load(root)
    meter = data.task.meter()
    dataset: Any = data.test
    for index in range(len(dataset)):
        label = dataset[0, index][-1]
        right = torch.nn.functional.one_hot(label, 4).movedim(-1, 0)
        # All slices of the first case are right, of the others none.
        meter.update((right if index < SHAPE[2] else 1 - right)[None].float(), label[None])
    assert meter.compute()["wt"] == pytest.approx(1 / 3, abs=0.05)
    assert meter.coefficients()[0].tolist() == [1.0, 1.0, 1.0]  # type: ignore[attr-defined]


def test_the_official_protocol_scores_one_slice_per_case(root: Path) -> None:
    official = settings(root, protocol="official")
    assert (official.own.evaluation, official.own.eval_crop, official.data.select) == ("slice", 160, "val")
    data = load(root, evaluation="slice")
    assert isinstance(data.test, LabelledSlices)
    assert len(data.test) == PARTS["test"]
    assert all(data.test[0, index][-1].any() for index in range(3))
    again = load(root, evaluation="slice", seed=1).test
    assert all(torch.equal(data.test[0, i][0], again[5, i][0]) for i in range(3))
    meter: Any = data.task.meter()
    meter.update(torch.zeros(3, 4, 8, 8), torch.zeros(3, 8, 8, dtype=torch.long))
    assert len(meter.coefficients()) == 3


def test_the_defaults_are_those_of_the_paper(tmp_path: Path) -> None:
    own, training = settings(tmp_path).own, settings(tmp_path).optimisation
    assert (training.epochs, training.batch_size, training.optimizer, training.momentum) == (75, 64, "sgd", 0.9)
    assert (training.lr, training.final_lr, training.warmup_lr, training.warmup_epochs) == (0.01, 1e-3, 4e-4, 10)
    assert (training.schedule, training.weight_decay, training.seed, own.crop) == ("cosine", 3e-4, 666, 160)
    assert (own.model, own.backbone, own.first_slices, own.eval_crop) == ("deeplab", "resnet101", 128, 240)


def test_cases_without_folders_are_split_by_scikit_learn() -> None:
    files = tuple(Path(f"{case_name(number)}.h5") for number in range(1251))
    parts = split_cases(files, 21)
    assert {part: len(paths) for part, paths in parts.items()} == {"train": 1000, "val": 125, "test": 126}
    train, rest = train_test_split(list(files), test_size=0.2, random_state=21)
    val, test = train_test_split(rest, test_size=0.5, random_state=21)
    assert parts == {"train": tuple(sorted(train)), "val": tuple(sorted(val)), "test": tuple(sorted(test))}
    assert split_cases(files, 22) != parts


@pytest.mark.parametrize("folder", ["h5", "."])
def test_what_prepare_made_is_read(tmp_path: Path, folder: str) -> None:
    for number in range(10):
        write_h5(tmp_path / folder / f"{case_name(number)}_mri_norm2.h5", *synthetic_case(number))
    data = load(tmp_path)
    parts = [case_names(part) for part in (data.train, data.val, data.test)]
    assert [len(part) for part in parts] == [8, 1, 1]
    assert sorted(name for part in parts for name in part) == [case_name(number) for number in range(10)]
    assert "split: 80/10/10 % of 10 cases, by scikit-learn, random_state 21" in data.summary


def test_without_validation_its_cases_are_trained_on(root: Path) -> None:
    data = load(root, validation=False, select="test")
    assert len(data.train) == 7  # type: ignore[arg-type]
    assert len(data.val) == 0  # type: ignore[arg-type]
    assert case_names(data.train)[-2:] == [case_name(5), case_name(6)]
    assert "cases: train 5 of 5, val 2 of 2, test 3 of 3; those of val are trained on" in data.summary


def test_missing_data_are_explained(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"h5 should hold .*CASE_mri_norm2\.h5.*Found no such folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(RecipeError, match="Found an empty folder"):
        load(tmp_path)
    write_h5(tmp_path / f"{case_name(0)}_mri_norm2.h5", *synthetic_case(0))
    with pytest.raises(
        RecipeError, match=r"h5 should hold files .* of at least 10 patients.*Found files of 1 patients alone"
    ):
        load(tmp_path)
    write_raw(tmp_path, 3)
    with pytest.raises(RecipeError, match=rf"not all prepared.*brats\.py prepare --data-root {tmp_path}"):
        load(tmp_path)


def test_half_of_the_folders_is_not_enough(tmp_path: Path) -> None:
    write_folders(tmp_path, {"train": 2, "test": 1})
    with pytest.raises(RecipeError, match=r"folders train, valid and test\. Found test, train"):
        load(tmp_path)


def test_an_empty_folder_is_refused_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_folders(tmp_path / "data", {"train": 2, "valid": 0, "test": 1})
    (tmp_path / "data" / "valid").mkdir()
    flags = ["--data-root", str(tmp_path / "data"), "--crop", "16", "--eval-crop", "32"]
    assert main(brats.RECIPE, [*flags, "--output", str(tmp_path / "out")]) == 2
    assert "Every split should have samples. Found none in val" in capsys.readouterr().err.replace("\n", " ")


def test_a_case_in_two_parts_is_refused(root: Path) -> None:
    (root / "test" / f"{case_name(1)}_mri_norm2.h5").write_bytes(b"")
    with pytest.raises(
        RecipeError, match=rf"train and test folders .* no common case\. Found 1, such as {case_name(1)}:"
    ):
        load(root)


def test_a_damaged_file_stops_or_is_skipped(root: Path) -> None:
    path = root / "train" / f"{case_name(2)}_mri_norm2.h5"
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(RecipeError, match=rf"{case_name(2)}.*truncated"):
        load(root)
    data = load(root, skip_bad=True)
    assert case_names(data.train) == [case_name(number) for number in (0, 1, 3, 4)]
    assert len(data.skipped) == 1
    assert data.skipped[0].startswith(f"train: {case_name(2)}_mri_norm2.h5: ")
    assert "cases: train 4 of 5, val 2 of 2, test 3 of 3" in data.summary


@pytest.mark.parametrize(("flag", "fix"), [("crop", "--crop 32"), ("eval_crop", "--eval-crop 32")])
def test_crops_that_do_not_fit_the_networks_are_refused(root: Path, flag: str, fix: str) -> None:
    with pytest.raises(RecipeError, match=f"multiple of 16. Found 20: try {fix}"):
        brats.load(settings(root, **{**SMALL, flag: 20}))


def test_a_training_batch_of_one_slice_is_refused_where_batch_norm_cannot_take_it(root: Path) -> None:
    with pytest.raises(RecipeError, match=r"1 in the last of batches of 4 from 5 cases.*--drop-last train"):
        load(root, batch_size=4)
    with pytest.raises(RecipeError, match="batches of 1"):
        load(root, batch_size=1, drop_last="train")
    assert load(root, batch_size=4, drop_last="train").train is not None
    with pytest.raises(RecipeError, match="the lowest level of the U-Net, one pixel wide"):
        load(root, batch_size=4, model="unet")
    assert brats.load(settings(root, batch_size=4, model="unet", crop=32, eval_crop=32)).train is not None


@pytest.mark.slow
@pytest.mark.parametrize("model", ["deeplab", "unet"])
def test_the_description_of_the_model_fits_it(model: str) -> None:
    chosen = settings(None, model=model, backbone="resnet50")
    data = load(None)
    require("monai.networks.nets")  # its modules create constants when they are imported, which meta would empty
    with torch.device("meta"):
        net = brats.build_model(chosen, data)
    description = brats.balance(chosen)
    assert list(description["modalities"]) == list(MODALITIES)
    assert all(net.get_submodule(path) for path in (*description["modalities"].values(), description["fusion"]))


def test_the_synthetic_set_has_the_real_format() -> None:
    data = load(None)
    assert data.synthetic
    assert [len(part.cases) for part in (data.train, data.val, data.test)] == [40, 8, 8]  # type: ignore[attr-defined]
    path = data.train.cases[0].path  # type: ignore[attr-defined]
    assert (path.parent.name, path.name) == ("train", "BraTS2021_00000_mri_norm2.h5")
    with h5py.File(path) as file:
        image, label = file["image"][:], file["label"][:]
        assert (image.shape, image.dtype, file["image"].compression) == ((4, 48, 48, 20), np.float32, "gzip")
        assert (label.shape, label.dtype) == ((48, 48, 20), np.uint8)
    brain = image.any(axis=0)
    np.testing.assert_allclose(image[:, brain].mean(axis=1), 0, atol=0.01)
    np.testing.assert_allclose(image[:, brain].std(axis=1), 1, atol=0.01)
    assert set(np.unique(label)) == {0, 1, 2, 3}
    assert not label[~brain].any()
    assert not label[..., 0].any()
    folder = synthetic_folder("brats", SYNTHETIC, SYNTHETIC.write)
    assert sum(file.stat().st_size for file in folder.rglob("*.h5")) < 5_000_000


def test_the_synthetic_set_is_a_function_of_its_seed(tmp_path: Path) -> None:
    brains = SyntheticBrains((("train", ("a.h5", "b.h5")),))
    for name in ("one", "two"):
        brains.write(tmp_path / name)
    first, again = ((tmp_path / name / "train" / "a.h5").read_bytes() for name in ("one", "two"))
    assert first == again
    assert first != (tmp_path / "one" / "train" / "b.h5").read_bytes()
    assert not np.array_equal(SyntheticBrains((), seed=1).volume(0)[0], brains.volume(0)[0])


def test_the_parts_of_a_synthetic_tumour_show_in_different_modalities() -> None:
    image, label = SyntheticBrains((), noise=0.1).volume(3)
    brain = image.any(axis=0)
    means = {
        name: [volume[brain & (label == part)].mean() for part in range(4)]
        for name, volume in zip(CONTRAST, image, strict=True)
    }
    assert means["flair"][2] == max(means["flair"])
    assert means["t1ce"][3] == max(means["t1ce"])
    assert means["t1"][1] == min(means["t1"])
    assert means["t2"][1] == max(means["t2"])


def test_the_dice_metric_is_a_name_in_run_folders_and_a_function_for_the_method() -> None:
    chosen = settings(None)
    options = options_of("cggm", chosen, brats.RECIPE)
    assert identity(chosen, "cggm", options)["options"]["metric"] == "dice_brats"
    assert brats.RECIPE.with_values("cggm", options) == {**options, "metric": brats.DICE["dice_brats"]}
    assert brats.RECIPE.with_values("cggm", {"metric": "dice", "rho": 1.0})["metric"] is brats.DICE["dice"]
    assert brats.RECIPE.with_values("cggm", {"metric": "accuracy"}) == {"metric": "accuracy"}
    assert brats.RECIPE.with_values("agm", {"metric": "dice"}) == {"metric": "dice"}


def test_relearning_does_not_apply(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(brats.RECIPE, ["--methods", "relearning", "--output", str(tmp_path)]) == 2
    assert "it needs one class per sample, and a slice has pixels of all classes" in capsys.readouterr().err.replace(
        "\n", " "
    )


@pytest.mark.slow
def test_all_other_methods_run_on_the_synthetic_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "1", "--limit-batches", "1", "--batch-size", "16", "--crop", "16", "--width", "1"]
    assert main(brats.RECIPE, [*flags, "--methods", "all", "--output", str(tmp_path)]) == 0
    methods = {*all_methods()} - {"mla", "mmcosine", "pmr", "relearning"}
    reason = "it needs one class per sample, and a slice has pixels of all classes"
    assert f"left out: relearning: {reason}" in capsys.readouterr().out
    results = {path.parent.name: json.loads(path.read_text()) for path in tmp_path.glob("*/result.json")}
    assert set(results) == methods
    for result in results.values():
        assert {"test_dice", "test_wt", "test_tc", "test_et", "test_dice_flair"} <= set(result["test"])


@pytest.mark.slow
def test_cggm_steps_the_papers_model_on_the_papers_layout(root: Path) -> None:
    chosen = settings(root, protocol="official", backbone="resnet50", crop=32, eval_crop=32, batch_size=5)
    data = brats.load(chosen)
    torch.manual_seed(0)
    model = brats.build_model(chosen, data)
    inner = torch.optim.SGD(model.parameters(), lr=0.01)
    options = brats.RECIPE.with_values("cggm", brats.RECIPE.method_options["cggm"])
    description = {**brats.balance(chosen), **options}
    optimizer = BalancedOptimizer(inner, method="cggm", model=model, **description)
    criterion = optimizer.criterion(data.task.loss(), score=data.task.score)
    before = {name: value.clone() for name, value in model.named_parameters()}
    *images, target = default_collate([data.train[0, index] for index in range(2)])
    loss = criterion(model(*images), target)
    loss.backward()
    optimizer.step()
    assert loss.isfinite()
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters() if value.dim() > 1)
    metrics = optimizer.metrics()
    assert all(0 <= metrics[f"cggm/metric/{name}"] <= 1 for name in MODALITIES)
    assert sum(metrics[f"cggm/coefficient/{name}"] for name in MODALITIES) == pytest.approx(3, abs=1e-3)


@pytest.mark.slow
def test_prepare_is_a_command(tmp_path: Path) -> None:
    for number in range(2):
        write_raw(tmp_path, number)
    assert main(brats.RECIPE, ["prepare", "--data-root", str(tmp_path), "--workers", "1"]) == 0
    assert len(list((tmp_path / "h5").glob("*_mri_norm2.h5"))) == 2
    assert main(brats.RECIPE, ["prepare", "--data-root", str(tmp_path), "--verify"]) == 0
