"""Writes tiny videos with sound, for tests of decoding."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SOUND_RATE = 44_100


def write_video(
    path: Path,
    seconds: float = 2.5,
    fps: int = 10,
    *,
    sound: bool = True,
    size: tuple[int, int] = (16, 16),
    codec: str = "flv",
) -> None:
    """Frame number n has the brightness 5 * n, at most 255; the sound is 440 Hz; `size` is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as video:
        picture = video.add_stream(codec, rate=fps, options={"g": "5", "qscale": "2"})
        picture.width, picture.height = size
        picture.pix_fmt = "yuv420p"
        tone = video.add_stream("pcm_s16le", rate=SOUND_RATE, layout="mono") if sound else None
        for number in range(int(seconds * fps)):
            pixels = np.full((size[1], size[0], 3), min(5 * number, 255), np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, fps)
            video.mux(picture.encode(frame))
        video.mux(picture.encode())
        if tone:
            samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(int(seconds * SOUND_RATE)) / SOUND_RATE)
            block = av.AudioFrame.from_ndarray((samples * 2**15).astype(np.int16)[None], format="s16", layout="mono")
            block.sample_rate, block.pts = SOUND_RATE, 0
            video.mux(tone.encode(block))
            video.mux(tone.encode())


def turn_mp4(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Write a display matrix into the track header of a mp4 file: pixel (x, y) is shown at (a x + c y, b x + d y)."""
    content = bytearray(path.read_bytes())
    start = content.index(b"tkhd") + 44  # after the version, times, track, duration, layer and volume
    one = 1 << 16
    content[start : start + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
