"""Tables of each modality alone against the joint label and its own."""

from __future__ import annotations

from recipe_common.report.own_labels import own_summary
from recipe_common.report.results import Caption, Failure, Outcome, Result
from recipe_common.report.summary import summarize
from recipe_common.tasks.task import classification

TASK = classification(3)
KEYS = [metric.key for metric in TASK.metrics]


def result(method: str = "none", *absent: str) -> Result:
    """A result whose scores are 0.0 to 0.7 by number of label and metric; without those of the metrics `absent`."""
    test = {
        f"test_{key}_text{own}": (4 * label + number) / 10
        for label, own in enumerate(("", "_own"))
        for number, key in enumerate(KEYS)
        if key not in absent
    }
    return Result(method, 0, {}, test, [])


def table(*outcomes: Outcome) -> list[list[str]]:
    caption = Caption("Tiny", synthetic=True, select="val", protocol="fair", task=TASK)
    return own_summary(summarize(outcomes, ("text",), caption))


def test_a_score_for_each_metric_against_both_labels() -> None:
    head, joint, own = table(result())
    assert head == ["method", "modality", "label", *(metric.title for metric in TASK.metrics)]
    assert joint == ["none", "text", "joint", "0.0%", "10.0%", "20.0%", "30.0%"]
    assert own == ["none", "text", "own", "40.0%", "50.0%", "60.0%", "70.0%"]


def test_a_metric_that_a_result_lacks_shifts_no_column() -> None:
    _, joint, own = table(result("none", KEYS[1]))
    assert joint == ["none", "text", "joint", "0.0%", "-", "20.0%", "30.0%"]
    assert own == ["none", "text", "own", "40.0%", "-", "60.0%", "70.0%"]


def test_a_method_without_a_finished_run_has_no_row() -> None:
    failure = Failure("ogm", 0, "diverged")
    assert [row[0] for row in table(result(), failure)] == ["method", "none", "none"]
    assert table(failure) == []
