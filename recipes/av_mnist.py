"""AV-MNIST: classification of digits, each written in a picture and spoken in a recording.

    python recipes/av_mnist.py --methods none ogm dgl                  a small set, seconds on a laptop
    python recipes/av_mnist.py --data-root DIR --methods none agm      two ResNet-18, as in the AGM paper

DIR is the unpacked `avmnist.tar.gz` of the MFAS authors, or the folder above it: `image/` and `audio/`, each with
`train_data.npy` and `test_data.npy`, and `train_labels.npy` and `test_labels.npy` beside them. Pictures have 28 x 28
pixels, flat or not, and spectrograms 112 x 112; values are brightness from 0 to 255.

Hyper-parameters are those of the README of the AGM code (Li et al., ICCV 2023), with the split of MultiBench (Liang et
al., NeurIPS 2021), which has a validation part. `--protocol official` and `--protocol multibench` follow either one.

Without DIR the digits are real, from scikit-learn, in the same six files; the spectrograms are synthetic.
"""

import sys
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import attrs
import numpy as np
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.av_mnist import MODALITIES, DigitPart, Rows, find_digit_files
from recipe_common.data.synthetic.av_mnist import SyntheticDigits
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.errors import RecipeError
from recipe_common.models.fusion import FUSIONS, ConcatFusion, LateFusionNet, describe
from recipe_common.models.lenet import LeNet
from recipe_common.models.maxout import MaxoutFusion
from recipe_common.models.resnet import FEATURE_SIZE, PictureEncoder
from recipe_common.models.small import SMALL_SIZE, SmallEncoder
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings

CLASSES = tuple("0123456789")
MODELS = ("resnet", "maxout", "lenet", "small")
HEADS = ("concat", "sum", "shared")
SPLITS = ("multibench", "agm")
SYNTHETIC = SyntheticDigits()


@attrs.frozen(kw_only=True)
class AvMnistSettings:
    """Settings of this dataset and its models: files of MultiBench, the model of the AGM code."""

    title: ClassVar[str] = "AV-MNIST"

    split: str = flag(
        "multibench", "hold out the last --val-size training rows, or AGM's: 90 %% of either file", choices=SPLITS
    )
    val_size: int = flag(5_000, "multibench: training rows that are held out", number=positive_int, metavar="ROWS")
    image_size: int = flag(28, "height and width of the pictures on disk", number=positive_int, metavar="PIXELS")
    audio_size: int = flag(112, "height and width of the spectrograms on disk", number=positive_int, metavar="PIXELS")
    model: str = flag(
        "resnet",
        "resnet: two ResNet-18; maxout: these under a MaxOut network; lenet: two LeNets; small: two small networks",
        choices=MODELS,
    )
    batch_norm: bool = flag(False, "small: batch norm in the encoders")  # ours: the effect of balancing shows without
    fusion: str = flag("concat", "head of resnet and small; the others have one of their own", choices=HEADS)


