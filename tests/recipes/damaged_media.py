"""Small whole files of every kind that recipes read, and the functions that read them, for damaged copies."""

from __future__ import annotations

import io
import json
import pickle
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import attrs
import h5py
import nibabel
import numpy as np
import soundfile
import torch
from PIL import Image

from recipe_common.data.datasets import cmu_mosei, iemocap, kinetics_sounds, ucf101, vggsound
from recipe_common.data.datasets.ave import segment_features
from recipe_common.data.datasets.ave.clips import read_events
from recipe_common.data.datasets.food101.lists import read_titles
from recipe_common.data.prepare.engine import Failure, Item, _process
from recipe_common.data.prepare.nifti import read_volume
from recipe_common.data.prepare.optical_flow import write_two_streams
from recipe_common.data.prepare.video import _extract
from recipe_common.data.readers.arrays import ArrayFile, Pictures, brightness_scale, read_class_indices, rows_not_finite
from recipe_common.data.readers.frames import read_image, read_picture_header
from recipe_common.data.readers.mmsa import read_mmsa
from recipe_common.data.readers.packed_parts import Shapes
from recipe_common.data.readers.packed_sequences import read_packed
from recipe_common.data.readers.pickles import load_pickle
from recipe_common.data.readers.stored_spectrograms import StoredSpectrogram
from recipe_common.data.readers.volumes import Labels, open_case
from recipe_common.data.readers.waveforms import read_samples, read_sound_header, read_waveform
from recipe_common.data.samples.audiovisual import _read_header, hdf5_frames
from recipe_common.data.samples.lists import read_list
from recipe_common.data.samples.youtube import csv_rows
from recipe_common.errors import RecipeError
from support.mutations import mutations

from .mmsa_files import mmsa_content
from .tiny_videos import write_video

CLASSES = ("cat", "dog")
MMSA_SHAPES = Shapes("MMSA", (None, 4), (None, 2), (None, 2))
SHAPES = Shapes("tiny", (3, 4), (3, 2), (3, 2))


@attrs.frozen
class Media:
    """A kind of file.

    Args:
        name: Name of a file, below a folder of its own.
        whole: Returns the content of a whole one.
        read: Reads it as recipes do; a RecipeError, or the `Failure` of `prepare`, counts as named.
        head: Bytes at the start that are damaged; None: all of them.
    """

    name: str
    whole: Callable[[], bytes]
    read: Callable[[Path], object]
    head: int | None = None

    def damaged(self, count: int, seed: int) -> Iterator[bytes]:
        """Yield damaged copies of the whole file."""
        whole = self.whole()
        end = len(whole) if self.head is None else self.head
        return (head + whole[end:] for head in mutations(whole[:end], count, seed))


def _written(name: str, write: Callable[[Path], object]) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        write(path)
        return path.read_bytes()


def _random() -> np.random.Generator:
    return np.random.default_rng(0)


def _h5(**datasets: Any) -> bytes:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            for name, values in datasets.items():
                file.create_dataset(name.replace("__", "/"), data=values, track_times=False)

    return _written("a.h5", write)


def _volumes() -> bytes:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            image = _random().normal(size=(4, 6, 5, 3)).astype(np.float32)
            label = _random().integers(0, 4, (6, 5, 3)).astype(np.uint8)
            for name, values in (("image", image), ("label", label)):
                chunks = (*values.shape[:-1], 1)
                file.create_dataset(name, data=values, chunks=chunks, compression="gzip", track_times=False)

    return _written("a.h5", write)


def _read_volumes(path: Path) -> None:
    case = open_case(path, 4, Labels(4))
    case.check()
    case.slices_with_label(2)


def _picture(kind: str = "JPEG", size: tuple[int, int] = (12, 10)) -> bytes:
    content = io.BytesIO()
    Image.fromarray(_random().integers(0, 256, (*size, 3), dtype=np.uint8)).save(content, kind)
    return content.getvalue()


def _stored_frames() -> bytes:
    def write(path: Path) -> None:
        with h5py.File(path, "w") as file:
            frames = file.create_dataset("video", 2, h5py.vlen_dtype(np.uint8))
            for index in range(2):
                frames[index] = np.frombuffer(_picture(), np.uint8)

    return _written("a.hdf5", write)


def _read_stored_frames(path: Path) -> None:
    _read_header(path)
    for frame in hdf5_frames(path):
        read_image(frame)  # type: ignore[arg-type]


SEGMENTS: dict[str, Callable[[], bytes]] = {
    "audio_feature.h5": lambda: _h5(avadataset=_random().normal(size=(4, 3, 2)).astype(np.float32)),
    "visual_feature.h5": lambda: _h5(avadataset=_random().normal(size=(4, 3, 2, 2, 2)).astype(np.float32)),
    "right_labels.h5": lambda: _h5(avadataset=np.eye(2)[_random().integers(0, 2, (4, 3))]),
    "train_order.h5": lambda: _h5(order=np.array([0, 3])),
    "val_order.h5": lambda: _h5(order=np.array([1])),
    "test_order.h5": lambda: _h5(order=np.array([2])),
}


