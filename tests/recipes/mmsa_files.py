"""Packed files of MMSA with few segments, in the real layout."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np

COUNTS = {"train": 6, "valid": 3, "test": 4}
WORDS = 20
"""Words of the vocabulary; the first is padding."""


def mmsa_content(
    audio: tuple[int, int],
    vision: tuple[int, int],
    *,
    text: tuple[int, int] = (50, 768),
    aligned: bool = False,
    bound: float = 3.0,
    own_labels: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return random features; segment n has 3 + n tokens, and as many steps of audio and vision.

    Args:
        audio: Steps and features of audio.
        vision: Of vision.
        text: Of text.
        aligned: Whether the file has no lengths.
        bound: Largest label.
        own_labels: Whether there are labels of each modality.
    """
    random = np.random.default_rng(0)
    content: dict[str, dict[str, Any]] = {}
    for split, count in COUNTS.items():
        lengths = 3 + np.arange(count)
        part: dict[str, Any] = {"raw_text": np.array([f"text {row}" for row in range(count)])}
        for modality, (steps, size) in {"audio": audio, "vision": vision, "text": text}.items():
            values = random.standard_normal((count, steps, size))
            is_real = np.arange(steps) < lengths[:, None]
            # The text features of the real files are those of padded token ids, not 0 at padding.
            part[modality] = (values if modality == "text" else values * is_real[..., None]).astype(np.float32)
        mask = np.arange(text[0]) < lengths[:, None]
        ids = random.integers(1, WORDS, (count, text[0])) * mask
        part["text_bert"] = np.stack([ids, mask, np.zeros_like(ids)], axis=1).astype(np.float32)
        labels = np.linspace(-bound, bound, count)
        part["id"] = np.array([f"video{row // 2}$_${row % 2}" for row in range(count)])
        part["annotations"] = np.where(labels < 0, "Negative", np.where(labels > 0, "Positive", "Neutral"))
        part["classification_labels"] = (np.sign(labels) + 1).astype(np.float32)
        part["regression_labels"] = labels.astype(np.float32)
        if not aligned:
            part["audio_lengths"], part["vision_lengths"] = lengths.tolist(), lengths.tolist()
        if own_labels:
            for number, letter in enumerate("TAV", start=1):
                part[f"regression_labels_{letter}"] = np.roll(labels, number).astype(np.float32)
                part[f"classification_labels_{letter}"] = (np.sign(np.roll(labels, number)) + 1).astype(np.float32)
        content[split] = part
    return content


def write(path: Path, content: Any) -> Path:
    """Write a file as MMSA does, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=4))
    return path


def write_bert(folder: Path, size: int = 16, words: int = WORDS) -> Path:
    """Write a small BERT with random weights, and return its folder."""
    import torch
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=words,
        hidden_size=size,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2 * size,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder
