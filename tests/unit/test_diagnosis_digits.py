"""The verdict on the small set of digits: a starved modality in each of five seeds, none where both are alike."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.data import DataLoader

from modbalance import Diagnosis, diagnose
from support.digits import balanced_digits, starving_digits, trained

pytestmark = pytest.mark.slow
# Test accuracy of each encoder trained by itself, docs/comparisons/av_mnist.md.
CEILINGS = {"audio": 0.914, "image": 0.825}


def diagnosed(folder: Path, seed: int, *, balanced: bool, **options: object) -> Diagnosis:
    train, test = (balanced_digits if balanced else starving_digits)(folder)
    paths = {"audio": "audio_net", "image": "image_net"}
    model = trained(train, seed)
    return diagnose(model, DataLoader(test, batch_size=120), modalities=paths, fusion="fusion_module", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_the_starved_modality_is_named_in_every_seed(seed: int, tmp_path: Path) -> None:
    found = diagnosed(tmp_path, seed, balanced=False, ceilings=CEILINGS)
    print(found)

    assert found.starved == "audio"
    assert found.modalities["audio"].utilisation < found.modalities["image"].utilisation  # type: ignore[operator]


@pytest.mark.parametrize("seed", range(2))
def test_a_set_of_equal_modalities_is_called_balanced(seed: int, tmp_path: Path) -> None:
    found = diagnosed(tmp_path, seed, balanced=True)
    print(found)

    assert not found.is_imbalanced
    assert found.suggestions == ()
