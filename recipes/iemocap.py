"""IEMOCAP: classification of utterances into four emotions, by words, voice and face, on the features of MMIN.

    python recipes/iemocap.py --methods none cggm                       a small synthetic set, minutes on a laptop
    python recipes/iemocap.py --data-root DIR --methods none cggm       the paper's training on fold 1
    python recipes/iemocap.py --data-root DIR --fold 4                  another one of the 10 folds
    python recipes/iemocap.py --data-root IEMOCAP_features.pkl          vectors of whole utterances, of DialogueRNN

DIR is the feature archive of the MMIN code, `IEMOCAP_features_2021`, or its parent folder: `L/bert_large.h5`,
`A/comparE.h5`, `A/comparE_mean_std.h5`, `V/denseface.h5`, and `target/<fold>/{trn,val,tst}_{label,int2name}.npy`.

Hyper-parameters are those of the CGGM authors (Guo et al., NeurIPS 2024). Differences from their code: training
utterances are shuffled, the plateau is one of the validation accuracy instead of the loss, and the test part, which
their code never evaluates, is evaluated once.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int, share_float
from recipe_common.cli import main
from recipe_common.data.datasets.iemocap import find_root, read_split, sources
from recipe_common.data.datasets.iemocap_dialogues import dialogue_sources, read_dialogues
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.splits import Split
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.iemocap import SyntheticUtterances
from recipe_common.errors import RecipeError
from recipe_common.models.fusion import describe
from recipe_common.models.msa import Dropouts, MSANet
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, flags_of
from recipe_common.settings.shared import Settings

CLASSES = ("angry", "happy", "neutral", "sad")
"""Class names in the order of the one-hot labels, from notes by the group of MMIN's authors; happy includes excited."""
SIZES = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
"""Utterances of each class in the whole corpus, for a check of that order."""
MODALITIES = ("text", "audio", "vision")
ARCHIVE = ("fold", "text_length", "audio_length", "vision_length")
"""Settings that apply to the archive of MMIN alone."""
SPLIT_SEED = 0
"""Seed of the validation part of files without one."""


@attrs.frozen(kw_only=True)
class IemocapSettings:
    """Settings of this dataset and its model: those of iemo_run.py of the CGGM code."""

    title: ClassVar[str] = "IEMOCAP"

    fold: int = flag(1, "number of the fold; the papers take 1", choices=range(1, 11), metavar="1..10")
    # Ours: its code stops at an utterance that is missing.
    min_found: float = flag(
        0.9, "share of the listed utterances that must be in the h5 files", number=share_float, metavar="SHARE"
    )
    # Shapes in its dataset code.
    text_length: int = flag(22, "time steps of text that are kept", number=positive_int, metavar="STEPS")
    audio_length: int = flag(350, "time steps of audio that are kept", number=positive_int, metavar="STEPS")
    vision_length: int = flag(50, "time steps of vision that are kept", number=positive_int, metavar="STEPS")
    layers: int = flag(4, "layers of the encoder of each modality", number=positive_int)
    fusion_layers: int = flag(2, "layers of the encoder of all modalities", number=positive_int)
    width: int = flag(40, "width of all encoders; a multiple of 5, the number of heads", number=positive_int)
    # Ours: its code scales the encoders without their projections.
    balanced: str = flag(
        "branch", "methods act on encoders with or without input projections", choices=("branch", "encoder")
    )


def load(settings: Settings[IemocapSettings]) -> Data:
    """Open the features of a fold; without `--data-root` those of a small synthetic set."""
    own, given = settings.own, settings.data.data_root
    if given is not None and given.suffix == ".pkl":
        return load_dialogues(settings, given)
    root = synthetic_root() if given is None else find_root(given)
    split = read_split(root, own.fold, CLASSES)
    notes = (f"data: {root}", f"split: fold {own.fold}", *check_sizes(split))
    split = split if settings.data.validation else split.without_validation()
    lengths = {"text": own.text_length, "audio": own.audio_length, "vision": own.vision_length}
    read = sources(root, own.fold, lengths)
    return open_samples(settings, root, CLASSES, split, read, notes, min_found=own.min_found)


