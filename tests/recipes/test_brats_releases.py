"""Releases of BraTS from 2017 to 2024: names of files, the meaning of labels, and folders that hold two releases."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest

import brats
from recipe_common.cli import main
from recipe_common.data.datasets.brats import FILES, find_raw
from recipe_common.data.datasets.brats_releases import prepared_labels, raw_labels, release_of
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipe_common.training.settings import resolve

from .brats_tree import HYPHENS, UNDERSCORES, synthetic_case, write_h5, write_release

CASES: dict[str, tuple[str, Mapping[str, str], tuple[int, ...], str]] = {
    "2018": ("Brats18_2013_0_1", UNDERSCORES, (0, 1, 2, 4), ".nii.gz"),
    "2019": ("BraTS19_CBICA_ASK_1", UNDERSCORES, (0, 1, 2, 4), ".nii"),
    "2020": ("BraTS20_Training_001", UNDERSCORES, (0, 1, 2, 4), ".nii"),
    "2021": ("BraTS2021_00003", UNDERSCORES, (0, 1, 2, 4), ".nii.gz"),
    "2023": ("BraTS-GLI-00000-000", HYPHENS, (0, 1, 2, 3), ".nii.gz"),
    "other": ("patient-7", UNDERSCORES, (0, 1, 2, 4), ".nii.gz"),
    "other, hyphens": ("patient7", HYPHENS, (0, 1, 2, 3), ".nii.gz"),
}
TREATED = ("BraTS-GLI-00005-100", HYPHENS, (0, 1, 2, 3, 4), ".nii.gz")


@pytest.fixture(autouse=True)
def _no_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes seconds, and has tests of its own."""
    monkeypatch.setattr(
        "recipe_common.data.prepare.engine.in_processes", lambda make, items, *_: ((item, make(item)) for item in items)
    )


def write(root: Path, release: str | tuple[str, Mapping[str, str], tuple[int, ...], str]) -> Path:
    case, endings, labels, suffix = CASES[release] if isinstance(release, str) else release
    return write_release(root, case, endings, labels, suffix=suffix)


def prepare(root: Path, *flags: str) -> int:
    return main(brats.RECIPE, ["prepare", "--data-root", str(root), "--workers", "1", *flags])


def said(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).split())


def segmentation(folder: Path, ending: str) -> np.ndarray:
    (path,) = folder.glob(f"*{ending}.nii*")
    return np.asarray(nibabel.load(path).dataobj)


def made(root: Path, case: str) -> tuple[np.ndarray, np.ndarray]:
    with h5py.File(root / "h5" / f"{case}_mri_norm2.h5") as file:
        return file["image"][:], file["label"][:]


@pytest.mark.parametrize("release", CASES)
def test_each_release_becomes_the_same_classes_and_modalities(tmp_path: Path, release: str) -> None:
    case, endings, labels, suffix = CASES[release]
    folder = write(tmp_path / "deep" / "below", release)
    assert prepare(tmp_path) == 0
    image, label = made(tmp_path, case)
    raw = segmentation(folder, endings["seg"])
    np.testing.assert_array_equal(label, np.where(raw == labels[-1], 3, raw))
    for number, name in enumerate(("flair", "t1ce", "t1", "t2")):
        volume = np.asarray(nibabel.load(folder / f"{case}{endings[name]}{suffix}").dataobj)
        inside = volume > 0
        assert set(np.unique(volume[inside] % 4)) == {number}
        expected = (volume[inside] - volume[inside].mean()) / volume[inside].std()
        np.testing.assert_allclose(image[number][inside], expected, atol=1e-5)


def test_the_segmentation_of_case_355_of_2020_has_another_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (354, 355):
        write(tmp_path, (f"BraTS20_Training_{number}", UNDERSCORES, (0, 1, 2, 4), ".nii"))
    folder = tmp_path / "BraTS20_Training_355"
    (folder / f"{folder.name}_seg.nii").rename(folder / "W39_1998.09.19_Segm.nii")
    assert prepare(tmp_path) == 0
    assert "2 of 2 cases are ready" in said(capsys)
    raw = segmentation(folder, "Segm")
    np.testing.assert_array_equal(made(tmp_path, folder.name)[1], np.where(raw == 4, 3, raw))


