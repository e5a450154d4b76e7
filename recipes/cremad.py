"""CREMA-D: classification of clips of speakers into six emotions, by voice and face.

    python recipes/cremad.py --methods none ogm_ge                      a small synthetic set, minutes on a laptop
    python recipes/cremad.py prepare --data-root DIR                    frames and sound from the videos, once
    python recipes/cremad.py --data-root DIR --methods none ogm_ge      the paper's training

DIR is a download of https://github.com/CheyneyComputerScience/CREMA-D (`AudioWAV/NAME.wav`, `VideoFlash/NAME.flv`),
or the files that other code made of it: `AudioWAV`, `Audio` or `audio` with NAME.wav, and `Image-01-FPS/NAME/` or
`visual/NAME/` with numbered jpg files; NAME.pt, .npy or .pkl with --audio-frontend stored. NAME is
`<actor>_<sentence>_<emotion>_<level>`, such as `1001_DFA_ANG_XX`.

Hyper-parameters are those of the OGM-GE authors (Peng et al., CVPR 2022). Three things differ from their code: the best
epoch is selected on validation clips and never on the test clips, frames are sorted, and clips that lack a modality are
counted and reported. Their lists share all speakers between training and test; `--split speaker` does not.
"""

import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import attrs
from torch import nn

from recipe_common.arguments import positive_float, positive_int, seed_int, share_float
from recipe_common.cli import main
from recipe_common.data.cache.feed import FeedSettings
from recipe_common.data.datasets.cremad import CLASS_ORDERS, Folders, clip_name, layout_of, listed_split
from recipe_common.data.datasets.known_faults import KNOWN_FAULTS
from recipe_common.data.prepare.engine import Preparation, parse_preparation, verify
from recipe_common.data.prepare.video import VideoJob, prepare_videos
from recipe_common.data.readers.audio import FrontEnd, Spectrogram
from recipe_common.data.readers.frames import Frames
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.samples.assemble import open_samples
from recipe_common.data.samples.audiovisual import audio_source, frames_source, index_files, listed
from recipe_common.data.samples.clips import check_kind
from recipe_common.data.samples.faulty import fault_lines
from recipe_common.data.samples.splits import Split, random_split, speaker_split
from recipe_common.data.synthetic.cremad import synthetic_root
from recipe_common.models.clips import audio_visual_net
from recipe_common.models.fusion import FUSIONS, describe
from recipe_common.recipe import Data, Recipe
from recipe_common.settings.declaration import flag, group
from recipe_common.settings.shared import Settings


@attrs.frozen(kw_only=True)
class CremadSettings:
    """Settings of this dataset and its model."""

    title: ClassVar[str] = "CREMA-D"

    # Ours: the OGM-GE code skips missing clips silently and has no validation clips.
    split: str = flag(
        "official",
        "official: lists on disk; random: 80/10/10 %% of clips; speaker: of actors",
        choices=("official", "random", "speaker"),
    )
    split_seed: int = flag(0, "seed of the choice of held-out clips, independent of --seed", number=seed_int)
    # The dataset code of OGM-GE, classes as in its stat.csv.
    class_order: str = flag("official", "order of the class indices; two are published", choices=tuple(CLASS_ORDERS))
    min_found: float = flag(0.9, "share of the listed clips that must be on disk", number=share_float, metavar="SHARE")
    # main.py of the OGM-GE code: one frame, concatenation.
    fps: int = flag(1, "read the folder Image-<fps>-FPS", number=positive_int)
    frames: int = flag(1, "frames per clip", number=positive_int)
    image_size: int = flag(224, number=positive_int, metavar="PIXELS")
    audio_frontend: str | None = flag(
        None, "stored: spectrograms in npy, pkl or pt files; default: spectrograms of wav files", choices=("stored",)
    )
    # Its dataset code: 3 s at 22,050 Hz, log magnitude of a (257, 188) spectrogram.
    audio_rate: int = flag(22_050, number=positive_int, metavar="HZ")
    audio_seconds: float = flag(3.0, "waveforms are repeated and cut to this length", number=positive_float)
    n_fft: int = flag(512, "window of the spectrogram", number=positive_int, metavar="SAMPLES")
    hop: int = flag(353, "step of the spectrogram", number=positive_int, metavar="SAMPLES")
    fusion: str = flag("concat", choices=FUSIONS)
    feed: FeedSettings = group(FeedSettings)


@attrs.frozen(kw_only=True)
class CremadPreparation(Preparation):
    """Settings of `prepare`."""

    fps: int = flag(1, "frames per second of video", number=positive_int)


def load(settings: Settings[CremadSettings]) -> Data:
    """Find, split and open the clips; without `--data-root` those of a small synthetic set."""
    own, root = settings.own, settings.data.data_root or synthetic_root()
    classes = CLASS_ORDERS[own.class_order]
    folders = layout_of(own.fps).find(root)
    split, origin = choose_split(settings, folders, classes)
    check_kind(folders.audio, front_end(own), named="AudioWAV")
    sources = (
        audio_source(folders.audio, front_end(own), key=clip_name),
        frames_source(folders.frames, Frames(own.frames, own.image_size), key=clip_name),
    )
    lines = (f"data: {listed(folders.audio)}, {listed(folders.frames)}", f"split: {origin}")
    faults = KNOWN_FAULTS["cremad"].samples
    return open_samples(
        settings, root, classes, split, sources, lines, min_found=own.min_found, feeding=own.feed, faults=faults
    )