def load_dialogues(settings: Settings[IemocapSettings], path: Path) -> Data:
    """Open a file with a vector per utterance and modality; it lists the dialogues for training and for testing."""
    own = settings.own
    check_archive_flags(own, path)
    dialogues = read_dialogues(path, MODALITIES, SPLIT_SEED)
    notes = (
        f"data: {path}",
        f"split: as listed, a tenth of the dialogues for training held out for validation, seed {SPLIT_SEED}",
        f"utterances of other classes, which are left out: {dialogues.left_out:,}",
    )
    split = dialogues.split if settings.data.validation else dialogues.split.without_validation()
    return open_samples(
        settings, path.parent, CLASSES, split, dialogue_sources(dialogues), notes, min_found=own.min_found
    )


def check_archive_flags(own: IemocapSettings, path: Path) -> None:
    """Refuse flags that have an effect on the folds and sequences of the archive alone.

    Raises:
        RecipeError: If one of them has another value than its default.
    """
    flags = flags_of(IemocapSettings)
    given = {flags[name].typed: getattr(own, name) for name in ARCHIVE if getattr(own, name) != flags[name].default}
    if given:
        raise RecipeError(
            f"`{'`, `'.join(given)}` should be left out for {path.name}, which has one split and no sequences",
            found=" ".join(f"{name} {value}" for name, value in given.items()),
            fix="leave them out" if len(given) > 1 else "leave it out",
        )


def check_sizes(split: Split) -> tuple[str, ...]:
    """Return a line of warning if the classes of a whole corpus have other sizes than expected."""
    found = Counter(row.label for row in (*split.train, *split.val, *split.test))
    if found.total() != sum(SIZES.values()) or found == SIZES:
        return ()
    counts = ", ".join(f"{name} {found[name]:,} ({SIZES[name]:,} expected)" for name in CLASSES)
    return (f"the columns of the labels have another order than {CLASSES}: {counts}; only the names are affected",)


def synthetic_root() -> Path:
    """Return the folder of a small set in the layout of MMIN, which is written at the first call.

    320 training, 80 validation and 80 test utterances of 48, 24 and 32 features; folds 1 and 2.
    """
    synthetic = SyntheticUtterances(num_classes=len(CLASSES))
    return synthetic_folder("iemocap", synthetic, synthetic.write)


def build_model(settings: Settings[IemocapSettings], data: Data) -> nn.Module:
    *sample, _ = data.train[0, 0]
    sizes = {modality: sequence.shape[-1] for modality, sequence in zip(MODALITIES, sample, strict=True)}
    dropouts = Dropouts(residual=0.15, output=0.2)  # iemo_run.py of the CGGM code
    own = settings.own
    return MSANet(sizes, len(CLASSES), own.layers, own.fusion_layers, width=own.width, dropouts=dropouts)


def balance(settings: Settings[IemocapSettings]) -> Mapping[str, Any]:
    return describe(MODALITIES, part=".encoder" if settings.own.balanced == "encoder" else "")


RECIPE = Recipe(
    name="iemocap",
    title="IEMOCAP: four emotions by text, audio and vision",
    settings=IemocapSettings,
    defaults={
        # iemo_run.py of the CGGM code. Its Adam has no weight decay.
        "epochs": 30,
        "batch_size": 64,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "plateau",
        "patience": 10,
        "gamma": 0.1,
        "clip_grad_norm": 0.8,  # with and without CGGM
        "seed": 666,
    },
    synthetic_defaults={
        "text_length": 6,
        "audio_length": 16,
        "vision_length": 8,
        "layers": 2,
        "fusion_layers": 1,
        "epochs": 10,
        "batch_size": 16,
        "log_every": 5,
    },
    method_options={
        # iemo_run.py: rho, lambda, two-layer classifiers of width 40; Adam with 5e-4 for them is the method's default.
        "cggm": {"rho": 1.3, "lam": 0.2, "probes": "transformer"},
        # Ours, as no paper has them for this dataset: the default is to scale 4-D convolutions, and here are none.
        "ogm": {"param_filter": "all"},
        "ogm_ge": {"param_filter": "all"},
    },
    protocols={
        "official": {"balanced": "encoder"},  # CGGM: the gradients of input projections are not scaled
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
