"""CMU-MOSEI: sentiment of opinions, by words, voice and face: positive or not, seven classes, or a number.

    python recipes/cmu_mosei.py --methods none ogm                      a small synthetic set, minutes on a laptop
    python recipes/cmu_mosei.py --data-root DIR --methods none ogm      BalanceBenchmark's model on aligned features
    python recipes/cmu_mosei.py --data-root DIR --features noalign      features that are not aligned by word
    python recipes/cmu_mosei.py --data-root DIR --task regression       the sentiment itself, from -3 to 3
    python recipes/cmu_mosei.py --data-root DIR --protocol agm          AGM's model of words and mel spectrograms

DIR holds `mosei_senti_data.pkl` or `mosei_senti_data_noalign.pkl` (MulT, MultiBench), `mosei_raw.pkl` (MultiBench),
`aligned_50.pkl` or `unaligned_50.pkl` (MMSA), see --features, or the files of the AGM code (`train_sentences.p`,
`train_mels.p`, `train_sentiment.p`, ..., `token_to_ix.pkl`, `train_glove.npy`). Pickles of unknown origin may run code
when they are opened: the recipe admits arrays and plain containers only.

Hyper-parameters are those of BalanceBenchmark, or of AGM (Li et al., ICCV 2023) with `--protocol agm`. Differences
from the former by default: padding is masked in attention, segments without text are left out, and no batch is dropped.
"""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
import torch
from torch import Tensor, nn

from recipe_common.arguments import positive_int
from recipe_common.cli import main
from recipe_common.data.datasets.cmu_mosei import FILES, MELS, SpeechSplit, read_mosei, read_speech
from recipe_common.data.datasets.packed_files import SYNTHETIC_KEY, PackedFile, text_states
from recipe_common.data.readers.packed_parts import MODALITIES
from recipe_common.data.readers.packed_sequences import Packed
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.data.synthetic.sentiment import SyntheticSequences, SyntheticSpeech
from recipe_common.models.fusion import ConcatFusion, LateFusionNet, describe
from recipe_common.models.guided_attention import GuidedAttentionNet
from recipe_common.models.sequence import STEPS, TransformerEncoder
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag
from recipe_common.settings.shared import Settings
from recipe_common.tasks.sentiment import (
    CLASSES,
    SEVEN,
    ZEROS,
    binary_labels,
    sentiment_binary,
    sentiment_regression,
    seven_labels,
)
from recipe_common.tasks.task import Task, classification

SPOKEN = MODALITIES[:2]
SIZES = {"transformer": (1024, 2), "agm": (512, 6)}
"""Width and layers of both models in the papers."""
SYNTHETIC, SYNTHETIC_SPEECH = SyntheticSequences(), SyntheticSpeech()
SYNTHETIC_FILE = PackedFile(FILES["aligned"].name, SYNTHETIC.shapes)
BERT = "google-bert/bert-base-uncased"
SPEECH_FLAGS = "--model agm"
"""Flags that select words and mel spectrograms."""


@attrs.frozen(kw_only=True)
class MoseiSettings:
    """Settings of this dataset and its models."""

    title: ClassVar[str] = "CMU-MOSEI"

    model: str = flag(
        "transformer",
        "transformer: one per modality; agm: AGM's network of words and mel spectrograms",
        choices=tuple(SIZES),
    )
    # Ours: the configuration of BalanceBenchmark takes features that are not aligned.
    features: str = flag("aligned", "packed file to read", choices=tuple(FILES))
    text_model: str | None = flag(
        None,
        f"MMSA: text from `text_bert` by this frozen encoder; a folder, or a cached name such as {BERT}; default: the "
        "features in the file",
        metavar="DIR",
    )
    task: str = flag("binary", "positive or not, seven classes, or a number", choices=("binary", "seven", "regression"))
    zero: str = flag(
        "positive", "class of a sentiment of 0; in a regression it selects the headline metric", choices=ZEROS
    )
    # Ours: BalanceBenchmark keeps segments without text, and attends to padding.
    drop_empty: bool = flag(True, "leave out segments without text")
    tokens: int = flag(60, "agm: words and audio steps that are kept of a segment", number=positive_int)
    width: int | None = flag(
        None,
        "width of all encoders; a multiple of 4, the number of heads; default: 1024, agm: 512",
        number=positive_int,
    )
    layers: int | None = flag(None, "layers of each encoder; default: 2, agm: 6", number=positive_int)
    step: str = flag("last", "step of a transformer whose state is the feature", choices=STEPS)
    mask: bool = flag(True, "mask padding in attention; BalanceBenchmark does not")
    batch_loss: str = flag("mean", "reduction of the loss over a batch; AGM sums", choices=("mean", "sum"))