def load(settings: Settings[AvMnistSettings]) -> Data:
    """Open the files and split their rows; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root
    is_small = root is None
    folder = synthetic_folder(RECIPE.name, SYNTHETIC, SYNTHETIC.write) if root is None else find_digit_files(root)
    files = {name: DigitPart.open(folder, name) for name in ("train", "test")}
    file_of = {"train": files["train"], "val": files["train"], "test": files["test"]}
    rows, origin = choose_rows(settings, len(files["train"]), len(files["test"]))
    skipped: list[str] = []
    if settings.data.skip_bad:
        bad = {name: np.intersect1d(rows[name], file_of[name].bad_rows()) for name in rows}
        rows = {name: np.setdiff1d(rows[name], bad[name]) for name in rows}
        skipped = [f"{name}: row {row}: NaN or infinity" for name in bad for row in bad[name]]
    sizes, scales = {"audio": own.audio_size, "image": own.image_size}, files["train"].scales()
    parts = {name: file_of[name].subset(rows[name], sizes, scales) for name in rows}
    empty = np.setdiff1d(np.arange(len(CLASSES)), files["train"].labels[rows["train"]])
    source = "real handwritten digits (scikit-learn), synthetic spectrograms; " if is_small else ""
    ranges = (f"{name} {'as it is, 0 to 1' if scales[name] == 1 else 'divided by 255'}" for name in MODALITIES)
    return Data(
        train=parts["train"],
        val=parts["val"],
        test=parts["test"],
        classes=CLASSES,
        modalities=MODALITIES,
        synthetic=is_small,
        summary=(
            f"data: {source}{folder}",
            f"brightness: {', '.join(ranges)}",
            f"split: {origin}",
            ", ".join(f"{name} {len(part):,}" for name, part in parts.items()),
            *(f"digit {digit} has no training sample" for digit in empty),
        ),
        skipped=tuple(skipped),
    )


def choose_rows(settings: Settings[AvMnistSettings], num_train: int, num_test: int) -> tuple[dict[str, Rows], str]:
    """Return the rows of train and val in the training files and of test in the test files, and a line about them.

    Raises:
        RecipeError: If the validation part would take all training rows.
    """
    val_size, validation = settings.own.val_size, settings.data.validation
    if settings.own.split == "agm":
        # In the AGM code the rest is a third part, for a metric alone; its training rows can select the epoch.
        first, of_test, origin = int(0.9 * num_train), int(0.9 * num_test), "AGM, the first 90 % of either file"
        last = num_train if validation else first
    else:
        first, of_test, origin = num_train - val_size * validation, num_test, "MultiBench"
        last = num_train
    if first < 1:
        raise RecipeError(
            f"There should be more training rows than the {val_size:,} of --val-size",
            found=f"{num_train:,}",
            fix="lower --val-size",
        )
    held_out = f"the last {last - first:,} training rows" if validation else "nothing"
    rows = {"train": np.arange(first), "val": np.arange(first, last), "test": np.arange(of_test)}
    return rows, f"{origin}; for validation {held_out}"


def build_model(settings: Settings[AvMnistSettings], data: Data) -> nn.Module:
    """Return the network of `--model`.

    Raises:
        RecipeError: If pictures are too small for LeNets, or `--fusion sum` goes with a model that has its own head.
    """
    own = settings.own
    if own.model in ("maxout", "lenet") and own.fusion != "concat":
        raise RecipeError(
            f"`--fusion` should be a head that --model {own.model} can have",
            found=f"--fusion {own.fusion}",
            fix="leave it out",
        )
    if own.model == "lenet":
        return build_lenets(own)
    encoder = partial(SmallEncoder, batch_norm=own.batch_norm) if own.model == "small" else PictureEncoder
    sizes = dict.fromkeys(MODALITIES, SMALL_SIZE if own.model == "small" else FEATURE_SIZE)
    head = (MaxoutFusion if own.model == "maxout" else FUSIONS[own.fusion])(sizes, len(CLASSES))
    return LateFusionNet({name: encoder() for name in MODALITIES}, head)


def build_lenets(own: AvMnistSettings) -> nn.Module:
    """Return the late fusion of MultiBench: 192 features of a spectrogram and 48 of a picture, 100 hidden units."""
    nets = {"audio": LeNet(blocks=6), "image": LeNet(blocks=4)}
    for name, size in (("audio", own.audio_size), ("image", own.image_size)):
        if size < nets[name].smallest_input:
            raise RecipeError(
                f"`--{name}-size` should be at least {nets[name].smallest_input} pixels for --model lenet",
                found=str(size),
                fix="choose another --model; the synthetic set has small",
            )
    sizes = {name: net.feature_size for name, net in nets.items()}
    return LateFusionNet(nets, ConcatFusion(sizes, len(CLASSES), hidden=100))


def balance(settings: Settings[AvMnistSettings]) -> Mapping[str, Any]:
    return describe(MODALITIES, settings.own.fusion)


RECIPE = Recipe(
    name="av_mnist",
    title="AV-MNIST: handwritten and spoken digits",
    settings=AvMnistSettings,
    defaults={
        # README of the AGM code; the schedule and the other values of SGD are defaults of that code.
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-4,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
        "seed": 999,
    },
    synthetic_defaults={
        "model": "small",
        "audio_size": SYNTHETIC.audio_size,
        "val_size": 240,
        "epochs": 25,
        "batch_size": 64,
        "lr": 0.02,
        "step_size": 1000,
        "seed": 0,
    },
    protocols={
        # AGM code: the best test epoch; its loop ends one epoch early. Its baselines sum two heads: --fusion sum.
        "official": {"split": "agm", "select": "test", "validation": False, "epochs": 99},
        # The late fusion of MultiBench, which selects on validation.
        "multibench": {
            "model": "lenet",
            "epochs": 30,
            "batch_size": 40,
            "lr": 0.1,
            "momentum": 0.0,
            "schedule": "constant",
            "clip_grad_norm": 8.0,
        },
    },
    method_options={
        "agm": {"alpha": 2.5},  # README of the AGM code; the next two are from its AV-MNIST script
        "mslr": {"init": {"audio": 1.3, "image": 0.7}},
        "mses": {"patience": 10},
        "cggm": {"probes": "mlp"},  # these fit all heads
    },
    synthetic_options={
        # 25 epochs instead of 100, or of 200 in the LFM code; CGGM without its direction term, the magnitudes alone.
        "mses": {"patience": 5},
        "lfm": {"alpha_epochs": 25},
        "relearning": {"period": 8, "count": 2},
        "cggm": {"probes": "linear", "lam": 0.0},
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
