"""Scores equal what one works out by hand, and a modality alone is really alone."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from recipe_common.data.samples.in_memory import TensorSet
from recipe_common.data.samples.sampler import ResumableBatchSampler
from recipe_common.tasks.task import classification, classification_metrics
from recipe_common.training.evaluate import Evaluator
from recipe_common.training.precision import Precision
from recipes.tiny_recipe import TinyDataset, TinyNet

CPU = Precision(torch.device("cpu"), None, channels_last=False)


def test_scores_by_hand() -> None:
    # Predictions 0, 1, 1, 2 of the truth 0, 1, 2, 2.
    probability = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.7, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]])
    target = torch.tensor([0, 1, 2, 2])
    scores = classification_metrics(probability.log(), target)
    assert scores == {
        "accuracy": pytest.approx(3 / 4),
        "macro_f1": pytest.approx((1 + 2 / 3 + 2 / 3) / 3),
        "weighted_f1": pytest.approx(1 / 4 + 2 / 3 / 4 + 2 / 3 / 2),
        "map": pytest.approx(1.0),
    }


def test_average_precision_of_a_wrong_ranking() -> None:
    # Class 1 is ranked 0.8 (wrong), 0.6 (right): precision 1/2. Class 0 is ranked 0.4, 0.2: right is second, 1/2.
    probability = torch.tensor([[0.2, 0.8], [0.4, 0.6]])
    assert classification_metrics(probability.log(), torch.tensor([0, 1]))["map"] == pytest.approx(0.5)


def test_a_class_that_is_absent_does_not_warn() -> None:
    assert classification_metrics(torch.eye(3)[:2], torch.tensor([0, 1]))["accuracy"] == 1.0


def test_evaluation_zeroes_the_features_of_the_other_modality() -> None:
    torch.manual_seed(0)
    model, data = TinyNet(), TinyDataset(10)
    loader = DataLoader(data, batch_sampler=ResumableBatchSampler(10, 4, seed=0, shuffle=False))
    scores = Evaluator(model, model.head, ("audio", "visual"), classification(3), CPU)(loader)
    samples = [data[0, i] for i in range(10)]
    with torch.no_grad():
        audio = model.audio_net(torch.stack([sample[0] for sample in samples]))
        visual = model.visual_net(torch.stack([sample[1] for sample in samples]))
        zeros = torch.zeros_like(audio)
        fused, heard, seen = model.head(audio, visual), model.head(audio, zeros), model.head(zeros, visual)
    target = torch.tensor([sample[2] for sample in samples])
    expected = {f"val_{name}": value for name, value in classification_metrics(fused, target).items()}
    expected["val_loss"] = cross_entropy(fused, target).item()
    expected["val_accuracy_audio"] = classification_metrics(heard, target)["accuracy"]
    expected["val_accuracy_visual"] = classification_metrics(seen, target)["accuracy"]
    assert scores.as_row("val") == pytest.approx(expected)


@pytest.mark.parametrize("limit", [None, 2])
def test_a_modality_is_scored_against_labels_of_its_own_too(limit: int | None) -> None:
    torch.manual_seed(0)
    model, samples = TinyNet(), [TinyDataset(10)[0, index] for index in range(10)]
    inputs = [torch.stack([torch.as_tensor(sample[number]) for sample in samples]) for number in (0, 1)]
    joint, own = torch.tensor([sample[2] for sample in samples]), torch.randint(3, (10,))
    data = TensorSet(inputs, joint, {"visual": own})
    loader = DataLoader(data, batch_sampler=ResumableBatchSampler(10, 4, seed=0, shuffle=False))
    row = Evaluator(model, model.head, ("audio", "visual"), classification(3), CPU)(loader, limit).as_row("val")
    shown = slice(None if limit is None else 4 * limit)
    with torch.no_grad():
        visual = model.visual_net(inputs[1][shown])
        logits = model.head(torch.zeros_like(visual), visual)
    for ending, target in (("visual", joint), ("visual_own", own)):
        expected = {
            f"val_{name}_{ending}": value for name, value in classification_metrics(logits, target[shown]).items()
        }
        assert {name: row[name] for name in expected} == pytest.approx(expected)
    assert [name for name in row if name.endswith("_audio")] == ["val_accuracy_audio"]


def test_evaluation_runs_each_encoder_once_per_batch_and_draws_nothing() -> None:
    model, calls = TinyNet(), []
    model.audio_net.register_forward_hook(lambda *_: calls.append("audio"))
    loader = DataLoader(
        TinyDataset(10),
        batch_sampler=ResumableBatchSampler(10, 4, seed=0, shuffle=False),
        generator=torch.Generator(),
    )
    before = torch.get_rng_state()
    Evaluator(model, model.head, ("audio", "visual"), classification(3), CPU)(loader, limit=2)
    assert calls == ["audio", "audio"]
    assert torch.equal(torch.get_rng_state(), before)
