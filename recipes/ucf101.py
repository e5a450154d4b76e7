"""UCF-101: classification of videos into 101 actions, by pictures and optical flow.

    python recipes/ucf101.py --methods none ogm_ge                      a small synthetic set, minutes on a laptop
    python recipes/ucf101.py prepare --data-root DIR --flow dis         frames and flow from the videos, once
    python recipes/ucf101.py --data-root DIR --methods none ogm_ge      training on fold 1

DIR holds the lists `ucfTrainTestlist/` (classInd.txt, trainlist01.txt, ...) and either the pictures that Feichtenhofer
et al. released, `jpegs_256/NAME/frame000001.jpg` and `tvl1_flow/{u,v}/NAME/frame000001.jpg`, or the videos
`UCF-101/CLASS/NAME.avi`. NAME is `v_<class>_g<group>_c<clip>`.

Optimizer and schedule are those of MIDAS (Hwang et al., NeurIPS 2025); segments, resizing and network those of the
BalanceBenchmark code, whose whole protocol is `--protocol official`. Three things differ from that code: whole groups
of clips are held out for validation, a clip is flipped as a whole and its flow to the right then changes sign, and
frames are spread over the whole clip.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.datasets.ucf101 import CLASS_LIST, VIDEOS, find_folders, read_classes, read_split
from recipe_common.data.prepare.engine import Item, Preparation, parse_preparation, run_prepare, verify
from recipe_common.data.prepare.optical_flow import FLOW_METHODS, optical_flow, write_two_streams
from recipe_common.data.prepare.video import find_videos
from recipe_common.data.readers.two_stream import FLIPS, TwoStreams, two_stream_sources
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import listed
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.ucf101 import SyntheticMotion
from recipe_common.errors import require
from recipe_common.models.clips import two_stream_net
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings


@attrs.frozen(kw_only=True)
class Ucf101Settings:
    """Settings of this dataset and its model."""

    title: ClassVar[str] = "UCF-101"

    fold: int = flag(1, "number of the official split", choices=(1, 2, 3))
    split_seed: int = flag(0, "seed of the choice of held-out groups, independent of --seed", number=seed_int)
    min_found: float = flag(0.9, "share of the listed clips that must be on disk", number=share_float, metavar="SHARE")
    flow: str = flag("tvl1", "read the folders <flow>_flow/{u,v}", choices=FLOW_METHODS)
    # The dataset code and the model configuration of BalanceBenchmark.
    frames: int = flag(3, "frames, and flows, per clip", number=positive_int)
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")
    flip: str = flag(
        "clip", "clip: flip clips as a whole; picture: each picture by itself, without change of sign", choices=FLIPS
    )
    fusion: str = flag("concat", choices=FUSIONS)
    pretrained: Path | None = flag(None, "weights of torchvision's ResNet-18; default: from scratch", metavar="FILE")
    feed: FeedSettings = group(FeedSettings)


@attrs.frozen(kw_only=True)
class Ucf101Preparation(Preparation):
    """Settings of `prepare`."""

    flow: str = flag("tvl1", "tvl1: as released; dis: 50 times faster", choices=FLOW_METHODS)
    short_side: int = flag(256, number=positive_int, metavar="PIXELS")
    stride: int = flag(1, "keep every K-th frame and its flow", number=positive_int, metavar="K")


def load(settings: Settings[Ucf101Settings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, clips = settings.own, SyntheticMotion()
    root = settings.data.data_root or synthetic_folder("ucf101", clips, clips.write)
    folders = find_folders(root, own.flow)
    classes = read_classes(folders.lists / CLASS_LIST)
    validation = settings.data.validation
    split, origin = read_split(folders.lists, classes, own.fold, own.split_seed, validation=validation)
    streams = TwoStreams(own.frames, own.image_size, own.flip)
    sources = two_stream_sources(folders.rgb, folders.right, folders.down, streams)
    data = ", ".join(map(listed, dict.fromkeys((folders.rgb, folders.right, folders.down))))
    lines = (f"data: {data}", f"split: {origin}")
    return open_samples(settings, root, classes, split, sources, lines, min_found=own.min_found, feeding=own.feed)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(
        Ucf101Preparation,
        "ucf101.py prepare",
        "Numbered jpg files of frames and optical flow from the videos.",
        arguments,
    )
    root = settings.data_root
    if settings.verify:
        return verify(root, workers=settings.workers)
    require("av")
    optical_flow(settings.flow)
    rgb, flow = root / "jpegs_256", root / f"{settings.flow}_flow"
    items = [
        Item(video, (rgb / video.stem, flow / "u" / video.stem, flow / "v" / video.stem))
        for video in find_videos(root, VIDEOS)
    ]
    make = partial(write_two_streams, method=settings.flow, short_side=settings.short_side, stride=settings.stride)
    return run_prepare(root, items, make, workers=settings.workers)


def build_model(settings: Settings[Ucf101Settings], data: Data) -> nn.Module:
    return two_stream_net(len(data.classes), settings.own.fusion, settings.own.pretrained)


def balance(settings: Settings[Ucf101Settings]) -> Mapping[str, Any]:
    return describe(("rgb", "flow"), settings.own.fusion)


# trainer_config.yaml of the BalanceBenchmark code, for all of its datasets; its last epoch of 80 is after the end.
OGM = {"alpha": 0.3, "start_epoch": 10, "end_epoch": 80}

RECIPE = Recipe(
    name="ucf101",
    title="UCF-101: action recognition by pictures and optical flow",
    settings=Ucf101Settings,
    defaults={
        # MIDAS, on UCF-101: SGD with momentum 0.9, StepLR.
        "epochs": 70,
        "batch_size": 64,
        "lr": 1e-2,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 50,
        "gamma": 0.1,
    },
    synthetic_defaults={
        "frames": 1,
        "image_size": 48,
        "epochs": 8,
        "batch_size": 16,
        "step_size": 6,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "agm": {"alpha": 0.1, "end_epoch": 80},  # the same file, as is the next one
        "relearning": {"period": 15, "count": 2},
        # That file again; its alpha of OPM is lam, and this value and p_exe are the defaults.
        "mmcosine": {"scale": 15.0},
        "opm": {"q_base": 0.4, "start_epoch": 0},
        "pmr": {"alpha": 0.6, "momentum": 0.5, "end_epoch": 80},
    },
    synthetic_options={
        "ogm": {"start_epoch": 0},
        "ogm_ge": {"start_epoch": 0},
    },
    protocols={
        # BalanceBenchmark: global_config.yaml, its UCF-101 dataset code, and validation: false.
        "official": {
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 1e-2,
            "step_size": 10,
            "epochs": 30,
            "batch_size": 32,
            "drop_last": "both",
            "flip": "picture",
            "select": "test",
            "validation": False,
        }
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
