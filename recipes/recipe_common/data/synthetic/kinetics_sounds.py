"""A synthetic set with the lists and folders of Kinetics-Sounds."""

from pathlib import Path

from recipe_common.data.datasets.kinetics_sounds import CLASSES, LISTS
from recipe_common.data.samples.youtube import clip_key
from recipe_common.data.synthetic.clips import SyntheticClips
from recipe_common.data.synthetic.folder import synthetic_folder


def synthetic_root() -> Path:
    """Return the folder of the set, in the layout of Peng et al. (CVPR 2022), which is written at the first call.

    10 training and 3 test clips of each class; in the test list starts are not padded, as in theirs.
    """
    labels = [index % len(CLASSES) for index in range(13 * len(CLASSES))]
    names = [f"gen_{index:05d}-k_{index:06d}_{index + 10:06d}" for index in range(len(labels))]
    clips = SyntheticClips(tuple(names), tuple(labels), len(CLASSES))

    def write(root: Path) -> None:
        clips.write(root / "audio", root / "visual")
        for folder in (root / "visual").iterdir():
            for number, path in enumerate(sorted(folder.iterdir()), 1):
                path.rename(folder / f"frame_{number:05d}.jpg")
        cut = 10 * len(CLASSES)
        rows = list(zip(names, labels, strict=True))
        lists = (rows[:cut], [(clip_key(name), label) for name, label in rows[cut:]])
        for (file, *_), part in zip(LISTS.values(), lists, strict=True):
            (root / file).write_text("".join(f"{name},10,{label}\r\n" for name, label in part), newline="")

    return synthetic_folder("kinetics_sounds", clips, write)
