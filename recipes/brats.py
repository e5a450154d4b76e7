"""BraTS 2021: which voxels of a brain belong to a tumour, and to which part of it, by four kinds of MRI?

    python recipes/brats.py --methods none cggm                      a small synthetic set, minutes on a laptop
    python recipes/brats.py prepare --data-root DIR                  h5 files from the NIfTI files, once
    python recipes/brats.py --data-root DIR --methods none cggm      the paper's training

DIR is a download of the training data, `CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz` at any depth, that `prepare` made
`h5/CASE_mri_norm2.h5` of; or the folders of the CGGM code, `train`, `valid` and `test`, with `CASE_mri_norm2.h5`.

Model and hyper-parameters are those of the CGGM authors (Guo et al., NeurIPS 2024): DeepLabV3+ on axial slices, four
ResNet-101 from scratch. Evaluation differs: they score one random slice with tumour per case, anew in every epoch; here
all slices of all cases count, whole, and Dice is that of volumes. `--protocol official` scores one slice per case.
Their training set is not shuffled, their best epoch is the worst one by mistake; neither is reproduced.
"""

import argparse
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from recipe_common.arguments import positive_int, seed_int
from recipe_common.cli import main
from recipe_common.data.datasets.brats import CLASSES, FILES, LABELS, MODALITIES, SUFFIX
from recipe_common.data.prepare.engine import prepare_parser, verify
from recipe_common.data.prepare.nifti import prepare_volumes
from recipe_common.data.readers.volumes import (
    AllSlices,
    Case,
    LabelledSlices,
    open_cases,
    rotate_flip_noise,
    slices_per_case,
)
from recipe_common.data.synthetic.brats import SYNTHETIC
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.errors import RecipeError
from recipe_common.models import deeplab, unet
from recipe_common.models.fusion import describe
from recipe_common.recipe import Data, Recipe
from recipe_common.tasks.segmentation import mean_dice, segmentation

