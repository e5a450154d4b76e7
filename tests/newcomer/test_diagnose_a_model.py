"""A newcomer asks whether a trained model leaves a modality behind, by the page on the diagnosis."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from newcomer.existing_training import BEGINNING
from newcomer.test_adopt_a_method import sides
from support.fresh_environment import FreshEnvironment
from support.pages import blocks

pytestmark = pytest.mark.slow


def test_the_diagnosis_of_a_trained_model_names_the_starved_modality(
    environment: FreshEnvironment, tmp_path: Path
) -> None:
    (diff,) = blocks("README.md", "diff")
    before, _ = sides(diff)
    trained, training = blocks("docs/diagnose.md", "python")[:2]
    (tmp_path / "diagnose.py").write_text("\n".join([BEGINNING, before, trained, "print(numbers['fused'])", training]))

    lines = environment.run("python -W error diagnose.py", tmp_path).splitlines()

    text = "\n".join(lines)
    assert re.search(r"linear probe +│ 0\.\d+ +│ 1\.000", text)
    assert re.search(r"ceiling +│ 0\.610 +│ -", text)
    assert "Verdict: imbalanced, audio is starved" in text
    assert "Methods that suit the findings, by their papers" in text
    *_, verdict, fused, speed = lines
    assert re.fullmatch(r"True audio [01]\.\d+", verdict)
    assert float(fused) > 0.9
    assert float(speed) == 0, "without a training between both diagnoses"
