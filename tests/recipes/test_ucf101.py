"""The UCF-101 recipe: real layouts, the network, the synthetic set, `prepare`, and the command line."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.models import resnet18

import ucf101
from recipe_common.cli import main
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.ucf101 import MOTIONS, SyntheticMotion, motion
from recipe_common.errors import RecipeError
from recipe_common.models.clips import two_stream_net
from recipe_common.models.fusion import FUSIONS
from recipe_common.models.weights import read_state_dict
from recipe_common.recipe import Data
from recipe_common.training.settings import resolve

from .call import settings_of, values_of
from .test_data_optical_flow import write_moving
from .ucf101_tree import CLASSES, names, write_clip, write_lists


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A whole tree: 48 training, 6 validation and 18 test clips."""
    for name in names():
        write_clip(tmp_path / "data", name)
    write_lists(tmp_path / "data")
    return tmp_path / "data"


def load(data_root: Path | None, **changes: Any) -> Data:
    return ucf101.load(resolve({"data_root": data_root, **changes}, ucf101.RECIPE))


def samples_of(part: Any) -> list[Any]:
    return list(part.samples)


def test_the_real_layout_gives_the_tensors_of_the_paper(root: Path) -> None:
    data = load(root)
    assert [len(samples_of(part)) for part in (data.train, data.val, data.test)] == [48, 6, 18]
    assert (data.classes, data.modalities, data.synthetic, data.skipped) == (CLASSES, ("rgb", "flow"), False, ())
    rgb, flow, label = data.test[0, 0]
    assert (rgb.shape, rgb.dtype) == ((3, 3, 224, 224), torch.float32)
    assert (flow.shape, flow.dtype) == ((2, 3, 224, 224), torch.float32)
    assert label == 0
    assert [sample.label for sample in samples_of(data.test)] == [0] * 6 + [1] * 6 + [2] * 6


def test_evaluation_does_not_depend_on_the_epoch_and_training_does(root: Path) -> None:
    data = load(root, image_size=8)
    assert all(torch.equal(one, other) for one, other in zip(data.test[0, 2][:2], data.test[5, 2][:2], strict=True))
    epochs = [data.train[epoch, 2][0] for epoch in range(6)]
    assert torch.equal(epochs[0], data.train[0, 2][0])
    assert any(not torch.equal(epochs[0], other) for other in epochs[1:])


def test_absent_clips_are_counted_and_listed(root: Path) -> None:
    (root / "jpegs_256" / "v_YoYo_g01_c01").rename(root / "elsewhere")
    data = load(root)
    assert len(samples_of(data.test)) == 17
    assert any(
        "17 of 18 listed" in line and "1 without frames, such as v_YoYo_g01_c01" in line for line in data.summary
    )
    assert data.skipped == ("test: v_YoYo_g01_c01: no frames",)


def test_too_few_clips_are_an_error(root: Path) -> None:
    for name in names(range(1, 4)):
        (root / "tvl1_flow" / "u" / name).rename(root / name)
    with pytest.raises(RecipeError, match=r"should hold at least 90%.*18 without flow"):
        load(root)


def test_unreadable_clips_are_left_out_on_request(root: Path) -> None:
    picture = root / "tvl1_flow" / "u" / "v_YoYo_g01_c01" / "frame000002.jpg"
    picture.write_bytes(b"")
    data = load(root, skip_bad=True)
    assert len(samples_of(data.test)) == 17
    assert [line.partition(f": {picture} should")[0] for line in data.skipped] == ["test: v_YoYo_g01_c01"]


