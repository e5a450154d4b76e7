"""Speed of checking the headers of clips: at the first start, and with the facts of an earlier one.

Run alone: `python -m pytest -m bench -s tests/bench/test_headers.py`. The files are in the memory of the system.
"""

from __future__ import annotations

import io
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from rich.console import Console
from rich.table import Table

from recipe_common.data.cache.headers import HeaderStore
from recipe_common.data.readers.audio import Fbank
from recipe_common.data.readers.frames import Frames
from recipe_common.data.samples.audiovisual import frames_source

CLIPS, FRAMES = 3_000, 3
LEAST = {"cold": 500.0, "warm": 10_000.0}
"""Files and folders per second."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("headers")
    sound, picture = io.BytesIO(), io.BytesIO()
    soundfile.write(sound, np.zeros(16_000), 16_000, subtype="PCM_16", format="WAV")
    Image.new("RGB", (341, 256)).save(picture, "JPEG")
    (root / "audio").mkdir()
    for clip in range(CLIPS):
        (root / "audio" / f"{clip}.wav").write_bytes(sound.getvalue())
        folder = root / "visual" / str(clip)
        folder.mkdir(parents=True)
        for frame in range(FRAMES):
            (folder / f"{frame:05d}.jpg").write_bytes(picture.getvalue())
    return root


@pytest.mark.bench
def test_headers_are_checked_fast(root: Path) -> None:
    frames = frames_source([root / "visual"], Frames()).header
    assert frames is not None
    media: dict[str, tuple[Any, list[Path]]] = {
        "wav files": (Fbank().header, sorted((root / "audio").iterdir())),
        f"folders of {FRAMES} frames": (frames, sorted((root / "visual").iterdir())),
    }
    table = Table("", "start", "opened", "per second")
    speeds: dict[str, list[float]] = {"cold": [], "warm": []}
    for what, (header, paths) in media.items():
        for start in speeds:
            store = HeaderStore(root, root / "cache")
            begun = time.perf_counter()
            results = store.results(header, paths)
            speed = len(paths) / (time.perf_counter() - begun)
            assert not any(results)
            assert store.opened == (len(paths) if start == "cold" else 0)
            table.add_row(what, start, f"{store.opened:,}", f"{speed:,.0f}")
            speeds[start].append(speed)
    Console().print(table)
    for start, least in LEAST.items():
        assert min(speeds[start]) > least
