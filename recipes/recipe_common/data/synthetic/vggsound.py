"""A synthetic set with the csv file and folders of VGGSound."""

from pathlib import Path

from recipe_common.data.synthetic.clips import SyntheticClips
from recipe_common.data.synthetic.folder import synthetic_folder

SYNTHETIC_LABELS = (
    "air horn",
    "cat purring",
    "child speech, kid speaking",
    "dog barking",
    "female speech, woman speaking",
    "male speech, man speaking",
    "motorboat, speedboat acceleration",
    "people whistling",
    "playing theremin",
    "race car, auto racing",
    "vehicle horn, car horn, honking",
    "wind chime",
)


def synthetic_root() -> Path:
    """Return the folder of the set, in the layout of Peng et al. (CVPR 2022), which is written at the first call.

    30 training and 8 test clips for each of 12 labels. On disk, starts have six digits in the test part alone.
    """
    parts = {"train": synthetic_clips("train", "d", 30), "test": synthetic_clips("test_", "06d", 8)}

    def write(root: Path) -> None:
        lines = []
        for part, clips in parts.items():
            frames = root / f"{part}-videos/{part}-set-img/Image-01-FPS"
            clips.write(root / f"{part}-audios/{part}-set", frames)
            for folder in sorted(frames.iterdir()):
                folder.rename(f"{folder}.mp4")
            for name, label in zip(clips.names, clips.labels, strict=True):
                lines.append(f'{name[:11]},{int(name[12:])},"{SYNTHETIC_LABELS[label]}",{part}\n')
        (root / "vggsound.csv").write_text("".join(lines), newline="")

    return synthetic_folder("vggsound", tuple(parts.items()), write)


def synthetic_clips(prefix: str, start: str, per_label: int) -> SyntheticClips:
    """Return clips with ids of 11 characters, as on YouTube, and starts in the given format."""
    labels = tuple(range(len(SYNTHETIC_LABELS))) * per_label
    names = tuple(f"{prefix}{index:06d}_{index:{start}}" for index in range(len(labels)))
    return SyntheticClips(names, labels, len(SYNTHETIC_LABELS), seed=per_label)
