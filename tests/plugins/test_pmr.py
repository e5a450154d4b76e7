"""PMR: prototypes, the losses that they give, and what it needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from modbalance import BalancedOptimizer, ConfigError, ModbalanceWarning, ObservationError
from modbalance_pmr.prototypes import classified
from support.models import Multimodal
from support.operation_counts import READS, CountOps
from support.training import Batch, assert_same, batches, multimodal, sgd, train, weights

LOSS = nn.CrossEntropyLoss()


def loader_of(data: Sequence[Batch]) -> list[tuple[Tensor, ...]]:
    return [(*inputs, target) for inputs, target in data]


def bare(model: Multimodal, **options: Any) -> BalancedOptimizer:
    """Return an optimizer that has seen no data."""
    return BalancedOptimizer(sgd(model), "pmr", model=model, modalities=model.paths, fusion="fusion", **options)


def begun(model: Multimodal, data: Sequence[Batch], **options: Any) -> tuple[BalancedOptimizer, nn.Module]:
    """Return an optimizer with the prototypes of all of the data, and its criterion."""
    optimizer = bare(model, fraction=options.pop("fraction", 1.0), **options)
    criterion = optimizer.criterion(LOSS)
    optimizer.begin(train=loader_of(data))
    return optimizer, criterion


class Watched(list[Any]):
    """A loader that notes which batches are drawn."""

    def __init__(self, data: Sequence[Any], drawn: list[int]) -> None:
        super().__init__(data)
        self.drawn = drawn

    def __iter__(self) -> Iterator[Any]:
        for index, item in enumerate(list.__iter__(self)):
            self.drawn.append(index)
            yield item


def state(optimizer: BalancedOptimizer) -> dict[str, Any]:
    saved: dict[str, Any] = optimizer.state_dict()["modbalance"]["methods"]["pmr"]
    return saved


# Prototypes


def test_prototypes_are_class_means_of_features_in_eval_mode() -> None:
    model = multimodal("abc")
    data = batches(model, 4)
    optimizer, _ = begun(model, data)
    target = torch.cat([y for _, y in data])
    model.eval()
    for index, (name, encoder) in enumerate(model.encoders.items()):
        with torch.no_grad():
            z = torch.cat([encoder(inputs[index]) for inputs, _ in data])
        expected = torch.stack([z[target == c].mean(0) for c in range(3)])
        torch.testing.assert_close(state(optimizer)["prototypes"][name], expected)


@pytest.mark.parametrize(("batches_of", "fraction", "expected"), [(3, 0.1, 1), (20, 0.1, 2), (19, 0.1, 1), (5, 1.0, 5)])
def test_a_part_of_the_batches_is_drawn(batches_of: int, fraction: float, expected: int) -> None:
    model = multimodal()
    drawn: list[int] = []

    bare(model, fraction=fraction).begin(train=Watched(loader_of(batches(model, batches_of)), drawn))
    assert drawn == [*range(expected)]


def test_a_class_that_is_missing_keeps_its_prototype_and_leaves_the_loss() -> None:
    model = multimodal()
    ((inputs, target),) = batches(model, 1)
    two = [(inputs, target.clamp(max=1))]
    optimizer, criterion = begun(model, two)
    assert state(optimizer)["seen"].tolist() == [True, True, False]
    with pytest.warns(ModbalanceWarning, match="some classes are missing"):
        assert optimizer.metrics()["pmr/missing_classes"] == 1
    train(model, optimizer, [(inputs, torch.full_like(target, 2))], criterion)  # no sample of a known class
    found = optimizer.metrics()
    assert found["pmr/active/a"] == found["pmr/active/b"] == 0
    assert all(value.isfinite().all() for value in weights(model).values())

    kept = state(optimizer)["prototypes"]["a"]
    optimizer.end_epoch(train=loader_of([(inputs, torch.full_like(target, 2))]))
    assert torch.equal(state(optimizer)["prototypes"]["a"][:2], kept[:2])
    assert state(optimizer)["seen"].all()


def test_features_that_equal_their_prototype_have_a_finite_gradient() -> None:
    z = torch.randn(2, 4, requires_grad=True)
    y = torch.eye(2)
    found = classified(z, z.detach().clone(), y, torch.ones(2, dtype=torch.bool))
    found.loss.backward()
    assert z.grad is not None
    assert z.grad.isfinite().all()


def test_small_distances_of_large_features_are_exact() -> None:
    torch.manual_seed(0)
    prototypes = torch.randn(30, 512)
    z = prototypes + 0.02 / 512**0.5 * torch.randn(30, 512).sign()
    found = classified(z, prototypes, torch.eye(30), torch.ones(30, dtype=torch.bool))
    exact = -(z[:, None].double() - prototypes.double()).norm(dim=-1)
    assert found.loss.item() == pytest.approx(F.cross_entropy(exact, torch.arange(30)).item(), abs=1e-6)


# Losses


def test_the_modality_behind_is_pulled_and_no_other_parameter_is() -> None:
    model = multimodal()
    data = batches(model, 3)
    optimizer, criterion = begun(model, data, alpha=2.0)
    inputs, target = data[0]
    model.zero_grad()
    criterion(model(*inputs), target).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    LOSS(model(*inputs), target).backward()
    changed = {
        name for name, p in model.named_parameters() if p.grad is not None and not torch.equal(found[name], p.grad)
    }
    scores = {m: optimizer.metrics()[f"pmr/score/{m}"] for m in "ab"}
    behind = min(scores, key=scores.__getitem__)
    assert changed == {name for name, _ in model.named_parameters() if name.startswith(f"encoders.{behind}.")}


def test_equal_modalities_are_left_alone() -> None:
    model = multimodal()
    model.encoders["b"].load_state_dict(model.encoders["a"].state_dict())
    data = [((x, x), y) for (x, _), y in batches(model, 3)]
    optimizer, criterion = begun(model, data)
    train(model, optimizer, data[:1], criterion)
    found = optimizer.metrics()
    assert found["pmr/active/a"] == found["pmr/active/b"] == 0


def test_samples_without_a_modality_or_a_label_leave_its_score() -> None:
    model = multimodal()
    data = batches(model, 2)
    inputs, target = data[0]
    present = {"a": torch.tensor([True, True, False, True, False, True])}

    def score(inputs: tuple[Tensor, ...], target: Tensor, **given: Any) -> dict[str, float]:
        optimizer, criterion = begun(multimodal(), data)
        criterion(optimizer._lifecycle.run.model(*inputs), target, **given)  # type: ignore[misc]
        return optimizer.metrics()

    kept = present["a"]
    some = score(tuple(x[kept] for x in inputs), target[kept])
    masked = score(inputs, target, present=present)
    ignored = score(inputs, target.where(kept, -100))
    assert masked["pmr/score/a"] == pytest.approx(some["pmr/score/a"])
    assert masked["pmr/loss/a"] == pytest.approx(some["pmr/loss/a"])
    for name in ("score/a", "score/b", "loss/a", "loss/b"):
        assert ignored[f"pmr/{name}"] == pytest.approx(some[f"pmr/{name}"])


def test_class_probabilities_equal_class_indices() -> None:
    ends = []
    for soft in (False, True):
        model = multimodal()
        data = batches(model, 3)
        given = [(x, F.one_hot(y, 3).float() if soft else y) for x, y in data]
        optimizer, criterion = begun(model, given)
        train(model, optimizer, given, criterion)
        ends.append(weights(model))
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name])


def test_a_step_reads_nothing_on_the_host() -> None:
    model = multimodal()
    data = batches(model, 3)
    optimizer, criterion = begun(model, data)
    train(model, optimizer, data[:1], criterion)
    with CountOps() as ops:
        train(model, optimizer, data[1:2], criterion)
    assert not READS & set(ops.ops)


def test_evaluation_and_the_epochs_before_the_window_have_the_plain_loss() -> None:
    model = multimodal()
    data = batches(model, 2)
    optimizer, criterion = begun(model, data, start_epoch=1)
    inputs, target = data[0]

    def is_plain() -> bool:
        logits = model(*inputs)
        return torch.equal(criterion(logits, target), LOSS(logits, target))

    assert is_plain()
    optimizer.end_epoch(train=loader_of(data))
    assert not is_plain()
    model.eval()
    assert is_plain()


def test_the_random_state_is_kept_on_request() -> None:
    model = multimodal()
    (a, b), target = batches(model, 1, 40)[0]
    loader = DataLoader(TensorDataset(a, b, target), 4, shuffle=True)
    ends = []
    for keeps in (False, True):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        bare(multimodal(), preserve_rng=keeps).begin(train=loader)
        ends.append(torch.equal(torch.get_rng_state(), before))
    assert ends == [False, True]


@pytest.mark.parametrize(
    ("arguments", "draws"), [({}, True), ({"preserve_rng": True}, False), ({"dry_run": True}, False)]
)
def test_outside_of_the_window_batches_are_drawn_and_not_looked_at(arguments: dict[str, bool], draws: bool) -> None:
    """The code draws before the training and after each epoch, which decides what later epochs are trained on."""
    model = multimodal()
    drawn: list[int] = []
    loader = Watched(loader_of(batches(model, 20)), drawn)

    def found() -> list[int]:
        taken, drawn[:] = [*drawn], []
        return taken

    outside = [0, 1] if draws else []
    optimizer = bare(model, start_epoch=1, end_epoch=1, **arguments)
    optimizer.begin(train=loader)
    assert found() == outside
    assert state(optimizer)["seen"] is None
    optimizer.end_epoch(train=loader)
    assert found() == [0, 1]
    kept = copy.deepcopy(state(optimizer)["prototypes"])
    assert kept.keys() == {"a", "b"}
    for _ in range(2):
        optimizer.end_epoch(train=loader)
        assert found() == outside
    optimizer.end_epoch()
    for name, prototypes in state(optimizer)["prototypes"].items():
        assert torch.equal(prototypes, kept[name])


# What it needs


def test_without_prototypes_nothing_is_added_and_a_warning_names_the_call() -> None:
    model, plain = multimodal(), multimodal()
    with pytest.warns(ModbalanceWarning, match=r"opt\.begin\(train=loader\)"):
        train(model, bare(model), batches(model, 2))
    train(plain, sgd(plain), batches(plain, 2))
    assert_same(weights(model), weights(plain))


@pytest.mark.parametrize("source", ["train", "val"])
def test_a_missing_loader_is_named(source: str) -> None:
    optimizer = bare(multimodal(), source=source)
    with pytest.raises(ObservationError, match=rf"opt\.begin\({source}=loader\)"):
        optimizer.begin()
    with pytest.raises(ObservationError, match=rf"opt\.end_epoch\({source}=loader\)"):
        optimizer.end_epoch()


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(ObservationError, match="needs a batch to compute prototypes on"):
        bare(multimodal()).begin(train=[])


def test_a_loader_without_length_needs_the_whole_of_it() -> None:
    data = loader_of(batches(multimodal(), 2))
    with pytest.raises(ConfigError, match=r"set it to 1\.0"):
        bare(multimodal()).begin(train=iter(data))
    optimizer = bare(multimodal(), fraction=1.0)
    optimizer.begin(train=iter(data))
    assert state(optimizer)["seen"].all()


@pytest.mark.parametrize("target", [torch.randn(6), torch.randn(6, 2), torch.zeros(6, 3, dtype=torch.long)])
def test_targets_without_classes_are_refused(target: Tensor) -> None:
    model = multimodal()
    data = [(inputs, target) for inputs, _ in batches(model, 1)]
    with pytest.raises(ObservationError, match="one class index per sample"):
        begun(model, data)


@pytest.mark.parametrize("loss", [nn.BCEWithLogitsLoss(), nn.MSELoss(), lambda logits, target: logits.sum()])
def test_losses_of_labels_and_numbers_are_refused(loss: Any) -> None:
    model = multimodal()
    optimizer = bare(model)
    optimizer.criterion(loss, score="multilabel")
    with pytest.raises(ConfigError, match="compares features with means of classes"):
        optimizer.begin(train=loader_of(batches(model, 1)))


def test_a_modality_that_no_sample_has_leaves_the_others_at_work() -> None:
    model = multimodal("abc")
    data = batches(model, 3)
    optimizer, criterion = begun(model, data)
    inputs, target = data[0]
    criterion(model(*inputs), target, present={"c": torch.zeros(6, dtype=torch.bool)})
    found = optimizer.metrics()
    assert found["pmr/active/c"] == 0
    assert found["pmr/active/a"] + found["pmr/active/b"] == 1


def test_a_second_beginning_starts_afresh() -> None:
    model = multimodal()
    first, second = batches(model, 2)
    optimizer, _ = begun(model, [first])
    optimizer.begin(train=loader_of([(second[0], second[1].clamp(max=1))]))
    assert state(optimizer)["seen"].tolist() == [True, True, False]


def test_one_feature_per_sample_is_needed() -> None:
    model = nn.ModuleDict({"left": nn.Linear(5, 4), "right": nn.Linear(5, 4), "head": nn.Linear(8, 3)})

    class TwiceAsMany(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.head = model["left"], model["right"], model["head"]

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            features = [torch.cat([each, each]) for each in (self.left(a), self.right(b))]
            logits: Tensor = self.head(torch.cat(features, -1))[: len(a)]
            return logits

    whole = TwiceAsMany()
    optimizer = BalancedOptimizer(
        SGD(whole.parameters(), lr=0.1),
        "pmr",
        model=whole,
        modalities={"left": "left", "right": "right"},
        fusion="head",
        feature_sizes={"left": 4, "right": 4},
    )
    optimizer.criterion(LOSS)
    with pytest.raises(ObservationError, match="Found 12 of 'left' for 6 targets"):
        optimizer.begin(train=[(torch.randn(6, 5), torch.randn(6, 5), torch.randint(3, (6,)))])


def test_state_survives_a_restart_bit_for_bit() -> None:
    whole, half = multimodal(), multimodal()
    data = batches(whole, 4)
    optimizer, criterion = begun(whole, data)
    train(whole, optimizer, data, criterion)
    optimizer.end_epoch(train=loader_of(data))
    saved, start = copy.deepcopy((optimizer.state_dict(), whole.state_dict()))
    half.load_state_dict(start)
    resumed = bare(half, fraction=1.0)
    resumed.load_state_dict(saved)
    train(whole, optimizer, data, criterion)
    train(half, resumed, data)
    assert_same(weights(whole), weights(half))
