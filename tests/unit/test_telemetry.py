"""Logged values go to clients without a host read in the step."""

from __future__ import annotations

import csv
import sqlite3
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from modbalance import BalancedOptimizer, ConfigError
from modbalance._reporting import Snapshot, moved
from modbalance.telemetry import Logger, WandB, log_to
from support.operation_counts import READS, CountOps
from support.training import balanced, batches, multimodal, train


class Kept:
    """A client that keeps what it gets."""

    def __init__(self) -> None:
        self.records: list[tuple[int, dict[str, float]]] = []
        self.is_closed = False

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.records.append((step, dict(values)))

    def close(self) -> None:
        self.is_closed = True


def training(method: str = "ogm", **arguments: Any) -> tuple[Any, BalancedOptimizer]:
    model = multimodal()
    return model, balanced(model, method, **arguments)


def test_a_record_has_the_metrics_of_its_step_and_the_mean_loss() -> None:
    model, optimizer = training(param_filter="all")
    client = Kept()
    with log_to(optimizer, client, every=2, keep=1):
        expected = []
        for batch in batches(model, 4):
            train(model, optimizer, [batch])
            expected.append(optimizer.metrics())

    assert [step for step, _ in client.records] == [2, 4]
    assert client.is_closed
    for (_, values), metrics in zip(client.records, expected[1::2], strict=True):
        assert values["loss/total"] > 0
        assert {name: value for name, value in values.items() if name != "loss/total"} == metrics


