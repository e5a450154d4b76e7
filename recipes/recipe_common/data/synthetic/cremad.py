"""A synthetic set with the names, folders and lists of CREMA-D."""

from pathlib import Path

from recipe_common.data.datasets.cremad import CLASS_ORDERS
from recipe_common.data.samples.lists import Row
from recipe_common.data.samples.splits import hold_out
from recipe_common.data.synthetic.clips import SyntheticClips
from recipe_common.data.synthetic.folder import synthetic_folder


def synthetic_root() -> Path:
    """Return the folder of the set, which is written at the first call.

    13 actors say 6 sentences in 6 emotions: 300 clips in my_train.csv, 60 in val.csv, 108 in test.csv.
    """
    classes = CLASS_ORDERS["official"]
    rows = [
        Row(f"{actor}_{sentence}_{label}_XX", label)
        for actor in range(1001, 1014)
        for sentence in ("IEO", "TIE", "IOM", "IWW", "TAI", "MTI")
        for label in classes
    ]
    train, test = hold_out(rows, 18 / 78, seed=0)
    my_train, val = hold_out(train, 10 / 60, seed=0)
    clips = SyntheticClips(
        tuple(row.name for row in rows), tuple(classes.index(row.label) for row in rows), len(classes)
    )

    def write(root: Path) -> None:
        for name, part in {"train": train, "my_train": my_train, "val": val, "test": test}.items():
            (root / f"{name}.csv").write_text("".join(f"{row.name},{row.label}\n" for row in part), newline="")
        clips.write(root / "AudioWAV", root / "Image-01-FPS")

    return synthetic_folder("cremad", clips, write)
