"""Frozen text encoders: tokens of one length, and their hidden states."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import attrs
from torch import Tensor

from recipe_common.data.cache.store import Entry
from recipe_common.data.features.networks import FrozenNetwork
from recipe_common.errors import RecipeError
from recipe_common.models.pretrained import load_tokenizer, read_config

SHORTEST = 3
"""Fewest tokens of a text: one at its beginning, one at its end, and a word."""


def text_entry(text: str) -> Entry:
    """Return the entry of a text; equal texts have equal entries."""
    return Entry(hashlib.sha256(text.encode()).hexdigest()[:32], 0, text)


@attrs.frozen(slots=False)
class FrozenTexts(FrozenNetwork):
    """A text encoder on tokens, cut or padded to one length.

    The states of padding are kept, too, as in the code of Guo et al. (NeurIPS 2024).

    Args:
        length: Number of tokens, including those at the beginning and end.
    """

    length: int = 50

    modality = "text"

    @property
    def settings(self) -> dict[str, Any]:
        """See the base."""
        return {"keep": self.keep, "length": self.length}

    @cached_property
    def transform(self) -> dict[str, Any]:
        """See the base."""
        most = getattr(read_config(self.folder), "max_position_embeddings", None)
        if not isinstance(most, int):
            raise RecipeError(
                f"{self.folder} should hold a network for texts, such as BERT",
                found="no `max_position_embeddings` in its configuration",
                fix="give another `--text-model`",
            )
        check_length(self.length, most)
        return {"padding": "max_length"}

    def inputs(self, contents: Sequence[str]) -> dict[str, Tensor]:
        """See the base."""
        return tokenized(_tokenizer(self.folder), contents, self.length)

    def blank(self) -> dict[str, Tensor]:
        """See the base."""
        return self.inputs([""])


def check_length(length: int, most: int) -> None:
    """Check that a number of tokens has room for a word and does not exceed the positions of a network.

    Args:
        length: Number of tokens.
        most: Number of positions.

    Raises:
        RecipeError: If it is not; the message names the range.
    """
    if not SHORTEST <= length <= most:
        nearest = min(max(length, SHORTEST), most)
        raise RecipeError(
            f"`--text-length` should be {SHORTEST} to {most} tokens",
            found=str(length),
            fix=f"give `--text-length {nearest}`",
        )


def tokenized(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return the arguments of a text encoder, each (n, length): ids, mask and, for some, types."""
    return dict(
        tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").items()
    )


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)
