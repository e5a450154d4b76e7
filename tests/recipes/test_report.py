"""Files, tables and pictures say what happened."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from recipe_common.errors import RecipeError
from recipe_common.report.curves import Picture
from recipe_common.report.folder import RunFolder
from recipe_common.report.live import LiveView
from recipe_common.report.results import Caption, Result
from recipe_common.report.summary import summarize
from recipe_common.report.tables import write_tables
from recipe_common.report.view import Columns, PlainView, duration
from recipe_common.tasks.task import classification

TASK = classification(3)
CAPTION = Caption("Tiny", synthetic=True, select="val", protocol="fair", task=TASK)
COLUMNS = Columns(("audio", "visual"), "val", TASK)


def _row(epoch: int, **coefficients: float) -> dict[str, float]:
    scores = {"val_accuracy": 0.5 + epoch / 10, "val_accuracy_audio": 0.4, "val_accuracy_visual": 0.3, "val_loss": 1.0}
    work = {"seconds": 8.4, "steps": 4, "waiting": 2.1, "encoder_passes": 2.0}
    return {"epoch": epoch, "train_loss": 1 / epoch, **work, **scores, **coefficients}


def _result(method: str) -> Result:
    names = ["accuracy", "macro_f1", "weighted_f1", "map", "accuracy_audio", "accuracy_visual"]
    test = {f"test_{name}": value for name, value in zip(names, [0.5, 0.25, 0.3, 0.75, 1.0, 0.0], strict=True)}
    return Result(method, 0, _row(2), test, [_row(1), _row(2)])


@pytest.mark.parametrize(("seconds", "text"), [(8.44, "8.4 s"), (125, "2:05"), (3725.2, "1:02:05")])
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_metrics_have_an_empty_cell_where_nothing_was_measured(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "tiny", {})
    folder.write_metrics([{"epoch": 1, "loss": 0.5}, {"epoch": 2, "loss": 0.25, "coefficient_audio": 0.1}])
    assert folder.metrics.read_text() == "epoch,loss,coefficient_audio\n1,0.5,\n2,0.25,0.1\n"


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "tiny", {})
    folder.write_result(_result("none").as_json())
    folder.write_result(_result("ogm_ge").as_json())
    assert folder.read_result() == _result("ogm_ge").as_json()
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_settings_compare_as_json_does(tmp_path: Path) -> None:
    RunFolder(tmp_path, "tiny", {"pair": (1, 2)}).claim({})
    RunFolder(tmp_path, "tiny", {"pair": [1, 2]}).check(resume=True, overwrite=False)


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(RecipeError, match=r"config\.json"):
        RunFolder(tmp_path, "tiny", {}).check(resume=True, overwrite=False)


def test_comparison_in_markdown(tmp_path: Path) -> None:
    outcomes = [_result("none"), _result("ogm_ge")]
    write_tables(tmp_path, summarize(outcomes, ("audio", "visual"), CAPTION), outcomes)
    lines = (tmp_path / "comparison.md").read_text().splitlines()
    assert "SYNTHETIC DATA" in lines[2]
    assert lines[-2] == "| none | 50.0% | 25.0% | 30.0% | 75.0% | 100.0% | 0.0% | 2 | 2.1 s | 2.00 | - |"


@pytest.mark.slow
@pytest.mark.parametrize("epochs", [1, 3])
def test_pictures_are_drawn_with_and_without_coefficients(epochs: int, tmp_path: Path) -> None:
    numbers = range(1, epochs + 1)
    histories = {
        "none": [[_row(epoch) for epoch in numbers]],
        "ogm_ge": 2 * [[_row(epoch, coefficient_audio=0.5, coefficient_visual=1.0) for epoch in numbers]],
    }
    files = Picture(histories, ("audio", "visual"), CAPTION).save(tmp_path / "curves.png")
    assert files == [tmp_path / "curves.png", tmp_path / "curves.pdf"]
    assert files[1].read_bytes().startswith(b"%PDF")
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.width > picture.height > 500
        assert len(picture.convert("RGB").getcolors(1 << 20) or []) > 10


def _lines(figure: Any, title: str) -> dict[str, Any]:
    axes = next(axes for axes in figure.axes if axes.get_title().startswith(title))
    return {line.get_label(): line for line in axes.get_lines()}


def test_a_modality_trained_by_itself_is_drawn_where_it_is_scored() -> None:
    histories = {name: [[_row(1), _row(2)]] for name in ("none", "ogm", "only:audio")}
    figure = Picture(histories, ("audio", "visual"), CAPTION).figure()
    assert _lines(figure, "all modalities").keys() == {"none", "ogm", "chance"}
    assert _lines(figure, "audio alone").keys() == {"none", "ogm", "trained alone", "chance"}
    assert _lines(figure, "visual alone").keys() == {"none", "ogm", "chance"}
    alone = Picture({"only:audio": [[_row(1), _row(2)]]}, ("audio", "visual"), CAPTION).figure()
    assert "only:audio" in _lines(alone, "all modalities")


def test_lines_of_fifteen_methods_and_more_are_told_apart() -> None:
    names = [f"method {number}" for number in range(24)]
    histories = {name: [[_row(epoch) for epoch in range(1, 26)]] for name in ["none", *names, "only:audio"]}
    figure = Picture(histories, ("audio", "visual"), CAPTION).figure()
    lines = [line for line in figure.axes[0].get_lines() if not str(line.get_label()).startswith(("_", "chance"))]
    looks = {(line.get_color(), line.get_marker()) for line in lines}
    assert len(looks) == len(lines) == 25
    assert {line.get_marker() for line in lines[:9]} == {"None"}, "few methods need no markers"


def test_a_huge_coefficient_leaves_the_others_to_be_seen() -> None:
    histories = {"cggm": [[_row(1, coefficient_audio=-2e6), _row(2, coefficient_audio=0.5)]]}
    figure = Picture(histories, ("audio", "visual"), CAPTION).figure()
    axes = next(axes for axes in figure.axes if axes.get_title().startswith("gradient coefficient"))
    assert axes.get_ylim()[0] >= -5
    assert "from -2e+06 to 1" in axes.get_title()


@pytest.mark.parametrize(("last", "scale"), [(0.5, "linear"), (0.01, "log")])
def test_losses_of_several_decades_are_drawn_on_a_logarithmic_scale(last: float, scale: str) -> None:
    figure = Picture({"none": [[_row(1), _row(2) | {"train_loss": last}]]}, ("audio", "visual"), CAPTION).figure()
    axes = next(axes for axes in figure.axes if axes.get_title() == "training loss")
    assert axes.get_yscale() == scale


def test_columns_show_a_dash_without_coefficient() -> None:
    assert COLUMNS.header() == ["epoch", "loss", "val fused", "val audio", "val visual", "k audio", "k visual", "time"]
    cells = COLUMNS.cells(_row(1, coefficient_audio=0.25))
    assert cells == ["1", "1.0000", "60.0%", "40.0%", "30.0%", "0.250", "-", "8.4 s"]


def test_live_view_shows_progress_and_epochs() -> None:
    text = io.StringIO()
    view = LiveView(Console(file=text, force_terminal=True, width=120), COLUMNS)
    view.start("ogm_ge", epochs=3, num_steps=2, step=1, history=[_row(1)])
    view.step_done()
    view.loss_read(0.1234)
    view.epoch_done(_row(2))
    view.stop()
    shown = text.getvalue()
    for part in ("ogm_ge, all steps", "epoch 3 of 3", "time left", "4/6", "70.0%"):
        assert part in shown


def test_plain_view_repeats_the_epochs_before_an_interruption() -> None:
    text = io.StringIO()
    view = PlainView(Console(file=text), COLUMNS)
    view.start("ogm_ge", epochs=3, num_steps=2, step=1, history=[_row(1)])
    view.epoch_done(_row(2))
    assert [line.split()[0] for line in text.getvalue().splitlines()[-2:]] == ["1", "2"]
