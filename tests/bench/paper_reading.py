"""Reading of clips one by one as in the papers' code, the baseline of `test_feed.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.signal import resample_poly
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import transforms

from recipe_common.data.readers.frames import IMAGENET_MEAN, IMAGENET_STD
from recipe_common.data.samples.sources import Sample

RATE, SECONDS, N_FFT, HOP, SIZE = 22_050, 3, 512, 353, 224


class PaperDataset(Dataset[tuple[Tensor, Tensor, int]]):
    """Reads the clips of CREMA-D in training as is usual: one of their frames, three seconds of sound.

    The sound is resampled by SciPy's polyphase filter, which takes less time than librosa's default of those years.
    """

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.samples = samples
        crop = [transforms.RandomResizedCrop(SIZE), transforms.RandomHorizontalFlip()]
        self.transform = transforms.Compose(
            [*crop, transforms.ToTensor(), transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
        )

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        wav, folder = self.samples[index].media
        return spectrogram(wav), self.picture(folder), self.samples[index].label

    def picture(self, folder: Any) -> Tensor:
        frames = sorted(folder.iterdir())
        with Image.open(frames[np.random.randint(len(frames))]) as image:
            picture: Tensor = self.transform(image.convert("RGB"))
        return picture.unsqueeze(1)


def spectrogram(path: Any) -> Tensor:
    samples, rate = soundfile.read(path, dtype="float32")
    resampled = resample_poly(samples, RATE, rate) if rate != RATE else samples
    size = RATE * SECONDS
    tiled = np.clip(np.tile(resampled, size // len(resampled) + 1)[:size], -1, 1)
    return torch.from_numpy(np.log(np.abs(stft(tiled)) + 1e-7)).unsqueeze(0)


def stft(signal: NDArray[np.float32]) -> NDArray[np.complex64]:
    padded = np.pad(signal, N_FFT // 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(N_FFT) / N_FFT)).astype(np.float32)
    return np.fft.rfft(windows * hann, axis=1).T.astype(np.complex64)