@cache
def _segments() -> dict[str, bytes]:
    return {name: make() for name, make in SEGMENTS.items()}


def _read_segments(path: Path) -> None:
    for name, content in _segments().items():
        if name != path.name and not path.with_name(name).exists():
            path.with_name(name).write_bytes(content)
    found = segment_features.read_segment_features(path.parent, CLASSES, skip_bad=True)
    rows = [row for part in found.orders.values() for row in part]
    assert all(torch.isfinite(found.audio[row]).all() for row in rows)


def _utterances() -> bytes:
    return _h5(**{f"Ses{number}": _random().normal(size=(3, 2)).astype(np.float32) for number in range(4)})


def _read_utterances(path: Path) -> None:
    file = iemocap.FeatureFile(path)
    for name in sorted(file.names):
        file.read(name)


def _statistics() -> bytes:
    return _h5(**{f"{fold}__{name}": np.ones(3) for fold in (1, 2) for name in ("mean", "std")})


def _packed() -> bytes:
    random = _random()
    shapes = {"text": (3, 3, 4), "audio": (3, 3, 2), "vision": (3, 3, 2), "labels": (3, 1, 1)}
    split = {name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in shapes.items()}
    return pickle.dumps({part: {**split, "id": ["a", "b", "c"]} for part in ("train", "valid", "test")}, protocol=4)


def _mmsa() -> bytes:
    shapes = {"text": (5, 4), "audio": (4, 2), "vision": (4, 2)}
    content = mmsa_content(shapes["audio"], shapes["vision"], text=shapes["text"])
    return pickle.dumps(content, protocol=4)


def _read_mmsa(path: Path) -> None:
    read_mmsa(path, load_pickle(path), MMSA_SHAPES, (-3, 3))


def _npy(values: Any) -> bytes:
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def _read_pictures(path: Path) -> None:
    file = ArrayFile(path)
    pictures = Pictures(file, 4, range(len(file)), brightness_scale(file))
    bad = set(rows_not_finite(file).tolist())
    for row in range(len(file)):
        if row not in bad:
            assert torch.isfinite(pictures[row]).all()


def _read_part(other: str, content: bytes, path: Path) -> None:
    path.with_name(other).write_bytes(content)
    iemocap._read_part(path.parent, "trn", CLASSES)


ONE_HOT, NAMES = _npy(np.eye(2)[[0, 1, 1]]), _npy(np.array([b"a", b"b", b"c"]))


def _nifti(suffix: str) -> bytes:
    volume = _random().normal(size=(6, 5, 4)).astype(np.float32)
    return _written(f"a{suffix}", lambda path: nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), path))


def _read_nifti(item: Item) -> None:
    read_volume(item.source)
    item.outputs[0].touch()


def _prepared(make: Callable[[Item], object], outputs: int, path: Path) -> None:
    """Read a raw file as `prepare` does, and raise what it reports about the file."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        item = Item(path, tuple(Path(folder) / f"{number}" for number in range(outputs)))
        outcome = _process(item, make, path.parent)
    if isinstance(outcome, Failure):
        assert outcome.source == path
        raise RecipeError(f"{path} should be readable", found=outcome.reason, fix="restore it")


def _video(name: str, **options: Any) -> bytes:
    return _written(name, partial(write_video, seconds=0.5, **options))


READ_NIFTI = partial(_prepared, _read_nifti, 1)
READ_VIDEO = partial(_prepared, partial(_extract, fps=2.0, short_side=None, seconds=None), 2)
READ_STREAMS = partial(_prepared, partial(write_two_streams, method="dis", short_side=16, stride=1), 3)


def _wav(subtype: str) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, _random().normal(0, 0.1, (400, 2)), 16_000, subtype=subtype, format="WAV")
    return content.getvalue()


def _read_sound(path: Path) -> None:
    frames, rate = read_sound_header(path)
    assert frames > 0
    assert len(read_waveform(path, 16_000)) > 0
    read_samples(path, rate)


def _read_picture(path: Path) -> None:
    width, height = read_picture_header(path)
    assert read_image(path).size == (width, height)


def _torch_file() -> bytes:
    content = io.BytesIO()
    torch.save(torch.ones(4, 3), content)
    return content.getvalue()


LIST = "".join(f"clip{number},{CLASSES[number % 2]}\r\n" for number in range(12)).encode()
EVENTS = b"Category&VideoID&Quality&StartTime&EndTime\n" + b"cat&abc-_1&good&0&10\ndog&def&bad&2&5\n" * 3
TITLES = b'file0.jpg,"a, quoted ""title""",cat\nfile1.jpg,words of it,dog\n'
DATABASE = json.dumps(
    {
        "labels": [*CLASSES],
        "database": {
            f"clip{number}": {"subset": part, "annotations": {}, "label": CLASSES[number % 2]}
            for number, part in enumerate(("training", "validation", "testing"))
        },
    }
).encode()
RECORDS = json.dumps(
    [{"id": f"a{n}", "img_path": f"a{n}.jpg", "label": CLASSES[n % 2], "text_tokens": ["a", "b"]} for n in range(3)]
).encode()