@attrs.frozen
class Notes:
    """Lines for the start of a run, and one for each segment that is left out."""

    summary: tuple[str, ...]
    skipped: tuple[str, ...] = ()


@attrs.frozen
class MoseiData(Data):
    """Segments, and the initial word vectors (V, D) of AGM's network."""

    vectors: Tensor | None = None


def load(settings: Settings[MoseiSettings]) -> Data:
    """Read the segments; without `--data-root` those of a small synthetic set."""
    own, validation = settings.own, settings.data.validation
    parts, modalities, vectors, notes = read(settings)
    train, val, test = parts["train"], parts["val"], parts["test"]
    dataset = partial(in_memory, own, modalities)
    return MoseiData(
        train=dataset(train) if validation else dataset(train, val),
        val=dataset(val) if validation else dataset(),
        test=dataset(test),
        classes={"binary": CLASSES, "seven": SEVEN, "regression": ()}[own.task],
        modalities=modalities,
        synthetic=settings.data.is_synthetic,
        summary=(*notes.summary, *(balance_line(name, part) for name, part in parts.items())),
        task=task_of(own),
        excluded=excluded(settings),
        skipped=notes.skipped,
        vectors=vectors,
    )


def read(
    settings: Settings[MoseiSettings],
) -> tuple[Mapping[str, Packed | SpeechSplit], tuple[str, ...], Tensor | None, Notes]:
    """Return the splits, their modalities, the word vectors of AGM's files, and lines for the start of a run."""
    own, is_small = settings.own, settings.data.is_synthetic
    root = settings.data.data_root or synthetic_root()
    if own.model == "agm":
        mels = SYNTHETIC_SPEECH.mels if is_small else MELS
        speech = read_speech(root, own.tokens, mels, speech_flags=SPEECH_FLAGS)
        return speech.splits, SPOKEN, speech.vectors, Notes((f"data: {root}", *speech.summary), speech.skipped)
    wanted, files = (SYNTHETIC_KEY, {SYNTHETIC_KEY: SYNTHETIC_FILE}) if is_small else (own.features, FILES)
    states = text_states(own.text_model, wanted, files[wanted], settings.machine.device, BERT)
    path, splits = read_mosei(root, wanted, files, drop_empty=own.drop_empty, speech_flags=SPEECH_FLAGS, states=states)
    return splits, MODALITIES, None, Notes((f"data: {path}", *(part.summary(name) for name, part in splits.items())))


def balance_line(split: str, part: Packed | SpeechSplit) -> str:
    """Return the numbers of positive, neutral and negative segments; two-class metrics depend on neutral ones."""
    counts = (int((part.labels > 0).sum()), int((part.labels == 0).sum()), int((part.labels < 0).sum()))
    return f"{split}: {counts[0]:,} positive, {counts[1]:,} of exactly 0, {counts[2]:,} negative"


def in_memory(own: MoseiSettings, modalities: tuple[str, ...], *parts: Packed | SpeechSplit) -> TensorSet:
    """Return the segments of all parts with the targets of `--task`."""
    if not parts:
        return TensorSet([[] for _ in modalities], [])
    inputs, labels = [all_of(parts, modality) for modality in modalities], all_of(parts, "labels")
    if own.task == "regression":
        return TensorSet(inputs, labels[:, None])
    if own.task == "seven":
        return TensorSet(inputs, seven_labels(labels))
    classes, rows = binary_labels(labels, own.zero)
    return TensorSet(inputs if len(rows) == len(labels) else [values[rows] for values in inputs], classes)


def all_of(parts: tuple[Packed | SpeechSplit, ...], name: str) -> Tensor:
    # Joining one part would copy gigabytes.
    return torch.cat([getattr(part, name) for part in parts]) if len(parts) > 1 else getattr(parts[0], name)


def task_of(own: MoseiSettings) -> Task:
    """Return the loss and the metrics of `--task`."""
    if own.task == "regression":
        return sentiment_regression(own.zero, loss=partial(nn.L1Loss, reduction=own.batch_loss))
    loss = partial(nn.CrossEntropyLoss, reduction=own.batch_loss)
    return classification(len(SEVEN), loss) if own.task == "seven" else sentiment_binary(own.zero, loss=loss)


