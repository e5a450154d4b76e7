"""BraTS: segmentation of brain tumours and their parts in four kinds of MRI.

    python recipes/brats.py --methods none cggm                      a small synthetic set, minutes on a laptop
    python recipes/brats.py prepare --data-root DIR                  h5 files from the NIfTI files, once
    python recipes/brats.py --data-root DIR --methods none cggm      the paper's training

DIR is a download of the training data, `CASE/CASE_{flair,t1,t1ce,t2,seg}.nii.gz` (2017 to 2021) or
`CASE/CASE-{t2f,t1n,t1c,t2w,seg}.nii.gz` (BraTS-GLI, from 2023 on) at any depth, of which `prepare` makes
`h5/CASE_mri_norm2.h5`; or it holds the folders of the CGGM code, `train`, `valid` and `test`, with `CASE_mri_norm2.h5`.

Model and hyper-parameters are those of the CGGM authors (Guo et al., NeurIPS 2024): DeepLabV3+ on axial slices, four
ResNet-101 from scratch. Evaluation differs: they score one random slice with tumour per case, anew in every epoch; here
all slices of all cases count, uncropped, and Dice is that of volumes. `--protocol official` scores one slice per case.
Their training set is not shuffled, and their best epoch is the worst one by mistake; neither is reproduced.
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int, seed_int
from recipe_common.cli import main
from recipe_common.data.cache.feed import beside
from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.datasets.brats import FILES, MODALITIES, SUFFIX, find_raw
from recipe_common.data.datasets.brats_releases import CLASSES, prepared_labels, raw_labels
from recipe_common.data.prepare.engine import Preparation, parse_preparation, verify
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
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings
from recipe_common.tasks.segmentation import mean_dice, segmentation

REGIONS = {"wt": (1, 2, 3), "tc": (1, 3), "et": (3,)}
TITLES = {"wt": "WT", "tc": "TC", "et": "ET"}  # whole tumour, tumour core, enhancing tumour
WEIGHTS = (0.2, 0.3, 0.25, 0.25)  # of the classes, in the loss of the CGGM code
DICE = {
    "dice_brats": partial(mean_dice, regions=((3,), (1, 3), (1, 2, 3))),  # the regions, in the order of the CGGM code
    "dice": partial(mean_dice, regions=((1,), (2,), (3,))),
}


@attrs.frozen(kw_only=True)
class BratsSettings:
    """Settings of this dataset and its models."""

    title: ClassVar[str] = "BraTS"

    # The seed is that of the preprocessing that the CGGM code builds upon, icerain-alt/brats-unet, which splits the
    # cases in the order of the file system, so that the split of the paper is not known.
    split_seed: int = flag(
        21, "seed of the 80/10/10 %% split of cases without folders, and of --evaluation slice", number=seed_int
    )
    # Model and dataset code of CGGM.
    crop: int = flag(
        160, "side of the centre crop in training, a multiple of 16", number=positive_int, metavar="PIXELS"
    )
    eval_crop: int = flag(
        240, "side of the centre crop in evaluation; 240: the whole slice", number=positive_int, metavar="PIXELS"
    )
    first_slices: int = flag(
        128, "random slices are drawn from the first N, if one of them has tumour", number=positive_int, metavar="N"
    )
    # Ours.
    evaluation: str = flag(
        "volume", "volume: all slices, Dice per volume; slice: one random slice per case", choices=("volume", "slice")
    )
    model: str = flag(
        "deeplab",
        "deeplab: DeepLabV3+ of the CGGM code; unet: a U-Net of MONAI per modality",
        choices=("deeplab", "unet"),
    )
    backbone: str = flag("resnet101", "deeplab: its encoders", choices=tuple(deeplab.BACKBONES))
    width: int = flag(32, "unet: channels of the first level", number=positive_int, metavar="CHANNELS")


@attrs.frozen(kw_only=True)
class BratsPreparation(Preparation):
    """Settings of `prepare`."""

    cavity: str = flag(
        "refuse",
        "cases after treatment (BraTS 2024), whose label 4 is the resection cavity: refuse, or read it as background",
        choices=("refuse", "background"),
    )
    enhancing: str = flag(
        "release",
        "value of the enhancing tumour in the segmentations; release: 4 up to 2021, 3 from 2023 on, told by the names",
        choices=("release", "3", "4"),
    )


def load(settings: Settings[BratsSettings]) -> Data:
    """Find, split and open the cases; without `--data-root` those of a small synthetic set."""
    own, skip_bad = settings.own, settings.data.skip_bad
    root = settings.data.data_root or synthetic_folder("brats", SYNTHETIC, SYNTHETIC.write)
    files, origin, release = FILES.find(root, own.split_seed)
    labels, store = prepared_labels(release), HeaderStore(root, beside(root))
    opened = open_cases(files, len(MODALITIES), labels, store, skip_bad=skip_bad)
    cases = {part: found for part, (found, _) in opened.items()}
    counts = ", ".join(f"{part} {len(cases[part]):,} of {len(files[part]):,}" for part in files)
    if not settings.data.validation:
        counts += "; those of val are trained on"
        cases = {"train": cases["train"] + cases["val"], "val": (), "test": cases["test"]}
    check_sizes(settings, len(cases["train"]))
    is_volume = own.evaluation == "volume"
    scored = "all slices, Dice per volume" if is_volume else "one random slice with tumour per case"
    return Data(
        train=LabelledSlices(
            cases["train"],
            own.crop,
            own.first_slices,
            seed=settings.optimisation.seed,
            augment=rotate_flip_noise,
        ),
        val=evaluated(own, cases["val"]),
        test=evaluated(own, cases["test"]),
        classes=CLASSES,
        modalities=MODALITIES,
        synthetic=settings.data.is_synthetic,
        summary=(
            f"data: {root}",
            f"release: {release.name}",
            f"split: {origin}",
            f"cases: {counts}",
            f"evaluation: {scored}",
            *store.summary,
        ),
        task=segmentation(
            REGIONS,
            TITLES,
            depth=slices_per_case(cases["val"] + cases["test"]) if is_volume else 1,
            weights=WEIGHTS,
        ),
        skipped=tuple(f"{part}: {fault}" for part, (_, faults) in opened.items() for fault in faults),
    )


def evaluated(own: BratsSettings, cases: tuple[Case, ...]) -> AllSlices | LabelledSlices:
    if own.evaluation == "volume":
        return AllSlices(cases, own.eval_crop)
    # Not --seed: all runs are scored on the same slices.
    return LabelledSlices(cases, own.eval_crop, own.first_slices, seed=own.split_seed)


def check_sizes(settings: Settings[BratsSettings], num_train: int) -> None:
    """Check that the networks can process crops and batches.

    Raises:
        RecipeError: For crops that are no multiple of 16, or a batch of one slice where batch norm sees a single value.
    """
    own, batch_size = settings.own, settings.optimisation.batch_size
    for name, size in (("--crop", own.crop), ("--eval-crop", own.eval_crop)):
        if size % max(deeplab.DEEPEST, unet.DEEPEST):
            raise RecipeError(
                f"`{name}` should be a multiple of 16", found=str(size), fix=f"try {name} {size + -size % 16}"
            )
    last = num_train % batch_size
    single = "DeepLab's pooled feature" if own.model == "deeplab" else "the lowest level of the U-Net, one pixel wide"
    if (own.model == "deeplab" or own.crop == unet.DEEPEST) and (
        batch_size == 1 or (last == 1 and settings.data.drop_last == "none")
    ):
        raise RecipeError(
            f"Every training batch should have at least 2 slices, for the batch norm of {single}",
            found=f"1 in the last of batches of {batch_size} from {num_train:,} cases",
            fix="add --drop-last train, or choose another --batch-size of at least 2",
        )


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were cases that could not be read."""
    settings = parse_preparation(
        BratsPreparation, "brats.py prepare", "One h5 file per case, normalised inside the brain.", arguments
    )
    root, workers = settings.data_root, settings.workers
    if settings.verify:
        return verify(root, workers=workers)
    cases, names, release = find_raw(root)
    labels = raw_labels(release, settings.cavity, settings.enhancing)
    return prepare_volumes(
        root, root / FILES.prepared, cases, names=names, labels=labels, suffix=SUFFIX, workers=workers
    )


def build_model(settings: Settings[BratsSettings], data: Data) -> nn.Module:
    if settings.own.model == "unet":
        return unet.unet(MODALITIES, len(CLASSES), settings.own.width)
    return deeplab.deeplab(MODALITIES, len(CLASSES), settings.own.backbone)


def balance(settings: Settings[BratsSettings]) -> Mapping[str, Any]:
    return describe(MODALITIES)


RECIPE = Recipe(
    name="brats",
    title="BraTS: brain tumour segmentation",
    settings=BratsSettings,
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
        "mmpareto": {"heads": "slice"},  # ours: built heads give one vector per sample, not a map
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