def _read_titles(kind: str, test: bytes, path: Path) -> None:
    root = path.parents[1] if kind == "csv" else path.parent
    path.with_name(path.name.replace("train", "test")).write_bytes(test)
    read_titles(root, CLASSES, kind)


MEDIA: dict[str, Media] = {
    "NIfTI": Media("a.nii", partial(_nifti, ".nii"), READ_NIFTI),
    "NIfTI, gzip": Media("a.nii.gz", partial(_nifti, ".nii.gz"), READ_NIFTI),
    "volumes in h5": Media("a.h5", _volumes, _read_volumes),
    # Not the heap behind the head, where HDF5 may not come to an end; for that, see the tests of `check_heaps`.
    "frames in h5": Media("a.hdf5", _stored_frames, _read_stored_frames, head=2048),
    **{f"AVE, {name}": Media(name, make, _read_segments) for name, make in SEGMENTS.items()},
    "IEMOCAP features": Media("a.h5", _utterances, _read_utterances),
    "IEMOCAP statistics": Media("a.h5", _statistics, lambda path: iemocap.read_statistics(path, 2)),
    "packed pickle": Media("a.pkl", _packed, lambda path: read_packed(path, [SHAPES], (-3, 3))),
    "MMSA pickle": Media("a.pkl", _mmsa, _read_mmsa),
    "stored pickle": Media("a.pkl", lambda: pickle.dumps(np.ones((4, 3)), protocol=2), StoredSpectrogram()),
    "npy of pictures": Media("a.npy", lambda: _npy(_random().random((5, 16)).astype(np.float32)), _read_pictures),
    "npy of labels": Media("a.npy", lambda: _npy(np.arange(6) % 2), lambda path: read_class_indices(path, 2)),
    "npy of names": Media("trn_int2name.npy", lambda: NAMES, partial(_read_part, "trn_label.npy", ONE_HOT)),
    "npy of one-hot labels": Media("trn_label.npy", lambda: ONE_HOT, partial(_read_part, "trn_int2name.npy", NAMES)),
    "npy of word vectors": Media("a.npy", lambda: _npy(np.ones((4, 300), np.float32)), cmu_mosei._read_vectors),
    "stored npy": Media("a.npy", lambda: _npy(np.ones((4, 3), np.float32)), StoredSpectrogram((4, 3))),
    "stored npy, header": Media(
        "a.npy", lambda: _npy(np.ones((4, 3), np.float32)), lambda path: StoredSpectrogram().header.read(path)
    ),
    "stored pt": Media("a.pt", _torch_file, StoredSpectrogram()),
    "csv": Media("train.csv", lambda: LIST, lambda path: read_list(path, CLASSES)),
    "csv of YouTube": Media("train.csv", lambda: LIST, lambda path: list(csv_rows(path))),
    "csv of VGGSound": Media(
        "vggsound.csv",
        lambda: b'a_0123456-b,10,"cat, meowing",train\nc_0123456-d,20,dog,test\n' * 2,
        vggsound.read_vggsound,
    ),
    "csv of titles": Media(
        "texts/train_titles.csv", lambda: TITLES, partial(_read_titles, "csv", b"other.jpg,title,cat\n")
    ),
    "json of titles": Media(
        "train.json", lambda: RECORDS, partial(_read_titles, "json", RECORDS.replace(b'"a', b'"b'))
    ),
    "json of Kinetics": Media("a.json", lambda: DATABASE, lambda path: kinetics_sounds.read_database(path, CLASSES)),
    "txt of classes": Media("classInd.txt", lambda: b"1 cat\r\n2 dog\r\n", ucf101.read_classes),
    "txt of UCF-101": Media(
        "trainlist01.txt",
        lambda: b"cat/v_cat_g01_c01.avi 1\ncat/v_cat_g02_c01.avi 1\ndog/v_dog_g01_c02.avi 2\n",
        lambda path: ucf101.read_clips(path, CLASSES),
    ),
    "txt of AVE": Media("trainSet.txt", lambda: EVENTS, lambda path: read_events(path, CLASSES)),
    "flv": Media("a.flv", partial(_video, "a.flv"), READ_VIDEO),
    "mp4": Media("a.mp4", partial(_video, "a.mp4", codec="mpeg4", sound=False), READ_STREAMS),
    "avi": Media("a.avi", partial(_video, "a.avi", codec="mpeg4"), READ_VIDEO),
    "mkv": Media("a.mkv", partial(_video, "a.mkv", codec="mpeg4"), READ_VIDEO),
    "wav": Media("a.wav", partial(_wav, "PCM_16"), _read_sound),
    "float wav": Media("a.wav", partial(_wav, "FLOAT"), _read_sound),
    "jpg": Media("a.jpg", _picture, _read_picture),
    "png": Media("a.png", partial(_picture, "PNG"), _read_picture),
}
