"""`modbalance show METHOD`: one method in full."""

from __future__ import annotations

import argparse
from typing import Any

from modbalance._cli.command import DONE, Command, CommandError, Output, add_row, table
from modbalance._cli.facts import hooks, page, source, summary, touches
from modbalance._plugins import load_method
from modbalance.method import Method


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", help="name of an installed method")


def _run(parsed: argparse.Namespace, output: Output) -> int:
    if parsed.method == "none":
        raise CommandError(
            "`show` should be given a method. Found 'none', the baseline without options: see `modbalance methods`."
        )
    method = load_method(parsed.method)
    record = _record(method)
    output.json(record)
    if output.as_json:
        return DONE
    facts = {
        "source": record["source"] or "-",
        "deviations": record["page"] or "-",
        "needs": ", ".join(record["needs"]) or "-",
        "touches": ", ".join(record["touches"]) or "-",
        "hooks": ", ".join(record["hooks"]) or "-",
    }
    rows = table("option", "official", "paper", "meaning")
    for name, each in record["options"].items():
        add_row(rows, name, each["official"], each["paper"], each["meaning"])
    output.show(f"{method.name}: {record['summary']}", *(f"{name}: {value}" for name, value in facts.items()), rows)
    return DONE


def _record(method: type[Method]) -> dict[str, Any]:
    return {
        "name": method.name,
        "summary": summary(method),
        "source": source(method),
        "page": page(method),
        "needs": sorted(method.needs),
        "min_modalities": method.min_modalities,
        "hooks": hooks(method),
        "touches": touches(method),
        "options": {
            name: {
                "official": repr(field.default),
                "paper": repr(field.metadata["paper"]) if "paper" in method.presets else "-",
                "differs": "paper" in method.presets and bool(field.default != field.metadata["paper"]),
                "meaning": field.metadata["doc"],
            }
            for name, field in method.options().items()
        },
    }


COMMAND = Command("show", "show a method: source, what it touches, options of both presets", _add_arguments, _run)
