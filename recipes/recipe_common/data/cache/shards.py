"""Shards of a store of samples: safetensors files with the tensors of some samples each.

Arrays of a sample that follow each other and have one type and shape, such as the frames of a clip, form one tensor,
named by the number of the sample and the number of its first array: `00003/000000`. The metadata have one entry,
`cache`, a JSON text (with several, equal files would differ in their order). It is the header, whose digest ends the
file name, and, if some samples could not be read, `unreadable`: the reason by the number of the sample.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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

FORMAT = 2
"""Version of the file format, part of every header."""
SUFFIX = ".safetensors"
ENTRY, SAMPLES, UNREADABLE = "cache", "samples", "unreadable"
Key = tuple[str, Any]
"""Name and stamp of a sample; the stamp stands for a state of its files."""


class Shard:
    """A finished shard, mapped into memory: processes share it, and the system keeps in memory the parts in use.

    It is opened at the first access, in each process to which it is sent.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type["Shard"], tuple[Path]]:
        return Shard, (self.path,)

    def __getitem__(self, sample: int) -> Sequence[Tensor]:
        """Return the arrays of one sample as views of the file; an array is read when its values are used."""
        found = [self._tensor(name) for name in self._opened[2][sample]]
        return found[0] if len(found) == 1 else [array for each in found for array in each]

    @property
    def keys(self) -> list[Key]:
        """Name and stamp of each sample.

        Raises:
            RecipeError: If the file is not a whole shard.
        """
        return [(name, stamp) for name, stamp in self._opened[1][SAMPLES]]

    @property
    def unreadable(self) -> dict[int, str]:
        """Numbers of the samples without arrays, with the reasons why they could not be read."""
        return {int(number): reason for number, reason in self._opened[1].get(UNREADABLE, {}).items()}

    def shape(self, sample: int) -> tuple[int, ...]:
        """Return the shape of the first array of a sample without reading it."""
        first, *_ = self._opened[2][sample]
        return tuple(self._opened[0].get_slice(first).get_shape()[1:])

    @cached_property
    def _tensor(self) -> Any:
        return cache(self._opened[0].get_tensor)  # making a view takes longer than copying a waveform

    @cached_property
    def _opened(self) -> tuple[Any, dict[str, Any], list[list[str]]]:
        """File, metadata, and for each sample the names of its tensors."""
        try:
            file: Any = safe_open(self.path, "pt")
            content = json.loads(file.metadata()[ENTRY])
            header = json.dumps({name: value for name, value in content.items() if name != UNREADABLE})
            if not self.path.stem.endswith(digest(header)):
                raise ValueError("its metadata are damaged")
            names: list[list[str]] = [[] for _ in content[SAMPLES]]
            for name in sorted(file.keys()):
                names[int(name.partition("/")[0])].append(name)
        except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise damaged(self.path, error) from error
        return file, content, names


def header_of(content: Mapping[str, Any], keys: Sequence[Key]) -> str:
    """Return the header of a shard: content that all shards of its folder share, and the keys of its samples."""
    return json.dumps({**content, SAMPLES: list(keys)})


def shard_name(place: str, header: str) -> str:
    """Return the file name of a shard, such as `00003-of-00128-<digest>.safetensors`."""
    return f"{place}-{digest(header)}{SUFFIX}"


def write_shard(path: Path, header: str, samples: Iterable[Sequence[Tensor] | str]) -> None:
    """Write the arrays of samples to a file that appears whole or not at all.

    Args:
        path: The file; its name ends in the digest of the header, see `shard_name`.
        header: Header from `header_of`.
        samples: For each key of the header the arrays, or the reason why the sample could not be read.
    """
    tensors: dict[str, Tensor] = {}
    unreadable: dict[str, str] = {}
    for number, arrays in enumerate(samples):
        if isinstance(arrays, str):
            unreadable[str(number)] = arrays
        else:
            tensors |= _named(number, arrays)
    text = json.dumps({**json.loads(header), UNREADABLE: unreadable}) if unreadable else header
    content = save(tensors, {ENTRY: text})  # files of its `save_file` cannot be read by other users
    with atomic_file(path) as partial, partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # a power cut must not leave a renamed file without its content


def damaged(path: Path, error: object) -> RecipeError:
    """Return the error for a damaged file of a store."""
    return RecipeError(
        f"{path} should be a whole file of stored samples",
        found=str(error),
        fix="remove it and start again, or run prepare again if these are features; what is missing is made anew",
    )


def digest(content: Any) -> str:
    """Return a digest of a value that can be written as JSON, 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def _named(number: int, arrays: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
    first = 0
    for _, alike in groupby(arrays, key=lambda array: (array.dtype, array.shape)):
        tensor = torch.stack(list(alike))
        yield f"{number:05d}/{first:06d}", tensor
        first += len(tensor)
