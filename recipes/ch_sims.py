"""CH-SIMS: sentiment of Chinese video segments, from -1 to 1, with a label of what each modality alone expresses.

    python recipes/ch_sims.py --methods none ogm                        a small synthetic set, a minute on a laptop
    python recipes/ch_sims.py --data-root DIR --methods none ogm        late fusion of the authors of CH-SIMS
    python recipes/ch_sims.py --data-root DIR --features v2             CH-SIMS v2(s)
    python recipes/ch_sims.py --data-root DIR --model cggm              transformers of CGGM, as on CMU-MOSI

DIR holds `unaligned_39.pkl` of MMSA (Yu et al., ACL 2020) or, with --features v2, `ch-simsv2s.pkl` (Liu et al., ICMI
2022); it may also be the file itself.

Beside the usual scores the recipe reports what each modality alone predicts against the joint label and against the
label of that modality, which was annotated independently.

Hyper-parameters are those of the network LF_DNN in MMSA. Differences from that code: a mean over time is that of the
segment without its padding, and so is the last step of the text; training has a number of epochs instead of stopping 8
epochs after the best one.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.ch_sims import FILES, missing_labels, read_sims
from recipe_common.data.datasets.packed_files import SYNTHETIC_KEY, PackedFile, text_states
from recipe_common.data.readers.packed_parts import MODALITIES
from recipe_common.data.readers.packed_sequences import Packed, joined
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.sims import SyntheticSims
from recipe_common.models.fusion import LateFusionNet, describe
from recipe_common.models.late_dnn import DNNFusion, LSTMEncoder, MeanEncoder
from recipe_common.models.msa import MSANet
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings
from recipe_common.tasks.sims import METRICS, sims_regression

HEADLINES = ("mae", *(metric.key for metric in METRICS if metric.key != "mae"))
SYNTHETIC = SyntheticSims()
SYNTHETIC_FILE = PackedFile(FILES["v1"].name, SYNTHETIC.shapes, is_mmsa=True)
BERT = "google-bert/bert-base-chinese"
WIDTHS = {"text": 256, "audio": 32, "vision": 128}
LSTM_WIDTH, FUSION_WIDTH = 128, 32
DROPOUTS = {"text": 0.3, "audio": 0.3, "vision": 0.3}
FUSION_DROPOUT = 0.5
"""Widths and dropout rates of LF_DNN on CH-SIMS in config_regression.json of MMSA."""


@attrs.frozen(kw_only=True)
class SimsSettings:
    """Settings of this dataset and its models."""

    title: ClassVar[str] = "CH-SIMS"

    features: str = flag("v1", "packed file to read: CH-SIMS, or CH-SIMS v2(s)", choices=tuple(FILES))
    text_model: str | None = flag(
        None,
        f"text from `text_bert` by this frozen encoder; a folder, or a cached name such as {BERT}; default: the "
        "features in the file",
        metavar="DIR",
    )
    # MMSA selects by the validation loss, which is the mean absolute error.
    headline: str = flag("mae", "metric that selects the epoch; all are reported", choices=HEADLINES)
    model: str = flag("dnn", "dnn: LF_DNN of MMSA; cggm: transformers of CGGM", choices=("dnn", "cggm"))
    mask: bool = flag(True, "dnn: leave padding out of means and of the last step; MMSA does not")
    # Ours: those of CGGM on CMU-MOSI.
    layers: int = flag(5, "cggm: layers of the encoder of each modality", number=positive_int)
    fusion_layers: int = flag(3, "cggm: layers of the encoder of all modalities", number=positive_int)
    width: int = flag(40, "cggm: width of all encoders; a multiple of 5, the number of heads", number=positive_int)


def load(settings: Settings[SimsSettings]) -> Data:
    """Read the packed file; without `--data-root` that of a small synthetic set."""
    own, validation, is_small = settings.own, settings.data.validation, settings.data.is_synthetic
    wanted, files = (SYNTHETIC_KEY, {SYNTHETIC_KEY: SYNTHETIC_FILE}) if is_small else (own.features, FILES)
    states = text_states(own.text_model, wanted, files[wanted], settings.machine.device, BERT)
    path, splits = read_sims(settings.data.data_root or synthetic_root(), wanted, files, states)
    train = (splits["train"],) if validation else (splits["train"], splits["val"])
    notes = [f"data: {path}", "split: the one in the file", *(part.summary(name) for name, part in splits.items())]
    if missing := missing_labels(splits):
        notes.append(
            f"labels of single modalities: no {', '.join(missing)} in this file, as in those that the script of its "
            "authors extracts; modalities are scored against the joint label alone "
            f"({FILES['v1'].name} of MMSA has these labels)"
        )
    if not validation:
        notes.append("validation segments are for training too")
    return Data(
        train=in_memory(*train),
        val=in_memory(*((splits["val"],) if validation else ())),
        test=in_memory(splits["test"]),
        classes=(),
        modalities=MODALITIES,
        synthetic=is_small,
        summary=tuple(notes),
        task=sims_regression(own.headline),
    )


def in_memory(*parts: Packed) -> TensorSet:
    """Return the segments of `parts` with targets of shape (1,); those of one part have the labels of each modality."""
    if not parts:
        return TensorSet([[] for _ in MODALITIES], [])
    whole = joined(parts)
    own = {modality: values[:, None] for modality, values in whole.own_labels.items()}
    return TensorSet([getattr(whole, modality) for modality in MODALITIES], whole.labels[:, None], own)


def synthetic_root() -> Path:
    """Return the folder of a small set in the form of MMSA, which is written at the first call.

    320 training, 80 validation and 120 test segments of at most 10 tokens, 16 audio and 12 vision steps.
    """
    return synthetic_folder("ch_sims", SYNTHETIC, lambda root: SYNTHETIC.write(root / SYNTHETIC_FILE.name))


def build_model(settings: Settings[SimsSettings], data: Data) -> nn.Module:
    *sample, _ = data.train[0, 0]
    sizes = {modality: sequence.shape[-1] for modality, sequence in zip(MODALITIES, sample, strict=True)}
    own = settings.own
    if own.model == "cggm":
        return MSANet(sizes, 1, own.layers, own.fusion_layers, width=own.width)
    encoders: dict[str, nn.Module] = {
        modality: LSTMEncoder(size, LSTM_WIDTH, WIDTHS[modality], DROPOUTS[modality], mask=own.mask)
        if modality == "text"
        else MeanEncoder(size, WIDTHS[modality], DROPOUTS[modality], mask=own.mask)
        for modality, size in sizes.items()
    }
    return LateFusionNet(encoders, DNNFusion(WIDTHS, 1, FUSION_WIDTH, FUSION_DROPOUT))


def balance(settings: Settings[SimsSettings]) -> Mapping[str, Any]:
    return describe(MODALITIES)


RECIPE = Recipe(
    name="ch_sims",
    title="CH-SIMS: sentiment by text, audio and vision",
    settings=SimsSettings,
    defaults={
        # LF_DNN on CH-SIMS in config_regression.json of MMSA; its first seed. The number of epochs is ours.
        "epochs": 50,
        "batch_size": 128,
        "optimizer": "adam",
        "lr": 5e-3,
        "weight_decay": 5e-3,
        "schedule": "constant",
        "seed": 1111,
    },
    synthetic_defaults={
        "layers": 2,
        "fusion_layers": 1,
        "epochs": 10,
        "batch_size": 16,
        "lr": 2e-3,
        "log_every": 5,
    },
    method_options={
        # Ours, as no paper has them for this dataset.
        "cggm": {"probes": "mlp", "metric": "sign"},  # these fit both models, and sentiment is a number
        "ogm": {"param_filter": "all"},  # the default is to scale 4-D convolutions, and here are none
        "ogm_ge": {"param_filter": "all"},
    },
    protocols={
        # MMSA: means over all steps, and the state of the LSTM after the padding.
        "official": {"mask": False},
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
