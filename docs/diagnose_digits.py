"""Trains the small network of the AV-MNIST recipe for eight epochs without a method, and diagnoses it.

python docs/diagnose_digits.py [PICTURE]    handwritten digits of scikit-learn, synthetic sound; seed 0
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "recipes"), str(ROOT / "tests")]

from torch.utils.data import DataLoader  # noqa: E402

from modbalance import diagnose  # noqa: E402
from support.digits import starving_digits, trained  # noqa: E402

with tempfile.TemporaryDirectory() as folder:
    train, test = starving_digits(Path(folder))
model = trained(train, seed=0)
diagnosis = diagnose(
    model,
    DataLoader(test, batch_size=120),
    modalities={"audio": "audio_net", "image": "image_net"},
    fusion="fusion_module",
    ceilings={"audio": 0.914, "image": 0.825},
)
print(diagnosis)
if len(sys.argv) > 1:
    diagnosis.save_picture(sys.argv[1])
