"""AVE: classification of 10-second clips into 28 audio-visual events, and localisation of these events in time.

    python recipes/ave.py --methods none ogm_ge                            a small synthetic set, minutes on a laptop
    python recipes/ave.py prepare --data-root DIR                          sound and frames from the videos, once
    python recipes/ave.py --data-root DIR --methods none ogm_ge            the paper's training: a class per clip
    python recipes/ave.py events                                           a class per second; synthetic features
    python recipes/ave.py events --data-root DIR --methods none agm        the same on the published features

For clips, DIR (or its folder AVE_Dataset) holds `trainSet.txt`, `valSet.txt` and `testSet.txt`, or `Annotations.txt`,
and `AVE/ID.mp4`, or files made of it: `Audios/ID.wav` (or `Audio-1004-SE/ID.pkl` with --audio-frontend stored) and
`Image-01-FPS-SE/ID/` with numbered jpg files, the frames inside the event; of a further event of the same video,
`Image-01-FPS-SE/ID.START-END/`. For `events`, DIR holds six files:
`visual_feature.h5`, `audio_feature.h5`, `right_labels.h5`, `train_order.h5`, `val_order.h5` and `test_order.h5`.

Hyper-parameters for clips are those of the PMR authors (Fan et al., CVPR 2023). Two things differ from their code: the
best epoch is selected on the validation clips, and videos of the training list that are in another list too are left
out of training. Those of `events`, network included, are those of the PSP authors (Zhou et al., CVPR 2021); the AGM
paper trains this network, too.
"""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import attrs
from torch import Tensor, nn

from recipe_common.arguments import non_negative_float, positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.datasets.ave.clips import (
    borrowed_frames,
    event_frames_source,
    event_names,
    event_split,
    find_event_folders,
    prepare_events,
    read_lists,
)
from recipe_common.data.datasets.ave.segment_features import SegmentFeatures, read_segment_features
from recipe_common.data.datasets.ave.sound import (
    EventAudioSettings,
    EventFrontEnd,
    event_audio_source,
    event_spectrogram,
    start_spectrogram,
)
from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.prepare.engine import Preparation, parse_preparation, verify
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import FRAME_CHOICES
from recipe_common.data.samples.clips import SHORT_SIDE
from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.synthetic.ave import SyntheticEvents, SyntheticSegmentFeatures
from recipe_common.data.synthetic.folder import synthetic_folder
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.models.psp import PairLoss, PSPNet
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings
from recipe_common.tasks.task import CollectingMeter, Metric, Task, classification_metrics

CLASSES = (  # in the order of their first row in testSet.txt, as in the PMR and DGL code, and of right_labels.h5
    *("Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane", "Race car, auto racing"),
    *("Female speech, woman speaking", "Helicopter", "Violin, fiddle", "Flute", "Ukulele", "Frying (food)", "Truck"),
    *("Shofar", "Motorcycle", "Acoustic guitar", "Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus"),
    *("Chainsaw", "Cat", "Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin"),
)
SEGMENT_CLASSES = (*CLASSES, "background")
FRONT_ENDS: dict[str, Callable[[EventAudioSettings], EventFrontEnd]] = {
    "event": event_spectrogram,
    "start": start_spectrogram,
    "dgl": partial(start_spectrogram, refill=224),
    "stored": lambda _: StoredSpectrogram(),
}
SOUND = "event: its seconds, 10 s at 16 kHz; start: the first 3 s at 22 kHz; dgl: the same, refilled to (224, 224)"


@attrs.frozen(kw_only=True)
class AveSettings:
    """Settings of the clips and their model."""

    title: ClassVar[str] = "AVE"

    # Ours: the PMR code skips missing clips silently, takes the first frames that the system lists, trains on 18 videos
    # of valSet.txt and testSet.txt, and evaluates on testSet.txt alone.
    split: str = flag(
        "official", "official: lists on disk; random: 80/10/10 %% of every class", choices=("official", "random")
    )
    split_seed: int = flag(0, "seed of the random split, independent of --seed", number=seed_int)
    overlap: bool = flag(False, "keep videos in train that are in val or test too, listed as another event")
    min_found: float = flag(0.9, "share of the listed clips that must be on disk", number=share_float, metavar="SHARE")
    # video_preprocessing.py of the PMR code: the (257, 1004) spectrogram of the event.
    audio_frontend: str = flag("event", f"{SOUND}; stored: Audio-1004-SE/ID.pkl", choices=FRONT_ENDS)
    audio: EventAudioSettings = group(EventAudioSettings)
    # bash.sh and main_CE_test_grad.py of the PMR code: four frames, concatenation.
    fps: int = flag(1, "read the folder Image-<fps>-FPS-SE", number=positive_int)
    frames: int = flag(4, "frames per clip", number=positive_int)
    frame_choice: str = flag(
        "segments", "a frame of each equal segment, or the first ones of the event", choices=FRAME_CHOICES
    )
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")
    fusion: str = flag("concat", choices=FUSIONS)
    feed: FeedSettings = group(FeedSettings)


