"""A synthetic set in the layout of UPMC Food-101: pictures and titles, and two tiny networks to encode them."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import attrs
import numpy as np
import torch
from PIL import Image

from recipe_common.data.datasets.food101.lists import read_titles
from recipe_common.data.datasets.food101.sources import picture_entry_of, text_entry_of
from recipe_common.data.features.pictures import FrozenPictures
from recipe_common.data.features.store import prepare_features
from recipe_common.data.features.texts import FrozenTexts
from recipe_common.data.synthetic.media import striped_picture
from recipe_common.errors import require

NOTE = "SYNTHETIC: pictures of stripes, invented titles, and networks with random weights. Nothing here is real data.\n"
DISHES = {
    "cheese_plate": ("brie", "grapes", "crackers"),
    "cheesecake": ("cream", "vanilla", "biscuits"),
    "gyoza": ("pork", "cabbage", "soy"),
    "lasagna": ("pasta", "tomato", "ricotta"),
    "paella": ("rice", "saffron", "shrimp"),
    "waffles": ("butter", "syrup", "batter"),
}
"""Classes, and the ingredients in their titles."""
OPENINGS = ("easy", "homemade", "the best", "grandma's", "quick", '"real"')
SITES = ("Food Blog", "Cook, Eat, Repeat", "Kitchen Notes", "Recipes & Tips")
VAGUE = ("dinner", "comfort food", "party dish", "weekend treat")
GREY, PRINT = 7, 11
"""One picture in so many is stored in greyscale, or in the colours of print, as in the real set."""
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@attrs.frozen
class SyntheticDishes:
    """Settings of a synthetic set of dishes.

    A title names its dish, is vague about it, or names another one; a picture has stripes of a direction and a tint.

    Args:
        sizes: Samples of each class for training and for testing.
        vague: Share of the titles that name no dish.
        wrong: Share of the titles that name another dish.
        pixels: Height and width of the pictures in pixels.
        length: Tokens of a title.
        width: Width of both networks.
        layers: Number of layers of both networks.
        seed: Seed of all random numbers.
        version: Version of the files, raised when they change for another reason.
    """

    sizes: tuple[int, int] = (60, 16)
    vague: float = 0.1
    wrong: float = 0.1
    pixels: int = 48
    length: int = 16
    width: int = 48
    layers: int = 1
    seed: int = 0
    version: int = 1

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the dishes, in the order of all classes of the real set."""
        return tuple(sorted(DISHES))

    def write(self, root: Path) -> None:
        """Write lists, pictures, the networks `models/image` and `models/text`, and their features."""
        random = np.random.default_rng(self.seed)
        (root / "SYNTHETIC.txt").write_text(NOTE)
        for part, size in zip(("train", "test"), self.sizes, strict=True):
            self._write_part(root, part, size, random)
        image, text = self._write_networks(root / "models")
        lists = read_titles(root, self.classes)
        networks = {
            FrozenPictures(image, normalize=True): [picture_entry_of(root, row) for row in lists.rows],
            FrozenTexts(text, length=self.length): [text_entry_of(row) for row in lists.rows],
        }
        prepare_features(root / "features", networks, workers=0)

    def _write_part(self, root: Path, part: str, size: int, random: np.random.Generator) -> None:
        rows = []
        for number in range(size):
            for label, name in enumerate(self.classes):
                file = f"{name}_{number}.jpg"
                self._write_picture(root / "images" / part / name / file, label, number, random)
                rows.append((file, self._title(label, random), name))
        path = root / "texts" / f"{part}_titles.csv"
        path.parent.mkdir(exist_ok=True)
        with path.open("w", encoding="utf-8", newline="") as lines:
            csv.writer(lines, lineterminator="\n").writerows(rows)

    def _write_picture(self, path: Path, label: int, number: int, random: np.random.Generator) -> None:
        pixels = striped_picture(
            label, len(self.classes), random, size=self.pixels, stripes=0.12, tint=0.08, noise=0.22
        )
        picture = Image.fromarray(pixels)
        if number % PRINT == 1:
            picture = picture.convert("CMYK")
        elif number % GREY == 1:
            picture = picture.convert("L")
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=90)

    def _title(self, label: int, random: np.random.Generator) -> str:
        kind = random.random()
        if kind < self.wrong:
            label = (label + int(random.integers(1, len(self.classes)))) % len(self.classes)
        name = self.classes[label]
        first, second = random.choice(DISHES[name], 2, replace=False)
        dish = f"{name.replace('_', ' ')} with {first} and {second}"
        if self.wrong < kind < self.wrong + self.vague:
            dish = str(random.choice(VAGUE))
        opening, site = (str(random.choice(words)) for words in (OPENINGS, SITES))
        return f"{opening} {dish} | {site}".capitalize()

    def _write_networks(self, folder: Path) -> tuple[Path, Path]:
        transformers = require("transformers")
        transformers.utils.logging.disable_progress_bar()
        image, text = folder / "image", folder / "text"
        size = {
            "hidden_size": self.width,
            "num_hidden_layers": self.layers,
            "num_attention_heads": 4,
            "intermediate_size": 2 * self.width,
            "initializer_range": 0.15,  # larger than usual: nothing is trained, and outputs should differ by input
        }
        vocabulary = self._vocabulary()
        vit = transformers.ViTConfig(**size, image_size=self.pixels, patch_size=8)
        bert = transformers.BertConfig(**size, vocab_size=len(vocabulary), max_position_embeddings=64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            transformers.ViTModel(vit, add_pooling_layer=False).save_pretrained(image)
            transformers.BertModel(bert).save_pretrained(text)
        (image / "preprocessor_config.json").write_text(
            json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3, "size": {"height": self.pixels}})
        )
        (text / "vocab.txt").write_text("".join(f"{word}\n" for word in vocabulary))
        return image, text

    def _vocabulary(self) -> Mapping[str, int]:
        """Return the WordPieces of all titles: their words, and letters for any others."""
        named = (*DISHES, *(word for words in DISHES.values() for word in words))
        text = " ".join((*named, *OPENINGS, *SITES, *VAGUE, "with and |")).lower().replace("_", " ")
        words = sorted(set("".join(letter if letter.isalnum() else f" {letter} " for letter in text).split()))
        letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
        pieces = dict.fromkeys([*SPECIAL, *words, *letters, *(f"##{letter}" for letter in letters)])
        return {piece: number for number, piece in enumerate(pieces)}
