"""UCF-101: which of 101 actions does a video show, by pictures and optical flow?

    python recipes/ucf101.py --methods none ogm_ge                      a small synthetic set, minutes on a laptop
    python recipes/ucf101.py prepare --data-root DIR --flow dis         frames and flow from the videos, once
    python recipes/ucf101.py --data-root DIR --methods none ogm_ge      training on fold 1

DIR holds the lists `ucfTrainTestlist/` (classInd.txt, trainlist01.txt, ...) and either the pictures that Feichtenhofer
et al. released, `jpegs_256/NAME/frame000001.jpg` and `tvl1_flow/{u,v}/NAME/frame000001.jpg`, or the videos
`UCF-101/CLASS/NAME.avi`. NAME is `v_<class>_g<group>_c<clip>`.

Optimizer and schedule are those of MIDAS (Hwang et al., NeurIPS 2025); segments, resizing and network those of the
BalanceBenchmark code, all of whose protocol is `--protocol official`. Three things differ from that code: whole groups
of clips are held out for validation, a clip is flipped as a whole and its flow to the right then changes sign, and
frames are spread over the whole clip.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.cache.feed import add_feed_arguments
from recipe_common.data.datasets.ucf101 import CLASS_LIST, VIDEOS, find_folders, read_classes, read_split
from recipe_common.data.prepare.engine import Item, prepare_parser, run_prepare, verify
from recipe_common.data.prepare.optical_flow import FLOW_METHODS, optical_flow, write_two_streams
from recipe_common.data.prepare.video import find_videos
from recipe_common.data.readers.two_stream import FLIPS, TwoStreams, two_stream_sources
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.ucf101 import SyntheticMotion
from recipe_common.errors import require
from recipe_common.models.clips import two_stream_net
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.recipe import Data, Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this dataset and its model."""
    add = parser.add_argument_group("UCF-101").add_argument
    add("--fold", type=int, choices=(1, 2, 3), help="official split")
    add("--split-seed", type=seed_int, help="decides which groups are held out, independently of --seed")
    add("--min-found", type=share_float, metavar="SHARE", help="share of the listed clips that must be on disk")
    add("--flow", choices=FLOW_METHODS, help="read <flow>_flow/{u,v}")
    add("--frames", type=positive_int, help="frames, and flows, per clip")
    add("--image-size", type=positive_int, metavar="PIXELS")
    add("--flip", choices=FLIPS, help="in training: a clip as a whole, or each picture by itself without sign change")
    add("--fusion", choices=FUSIONS)
    add("--pretrained", type=Path, metavar="FILE", help="weights of torchvision's ResNet-18; default: from scratch")
    add_feed_arguments(parser)


def load(args: argparse.Namespace) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    clips = SyntheticMotion()
    root = synthetic_folder("ucf101", clips, clips.write) if args.data_root is None else Path(args.data_root)
    folders = find_folders(root, args.flow)
    classes = read_classes(folders.lists / CLASS_LIST)
    split, origin = read_split(folders.lists, classes, args.fold, args.split_seed, validation=args.validation)
    streams = TwoStreams(args.frames, args.image_size, args.flip)
    sources = two_stream_sources(folders.rgb, folders.right, folders.down, streams)
    lines = (f"data: {folders.rgb}, {folders.right}, {folders.down}", f"split: {origin}")
    return open_samples(args, root, classes, split, sources, lines)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    parser = prepare_parser("ucf101.py prepare", "Numbered jpg files of frames and optical flow from the videos.")
    parser.add_argument("--flow", choices=FLOW_METHODS, default="tvl1", help="tvl1: as released; dis: 50 times faster")
    parser.add_argument("--short-side", type=positive_int, default=256, metavar="PIXELS")
    parser.add_argument(
        "--stride", type=positive_int, default=1, metavar="K", help="keep every K-th frame and its flow"
    )
    args = parser.parse_args(arguments)
    root = args.data_root
    if args.verify:
        return verify(root, workers=args.workers)
    require("av")
    optical_flow(args.flow)
    rgb, flow = root / "jpegs_256", root / f"{args.flow}_flow"
    items = [
        Item(video, (rgb / video.stem, flow / "u" / video.stem, flow / "v" / video.stem))
        for video in find_videos(root, VIDEOS)
    ]
    make = partial(write_two_streams, method=args.flow, short_side=args.short_side, stride=args.stride)
    return run_prepare(root, items, make, workers=args.workers)


def build_model(args: argparse.Namespace, data: Data) -> nn.Module:
    return two_stream_net(len(data.classes), args.fusion, args.pretrained)


def balance(args: argparse.Namespace) -> Mapping[str, Any]:
    return describe(("rgb", "flow"), args.fusion)


# trainer_config.yaml of the BalanceBenchmark code, for all of its datasets; its last epoch of 80 is after the end.
OGM = {"alpha": 0.3, "start_epoch": 10, "end_epoch": 80}

RECIPE = Recipe(
    name="ucf101",
    title="UCF-101: action recognition by pictures and optical flow",
    add_arguments=add_arguments,
    defaults={
        # MIDAS, on UCF-101: SGD with momentum 0.9, StepLR.
        "epochs": 70,
        "batch_size": 64,
        "lr": 1e-2,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 50,
        "gamma": 0.1,
        # The dataset code and the model configuration of BalanceBenchmark.
        "frames": 3,
        "image_size": 224,
        "fusion": "concat",
        # Ours.
        "fold": 1,
        "split_seed": 0,
        "min_found": 0.9,
        "flow": "tvl1",
        "flip": "clip",
        "pretrained": None,
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
