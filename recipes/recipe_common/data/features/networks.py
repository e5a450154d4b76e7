"""Frozen networks of the transformers library as encoders of samples: n samples, T tokens, D features."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recipe_common.data.cache.store import Entry
from recipe_common.errors import RecipeError, message
from recipe_common.models.pretrained import identity, load_network

KEEP = ("all", "cls")
VERSION = 1
"""Version of the features, raised when the same network and settings give other ones."""


@attrs.frozen(slots=False)
class FrozenNetwork:
    """A network of the transformers library that encodes samples and is not trained.

    Args:
        folder: Folder of its files, as `save_pretrained` writes them.
        keep: `all` tokens, or `cls`: the first one alone.
        device: Device of the network, such as `cuda`.
        batch_size: Samples per forward pass.
    """

    folder: Path
    keep: str = attrs.field(default="all", validator=attrs.validators.in_(KEEP))
    device: str = "cpu"
    batch_size: int = 64

    modality = ""

    @property
    def settings(self) -> dict[str, Any]:
        """Settings from the command line, by which features are found again."""
        raise NotImplementedError

    @property
    def transform(self) -> dict[str, Any]:
        """All other settings on which the features depend, besides the network."""
        raise NotImplementedError

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """Return the arguments of the network for some samples.

        Raises:
            RecipeError: If a sample cannot be read.
        """
        raise NotImplementedError

    def blank(self) -> dict[str, Tensor]:
        """Return the arguments of the network for a sample without content."""
        raise NotImplementedError

    @cached_property
    def spec(self) -> dict[str, Any]:
        """Everything on which the features depend, ready for JSON."""
        return {
            "version": VERSION,
            "modality": self.modality,
            "settings": self.settings,
            "transform": self.transform,
            "network_sha256": identity(self.folder),
        }

    @property
    def store_name(self) -> str:
        """Name of the folder of its features, which does not depend on the folder of the network."""
        digest = hashlib.sha256(json.dumps(self.spec, sort_keys=True).encode()).hexdigest()
        return f"{self.modality}-{digest[:12]}"

    def hidden_states(self, inputs: Mapping[str, Tensor]) -> NDArray[np.float16]:
        """Return the last hidden states (n, T, D) in half precision.

        Raises:
            RecipeError: If the result has another shape or values that are not finite, or if there is too little
                memory.
        """
        network = _network(self.folder, self.device)
        try:
            with torch.inference_mode():
                moved = {name: value.to(self.device) for name, value in inputs.items()}
                states = network(**moved).last_hidden_state
        except torch.OutOfMemoryError as error:
            raise RecipeError(
                "The device should have memory for a batch", found=str(error), fix="give a smaller `--batch-size`"
            ) from error
        if states.dim() != 3:
            raise RecipeError(
                f"The network in {self.folder} should return hidden states (n, T, D)",
                found=str(tuple(states.shape)),
                fix="take a transformer, such as ViT or BERT",
            )
        half = (states[:, :1] if self.keep == "cls" else states).half().cpu().numpy()
        if not np.isfinite(half).all():
            raise RecipeError(
                f"The network in {self.folder} should return finite features",
                found="infinity or NaN in half precision",
                fix="download the network again, or take another",
            )
        array: NDArray[np.float16] = half
        return array

    def encode(self, entries: Sequence[Entry]) -> dict[Entry, NDArray[np.float16] | str]:
        """Encode samples.

        Returns:
            For each the features (T, D), or the reason why it could not be read.
        """
        encoded: dict[Entry, NDArray[np.float16] | str] = {}
        for start in range(0, len(entries), self.batch_size):
            read, faults = self._read(entries[start : start + self.batch_size])
            encoded |= faults
            if read:
                joined = {name: torch.cat([each[name] for each in read.values()]) for name in self.blank()}
                encoded |= zip(read, self.hidden_states(joined), strict=True)
        return encoded

    def is_readable(self, entry: Entry) -> bool:
        """Return whether a sample can be read now."""
        return not self._read([entry])[1]

    def _read(self, entries: Sequence[Entry]) -> tuple[dict[Entry, dict[str, Tensor]], dict[Entry, str]]:
        read: dict[Entry, dict[str, Tensor]] = {}
        faults: dict[Entry, str] = {}
        for entry in entries:
            try:
                read[entry] = self.inputs([entry.content])
            except RecipeError as error:
                faults[entry] = message(error)
        return read, faults


@lru_cache(maxsize=2)
def _network(folder: Path, device: str) -> nn.Module:
    network = load_network(folder)
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:  # no such kind of device; torch without CUDA
        raise RecipeError(
            f"`--device {device}` should be a device of this machine", found=str(error), fix="use `--device cpu`"
        ) from error
