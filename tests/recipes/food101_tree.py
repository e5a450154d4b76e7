"""Small trees in the layouts of UPMC Food-101, and tiny networks."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

CLASSES = ("apple_pie", "cheese_plate", "cheesecake", "gyoza")
WORDS = (
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "apple",
    "pie",
    "best",
    "the",
    "##s",
    "a",
    "b",
    "##b",
    ",",
    '"',
    "|",
)


def write_picture(path: Path, number: int, mode: str = "RGB", size: tuple[int, int] = (20, 12)) -> None:
    """Write a jpg file of random pixels."""
    random = np.random.default_rng(number)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(path)


def write_kaggle(root: Path, train: int = 4, test: int = 2, header: Sequence[str] = ()) -> None:
    """Write lists and pictures as on Kaggle: so many samples of every class, titles with commas and quotes."""
    (root / "texts").mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        rows = [tuple(header)] if header else []
        for label in CLASSES:
            for number in range(count):
                file = f"{label}_{number}.jpg"
                write_picture(root / "images" / part / label / file, number)
                rows.append((file, f'The "best" {label}, ever | Site {part} {number}', label))
        with (root / "texts" / f"{part}_titles.csv").open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines).writerows(rows)


def record(part: str, label: str, number: int) -> dict[str, Any]:
    """Return a record of a json list."""
    name = f"{part}_{label}_{number}"
    return {"id": name, "img_path": f"pictures/{name}.jpg", "label": label, "text_tokens": ["the", "best", label]}


def write_json(root: Path, sizes: Mapping[str, int]) -> None:
    """Write lists and pictures as in the code of CGGM."""
    root.mkdir(parents=True, exist_ok=True)
    for part, count in sizes.items():
        records = [record(part, label, number) for label in CLASSES for number in range(count)]
        for number, each in enumerate(records):
            write_picture(root / each["img_path"], number)
        (root / f"{part}.json").write_text(json.dumps(records))


def write_vit(folder: Path, seed: int = 0) -> Path:
    """Write a vision transformer for 16 x 16 pixels: 5 tokens of 8 features."""
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=16, patch_size=8
    )
    torch.manual_seed(seed)
    transformers.ViTModel(config, add_pooling_layer=False).save_pretrained(folder)
    return folder


def write_bert(folder: Path, seed: int = 0) -> Path:
    """Write a text encoder of 16 positions and 8 features, and its WordPieces."""
    config = transformers.BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS))
    return folder