def test_no_step_reads_on_the_host_and_records_move_together(monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []

    def move(snapshots: Sequence[Snapshot]) -> list[dict[str, float]]:
        moves.append(len(snapshots))
        return moved(snapshots)

    monkeypatch.setattr("modbalance.telemetry.moved", move)
    model, optimizer = training(param_filter="all")
    client = Kept()
    logger = Logger(optimizer, client, every=1, keep=5, gradient_norms=True)
    data = batches(model, 8)
    train(model, optimizer, data[:2])
    with CountOps() as counted:
        train(model, optimizer, data[2:3])
    with CountOps() as bare:
        train(model, optimizer, data[3:4])
    assert client.records == []
    assert not READS & counted.ops.keys()
    assert moves == []

    with CountOps() as counted:
        train(model, optimizer, data[4:5])
    assert len(client.records) == 5
    assert moves == [5], "all records in one"
    assert counted.ops["aten.cat.default"] == bare.ops["aten.cat.default"] + 1

    logger.close()
    train(model, optimizer, data[5:])
    assert len(client.records) == 5, "a closed logger hears of nothing"


def test_the_loss_of_training_without_a_method_and_of_micro_batches() -> None:
    model, optimizer = training("none")
    criterion = optimizer.criterion(torch.nn.CrossEntropyLoss())
    client = Kept()
    losses = []
    with log_to(optimizer, client, every=1):
        for inputs, target in batches(model, 2):
            loss = criterion(model(*inputs), target)
            losses.append(loss.item())
            loss.backward()
        with torch.no_grad():
            criterion(model(*inputs), target)
        optimizer.step()

    ((step, values),) = client.records
    assert step == 1
    assert values == pytest.approx({"loss/total": sum(losses) / 2})


def test_gradient_norms_before_and_after_the_modulation() -> None:
    model, optimizer = training(param_filter="all", clip_grad_norm=None)
    client = Kept()
    with log_to(optimizer, client, every=1, gradient_norms=True):
        train(model, optimizer, batches(model, 3))

    for _, values in client.records:
        for modality in optimizer._lifecycle.modalities:
            raw, used = (values[f"gradient_norm/{of}/{modality}"] for of in ("raw", "used"))
            assert raw > 0
            assert used == pytest.approx(raw * values[f"ogm/coefficient/{modality}"], rel=1e-5)


def test_a_logger_changes_no_weight() -> None:
    finals = []
    for logs in (False, True):
        torch.manual_seed(0)
        model, optimizer = training("ogm_ge", param_filter="all")
        if logs:
            log_to(optimizer, Kept(), every=1, gradient_norms=True)
        train(model, optimizer, batches(model, 4))
        finals.append(model.state_dict())
    assert all(torch.equal(finals[0][name], finals[1][name]) for name in finals[0])


def steps_logged(client: str, folder: Path, **arguments: Any) -> Logger:
    model, optimizer = training(param_filter="all")
    with log_to(optimizer, client, folder, every=1, keep=3, **arguments) as logger:
        train(model, optimizer, batches(model, 4))
    return logger


def test_csv(tmp_path: Path) -> None:
    steps_logged("csv", tmp_path / "new")
    steps_logged("csv", tmp_path / "new", step=4)

    with (tmp_path / "new" / "telemetry.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["name"] == "loss/total"]
    assert [int(row["step"]) for row in rows] == [*range(1, 9)]
    assert all(float(row["value"]) > 0 for row in rows)


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    steps_logged("tensorboard", tmp_path)

    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [each.step for each in events.Scalars("loss/total")] == [1, 2, 3, 4]
    assert any(tag.startswith("ogm/coefficient/") for tag in events.Tags()["scalars"])


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    import wandb

    wandb.teardown()


@pytest.mark.slow
@pytest.mark.usefixtures("offline")
def test_wandb_offline(tmp_path: Path) -> None:
    logger = steps_logged("wandb", tmp_path, project="tiny")

    import wandb

    wandb.teardown()  # waits until its service has written the file
    (file,) = tmp_path.rglob("*.wandb")
    assert b"ogm/coefficient/" in file.read_bytes()
    assert isinstance(logger.client, WandB)


def test_a_run_of_wandb_that_the_user_began_stays_open() -> None:
    class Run:
        def __init__(self) -> None:
            self.logged: list[dict[str, float]] = []

        def define_metric(self, name: str, *, step_metric: str) -> None:
            assert step_metric == "modbalance_step"

        def log(self, values: dict[str, float]) -> None:
            self.logged.append(values)

        def finish(self) -> None:
            raise AssertionError("it is the user's")

    run = Run()
    model, optimizer = training("none")
    with Logger(optimizer, WandB(run=run), every=1):
        train(model, optimizer, batches(model, 2))
    assert [values["modbalance_step"] for values in run.logged] == [1, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # its store has deprecation warnings of its own
def test_mlflow_in_a_folder(tmp_path: Path) -> None:
    steps_logged("mlflow", tmp_path, experiment="tiny")

    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        steps = store.execute("select step from metrics where key = 'loss/total' order by step").fetchall()
        ((status,),) = store.execute("select status from runs").fetchall()
    store.close()
    assert steps == [(1,), (2,), (3,), (4,)]
    assert status == "FINISHED"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"client": "tensorbord", "folder": "x"}, "Did you mean `tensorboard`"),
        ({"client": "csv"}, "'csv' should be given a folder"),
        ({"client": Kept(), "folder": "x"}, "go with its name"),
        ({"client": Kept(), "every": 0}, "`every` should be an integer >= 1. Found `every = 0`"),
        ({"client": Kept(), "keep": 1.5}, "`keep` should be an integer >= 1"),
        ({"client": "mlflow", "folder": "x", "tracking_uri": "http://x"}, "Found both"),
    ],
)
def test_errors_of_the_user(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    if "folder" in arguments:
        arguments = arguments | {"folder": tmp_path / "x"}
    with pytest.raises(ConfigError, match=message):
        log_to(training()[1], **arguments)


def test_a_second_logger_and_an_absent_client_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, optimizer = training()
    log_to(optimizer, Kept())
    with pytest.raises(ConfigError, match="should have one Logger"):
        log_to(optimizer, Kept())

    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'modbalance\[wandb\]'"):
        log_to(training()[1], "wandb", tmp_path)