@attrs.frozen(kw_only=True)
class AvePreparation(Preparation):
    """Settings of `prepare`."""

    fps: int = flag(1, "frames per second of the event", number=positive_int)
    short_side: int | None = flag(None, SHORT_SIDE, number=positive_int, metavar="PIXELS")


def load(settings: Settings[AveSettings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root or synthetic_root()
    fix = f"python recipes/ave.py prepare --data-root {root} --fps {own.fps}"
    folders = find_event_folders(root, own.fps, stored=own.audio_frontend == "stored", prepare=fix)
    listed = own.split == "official"
    split, origin = event_split(folders.lists, CLASSES, own.split_seed, listed=listed, overlap=own.overlap)
    if not settings.data.validation:
        split, origin = split.without_validation(), f"{origin}; validation added to train"
    names = event_names(read_lists(folders.lists, CLASSES))
    sources = (
        event_audio_source(folders.audio, FRONT_ENDS[own.audio_frontend](own.audio)),
        event_frames_source(folders.frames, Frames(own.frames, own.image_size), names, choice=own.frame_choice),
    )
    borrowed = borrowed_frames(folders.frames, split, names, fix)
    lines = (f"data: {folders.audio}, {folders.frames}", f"split: {origin}", *borrowed)
    faults = KNOWN_FAULTS["ave"].samples
    return open_samples(
        settings, root, CLASSES, split, sources, lines, min_found=own.min_found, feeding=own.feed, faults=faults
    )


def synthetic_root() -> Path:
    """Return the folder of a small set with the lists and folders of AVE, which is written at the first call."""
    clips = SyntheticEvents(CLASSES)
    return synthetic_folder("ave", clips, clips.write)


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(
        AvePreparation, "ave.py prepare", "Sound of the videos, and the frames inside their events.", arguments
    )
    root, workers = settings.data_root, settings.workers
    if settings.verify:
        return verify(root, workers=workers)
    return prepare_events(root, CLASSES, fps=settings.fps, workers=workers, short_side=settings.short_side)


def build_model(settings: Settings[AveSettings], data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), settings.own.fusion)


def balance(settings: Settings[AveSettings]) -> Mapping[str, Any]:
    return describe(("audio", "visual"), settings.own.fusion)


@attrs.frozen(kw_only=True)
class EventSettings:
    """Settings of the localisation of events: those of fully_supervised_main.py of the PSP code."""

    title: ClassVar[str] = "AVE events"

    threshold: float = flag(
        0.099, "similarity above which segments of two modalities match", number=share_float, metavar="SHARE"
    )
    pair_weight: float = flag(
        100.0, "weight of the loss on the similarity of both modalities", number=non_negative_float, metavar="WEIGHT"
    )


def load_events(settings: Settings[EventSettings]) -> Data:
    """Open the features by segment; without `--data-root` those of a small synthetic set."""
    made = SyntheticSegmentFeatures(len(CLASSES))
    root = settings.data.data_root or synthetic_folder("ave_events", made, made.write)
    features = read_segment_features(root, SEGMENT_CLASSES, skip_bad=settings.data.skip_bad)
    orders = dict(features.orders)
    if not settings.data.validation:
        orders |= {"train": orders["train"] + orders["val"], "val": ()}
    return Data(
        train=open_events(features, orders["train"]),
        val=open_events(features, orders["val"]),
        test=open_events(features, orders["test"]),
        classes=SEGMENT_CLASSES,
        modalities=("audio", "visual"),
        synthetic=settings.data.is_synthetic,
        summary=features.summary,
        task=segment_task(features.targets),
        skipped=features.skipped,
        penalty=PairLoss(settings.own.pair_weight),
    )


def open_events(features: SegmentFeatures, order: tuple[int, ...]) -> TensorSet:
    """Return the clips of one part of the split."""
    return TensorSet((features.audio.of(order), features.visual.of(order)), features.targets[list(order)])


def segment_task(targets: Tensor) -> Task:
    """Return the classification of segments into events and background: logits (B, 29, T), class indices (B, T)."""
    metrics = (Metric("accuracy", "segments"), Metric("macro_f1", "macro F1"))
    most_frequent = targets.flatten().bincount().max().item() / targets.numel()
    return Task(
        metrics,
        nn.CrossEntropyLoss,
        lambda: CollectingMeter(segment_metrics),
        chance=most_frequent,
        lacks={"classes": "a clip has ten classes"},
    )


def segment_metrics(logits: Tensor, target: Tensor) -> dict[str, float]:
    """Return the share of segments with the right class, and F1 averaged over classes."""
    scores = classification_metrics(logits.transpose(1, 2).flatten(0, 1), target.flatten())
    return {key: scores[key] for key in ("accuracy", "macro_f1")}


def build_psp(settings: Settings[EventSettings], data: Data) -> nn.Module:
    """Return the network for features of the sizes in the files."""
    test: Any = data.test
    (*_, audio_size), (*_, height, width, visual_size) = (values.shape for values in test.inputs)
    return PSPNet(audio_size, visual_size, len(data.classes), cells=height * width, threshold=settings.own.threshold)


def balance_psp(settings: Settings[EventSettings]) -> Mapping[str, Any]:
    """Return the encoders and the fusion; the projection of the sound guides visual attention, too."""
    encoders = {"audio": ["audio_project", "audio_net"], "visual": "visual_net"}
    return {"modalities": encoders, "fusion": "fusion_module"}


OGM = {"alpha": 0.2, "start_epoch": 0, "end_epoch": 50}  # AVE runs with concatenation in bash.sh of the PMR code
WHOLE = {"param_filter": "all"}  # by default only convolutions are modulated, and here are none

EVENTS = Recipe(
    subcommand=("events",),
    name="ave_events",
    title="AVE: localisation of audio-visual events",
    settings=EventSettings,
    defaults={
        # fully_supervised_main.py of the PSP code: Adam, times 0.8 after 60 and 120 epochs. The AGM code sets no values
        # for AVE: its flags default to SGD with lr 1e-5, batches of 16 and 10 epochs.
        "epochs": 300,
        "batch_size": 128,
        "optimizer": "adam",
        "lr": 1e-3,
        "weight_decay": 0.0,
        "schedule": "multistep",
        "milestones": (60, 120),
        "gamma": 0.8,
    },
    synthetic_defaults={"epochs": 10, "batch_size": 32, "milestones": (7,), "log_every": 1},
    method_options={
        "ogm": WHOLE,
        "ogm_ge": WHOLE,
        # The AVE task of the AGM code has no bound and no clip. Its masked passes run the whole network, as they must:
        # the visual features depend on the sound.
        "agm": {"max_gap": None, "clip_trigger": None, "coalitions": "full"},
        "cggm": {"probes": "mlp"},  # probes whose last layer has the shape of the head's
        "mmpareto": {"heads": "slice"},  # ours: built heads give one vector per clip, not one per second
    },
    protocols={
        # The AGM code, in training and validation: full batches only, and the best validation epoch is the result.
        "official": {"drop_last": "both"},
        # The PSP code: the best epoch on test is the result; it evaluates every fifth.
        "psp": {"drop_last": "train", "select": "test"},
    },
    load=load_events,
    build_model=build_psp,
    balance=balance_psp,
)

RECIPE = Recipe(
    name="ave",
    title="AVE: classification of audio-visual events",
    settings=AveSettings,
    defaults={
        # bash.sh and main_CE_test_grad.py of the PMR code: SGD, StepLR.
        "epochs": 130,
        "batch_size": 64,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
    },
    synthetic_defaults={
        # A second of sound as a (65, 62) spectrogram, one (48, 48) picture, and larger steps.
        "audio_rate": 4_000,
        "audio_seconds": 1.0,
        "n_fft": 128,
        "hop": 64,
        "image_size": 48,
        "frames": 1,
        "epochs": 8,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 6,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "pmr": {"alpha": 2.0, "momentum": 0.0, "end_epoch": 70},  # its runs with concatenation, in the same file
    },
    protocols={
        # The PMR code: all rows of trainSet.txt, the first frames of the event, the best epoch on test is the result.
        "official": {"select": "test", "overlap": True, "frame_choice": "first"},
        # The DGL code: the first 3 s of the clip refilled to (224, 224), full batches only; it has no script for AVE.
        "dgl": {
            "select": "test",
            "overlap": True,
            "frame_choice": "first",
            "audio_frontend": "dgl",
            "drop_last": "both",
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main, "events": partial(main, EVENTS)},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