def front_end(own: CremadSettings) -> FrontEnd:
    """Return the reader of the sound."""
    if own.audio_frontend == "stored":
        return StoredSpectrogram()
    return Spectrogram(own.audio_rate, own.audio_seconds, own.n_fft, own.hop)


def choose_split(settings: Settings[CremadSettings], folders: Folders, classes: tuple[str, ...]) -> tuple[Split, str]:
    """Return the split and a line about its origin; without lists, `official` is the same as `random`."""
    own, validation = settings.own, settings.data.validation
    seed = own.split_seed
    if own.split == "official" and folders.lists:
        return listed_split(folders.lists, classes, seed, validation=validation)
    rows = layout_of(own.fps).rows(folders, classes)
    if own.split == "speaker":
        split, origin = speaker_split(rows, lambda name: name[:4], seed), f"80/10/10 % of the actors, seed {seed}"
    else:
        note = "; there is no train.csv" if own.split == "official" else ""
        split, origin = random_split(rows, seed), f"80/10/10 % of every class, seed {seed}{note}"
    return (split, origin) if validation else (split.without_validation(), f"{origin}, validation added to train")


def prepare_main(arguments: list[str]) -> int:
    """Run `prepare`; return 1 if there were videos that could not be read."""
    settings = parse_preparation(CremadPreparation, "cremad.py prepare", "Frames and sound from the videos.", arguments)
    if settings.verify:
        return verify(settings.data_root, workers=settings.workers)
    layout = layout_of(settings.fps)
    audio, frames = layout.audio_folder(settings.data_root), settings.data_root / layout.frames[0]
    videos = layout.find_videos(settings.data_root)
    sound = index_files([audio], (".wav",), clip_name) if audio.is_dir() else {}
    jobs = [
        VideoJob(video, frames / video.stem, sound.get(video.stem, audio / f"{video.stem}.wav")) for video in videos
    ]
    status = prepare_videos(settings.data_root, jobs, fps=settings.fps, workers=settings.workers)
    kept = (job.frames.name for job in jobs if job.frames.is_dir())
    for line in fault_lines(KNOWN_FAULTS["cremad"].samples, kept):
        print(line)
    return status


def build_model(settings: Settings[CremadSettings], data: Data) -> nn.Module:
    return audio_visual_net(len(data.classes), settings.own.fusion)


def balance(settings: Settings[CremadSettings]) -> Mapping[str, Any]:
    return describe(("audio", "visual"), settings.own.fusion)


OGM = {"alpha": 0.8, "start_epoch": 0, "end_epoch": 50}  # README of the OGM-GE code, advice for CREMA-D

RECIPE = Recipe(
    name="cremad",
    title="CREMA-D: audio-visual emotion recognition",
    settings=CremadSettings,
    defaults={
        # main.py of the OGM-GE code: SGD, StepLR.
        "epochs": 100,
        "batch_size": 64,
        "lr": 1e-3,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "step_size": 70,
        "gamma": 0.1,
    },
    synthetic_defaults={
        # A (64, 64) spectrogram and picture, and steps as large as 6 epochs of 300 clips need.
        "audio_rate": 8_000,
        "audio_seconds": 1.0,
        "n_fft": 126,
        "hop": 126,
        "image_size": 64,
        "epochs": 6,
        "batch_size": 16,
        "lr": 1e-2,
        "step_size": 5,
        "log_every": 1,
    },
    method_options={
        "ogm": OGM,
        "ogm_ge": OGM,
        "dgl": {"alpha": 5.0},  # the better of two in the CREMA-D scripts of the DGL code
        "pmr": {"alpha": 2.0, "momentum": 0.0, "end_epoch": 70},  # nearly all commands of the PMR code
        "inforeg": {"strength": {"audio": 0.95, "visual": 0.1}},  # literals of the InfoReg code
        "lfm": {"alpha_epochs": 100},  # crema.json of the LFM code: 200 epochs, the length of its fitted weight
        "mslr": {"init": {"audio": 0.9, "visual": 1.1}},  # the CREMA-D script of the AGM code, as is the patience
        "mses": {"patience": 80},
    },
    synthetic_options={
        # The easy audio is far ahead here, and 0.8 would all but stop it; 0.1 is the README's other advice.
        "ogm": {"alpha": 0.1},
        "ogm_ge": {"alpha": 0.1},
        "relearning": {"period": 2, "count": 2},
        "lfm": {"alpha_epochs": 6},
        "mses": {"patience": 2},
    },
    protocols={
        # The code of the OGM-GE paper: every clip of train.csv is trained on, and the best epoch on test is the result.
        "official": {"select": "test", "validation": False},
        "dgl": {"select": "test", "validation": False, "drop_last": "both", "lr": 2e-3},
        "relearning": {
            "select": "test",
            "class_order": "alphabetical",
            "frames": 2,
            "epochs": 90,
            "lr": 2e-3,
            "schedule": "constant",
        },
    },
    load=load,
    build_model=build_model,
    balance=balance,
    commands={"prepare": prepare_main},
)

if __name__ == "__main__":
    sys.exit(main(RECIPE))
