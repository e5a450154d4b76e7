"""A frozen network that reads texts."""

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
"""Tokens of a text: one at its beginning, one at its end, and a word."""


def text_entry(text: str) -> Entry:
    """Return the entry of a text; equal texts have equal entries."""
    return Entry(hashlib.sha256(text.encode()).hexdigest()[:32], 0, text)


@attrs.frozen(slots=False)
class FrozenTexts(FrozenNetwork):
    """A text encoder on tokens, cut or padded to one length; the states of padding are kept, too, as CGGM does.

    Args:
        length: Tokens, those at the beginning and end included.
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
                f"Expected a network for texts in {self.folder}, such as BERT. Found no `max_position_embeddings` in "
                "its configuration. Fix: another --text-model."
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
    """Let a number of tokens fail that leaves no room for a word, or that a network has no positions for.

    Raises:
        RecipeError: Saying how many there may be.
    """
    if not SHORTEST <= length <= most:
        nearest = min(max(length, SHORTEST), most)
        raise RecipeError(f"Expected {SHORTEST} to {most} tokens. Found {length}. Fix: --text-length {nearest}")


def tokenized(tokenizer: Any, texts: Sequence[str], length: int) -> dict[str, Tensor]:
    """Return what a text encoder takes, each (n, length): ids, mask and, for some, types."""
    return dict(
        tokenizer(list(texts), padding="max_length", max_length=length, truncation=True, return_tensors="pt").items()
    )


@lru_cache(maxsize=2)
def _tokenizer(folder: Path) -> Any:
    return load_tokenizer(folder)
