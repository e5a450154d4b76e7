"""The files of the cache: the arrays of some samples in a safetensors file.

Arrays of a sample that follow each other and are of one type and shape, as the frames of a clip, are one tensor, under
the number of the sample and that of the first of the arrays: `00003/000000`. The metadata have one entry, `cache`, a
JSON text (with several, equal files would differ in their order). Its digest ends the name of the file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from recipe_common.errors import RecipeError
from recipe_common.files import atomic_file

SUFFIX = ".safetensors"
ENTRY = "cache"


class Shard:
    """A finished file, mapped into memory: processes share it, and the system keeps in memory what is read often.

    It is opened when it is first needed, in each process that it is sent to.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)

    def __getitem__(self, sample: int) -> Sequence[Tensor]:
        """Return the arrays of one sample, views of the file: of those that are not looked at, nothing is read."""
        tensor, _, names = self._opened
        found = [tensor(name) for name in names[sample]]
        return found[0] if len(found) == 1 else [array for each in found for array in each]

    @property
    def keys(self) -> list[tuple[str, str]]:
        """Name and stamp of each sample.

        Raises:
            RecipeError: If the file is not a whole shard.
        """
        return self._opened[1]

    @cached_property
    def _opened(self) -> tuple[Callable[[str], Any], list[tuple[str, str]], list[list[str]]]:
        """What gives tensors by their names, the keys, and for each sample the names of its tensors."""
        try:
            file: Any = safe_open(self.path, "pt")
            header = file.metadata()[ENTRY]
            if not self.path.stem.endswith(digest(header)):
                raise ValueError("its metadata are damaged")
            keys = [(name, stamp) for name, stamp in json.loads(header)["samples"]]
            names: list[list[str]] = [[] for _ in keys]
            for name in sorted(file.keys()):
                names[int(name.partition("/")[0])].append(name)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
            raise RecipeError(
                f"Expected a whole file of the cache. Found {self.path}: {error}. "
                "Fix: remove it and start again; it is built anew from the data."
            ) from error
        return cache(file.get_tensor), keys, names  # making a view takes longer than copying a waveform


def write_shard(path: Path, header: str, samples: Iterable[Sequence[Tensor]]) -> None:
    """Write the arrays of samples; the file is there whole or not at all."""
    tensors = {name: tensor for number, arrays in enumerate(samples) for name, tensor in _named(number, arrays)}
    content = save(tensors, {ENTRY: header})  # files of its `save_file` cannot be read by other users
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave a renamed file without its content


def digest(content: Any) -> str:
    """Return a digest of what can be written as JSON."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _named(number: int, arrays: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    first = 0
    for _, alike in groupby(arrays, key=lambda array: (array.dtype, array.shape)):
        tensor = torch.stack(list(alike))
        yield f"{number:05d}/{first:06d}", tensor
        first += len(tensor)