@pytest.mark.parametrize(
    ("case", "endings", "labels", "advice", "flag"),
    [
        ("BraTS-GLI-00000-000", HYPHENS, (0, 1, 2, 3, 4), "4 is the resection cavity", None),
        ("BraTS-GLI-00000-000", HYPHENS, (0, 1, 2, 4), "add `--enhancing 4`", "4"),
        ("BraTS2021_00003", UNDERSCORES, (0, 1, 2, 3), "add `--enhancing 3`", "3"),
        ("BraTS20_Training_001", UNDERSCORES, (0, 1, 2, 3), "add `--enhancing 3`", "3"),
    ],
)
def test_labels_of_another_release_than_the_names_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    case: str,
    endings: Mapping[str, str],
    labels: tuple[int, ...],
    advice: str,
    flag: str | None,
) -> None:
    folder = write_release(tmp_path, case, endings, labels)
    assert prepare(tmp_path) == 1
    message = said(capsys)
    assert f"{case}{endings['seg']}.nii.gz: labels" in message
    assert f"(found {', '.join(map(str, labels))}): " in message
    assert advice in message
    assert not list((tmp_path / "h5").glob("*.h5"))
    if flag is not None:
        assert prepare(tmp_path, "--enhancing", flag) == 0
        raw = segmentation(folder, endings["seg"])
        np.testing.assert_array_equal(made(tmp_path, case)[1], np.where(raw == int(flag), 3, raw))


def test_the_resection_cavity_is_refused_or_background_and_never_enhancing_tumour(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path, TREATED)
    for flags in ((), ("--enhancing", "4"), ("--enhancing", "4", "--cavity", "background")):
        assert prepare(tmp_path, *flags) == 2
        message = said(capsys)
        assert "BraTS 2024, after treatment: 3 is enhancing tumour, 4 the resection cavity" in message
        assert "`--cavity background`" in message
        assert not (tmp_path / "h5").exists()
    assert prepare(tmp_path, "--cavity", "background") == 0
    raw = segmentation(folder, "-seg")
    np.testing.assert_array_equal(made(tmp_path, folder.name)[1], np.where(raw == 4, 0, raw))


def test_the_cavity_of_a_release_without_one_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"`--cavity` should be .*Found BraTS 2023, which has no resection cavity"):
        raw_labels(release_of("BraTS-GLI-00000-000"), "background", "release")


@pytest.mark.parametrize(
    ("first", "second", "found"),
    [
        ("2021", "2023", r"3 of BraTS 2021 \(BraTS2021_00000\) and 1 of BraTS 2023 \(BraTS-GLI-00000-000\)"),
        ("2021", "2020", r"3 of BraTS 2021 \(.*\) and 1 of BraTS 2020"),
        ("2021", "treated", r"3 of BraTS 2021 \(.*\) and 1 of BraTS 2024, after treatment \(BraTS-GLI-00005-100\)"),
        ("2021", "other", r"3 of BraTS 2021 \(.*\) and 1 of cases of other names \(patient-7\)"),
        ("2021", "other, hyphens", "1 of cases of other names with the file endings of 2023"),
    ],
)
def test_mixed_releases_are_refused_with_counts(tmp_path: Path, first: str, second: str, found: str) -> None:
    for number in range(3):
        write(tmp_path / "one", (f"BraTS2021_{number:05d}", UNDERSCORES, (0, 1, 2, 4), ".nii.gz"))
    write(tmp_path / "two", TREATED if second == "treated" else second)
    with pytest.raises(RecipeError, match=rf"should hold the cases of one release\. Found .*{found}"):
        find_raw(tmp_path)


def test_files_of_one_release_with_two_kinds_of_names_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "2023")
    write(tmp_path, ("BraTS-GLI-00001-000", UNDERSCORES, (0, 1, 2, 3), ".nii.gz"))
    with pytest.raises(RecipeError, match=r"named in one way\. Found 1 cases with _flair and 1 cases with -t2f"):
        find_raw(tmp_path)


@pytest.mark.parametrize("part", ["MEN", "PED", "MET", "SSA"])
def test_other_tumours_are_refused(tmp_path: Path, part: str) -> None:
    write(tmp_path, (f"BraTS-{part}-00000-000", HYPHENS, (0, 1, 2, 3), ".nii.gz"))
    with pytest.raises(RecipeError, match=rf"a glioma of an adult.*Found BraTS-{part}-00000-000, of another part"):
        find_raw(tmp_path)


@pytest.mark.parametrize("case", ["brats-001", "BraTS-GLI-00000-00", "BraTS-", "brats-gli-7"])
def test_a_name_of_no_release_is_not_taken_for_another_part(case: str) -> None:
    with pytest.raises(RecipeError, match=rf"those of a release.*Found {case}, of no known release"):
        release_of(case)


def test_cases_of_validation_data_are_counted_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("BraTS20_Training_001", "BraTS20_Validation_001", "BraTS20_Validation_002"):
        folder = write(tmp_path, (name, UNDERSCORES, (0, 1, 2, 4), ".nii"))
        if "Validation" in name:
            (folder / f"{name}_seg.nii").unlink()
    assert prepare(tmp_path) == 0
    message = said(capsys)
    assert "cases without a segmentation, which are left out: 2, such as BraTS20_Validation_001" in message
    assert "1 of 1 cases are ready" in message
    (tmp_path / "BraTS20_Training_001").rename(tmp_path.parent / "moved")
    assert prepare(tmp_path) == 2
    assert "should have segmentations. Found none in 2 cases" in said(capsys)