def excluded(settings: Settings[MoseiSettings]) -> dict[str, str]:
    """Return the methods that do not apply to `--task` with the options that are given, and why."""
    given = {each.name: each.value for each in settings.run.option if each.method in (None, "cggm")}
    if settings.own.task != "regression" or given.get("metric") == "sign":
        return {}
    return {"cggm": "its probes are judged by their accuracy; in a regression add --option cggm.metric=sign"}


def synthetic_root() -> Path:
    """Return the folder of a small set in both formats, which is written at the first call.

    320 training, 80 validation and 120 test segments: of at most 12 steps, packed, and of at most 16 words.
    """

    def write(root: Path) -> None:
        SYNTHETIC.write(root / SYNTHETIC_FILE.name)
        SYNTHETIC_SPEECH.write(root)

    return synthetic_folder("cmu_mosei", (SYNTHETIC, SYNTHETIC_SPEECH), write)


def build_model(settings: Settings[MoseiSettings], data: Data) -> nn.Module:
    *sample, _ = data.train[0, 0]
    outputs = len(data.classes) or 1
    own = settings.own
    width, layers = own.width or SIZES[own.model][0], own.layers or SIZES[own.model][1]
    if isinstance(data, MoseiData) and data.vectors is not None:
        sizes = {"tokens": own.tokens, "width": width, "layers": layers, "hidden": 2 * width}
        return GuidedAttentionNet(data.vectors, sample[1].shape[-1], outputs, **sizes)
    encoders = {
        modality: TransformerEncoder(sequence.shape[-1], width, heads=4, layers=layers, step=own.step, mask=own.mask)
        for modality, sequence in zip(MODALITIES, sample, strict=True)
    }
    return LateFusionNet(encoders, ConcatFusion(dict.fromkeys(encoders, width), outputs))


def balance(settings: Settings[MoseiSettings]) -> Mapping[str, Any]:
    return describe(SPOKEN if settings.own.model == "agm" else MODALITIES)


# BalanceBenchmark, with all parameters: the default is to scale 4-D convolutions, and here are none.
OGM = {"alpha": 0.3, "start_epoch": 10, "end_epoch": 80, "param_filter": "all"}

RECIPE = Recipe(
    name="cmu_mosei",
    title="CMU-MOSEI: sentiment by text, audio and vision",
    settings=MoseiSettings,
    defaults={
        # Configuration of BalanceBenchmark, and its encoder for this dataset.
        "epochs": 30,
        "batch_size": 32,
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "step_size": 10,
        "gamma": 0.1,
        "seed": 42,
    },
    synthetic_defaults={
        "width": 32,
        "layers": 2,
        "tokens": 16,
        "epochs": 8,
        "batch_size": 16,
        "lr": 2e-3,
        "step_size": 6,
        "seed": 0,
        "log_every": 5,
    },
    protocols={
        # BalanceBenchmark: selects on validation here, and drops the last batch of every split.
        "official": {"features": "noalign", "mask": False, "drop_empty": False, "drop_last": "both"},
        # AGM: the run in its README, which is on AV-MNIST; other values are defaults of its code.
        "agm": {
            "model": "agm",
            "batch_loss": "sum",
            "epochs": 100,
            "batch_size": 64,
            "optimizer": "sgd",
            "lr": 1e-4,
            "momentum": 0.9,
            "weight_decay": 1e-4,
            "step_size": 70,
            "seed": 999,
        },
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "agm": {"alpha": 0.1, "max_gap": None},  # alpha of BalanceBenchmark; MOSEI_main.py of the AGM code has no bound
        # trainer_config.yaml of BalanceBenchmark, which calls lam of OPM alpha and has its default, as of p_exe.
        "relearning": {"period": 15, "count": 2},
        "mmcosine": {"scale": 15.0},
        "opm": {"q_base": 0.4, "start_epoch": 0},
        "pmr": {"alpha": 0.6, "momentum": 0.5, "end_epoch": 80},
        "cggm": {"probes": "mlp"},  # these fit all heads
    },
    synthetic_options={
        "ogm": {"start_epoch": 0},
        "ogm_ge": {"start_epoch": 0},
    },
    load=load,
    build_model=build_model,
    balance=balance,
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
