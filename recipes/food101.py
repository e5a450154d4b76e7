"""UPMC Food-101: classification of web pages into 101 dishes, by picture and title.

    python recipes/food101.py --methods none cggm                       a small synthetic set, a minute on a laptop
    python recipes/food101.py prepare --data-root DIR --image-model VIT --text-model BERT       features, once
    python recipes/food101.py --data-root DIR --methods none cggm       the paper's training, on those features
    python recipes/food101.py --data-root DIR --protocol end-to-end --text-model BERT           both networks trained

DIR is the copy on Kaggle, `texts/{train,test}_titles.csv` and `images/{train,test}/CLASS/*.jpg`, with or without a
header in the lists, or that of the CGGM code: `train.json`, `dev.json`, `test.json` and the pictures listed in them,
or that of MMBT and QMF: the same with `.jsonl`.
VIT and BERT are folders with the weights of ViT-B/16-224 and BERT-base; nothing is downloaded.

Hyper-parameters are those of the CGGM authors (Guo et al., NeurIPS 2024): a small transformer on all hidden states of
frozen ViT and BERT. Differences from their code: a part of the training list selects the epoch instead of the test
list, training samples are shuffled in every epoch, the plateau is one of the accuracy instead of the loss, text has a
projection of its own, pixels are normalised as ViT expects, and pictures are not augmented, so that features are
computed once. `--protocol official` undoes most of them. `end-to-end` is ResNet-18 and BERT in training, as in
BalanceBenchmark, and `--protocol benchmark` follows that code.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.datasets.food101.lists import FORMATS, read_titles, split_titles
from recipe_common.data.datasets.food101.prepare import encode_main
from recipe_common.data.datasets.food101.sources import PictureTransform, feature_sources, picture_source, token_source
from recipe_common.data.features.networks import KEEP
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.sources import Source
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.food101 import SyntheticDishes
from recipe_common.errors import RecipeError
from recipe_common.models.fusion import describe
from recipe_common.models.imagetext import end_to_end_net, frozen_feature_net
from recipe_common.models.pretrained import local_folder
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings

NAMES = """
    apple_pie baby_back_ribs baklava beef_carpaccio beef_tartare beet_salad beignets bibimbap bread_pudding
    breakfast_burrito bruschetta caesar_salad cannoli caprese_salad carrot_cake ceviche cheese_plate cheesecake
    chicken_curry chicken_quesadilla chicken_wings chocolate_cake chocolate_mousse churros clam_chowder club_sandwich
    crab_cakes creme_brulee croque_madame cup_cakes deviled_eggs donuts dumplings edamame eggs_benedict escargots
    falafel filet_mignon fish_and_chips foie_gras french_fries french_onion_soup french_toast fried_calamari fried_rice
    frozen_yogurt garlic_bread gnocchi greek_salad grilled_cheese_sandwich grilled_salmon guacamole gyoza hamburger
    hot_and_sour_soup hot_dog huevos_rancheros hummus ice_cream lasagna lobster_bisque lobster_roll_sandwich
    macaroni_and_cheese macarons miso_soup mussels nachos omelette onion_rings oysters pad_thai paella pancakes
    panna_cotta peking_duck pho pizza pork_chop poutine prime_rib pulled_pork_sandwich ramen ravioli red_velvet_cake
    risotto samosa sashimi scallops seaweed_salad shrimp_and_grits spaghetti_bolognese spaghetti_carbonara spring_rolls
    steak strawberry_shortcake sushi tacos takoyaki tiramisu tuna_tartare waffles