@pytest.mark.parametrize(
    ("file", "fix"),
    [
        ("Task01_BrainTumour/labelsTr/BRATS_001.nii.gz", "Medical Segmentation Decathlon, where 1 is oedema"),
        ("BraTS2020_training_data/content/data/volume_1_slice_0.h5", "download the NIfTI files of BraTS 2020"),
        ("HGG/brats_2013_pat0001_1/VSD.Brain.XX.O.MR_Flair.54512.mha", "BraTS 2012 to 2016 is not read"),
        ("BraTS2021_Training_Data.tar", "unpack the archive"),
    ],
)
def test_what_is_no_release_is_named(tmp_path: Path, file: str, fix: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).touch()
    with pytest.raises(RecipeError, match=rf"CASE_flair\.nii\.gz or CASE-t2f\.nii\.gz\. Found .*{fix}"):
        find_raw(tmp_path)
    with pytest.raises(RecipeError, match=fix):
        load(tmp_path)


def load(root: Path) -> Data:
    return brats.load(resolve({"data_root": root, "crop": 16, "eval_crop": 32}, brats.RECIPE))


def write_prepared(root: Path, cases: list[str], label: int = 3) -> None:
    for number, case in enumerate(cases):
        image, classes = synthetic_case(number)
        write_h5(root / f"{case}_mri_norm2.h5", image, np.where(classes == 3, label, classes).astype(np.uint8))


def test_visits_of_one_patient_stay_in_one_part(tmp_path: Path) -> None:
    cases = [f"BraTS-GLI-{number:05d}-{visit:03d}" for number in range(12) for visit in range(1 + number % 3)]
    write_prepared(tmp_path / "h5", cases)
    data = load(tmp_path)
    datasets: tuple[Any, ...] = (data.train, data.val, data.test)
    parts = [{case.path.name[:15] for case in dataset.cases} for dataset in datasets]
    assert [len(part) for part in parts] == [9, 1, 2]
    assert len(set.union(*parts)) == 12
    assert sum(len(dataset.cases) for dataset in datasets) == len(cases)
    assert "release: BraTS 2023" in data.summary
    assert "split: 80/10/10 % of 12 patients with 24 cases, by scikit-learn, random_state 21" in data.summary


def test_ten_cases_of_few_patients_are_too_few(tmp_path: Path) -> None:
    write_prepared(tmp_path / "h5", [f"BraTS-GLI-00001-{100 + visit}" for visit in range(11)])
    with pytest.raises(
        RecipeError, match=r"files CASE_mri_norm2\.h5 of at least 10 patients, .*Found files of 1 patients alone"
    ):
        load(tmp_path)


def test_patients_in_two_folders_are_counted(tmp_path: Path) -> None:
    for part, cases in {"train": ("00001-000", "00002-000"), "valid": ("00001-001",), "test": ("00003-000",)}.items():
        write_prepared(tmp_path / part, [f"BraTS-GLI-{case}" for case in cases])
    assert "split: folders train, valid, test; 1 patients have cases in two of them" in load(tmp_path).summary


def test_h5_files_of_two_releases_are_refused(tmp_path: Path) -> None:
    write_prepared(tmp_path / "train", ["BraTS2021_00001", "BraTS2021_00002"])
    write_prepared(tmp_path / "valid", ["BraTS2021_00003"])
    write_prepared(tmp_path / "test", ["BraTS-GLI-00009-000"])
    with pytest.raises(RecipeError, match=r"one release\. Found 3 of BraTS 2021 .* and 1 of BraTS 2023"):
        load(tmp_path)


def test_a_4_in_h5_files_is_enhancing_tumour_up_to_2021_alone(tmp_path: Path) -> None:
    for folder, name in (("before", "BraTS2021_{:05d}"), ("treated", "BraTS-GLI-{:05d}-100")):
        write_prepared(tmp_path / folder / "h5", [name.format(number) for number in range(10)], label=4)
    assert int(load(tmp_path / "before").train[0, 0][-1].max()) == 3
    data = load(tmp_path / "treated")
    with pytest.raises(RecipeError, match=r"BraTS-GLI-.*labels 4, .*4 is the resection cavity of BraTS 2024: make"):
        data.train[0, 0]


def test_the_labels_of_prepared_files_follow_the_release() -> None:
    assert prepared_labels(release_of("BraTS2021_00001")).stored == {4: 3}
    assert prepared_labels(release_of("BraTS-GLI-00001-001")).stored == {}
    assert FILES.case(Path("h5/BraTS-GLI-00001-001_mri_norm2.h5")) == "BraTS-GLI-00001-001"