REGIONS = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
TITLES = {"wt": "WT", "tc": "TC", "et": "ET"}  # whole tumour, tumour core, enhancing tumour
WEIGHTS = (0.2, 0.3, 0.25, 0.25)  # of the classes, in the loss of the CGGM code
DICE = {
    "dice_brats": partial(mean_dice, regions=((3,), (1, 3), (1, 2, 3))),  # the regions, in the order of the CGGM code
    "dice": partial(mean_dice, regions=((1,), (2,), (3,))),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of this dataset and its models."""
    add = parser.add_argument_group("BraTS").add_argument
    add("--split-seed", type=seed_int, help="of the 80/10/10 %% split of cases without folders; of --evaluation slice")
    add("--crop", type=positive_int, metavar="PIXELS", help="side of the centre crop in training, a multiple of 16")
    add("--eval-crop", type=positive_int, metavar="PIXELS", help="the same in evaluation; 240 is the whole slice")
    add("--first-slices", type=positive_int, metavar="N", help="random slices are drawn from the first N, if any has")
    add("--evaluation", choices=("volume", "slice"), help="all slices, Dice per volume; or one random slice per case")
    add("--model", choices=("deeplab", "unet"), help="DeepLabV3+ of the CGGM code; or one U-Net of MONAI per modality")
    add("--backbone", choices=tuple(deeplab.BACKBONES), help="of deeplab")
    add("--width", type=positive_int, metavar="CHANNELS", help="of the first level of unet")


def load(args: argparse.Namespace) -> Data:
    """Find, split and open the cases; without `--data-root` those of a small synthetic set."""
    is_synthetic = args.data_root is None
    root = synthetic_folder("brats", SYNTHETIC, SYNTHETIC.write) if is_synthetic else Path(args.data_root)
    files, origin = FILES.find(root, args.split_seed)
    opened = {part: open_cases(paths, len(MODALITIES), LABELS, skip_bad=args.skip_bad) for part, paths in files.items()}
    cases = {part: found for part, (found, _) in opened.items()}
    counts = ", ".join(f"{part} {len(cases[part]):,} of {len(files[part]):,}" for part in files)
    if not args.validation:
        counts += "; those of val are trained on"
        cases = {"train": cases["train"] + cases["val"], "val": (), "test": cases["test"]}
    check_sizes(args, len(cases["train"]))
    is_volume = args.evaluation == "volume"
    scored = "all slices, Dice per volume" if is_volume else "one random slice with tumour per case"
    return Data(
        train=LabelledSlices(cases["train"], args.crop, args.first_slices, seed=args.seed, augment=rotate_flip_noise),
        val=evaluated(args, cases["val"]),
        test=evaluated(args, cases["test"]),
        classes=CLASSES,
        modalities=MODALITIES,
        synthetic=is_synthetic,
        summary=(f"data: {root}", f"split: {origin}", f"cases: {counts}", f"evaluation: {scored}"),
        task=segmentation(
            REGIONS,
            TITLES,
            depth=slices_per_case(cases["val"] + cases["test"]) if is_volume else 1,
            weights=WEIGHTS,
        ),
        excluded={"relearning": "it clusters one feature per sample by class, and a slice has pixels of all classes"},
        skipped=tuple(f"{part}: {fault}" for part, (_, faults) in opened.items() for fault in faults),
    )


def evaluated(args: argparse.Namespace, cases: tuple[Case, ...]) -> AllSlices | LabelledSlices:
    if args.evaluation == "volume":
        return AllSlices(cases, args.eval_crop)
    # Not --seed: all runs are scored on the same slices.
    return LabelledSlices(cases, args.eval_crop, args.first_slices, seed=args.split_seed)


def check_sizes(args: argparse.Namespace, num_train: int) -> None:
    """Refuse what the networks cannot work on.

    Raises:
        RecipeError: For crops that are no multiple of 16, or a batch of one slice with --model deeplab.
    """
    for flag, size in (("--crop", args.crop), ("--eval-crop", args.eval_crop)):
        if size % max(deeplab.DEEPEST, unet.DEEPEST):
            raise RecipeError(f"Expected a multiple of 16 for {flag}. Found {size}. Fix: {flag} {size + -size % 16}")
    last = num_train % args.batch_size
    if args.model == "deeplab" and (args.batch_size == 1 or (last == 1 and args.drop_last == "none")):
        raise RecipeError(
            "Expected at least 2 slices in every training batch, for the batch norm of DeepLab's pooled feature. Found "
            f"1 in the last of batches of {args.batch_size} from {num_train:,} cases. "
            "Fix: --drop-last train, or another --batch-size of at least 2."
        )


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were cases that could not be read."""
    parser = prepare_parser("brats.py prepare", "One h5 file per case, normalised inside the brain.")
    args = parser.parse_args(arguments)
    if args.verify:
        return verify(args.data_root, workers=args.workers)
    root = args.data_root
    return prepare_volumes(
        root, root / FILES.prepared, modalities=MODALITIES, labels=LABELS, suffix=SUFFIX, workers=args.workers
    )


def build_model(args: argparse.Namespace, data: Data) -> nn.Module:
    if args.model == "unet":
        return unet.unet(MODALITIES, len(CLASSES), args.width)
    return deeplab.deeplab(MODALITIES, len(CLASSES), args.backbone)


def balance(args: argparse.Namespace) -> Mapping[str, Any]:
    return describe(MODALITIES)


RECIPE = Recipe(
    name="brats",
    title="BraTS 2021: brain tumour segmentation",
    add_arguments=add_arguments,
    defaults={
        # run/brats_run.py of the CGGM code; its learning rate changes after every step.
        "epochs": 75,
        "batch_size": 64,
        "lr": 0.01,
        "momentum": 0.9,
        "weight_decay": 3e-4,
        "schedule": "cosine",
        "warmup_epochs": 10,
        "warmup_lr": 4e-4,
        "final_lr": 1e-3,
        "seed": 666,
        # Its model and its dataset code; the seed is that of the preprocessing it builds upon, icerain-alt/brats-unet,
        # which splits the cases in the order of the file system, so that the parts of the paper are not known.
        "model": "deeplab",
        "backbone": "resnet101",
        "crop": 160,
        "first_slices": 128,
        "split_seed": 21,
        # Ours.
        "evaluation": "volume",
        "eval_crop": 240,
        "width": 32,
    },
    synthetic_defaults={
        "model": "unet",
        "width": 8,
        "crop": 32,
        "eval_crop": 48,
        "epochs": 12,
        "batch_size": 8,
        "lr": 0.05,
        "warmup_epochs": 1,
        "log_every": 1,
    },
    method_options={
        # Values of its script. Its probes are DeepLab decoders; "mlp" is a convolution of 1x1 with 256 channels, ReLU,
        # and another one to the classes, whose weight has the shape of the head's.
        "cggm": {"rho": 1.0, "lam": 0.1, "metric": "dice_brats", "probes": "mlp"},
    },
    option_values={"cggm": {"metric": DICE}},
    # The CGGM code: a random slice with tumour per case, its centre; ours is the same slice in every epoch.
    protocols={"official": {"evaluation": "slice", "eval_crop": 160}},
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
