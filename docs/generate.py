"""Writes the parts of the docs that come from the code.

These are options, rules, plugin API, known faults of the datasets, and output of the command line.

python docs/generate.py [--check]

`--check` compares only, and fails if a page is out of date.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import modbalance
from modbalance import cli, hookspecs, testing
from modbalance._plugins import load_method

DOCS = Path(__file__).parent
sys.path.insert(0, str(DOCS.parent / "recipes"))

from recipe_common.data.datasets.known_faults import KNOWN_FAULTS, Fault, Record  # noqa: E402

TABLE = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end options -->)", re.DOTALL)
RULES = re.compile(r"(<!-- rules -->\n).*?(<!-- end rules -->)", re.DOTALL)
SECTION = re.compile(r"^(Args|Attributes|Class attributes|Raises|Returns):$", re.MULTILINE)
ENTRY = re.compile(r"^(\*{0,2}\w+): ", re.MULTILINE)

FAULTS = re.compile(r"(<!-- known faults -->\n).*?(<!-- end known faults -->)", re.DOTALL)
OUTPUT = re.compile(r"(<!-- output: (.+?) -->\n).*?(<!-- end output -->)", re.DOTALL)

PLUGIN_API = DOCS / "plugin-api.md"
INTRODUCTION = """\
# Plugin API

Names that a plugin may use, all importable from `modbalance` or from the module in their heading. Built-in
plugins use no others (`tests/meta/test_core.py`). This page is generated from the docstrings by `make docs`;
[writing a plugin](writing-a-plugin.md) is the tutorial.

