"""UR-FUNNY: detection of humour in punchlines of talks, by words, voice and face.

    python recipes/ur_funny.py --methods none agm                       a small synthetic set, minutes on a laptop
    python recipes/ur_funny.py --data-root DIR --methods none agm       AGM's model on the real data
    python recipes/ur_funny.py --data-root DIR --model gru              a model of MultiBench: gru or transformer

DIR holds `humor.pkl`, as MultiBench packs version 2, or the six files of the release (`data_folds.pkl`,
`language_sdk.pkl`, ...). These are pickles, and ordinary pickles run code when they are opened: the recipe admits
arrays and plain containers only.

The model is that of the AGM authors (Li et al., ICCV 2023), whose code has no script for this dataset: optimizer and
schedule are those of the one run in its README. Unlike in theirs, padding is ignored. The epoch is
selected on validation punchlines, as in their code; the test punchlines are evaluated once.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.ur_funny import PACKED, read_ur_funny
from recipe_common.data.readers.packed_parts import MODALITIES
from recipe_common.data.readers.packed_sequences import Packed, joined
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.samples.padding import trim_padding
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.sentiment import SyntheticSequences
from recipe_common.errors import RecipeError
from recipe_common.models.fusion import FUSIONS, ConcatFusion, LateFusionNet, describe
from recipe_common.models.maxout import MaxoutFusion
from recipe_common.models.sequence import GRUEncoder, TransformerEncoder
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings

CLASSES = ("none", "humour")
WIDTHS = {
    "gru": {"text": 600, "audio": 256, "vision": 512},
    "transformer": {"text": 600, "audio": 100, "vision": 400},
}
"""Widths of the encoders of MultiBench."""
HIDDEN = {"gru": 512, "transformer": 256}
"""Hidden units of the heads of MultiBench."""
HEADS = {name: FUSIONS[name] for name in ("concat", "sum", "shared")} | {"maxout": MaxoutFusion}
"""Heads of AGM's model."""
SYNTHETIC = SyntheticSequences(strengths=(0.3, 0.16, 0.09), two_classes=True)


@attrs.frozen(kw_only=True)
class UrFunnySettings:
    """Settings of the model: the network of the AGM code for UR-FUNNY."""

    title: ClassVar[str] = "UR-FUNNY"

    model: str = flag("agm", "agm: three transformers of AGM; else late fusion of MultiBench", choices=("agm", *WIDTHS))
    fusion: str = flag("concat", "agm: head; maxout is its early fusion", choices=tuple(HEADS))
    width: int = flag(768, "agm: width of the transformers; a multiple of 4, the number of heads", number=positive_int)
    layers: int = flag(8, "agm: layers of the transformers", number=positive_int)
    # Ours: the AGM code attends to the zeros that fill a batch up.
    mask: bool = flag(True, "ignore padding; the papers do not")


def load(settings: Settings[UrFunnySettings]) -> Data:
    """Read the punchlines; without `--data-root` those of a small synthetic set."""
    root, validation = settings.data.data_root, settings.data.validation
    humor = read_ur_funny(synthetic_root(), SYNTHETIC.shapes) if root is None else read_ur_funny(root)
    train, val, test = (humor.splits[name] for name in ("train", "val", "test"))
    return Data(
        train=in_memory(train) if validation else in_memory(train, val),
        val=in_memory(val) if validation else in_memory(),
        test=in_memory(test),
        classes=CLASSES,
        modalities=MODALITIES,
        synthetic=settings.data.is_synthetic,
        summary=(
            f"data: {humor.path}",
            f"split: the published one{'' if validation else ', validation added to train'}",
            *(f"{part.summary(name)}; {share(part):.1%} humour" for name, part in humor.splits.items()),
        ),
        skipped=humor.skipped,
        collate=trim_padding,
    )


def in_memory(*parts: Packed) -> TensorSet:
    """Return the punchlines of all parts with class indices; a label of 1 is humour."""
    if not parts:
        return TensorSet([[] for _ in MODALITIES], [])
    whole = joined(parts)
    return TensorSet([getattr(whole, modality) for modality in MODALITIES], (whole.labels >= 1).long())


def share(part: Packed) -> float:
    return (part.labels >= 1).float().mean().item() if len(part) else 0.0


def synthetic_root() -> Path:
    """Return the folder of a small set in the format of MultiBench, which is written at the first call.

    320 training, 80 validation and 120 test punchlines of at most 12 words.
    """
    return synthetic_folder("ur_funny", SYNTHETIC, lambda root: SYNTHETIC.write(root / PACKED))


def build_model(settings: Settings[UrFunnySettings], data: Data) -> nn.Module:
    """Return the network of `--model`.

    Raises:
        RecipeError: If a model of MultiBench is combined with the head of another model.
    """
    *sample, _ = data.train[0, 0]
    sizes = {modality: sequence.shape[-1] for modality, sequence in zip(MODALITIES, sample, strict=True)}
    own = settings.own
    if own.model == "agm":
        return build_agm(own, sizes)
    if own.fusion != "concat":
        raise RecipeError(
            f"`--fusion` should be the head of --model {own.model}",
            found=f"--fusion {own.fusion}",
            fix="leave --fusion out",
        )
    widths = WIDTHS[own.model]
    encoders: dict[str, nn.Module] = {
        modality: GRUEncoder(size, widths[modality], mask=own.mask)
        if own.model == "gru"
        else TransformerEncoder(size, widths[modality], heads=5, layers=5, step="last", mask=own.mask)
        for modality, size in sizes.items()
    }
    return LateFusionNet(encoders, ConcatFusion(widths, len(CLASSES), hidden=HIDDEN[own.model]))


def build_agm(own: UrFunnySettings, sizes: Mapping[str, int]) -> nn.Module:
    encoders = {
        modality: TransformerEncoder(size, own.width, heads=4, layers=own.layers, mask=own.mask)
        for modality, size in sizes.items()
    }
    return LateFusionNet(encoders, HEADS[own.fusion](dict.fromkeys(encoders, own.width), len(CLASSES)))


def balance(settings: Settings[UrFunnySettings]) -> Mapping[str, Any]:
    return describe(MODALITIES, settings.own.fusion)


OGM = {"param_filter": "all"}  # ours: the default is to scale 4-D convolutions, and here are none

RECIPE = Recipe(
    name="ur_funny",
    title="UR-FUNNY: humour by text, audio and vision",
    settings=UrFunnySettings,
    defaults={
        # README of the AGM code, whose only run is on AV-MNIST; other values are defaults of that code.
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
        "width": 32,
        "layers": 2,
        "epochs": 8,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 6,
        "seed": 0,
        "log_every": 5,
    },
    protocols={
        # AGM. Its baselines sum three heads instead: --fusion sum.
        "official": {"mask": False},
    },
    method_options={
        # URFunny_main.py of the AGM code.
        "agm": {"max_gap": 7.0, "p_min": 0.0, "clip_trigger": 5.0, "clip_norm": 5.0},
        "mslr": {"init": {"audio": 0.9, "vision": 1.4, "text": 0.7}},
        "mses": {"patience": 30},
        "ogm": OGM,
        "ogm_ge": OGM,
        "cggm": {"probes": "mlp"},  # these fit all heads
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
