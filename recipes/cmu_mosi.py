"""CMU-MOSI: regression of the sentiment of opinions, from -3 to 3, by words, voice and face.

    python recipes/cmu_mosi.py --methods none cggm                      a small synthetic set, minutes on a laptop
    python recipes/cmu_mosi.py --data-root DIR --methods none cggm      the paper's training
    python recipes/cmu_mosi.py --data-root DIR --protocol multibench    late fusion of three GRUs, as in MultiBench

DIR holds `mosi_data_noalign.pkl` or, with --features aligned, `mosi_data.pkl`, both of the MulT authors; with
--features multibench, `mosi_raw.pkl` of MultiBench; with --features mmsa_aligned or mmsa_unaligned, `aligned_50.pkl` or
`unaligned_50.pkl` of MMSA. It may also be the file itself.

Hyper-parameters are those of the CGGM authors (Guo et al., NeurIPS 2024). Differences from their code: training
segments are shuffled, and the test part, which their code never evaluates, is evaluated once. The best epoch is the one
with the lowest validation error; in their code, and with --protocol official, the one with the most correct signs.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.cmu_mosi import FILES, read_mosi
from recipe_common.data.datasets.packed_files import SYNTHETIC_KEY, PackedFile, text_states
from recipe_common.data.readers.packed_parts import MODALITIES
from recipe_common.data.readers.packed_sequences import Packed, joined
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.sentiment import SyntheticSequences
from recipe_common.models.fusion import ConcatFusion, LateFusionNet, describe
from recipe_common.models.msa import MSANet
from recipe_common.models.sequence import GRUEncoder, TransformerEncoder
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings
from recipe_common.tasks.sentiment import REGRESSION, sentiment_regression

HEADLINES = ("mae", *(metric.key for metric in REGRESSION if metric.key != "mae"))
WIDTHS = {
    "gru": {"text": 600, "audio": 200, "vision": 70},
    "transformer": {"text": 600, "audio": 10, "vision": 40},
}
"""Widths of the encoders of MultiBench."""
HIDDEN = {"gru": 870, "transformer": 256}
"""Hidden units of the heads of MultiBench."""
SYNTHETIC = SyntheticSequences()
SYNTHETIC_FILE = PackedFile("mosi_data.pkl", SYNTHETIC.shapes)
BERT = "google-bert/bert-base-uncased"


@attrs.frozen(kw_only=True)
class MosiSettings:
    """Settings of this dataset and its models: those of mosi_run.py of the CGGM code."""

    title: ClassVar[str] = "CMU-MOSI"

    features: str = flag("noalign", "packed file to read", choices=tuple(FILES))
    text_model: str | None = flag(
        None,
        f"MMSA: text from `text_bert` by this frozen encoder; a folder, or a cached name such as {BERT}; default: the "
        "features in the file",
        metavar="DIR",
    )
    # Ours. The error is the training loss, needs no convention for a sentiment of 0, and drives the plateau of the CGGM
    # code, too; two-class accuracies of 229 validation segments tie and jump.
    headline: str = flag("mae", "metric that selects the epoch; all are reported", choices=HEADLINES)
    model: str = flag("cggm", "cggm: transformers of CGGM; else late fusion of MultiBench", choices=("cggm", *WIDTHS))
    layers: int = flag(5, "cggm: layers of the encoder of each modality", number=positive_int)
    fusion_layers: int = flag(3, "cggm: layers of the encoder of all modalities", number=positive_int)
    width: int = flag(40, "cggm: width of all encoders; a multiple of 5, the number of heads", number=positive_int)
    # Ours.
    balanced: str = flag(
        "branch", "cggm: methods act on encoders with or without input projections", choices=("branch", "encoder")
    )


def load(settings: Settings[MosiSettings]) -> Data:
    """Read the packed file; without `--data-root` that of a small synthetic set."""
    own, validation, is_small = settings.own, settings.data.validation, settings.data.is_synthetic
    wanted, files = (SYNTHETIC_KEY, {SYNTHETIC_KEY: SYNTHETIC_FILE}) if is_small else (own.features, FILES)
    states = text_states(own.text_model, wanted, files[wanted], settings.machine.device, BERT)
    path, splits = read_mosi(settings.data.data_root or synthetic_root(), wanted, files, states)
    train = (splits["train"],) if validation else (splits["train"], splits["val"])
    val = (splits["val"],) if validation else ()
    notes = (f"data: {path}", "split: the one in the file", *(part.summary(name) for name, part in splits.items()))
    return Data(
        train=in_memory(*train),
        val=in_memory(*val),
        test=in_memory(splits["test"]),
        classes=(),
        modalities=MODALITIES,
        synthetic=settings.data.is_synthetic,
        summary=notes if validation else (*notes, "validation segments are for training too"),
        task=sentiment_regression(zero="negative", headline=own.headline),
        skipped=tuple(f"{name}: {id_}: no text" for name, part in splits.items() for id_ in part.dropped),
    )


def in_memory(*parts: Packed) -> TensorSet:
    """Return the segments of `parts` with targets of shape (1,)."""
    if not parts:
        return TensorSet([[] for _ in MODALITIES], [])
    whole = joined(parts)
    return TensorSet([getattr(whole, modality) for modality in MODALITIES], whole.labels[:, None])


def synthetic_root() -> Path:
    """Return the folder of a small set in the format of MulT, which is written at the first call.

    320 training, 80 validation and 120 test segments of at most 12 words.
    """
    return synthetic_folder("cmu_mosi", SYNTHETIC, lambda root: SYNTHETIC.write(root / SYNTHETIC_FILE.name))


def build_model(settings: Settings[MosiSettings], data: Data) -> nn.Module:
    *sample, _ = data.train[0, 0]
    sizes = {modality: sequence.shape[-1] for modality, sequence in zip(MODALITIES, sample, strict=True)}
    own = settings.own
    if own.model == "cggm":
        return MSANet(sizes, 1, own.layers, own.fusion_layers, width=own.width)
    widths = WIDTHS[own.model]
    encoders: dict[str, nn.Module] = {
        modality: GRUEncoder(size, widths[modality])
        if own.model == "gru"
        else TransformerEncoder(size, widths[modality], heads=5, layers=5, step="last")
        for modality, size in sizes.items()
    }
    return LateFusionNet(encoders, ConcatFusion(widths, 1, hidden=HIDDEN[own.model]))


def balance(settings: Settings[MosiSettings]) -> Mapping[str, Any]:
    own = settings.own
    return describe(MODALITIES, part=".encoder" if own.model == "cggm" and own.balanced == "encoder" else "")


RECIPE = Recipe(
    name="cmu_mosi",
    title="CMU-MOSI: sentiment by text, audio and vision",
    settings=MosiSettings,
    defaults={
        # mosi_run.py of the CGGM code; the dropout rates there are the defaults of the model. Its Adam has no decay.
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
        "layers": 2,
        "fusion_layers": 1,
        "epochs": 10,
        "batch_size": 16,
        "log_every": 5,
    },
    method_options={
        # mosi_run.py: rho, lambda, two-layer classifiers of width 40, judged by the sign of the sentiment; Adam with
        # 5e-4 for them is the method's default.
        "cggm": {"rho": 1.3, "lam": 0.2, "probes": "transformer", "metric": "sign"},
        # Ours, as no paper has them for this dataset: the default is to scale 4-D convolutions, and here are none.
        "ogm": {"param_filter": "all"},
        "ogm_ge": {"param_filter": "all"},
    },
    protocols={
        # CGGM: eval_senti counts signs, and the gradients of input projections are not scaled.
        "official": {"headline": "acc2_zero_negative", "balanced": "encoder"},
        # MultiBench (Liang et al., NeurIPS 2021): affect_late_fusion.py and the defaults of its training loop.
        "multibench": {
            "features": "multibench",
            "model": "gru",
            "epochs": 100,
            "optimizer": "adamw",
            "weight_decay": 0.01,
            "schedule": "constant",
            "clip_grad_norm": 8.0,
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