"""
CLASSES = tuple(NAMES.split())
"""In ASCII order, as in the code of CGGM: `_` comes before `c`, so `cheese_plate` before `cheesecake`."""
SYNTHETIC = SyntheticDishes()
MODALITIES = ("image", "text")
VIT, BERT = "google/vit-base-patch16-224", "google-bert/bert-base-uncased"
TRAIN = ("frozen", "end-to-end")
END_TO_END = {
    # Model and text length of BalanceBenchmark, trained as MIDAS, a paper with validation samples, trains it here.
    "train": "end-to-end",
    "text_length": 40,
    "optimizer": "sgd",
    "lr": 1e-3,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "schedule": "step",
    "step_size": 15,
    "batch_size": 64,
    "epochs": 30,
}


@attrs.frozen(kw_only=True)
class FrozenSettings:
    """Settings of training on features of frozen networks."""

    title: ClassVar[str] = "--train frozen"

    features: str | None = flag(None, "folder that `prepare` has written; default: DATA_ROOT/features", metavar="DIR")
    image_features: str | None = flag(None, "folder in --features, if several have these settings", metavar="NAME")
    text_features: str | None = flag(None, "folder in --features, if several have these settings", metavar="NAME")
    keep: str = flag("all", "hidden states of all tokens, or of the first one alone", choices=KEEP)
    normalize: bool = flag(True, "pixels normalised as the network expects, or from 0 to 1 as in CGGM")
    # food_run.py and foodtrain.py of the CGGM code.
    layers: int = flag(4, "layers of the encoder of each modality", number=positive_int)
    fusion_layers: int = flag(2, "layers of the encoder of both modalities", number=positive_int)
    width: int = flag(40, "width of all encoders; a multiple of 5, the number of heads", number=positive_int)
    # Ours: that code scales encoders without projections.
    balanced: str = flag("branch", "methods act on encoders with or without projections", choices=("branch", "encoder"))
    shared_projection: bool = flag(False, "text goes through the projection of the images, as in CGGM")


@attrs.frozen(kw_only=True)
class EndToEndSettings:
    """Settings of training a ResNet-18 and a text encoder."""

    title: ClassVar[str] = "--train end-to-end"

    text_model: str | None = flag(
        None, f"weights to start from; a folder, or a cached name such as {BERT}", metavar="DIR"
    )
    resnet: str | None = flag(
        None, "state dict of torchvision's resnet18 to start from; default: random", metavar="FILE"
    )
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")


@attrs.frozen(kw_only=True)
class FoodSettings:
    """Settings of this dataset and its models."""

    title: ClassVar[str] = "UPMC Food-101"

    train: str = flag(
        "frozen",
        "frozen: a transformer on features of frozen networks; end-to-end: ResNet-18 and a text encoder",
        choices=TRAIN,
    )
    lists: str = flag(
        "auto",
        "lists to read where there are several; auto: the first of these that is there",
        choices=("auto", *FORMATS),
    )
    # Ours: the CGGM code has no validation part.
    val_share: float = flag(
        0.1, "share of every class of the training list that is held out to select with", number=share_float
    )
    split_seed: int = flag(0, "seed of the choice of held-out samples, independent of --seed", number=seed_int)
    min_found: float = flag(
        0.9, "share of the listed samples that must be on disk", number=share_float, metavar="SHARE"
    )
    text_length: int = flag(50, "titles are cut or padded to this length", number=positive_int, metavar="TOKENS")
    frozen: FrozenSettings = group(FrozenSettings)
    end_to_end: EndToEndSettings = group(EndToEndSettings)


def load(settings: Settings[FoodSettings]) -> Data:
    """Find, split and open the samples; without `--data-root` those of a small synthetic set."""
    own, data_root = settings.own, settings.data.data_root
    root = data_root or synthetic_folder("food101", SYNTHETIC, SYNTHETIC.write)
    classes = CLASSES if data_root else SYNTHETIC.classes
    lists = read_titles(root, classes, own.lists)
    split, origin = split_titles(lists, own.val_share, own.split_seed, validation=settings.data.validation)
    is_frozen = own.train == "frozen"
    sources = frozen_sources(own, root) if is_frozen else end_to_end_sources(settings, root)
    places = tuple(f"{source.modality}: {source.where}" for source in sources)
    lines = (f"data: {root}, {lists.kind} lists", *lists.notes, f"split: {origin}", *places)
    data = open_samples(settings, root, classes, split, sources, lines, min_found=own.min_found)
    # A run may not be resumed with the features of another network.
    found = {f"{source.modality}_features": Path(source.where).name for source in sources}
    return attrs.evolve(data, chosen=found) if is_frozen else data


def frozen_sources(own: FoodSettings, root: Path) -> tuple[Source, ...]:
    """Return the features that the settings describe."""
    frozen = own.frozen
    settings = {
        "image": {"keep": frozen.keep, "normalize": frozen.normalize},
        "text": {"keep": frozen.keep, "length": own.text_length},
    }
    folder = Path(frozen.features) if frozen.features else root / "features"
    names = {"image": frozen.image_features, "text": frozen.text_features}
    flags = f"--keep {frozen.keep} --text-length {own.text_length}{'' if frozen.normalize else ' --no-normalize'}"
    command = f"python recipes/food101.py prepare --data-root {root} {flags}"
    return feature_sources(folder, root, settings, names, command)


def end_to_end_sources(settings: Settings[FoodSettings], root: Path) -> tuple[Source, ...]:
    """Return pictures and token ids."""
    transform = PictureTransform(settings.own.end_to_end.image_size)
    return picture_source(root, transform), token_source(text_model(settings), settings.own.text_length)


def text_model(settings: Settings[FoodSettings]) -> Path:
    """Return the folder of the text encoder; on the synthetic set, the small one of that set."""
    named = settings.own.end_to_end.text_model
    if named is None and settings.data.is_synthetic:
        return synthetic_folder("food101", SYNTHETIC, SYNTHETIC.write) / "models" / "text"
    return local_folder(named or BERT, "--text-model", BERT)


def build_model(settings: Settings[FoodSettings], data: Data) -> nn.Module:
    """Return the network of `--train`.

    Raises:
        RecipeError: If `--shared-projection` is combined with `--balanced branch`.
    """
    own, frozen = settings.own, settings.own.frozen
    if own.train == "end-to-end":
        resnet = own.end_to_end.resnet
        return end_to_end_net(len(data.classes), text_model(settings), Path(resnet) if resnet else None)
    shared = frozen.shared_projection
    if shared and frozen.balanced == "branch":
        raise RecipeError(
            "`--balanced` should be encoder with --shared-projection, as one projection cannot be scaled by modality",
            found="--balanced branch",
            fix="add --balanced encoder, or --no-shared-projection",
        )
    *sample, _ = data.train[0, 0]
    sizes = {modality: feature.shape[-1] for modality, feature in zip(MODALITIES, sample, strict=True)}
    return frozen_feature_net(
        sizes, len(data.classes), frozen.layers, frozen.fusion_layers, frozen.width, shared=shared
    )


def balance(settings: Settings[FoodSettings]) -> Mapping[str, Any]:
    own = settings.own
    return describe(MODALITIES, part=".encoder" if own.train == "frozen" and own.frozen.balanced == "encoder" else "")


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were pictures that could not be read."""
    return encode_main("food101.py prepare", arguments, CLASSES, VIT, BERT)


