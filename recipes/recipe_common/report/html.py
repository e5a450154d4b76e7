"""HTML report of a comparison, one file that opens offline: table, pictures, settings and versions."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from recipe_common.report.curves import Picture, score_figure
from recipe_common.report.summary import Marks, Summary, cells, header
from recipe_common.report.tables import notes

HTML = Marks(lambda text: f"<b>{text}</b>", escape)

_STYLE = """
:root { color-scheme: light; font: 16px/1.5 system-ui, sans-serif; color: #1c1c1c; background: #fff; }
body { max-width: 75rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
.warning { background: #fff3d6; border-left: .3rem solid #e69f00; padding: .5rem .8rem; }
.failed { background: #fde8e4; border-left: .3rem solid #d55e00; padding: .5rem .8rem; }
.scroll { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }
th { border-bottom: 2px solid #888; } th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
background: #fff; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
figure { margin: 0; } svg { width: 100%; height: auto; }
.notes { color: #555; font-size: .85rem; } pre { font-size: .8rem; overflow-x: auto; background: #f5f5f5;
padding: .8rem; }
summary { cursor: pointer; }
"""


def report_page(summary: Summary, configs: Mapping[str, Mapping[str, Any]], command: str) -> str:
    """Return the page.

    Args:
        summary: The comparison.
        configs: Content of ``config.json`` for each run, by its folder.
        command: Command line of the comparison.
    """
    title = escape(summary.caption.title)
    pictures = _pictures(summary) if summary.histories else ""
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{_messages(summary)}
<h2>Test split, with the weights of the best epoch</h2>
<div class="scroll">{_table(summary)}</div>
{_paragraphs(notes(summary)[1 + summary.caption.synthetic :])}
{pictures}
<h2>How it was made</h2>
<pre>{escape(command)}</pre>
{_settings(configs)}
</body>
</html>
"""


def _messages(summary: Summary) -> str:
    parts = []
    if summary.caption.synthetic:
        text = "Synthetic data: the numbers show that the code works, and have no meaning for real data."
        parts.append(f'<p class="warning">{text}</p>')
    for line in summary.lines:
        for failure in line.failures:
            text = escape(f"{failure.method}, seed {failure.seed}, failed: {failure.reason}")
            parts.append(f'<p class="failed">{text}</p>')
    return "\n".join(parts)


def _table(summary: Summary) -> str:
    columns = summary.columns
    head = "".join(f"<th>{escape(title)}</th>" for title in header(summary, columns))
    rows = [cells(summary, line, columns, HTML) for line in summary.lines]
    body = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"


def _paragraphs(lines: Iterable[str]) -> str:
    return "\n".join(f'<p class="notes">{escape(line)}</p>' for line in lines)


def _pictures(summary: Summary) -> str:
    picture = Picture(summary.histories, summary.modalities, summary.caption)
    panels = "\n".join(f"<figure>{_svg(figure)}</figure>" for figure in picture.panels())
    return f"""<h2>Scores at the end</h2>
<div class="scroll"><figure style="min-width: 44rem">{_svg(score_figure(summary))}</figure></div>
<h2>While training</h2>
<p class="notes">Lines are means over seeds; with few methods, bands reach from the lowest to the highest.</p>
<div class="panels">
{panels}
</div>"""


def _svg(figure: Any) -> str:
    """Return a figure as an SVG element; its letters are outlines, which need no font."""
    import matplotlib as mpl

    text = io.StringIO()
    # Without these two settings the bytes differ from call to call.
    with mpl.rc_context({"svg.hashsalt": "modbalance"}):
        figure.savefig(text, format="svg", metadata={"Date": None})
    content = text.getvalue()
    return content[content.index("<svg") :]


def _settings(configs: Mapping[str, Mapping[str, Any]]) -> str:
    if not configs:
        return ""
    # Versions and devices may differ for runs that an earlier call has finished.
    facts = [{**config["settings"], **config["run"], "versions": config["versions"]} for config in configs.values()]
    shared = {name: value for name, value in facts[0].items() if all(each.get(name, ...) == value for each in facts)}
    parts = [_details("Settings, device and versions of all runs", shared)]
    for folder, own in zip(configs, facts, strict=True):
        parts.append(_details(folder, {name: value for name, value in own.items() if name not in shared}))
    return "\n".join(parts)


def _details(title: str, content: Mapping[str, Any]) -> str:
    text = escape(json.dumps(content, indent=2))
    return f"<details><summary>{escape(title)}</summary><pre>{text}</pre></details>"