`modbalance.hookimpl` marks the implementation of a hook; pluggy finds no others.
"""
CLASSES = {
    "Arguments of hooks": ("Run", "Batch", "Step", "EpochData"),
    "Steps ahead of the optimizer": ("Shadow",),
    "Methods": ("Method", "WindowedMethod"),
}
TESTING = (testing.SmallModel, testing.SharedHeadModel, testing.RuleError, testing.ConformanceError)
DECLARATIONS = ("option", "state", "gt", "ge", "between", "integer", "one_of", "optional", "suggest")


def options_table(name: str) -> str:
    """Return the options of a method as a Markdown table."""
    rows = ["| option | official | paper | meaning |", "|---|---|---|---|"]
    method = load_method(name)
    for option, field in method.options().items():
        paper = f"`{field.metadata['paper']!r}`" if "paper" in method.presets else "-"
        values = f"`{field.default!r}` | {paper}"
        rows.append(f"| `{option}` | {values} | {field.metadata['doc']} |")
    return "\n".join(rows) + "\n"


def output(arguments: str) -> str:
    """Return what `modbalance ARGUMENTS` prints in a terminal of 100 columns, as a block."""
    os.environ |= {"COLUMNS": "100", "NO_COLOR": "1"}
    stdout = io.StringIO()
    with contextlib.redirect_stdout(stdout):
        try:
            status = cli.main(arguments.split())
        except SystemExit as stop:  # of `--help`
            status = stop.code
    if status:
        raise RuntimeError(f"`modbalance {arguments}` should end with status 0. Found {status}.")
    lines = [line.rstrip() for line in stdout.getvalue().strip("\n").splitlines()]
    return "\n".join(["```text", f"$ modbalance {arguments}", *lines, "```", ""])


def fault_tables() -> str:
    """Return the known faults of all datasets, a section with a table for each."""
    return "\n".join(f"## [{name}]({name}.md)\n\n{faults_table(record)}" for name, record in KNOWN_FAULTS.items())


def faults_table(record: Record) -> str:
    """Return the faults of a dataset as a Markdown table, and where they were searched for."""
    searched = f"Searched: the issues of {', '.join(f'`{tracker}`' for tracker in record.trackers)}.\n"
    if not record.faults:
        return f"none found. {searched}"
    rows = ["| samples | fault | here | source |", "|---|---|---|---|", *map(_fault_row, record.faults)]
    return "\n".join(rows) + f"\n\n{searched}"


def _fault_row(fault: Fault) -> str:
    samples = ", ".join(f"`{sample}`" for sample in fault.samples)
    sources = ", ".join(f"[{report}]({report.address})" for report in fault.reports)
    return f"| {samples} | {fault.fault} | {fault.here} | {sources} |"


def rules_table() -> str:
    """Return the rules of `modbalance.testing` as a Markdown table."""
    rows = [f"| `{name}` | {prose(rule).strip()} |" for name, rule in testing.rules().items()]
    return "\n".join(["| rule | |", "|---|---|", *rows]) + "\n"


def plugin_api() -> str:
    """Return the page on the plugin API."""
    parts = [INTRODUCTION, "## Hooks, in firing order\n", prose(inspect.getdoc(hookspecs) or "")]
    parts += [entry(name, getattr(hookspecs, name)) for name in hookspecs.HOOKS]
    for title, names in CLASSES.items():
        parts.append(f"## {title}\n")
        parts += [text for name in names for text in class_entries(getattr(modbalance, name))]
    parts.append("## Declarations and checks of options\n")
    parts += [entry(name, getattr(modbalance, name)) for name in DECLARATIONS]
    modules = [value for name in modbalance.__all__ if isinstance(value := getattr(modbalance, name), ModuleType)]
    parts += [text for module in modules for text in module_entries(module)]
    parts += [*module_entries(testing), *class_entries(testing.Check)]
    parts += [f"### {each.__name__}\n\n{prose(inspect.getdoc(each) or '')}" for each in TESTING]
    parts.append("## Errors\n")
    errors = [value for name in modbalance.__all__ if _is_error(value := getattr(modbalance, name))]
    parts.append("".join(f"- `{error.__name__}`: {prose(error.__doc__ or '').strip()}\n" for error in errors))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def module_entries(module: ModuleType) -> Iterator[str]:
    """Yield the heading of a module and an entry for each function that it declares."""
    yield f"## `{module.__name__}`\n"
    yield prose(inspect.getdoc(module) or "")
    for name in module.__all__:
        value = getattr(module, name)
        if inspect.isfunction(value):
            yield entry(name, value)


def class_entries(cls: type) -> Iterator[str]:
    """Yield the entry of a class, and one line or entry for each of its public members."""
    yield f"### {cls.__name__}\n"
    yield prose(inspect.getdoc(cls) or "")
    for name, value in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(value, property):
            yield f"**`{cls.__name__}.{name}`**: {prose(inspect.getdoc(value) or '')}"
        elif inspect.isfunction(inspect.unwrap(getattr(value, "__func__", value))):
            yield entry(f"{cls.__name__}.{name}", getattr(value, "__func__", value), bold=True)


def entry(name: str, function: Callable[..., Any], *, bold: bool = False) -> str:
    """Return the signature of a function and its docstring."""
    try:
        parameters = [p for p in inspect.signature(function).parameters.values() if p.name not in ("self", "cls")]
    except (TypeError, ValueError):
        parameters = []
    signature = f"`{name}({', '.join(_shown(parameters))})`"
    return (f"**{signature}**\n\n" if bold else f"### {signature}\n\n") + prose(inspect.getdoc(function) or "")


def _shown(parameters: Sequence[inspect.Parameter]) -> Iterator[str]:
    """Yield parameters with their defaults, and the star before keyword arguments."""
    has_star = False
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not has_star:
            has_star = True
            yield "*"
        has_star = has_star or parameter.kind is parameter.VAR_POSITIONAL
        bare = parameter.replace(annotation=parameter.empty)
        default = parameter.default
        if isinstance(default, type) and default is not parameter.empty:
            yield f"{bare.replace(default=parameter.empty)}={default.__name__}"
        else:
            yield str(bare)


def prose(docstring: str) -> str:
    """Return a docstring as Markdown: code in single backticks, sections as lists."""
    text = docstring.replace("``", "`")
    head, *sections = SECTION.split(text)
    result = head.strip() + "\n"
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        block, rest = _split(body)
        result += f"\n{title}:\n\n" + "".join(f"- {item}\n" for item in _items(block))
        result += f"\n{rest.strip()}\n" if rest.strip() else ""
    return result


def _split(body: str) -> tuple[str, str]:
    """Return the indented lines after the title of a section, and the lines behind them."""
    lines = body.strip("\n").split("\n")
    count = next((i for i, line in enumerate(lines) if line and not line.startswith("    ")), len(lines))
    return inspect.cleandoc("\n".join(lines[:count])), "\n".join(lines[count:])


def _items(block: str) -> Iterator[str]:
    """Yield the entries of a section, each on one line, its name as code."""
    starts = [match.start() for match in ENTRY.finditer(block)] or [0]
    for start, stop in zip(starts, [*starts[1:], len(block)], strict=True):
        yield ENTRY.sub(lambda match: f"`{match[1]}`: ", " ".join(block[start:stop].split()), count=1)


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Exception)


def updated(page: Path, text: str) -> str:
    """Return a page with its generated parts as the code has them now."""
    if page == PLUGIN_API:
        return plugin_api()
    text = TABLE.sub(lambda m: m[1] + options_table(m[2]) + m[3], text)
    text = OUTPUT.sub(lambda m: m[1] + output(m[2]) + m[3], text)
    text = RULES.sub(lambda m: m[1] + rules_table() + m[2], text)
    return FAULTS.sub(lambda m: m[1] + fault_tables() + m[2], text)


def main(check: bool) -> int:
    """Write or compare every page; return 1 if a page was out of date and only compared."""
    status = 0
    for page in sorted({*DOCS.rglob("*.md"), PLUGIN_API}):
        old = page.read_text(encoding="utf-8") if page.exists() else ""
        new = updated(page, old)
        if new == old:
            continue
        if check:
            print(f"{page.relative_to(DOCS.parent)} is out of date: run `make docs`")
            status = 1
        else:
            page.write_text(new, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
