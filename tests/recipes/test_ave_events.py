"""AVE, a class per second: the six files, reading them one by one, the two losses and the command line."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import ave
from ave import EVENTS, RECIPE, SEGMENT_CLASSES
from modbalance import BalancedOptimizer
from recipe_common.cli import main
from recipe_common.data.datasets.ave.segment_features import FeatureFile, read_segment_features
from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.data.synthetic.ave import SyntheticSegmentFeatures
from recipe_common.errors import RecipeError
from recipe_common.recipe import Data
from recipes.call import settings_of

FILES = {
    "audio_feature.h5",
    "visual_feature.h5",
    "right_labels.h5",
    "train_order.h5",
    "val_order.h5",
    "test_order.h5",
}


def write(path: Path, key: str, values: Any) -> None:
    with h5py.File(path, "w") as file:
        file[key] = values


def tree(root: Path) -> Path:
    """Five clips; every number of a feature tells clip and segment."""
    root.mkdir(exist_ok=True)
    number = np.arange(50, dtype=np.float32).reshape(5, 10)
    write(root / "audio_feature.h5", "avadataset", np.repeat(number[..., None], 4, axis=2))
    maps = np.broadcast_to(number[..., None, None, None], (5, 10, 2, 2, 3))
    write(root / "visual_feature.h5", "avadataset", maps)
    labels = np.full((5, 10), 28)
    labels[:, 2:6] = np.arange(5)[:, None]
    write(root / "right_labels.h5", "avadataset", np.eye(29)[labels])
    for name, order in (("train", [4, 0, 2]), ("val", [1]), ("test", [3])):
        write(root / f"{name}_order.h5", "order", np.array(order))
    return root


def load(root: Path, *flags: str) -> Data:
    return ave.load_events(settings_of(EVENTS, "--data-root", root, *flags))


def test_samples_follow_the_orders(tmp_path: Path) -> None:
    data = load(tree(tmp_path))
    audio, visual, target = data.train[(0, 1)]
    assert (audio.shape, visual.shape, visual.dtype) == ((10, 4), (10, 2, 2, 3), torch.float32)
    assert audio[3, 0] == visual[3, 1, 1, 2] == 3
    assert target.tolist() == [28, 28, 0, 0, 0, 0, 28, 28, 28, 28]
    assert data.train[(0, 0)][2][2] == 4
    assert data.test[(0, 0)][0][0, 0] == 30
    assert data.classes[28] == "background"
    assert data.task.chance == pytest.approx(0.6)


def test_data_folder_and_other_name_of_the_labels(tmp_path: Path) -> None:
    folder = tree(tmp_path / "data")
    (folder / "right_labels.h5").rename(folder / "right_label.h5")
    assert len(load(tmp_path).train) == 3  # type: ignore[arg-type]


def test_no_validation_trains_on_it(tmp_path: Path) -> None:
    data = load(tree(tmp_path), "--no-validation", "--select", "test")
    assert [data.train[(0, index)][2][2].item() for index in range(4)] == [4, 0, 2, 1]


def test_maps_are_read_row_by_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    original: Callable[..., Any] = h5py.Dataset.__getitem__

    def noted(self: h5py.Dataset, key: Any, **kwargs: Any) -> Any:
        read.append((Path(self.file.filename).name, key))
        return original(self, key, **kwargs)

    monkeypatch.setattr(h5py.Dataset, "__getitem__", noted)
    data = load(tree(tmp_path))
    assert "visual_feature.h5" not in {name for name, _ in read}
    data.train[(0, 1)]
    assert ("visual_feature.h5", 0) in read


@pytest.mark.slow
def test_every_process_opens_the_file_itself(tmp_path: Path) -> None:
    data = load(tree(tmp_path))
    data.train[(0, 0)]  # open in this process
    sampler = ResumableBatchSampler(3, 1, seed=0, shuffle=False)
    for context in ("fork", "spawn"):
        loader = DataLoader(data.train, batch_sampler=sampler, num_workers=1, multiprocessing_context=context)
        assert [batch[0][0, 0, 0].item() for batch in loader] == [40, 0, 20]
    features = FeatureFile(tmp_path / "audio_feature.h5")
    features[1]
    assert torch.equal(pickle.loads(pickle.dumps(features))[1], features[1])


# What can be wrong with the files


def cut(root: Path) -> None:
    content = (root / "visual_feature.h5").read_bytes()
    (root / "visual_feature.h5").write_bytes(content[: len(content) // 2])


def two_classes(root: Path) -> None:
    with h5py.File(root / "right_labels.h5", "a") as file:
        file["avadataset"][2, 7, 0] = 1


BREAKS: dict[str, tuple[Callable[[Path], object], str]] = {
    "absent": (lambda root: (root / "val_order.h5").unlink(), r"missing: val_order.h5: point"),
    "no hdf5": (
        lambda root: (root / "audio_feature.h5").write_bytes(b"<html>"),
        r"audio_feature.h5 should be a whole hdf5 file .*: download",
    ),
    "cut": (cut, r"visual_feature.h5 should .*truncated"),
    "other key": (
        lambda root: write(root / "audio_feature.h5", "features", np.zeros((5, 10, 4))),
        r"datasets \['features'\], and no `avadataset`",
    ),
    "number": (lambda root: write(root / "audio_feature.h5", "avadataset", 1.0), "single number"),
    "clips": (
        lambda root: write(root / "audio_feature.h5", "avadataset", np.zeros((4, 10, 4))),
        r"audio features \(4, 10, 4\); visual features \(5, 10, 2, 2, 3\)",
    ),
    "flat maps": (
        lambda root: write(root / "visual_feature.h5", "avadataset", np.zeros((5, 10, 12))),
        r"height, width, size\).*visual features \(5, 10, 12\)",
    ),
    "28 classes": (
        lambda root: write(root / "right_labels.h5", "avadataset", np.zeros((5, 10, 28))),
        r"\(5, 10, 28\), not \(clips, segments, 29 classes\)",
    ),
    "two classes": (two_classes, "1 segments without exactly one class, such as segment 7 of clip 2"),
    "out of range": (lambda root: write(root / "test_order.h5", "order", np.array([5])), "clips 5 to 5, .* 0 to 4"),
    "twice": (lambda root: write(root / "test_order.h5", "order", np.array([3, 3])), "listed twice"),
    "shares": (
        lambda root: write(root / "test_order.h5", "order", np.array([2])),
        "train_order.h5 and test_order.h5 .*no common clip.*such as 2",
    ),
    "no order": (lambda root: write(root / "test_order.h5", "order", np.zeros(0, int)), "not a list of whole numbers"),
    "fractions": (lambda root: write(root / "test_order.h5", "order", np.array([0.5])), "type float64"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_broken_files_are_named(tmp_path: Path, what: str) -> None:
    break_it, expected = BREAKS[what]
    break_it(tree(tmp_path))
    with pytest.raises(RecipeError, match=expected):
        load(tmp_path)


def test_wrong_folder(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RecipeError, match=r"Found notes.txt; missing: audio_feature.h5, visual_feature.h5"):
        load(tmp_path)


def test_rows_that_are_not_finite_stop_or_are_left_out(tmp_path: Path) -> None:
    with h5py.File(tree(tmp_path) / "visual_feature.h5", "a") as file:
        file["avadataset"][0, 5, 0, 0, 0] = np.inf
    with pytest.raises(RecipeError, match="Found numbers that are not finite in row 0: download it again"):
        load(tmp_path).train[(0, 1)]
    data = load(tmp_path, "--skip-bad")
    assert len(data.train) == 2  # type: ignore[arg-type]
    assert [line for line in data.skipped if line.startswith("train: clip 0: ")]


def test_classes_without_segment_are_said(tmp_path: Path) -> None:
    assert "25 of 29 classes have no training segment: Male speech" in " ".join(load(tree(tmp_path)).summary)


def test_metrics_count_segments() -> None:
    target = torch.tensor([[0, 28], [3, 28]])
    predicted = torch.tensor([[0, 28], [28, 28]])
    logits = torch.nn.functional.one_hot(predicted, 29).float().transpose(1, 2)
    scores = ave.segment_metrics(logits, target)
    assert scores["accuracy"] == pytest.approx(3 / 4)
    assert scores["macro_f1"] == pytest.approx((1 + 0 + 0.8) / 3)  # classes 0, 3, 28; others do not occur


# The synthetic set and the command line


def test_synthetic_features_are_deterministic_and_in_the_real_format(tmp_path: Path) -> None:
    made = SyntheticSegmentFeatures(clips=(2, 1, 1))
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.write(tmp_path / name)
    first, second = (read_segment_features(tmp_path / name, SEGMENT_CLASSES, skip_bad=False) for name in ("a", "b"))
    assert {path.name for path in (tmp_path / "a").iterdir()} == FILES
    assert [len(first.orders[part]) for part in ("train", "val", "test")] == [56, 28, 28]
    assert torch.equal(first.targets, second.targets)
    assert all(torch.equal(first.visual[row], second.visual[row]) for row in (0, 111))
    lengths = (first.targets != 28).sum(1)
    assert lengths.min() >= 4
    assert lengths.max() <= 10


@pytest.mark.parametrize("method", ["agm", "cggm", "dgl", "mses", "mslr", "ogm", "ogm_ge"])
def test_every_method_that_applies_trains_all_weights(tmp_path: Path, method: str) -> None:
    data = load(tree(tmp_path))
    settings = settings_of(EVENTS, "--data-root", tmp_path)
    torch.manual_seed(0)
    model = ave.build_psp(settings, data)
    inner = torch.optim.SGD(model.parameters(), lr=0.1)  # modbalance warns of Adam, where scaled gradients do little
    described = {**ave.balance_psp(settings), **EVENTS.method_options.get(method, {})}
    optimizer = BalancedOptimizer(inner, method=method, model=model, **described)
    criterion = optimizer.criterion(data.task.loss(), score=data.task.score)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    target = torch.stack([data.train[(0, index)][2] for index in range(3)])
    batch = [torch.randn(3, 10, 4), torch.randn(3, 10, 2, 2, 3), target]
    for _ in range(2):
        optimizer.zero_grad()
        loss = criterion(model(*batch[:2]), batch[2])
        assert data.penalty is not None
        (loss + data.penalty(model, target)).backward()
        optimizer.step()
    optimizer.end_epoch(val=[batch])
    after = list(model.parameters())
    assert all(torch.isfinite(parameter).all() for parameter in after)
    assert all(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


@pytest.mark.slow
def test_short_run_on_the_synthetic_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--epochs", "1", "--limit-batches", "1", "--batch-size", "8", "--pair-weight", "1e6"]
    assert main(RECIPE, ["events", "--methods", "agm", *flags, "--output", str(tmp_path)]) == 0
    assert "SYNTHETIC DATA" in capsys.readouterr().out
    result = json.loads((tmp_path / "agm" / "result.json").read_text())
    assert set(result["test"]) >= {"test_accuracy", "test_macro_f1", "test_accuracy_audio", "test_accuracy_visual"}
    (row,) = result["history"]
    assert row["train_loss"] > 1_000 > row["val_loss"]  # the pair loss enters training alone


def test_method_that_does_not_apply_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(RECIPE, ["events", "--methods", "relearning", "--output", "unused"]) == 2
    assert "a clip has ten classes" in capsys.readouterr().err