def test_the_official_protocol_is_that_of_the_benchmark(root: Path) -> None:
    settings = settings_of(ucf101.RECIPE, "--data-root", root, "--protocol", "official")
    assert values_of(settings, "optimizer", "lr", "select", "validation", "flip") == (
        "adamw",
        1e-3,
        "test",
        False,
        "picture",
    )
    data = ucf101.load(settings)
    assert [len(samples_of(part)) for part in (data.train, data.val, data.test)] == [54, 0, 18]


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_network_has_the_size_of_two_resnets_and_a_head(fusion: str) -> None:
    model = two_stream_net(101, fusion)
    logits = model(torch.randn(2, 3, 2, 32, 32), torch.randn(2, 2, 2, 32, 32))
    assert logits.shape == (2, 101)
    trunk = sum(weight.numel() for weight in resnet18().parameters()) - 513 * 1000
    head = {
        "concat": 1025 * 101,
        "sum": 2 * 513 * 101,
        "shared": 513 * 101,
        "film": 513 * 1024 + 513 * 101,
        "gated": 2 * 513 * 512 + 513 * 101,
    }[fusion]
    assert sum(weight.numel() for weight in model.parameters()) == 2 * trunk - 7 * 7 * 64 + head


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "module"])
def test_local_weights_are_loaded_into_both_encoders(tmp_path: Path, wrap: str) -> None:
    source = resnet18().state_dict()
    # Files of before 2018 do not count batches.
    stored: dict[str, Any] = {name: value for name, value in source.items() if "num_batches" not in name}
    if wrap == "module":
        stored = {f"module.{name}": value for name, value in stored.items()}
    torch.save({"state_dict": stored, "epoch": 3} if wrap == "state_dict" else stored, tmp_path / "weights.pth")
    torch.manual_seed(0)
    model = two_stream_net(5, pretrained=tmp_path / "weights.pth")
    torch.manual_seed(0)
    fresh = two_stream_net(5)
    for name, value in model.get_submodule("rgb_net.trunk").state_dict().items():
        assert torch.equal(value, source[name]), name
    for name, value in model.get_submodule("flow_net.trunk").state_dict().items():
        other = fresh.get_submodule("flow_net.trunk").state_dict() if name == "conv1.weight" else source
        assert torch.equal(value, other[name]), name


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    with pytest.raises(RecipeError, match="No such file"):
        read_state_dict(path)
    path.write_bytes(b"not weights")
    with pytest.raises(RecipeError, match=r"weights\.pth should be weights, saved by torch"):
        read_state_dict(path)
    torch.save([1, 2], path)
    with pytest.raises(RecipeError, match=r"should hold weights by name.*Found list"):
        read_state_dict(path)
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "other": torch.zeros(1)}, path)
    with pytest.raises(RecipeError, match=r"should hold weights of torchvision's ResNet-18.*Missing key"):
        two_stream_net(5, pretrained=path)


def digest(folder: Path) -> str:
    content = hashlib.sha256()
    for path in sorted(folder.rglob("*.*")):
        content.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return content.hexdigest()


def test_the_synthetic_set_is_always_the_same_and_in_the_real_format(tmp_path: Path) -> None:
    small = SyntheticMotion(groups=9, clips=1)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        small.write(tmp_path / name)
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    data = load(tmp_path / "one", image_size=48)
    assert data.classes == MOTIONS
    assert [len(samples_of(part)) for part in (data.train, data.val, data.test)] == [6, 6, 42]
    listed = (tmp_path / "one" / "ucfTrainTestlist" / "testlist01.txt").read_text().splitlines()
    assert listed[0] == "Rising/v_Rising_g01_c01.avi"


def test_synthetic_motions_stay_of_their_class_when_mirrored() -> None:
    for label in range(len(MOTIONS)):
        mirrored = motion(label, 9, 1)[:, ::-1] * (-1, 1)
        assert any(abs(mirrored - motion(label, 9, side)).max() < 1e-12 for side in (-1, 1))


def test_the_synthetic_set_is_balanced_and_said_to_be_synthetic() -> None:
    data = load(None)
    assert data.synthetic
    counts = [len(samples_of(part)) for part in (data.train, data.val, data.test)]
    assert counts == [6 * 16 * 3, 6 * 2 * 3, 6 * 7 * 3]
    clips = SyntheticMotion()
    files = list(synthetic_folder("ucf101", clips, clips.write).rglob("*.jpg"))
    assert len(files) == 450 * 6
    assert sum(path.stat().st_size for path in files) < 8e6


def test_videos_become_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lists(tmp_path)
    for name in names(range(1, 13), clips=1):
        write_moving(tmp_path / "UCF-101" / name.split("_")[1] / f"{name}.avi", frames=3)
    bad = tmp_path / "UCF-101" / "YoYo" / "v_YoYo_g01_c02.avi"
    bad.write_bytes(b"broken")
    arguments = ["prepare", "--data-root", str(tmp_path), "--flow", "dis", "--short-side", "32", "--workers", "1"]
    assert main(ucf101.RECIPE, arguments) == 1
    assert "36 of 37 videos are ready" in capsys.readouterr().out
    data = load(tmp_path, flow="dis", image_size=16, min_found=0.4)
    assert [len(samples_of(part)) for part in (data.train, data.val, data.test)] == [24, 3, 9]
    bad.unlink()
    assert main(ucf101.RECIPE, arguments) == 0
    assert main(ucf101.RECIPE, [*arguments, "--verify"]) == 0
    assert "108 of 108 outputs" in capsys.readouterr().out