RECIPE = Recipe(
    name="food101",
    title="UPMC Food-101: 101 dishes by picture and title",
    settings=FoodSettings,
    defaults={
        # food_run.py and foodtrain.py of the CGGM code.
        "epochs": 60,
        "batch_size": 128,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 6e-3,
        "schedule": "plateau",
        "patience": 10,
        "gamma": 0.1,
        "seed": 666,
    },
    synthetic_defaults={
        "text_length": SYNTHETIC.length,
        "image_size": SYNTHETIC.pixels,
        "layers": 1,
        "fusion_layers": 1,
        "epochs": 12,
        "batch_size": 12,
        "lr": 2e-3,
        "log_every": 5,
        "normalize": True,  # in every protocol: there are no other features
    },
    method_options={
        # food_run.py: rho, lambda, clip, a two-layer classifier of width 40. The plugin trains it by Adam with their
        # learning rate of 5e-4; their weight decay of 3e-3 is left out.
        "cggm": {"rho": 1.3, "lam": 0.05, "probes": "transformer"},
    },
    protocols={
        # CGGM: the test list selects the epoch, all gradients are clipped, pixels are not normalised, the text goes
        # through the projection of the images, and projections are not scaled.
        "official": {
            "select": "test",
            "validation": False,
            "clip_grad_norm": 0.8,
            "normalize": False,
            "shared_projection": True,
            "balanced": "encoder",
        },
        "end-to-end": END_TO_END,
        "benchmark": {
            # Configurations of the BalanceBenchmark code, which selects on the test list without its last batch.
            **END_TO_END,
            "optimizer": "adamw",
            "weight_decay": 1e-2,
            "step_size": 10,
            "batch_size": 32,
            "seed": 42,
            "select": "test",
            "validation": False,
            "drop_last": "both",
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