def test_prepare_without_videos_is_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ucf101.RECIPE, ["prepare", "--data-root", str(tmp_path)]) == 2
    assert "UCF-101/*/*.avi" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_line_trains_on_the_synthetic_set(tmp_path: Path) -> None:
    arguments = ["--methods", "none", "ogm_ge", "--epochs", "1", "--limit-batches", "2", "--output", str(tmp_path)]
    assert main(ucf101.RECIPE, [*arguments, "--fusion", "sum", "--batch-size", "8", "--image-size", "32"]) == 0
    for method in ("none", "ogm_ge"):
        result = json.loads((tmp_path / method / "result.json").read_text())
        assert result["test"].keys() >= {"test_accuracy", "test_accuracy_rgb", "test_accuracy_flow"}
        assert result["best"]["steps"] == 2


def move_to_raw_frames(root: Path, *, by_class: bool) -> None:
    """Rename the files of a tree to the layout of MMAction2."""
    kinds = {"jpegs_256": "img_", "tvl1_flow/u": "flow_x_", "tvl1_flow/v": "flow_y_"}
    for folder, prefix in kinds.items():
        for clip in (root / folder).iterdir():
            target = root / "rawframes" / (clip.name.split("_")[1] if by_class else ".") / clip.name
            target.mkdir(parents=True, exist_ok=True)
            for path in clip.iterdir():
                path.rename(target / f"{prefix}{int(path.stem.removeprefix('frame')):05d}.jpg")
    for folder in ("jpegs_256", "tvl1_flow"):
        (root / folder).rename(root / f"empty_{folder}")
    (root / "ucfTrainTestlist").rename(root / "annotations")


@pytest.mark.parametrize("by_class", [True, False])
def test_the_folders_of_mmaction2_give_the_same_tensors(root: Path, by_class: bool) -> None:
    expected = load(root, image_size=8)
    before = [expected.test[0, 0], expected.train[3, 4]]
    move_to_raw_frames(root, by_class=by_class)
    data = load(root, image_size=8)
    assert [len(samples_of(part)) for part in (data.train, data.val, data.test)] == [48, 6, 18]
    for one, other in zip(before, [data.test[0, 0], data.train[3, 4]], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one[:2], other[:2], strict=True))
    assert load(root, image_size=8, skip_bad=True).skipped == ()


def test_a_clip_of_mmaction2_without_flow_is_named(root: Path) -> None:
    move_to_raw_frames(root, by_class=True)
    for path in (root / "rawframes/YoYo/v_YoYo_g01_c01").glob("flow_*.jpg"):
        path.unlink()
    (root / "rawframes/YoYo/v_YoYo_g01_c02/flow_y_00002.jpg").unlink()
    with pytest.raises(RecipeError, match=r"should hold the same jpg files\. Found 3 and 2"):
        load(root)
    data = load(root, skip_bad=True, min_found=0.8)
    assert "test: v_YoYo_g01_c01: no flow" in data.skipped
    assert "v_YoYo_g01_c02" not in [sample.name for sample in samples_of(data.test)]


def test_flow_among_the_frames_is_no_frame(root: Path) -> None:
    expected = load(root).test[0, 0][0]
    for clip in (root / "jpegs_256").iterdir():
        for axis in "xy":
            (clip / f"flow_{axis}_00001.jpg").write_bytes(b"flow")
    assert torch.equal(load(root).test[0, 0][0], expected)


def test_frames_in_class_folders_are_found(root: Path) -> None:
    for folder in ("jpegs_256", "tvl1_flow/u", "tvl1_flow/v"):
        for clip in sorted((root / folder).iterdir()):
            target = root / folder / clip.name.split("_")[1] / clip.name
            target.parent.mkdir(exist_ok=True)
            clip.rename(target)
    assert len(samples_of(load(root).test)) == 18


@pytest.mark.parametrize("raw", [True, False])
def test_frames_without_flow_are_told_the_way_to_it(root: Path, raw: bool) -> None:
    if raw:
        move_to_raw_frames(root, by_class=True)
        for path in (root / "rawframes").glob("*/*/flow_*.jpg"):
            path.unlink()
    else:
        (root / "tvl1_flow").rename(root / "elsewhere")
    with pytest.raises(RecipeError, match=r"should hold optical flow in u/ and v/.*: unpack the archive of the flow"):
        load(root)
