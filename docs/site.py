"""Hooks of the generator of the site: patterns in the navigation, and files outside of docs/ that pages link to.

Pages are written for the repository, where a link leads to a file. On the site, a page outside of docs/ (`PROJECT`) has
a place of its own, and any other file is copied to `source/`.

A Mermaid diagram becomes the picture `images/diagram-HASH.svg`, with the first eight digits of the SHA-256 of its text:
the script that would draw it in the browser comes from another host. After a change of a diagram the build warns
until it is drawn anew, by mermaid 10 with `theme: neutral, flowchart: {htmlLabels: false}`.
"""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PROJECT = {
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "findings/README.md": "project/findings.md",
}
"""Pages outside of docs/, and their places on the site."""
ORIGINS = {uri: origin for origin, uri in PROJECT.items()}
HOME = {"README.md": "index.md"}
MARKDOWN = re.compile(r"\.md\.txt$")
"""Name on the site of further Markdown files outside of docs/, which are shown as they are written."""
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s:]+)(#[^)\s]*)?\)")
DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"(^ *```.*?^ *```$)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and files outside of docs/ that pages link to, and expand the patterns of the navigation."""
    for origin, uri in PROJECT.items():
        files.append(File.generated(config, uri, content=(ROOT / origin).read_text(encoding="utf-8")))
    for page in list(files.documentation_pages()):
        for uri in _sources(page):
            if files.get_file_from_path(uri) is None:
                origin = uri.removeprefix("source/")
                content = (ROOT / MARKDOWN.sub(".md", origin)).read_text(encoding="utf-8")
                files.append(File.generated(config, uri, content=content))
    pages = [page.src_uri for page in files.documentation_pages()]
    named = {*_named(config.nav)}
    config.nav = _expanded(config.nav, [uri for uri in pages if uri not in named])
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Return the text with links that hold on the site."""
    uri = page.file.src_uri
    parts = FENCED.split(DIAGRAM.sub(lambda match: _picture(match[1], uri), markdown))
    outside = (LINK.sub(lambda match: _relinked(match, uri), part) for part in parts[::2])
    return "".join(chain.from_iterable(zip_longest(outside, parts[1::2], fillvalue="")))


def _picture(diagram: str, uri: str) -> str:
    digits = hashlib.sha256(diagram.encode()).hexdigest()[:8]
    up = "../" * ORIGINS.get(uri, f"docs/{uri}").count("/")
    return f"![diagram]({up}docs/images/diagram-{digits}.svg)"


def _sources(page: File) -> Iterator[str]:
    """Yield the places of the files that a page links to and that are not part of the site by themselves."""
    for match in LINK.finditer(FENCED.sub("", page.content_string)):
        place = _place(page.src_uri, match[3])
        if place is not None and place.startswith("source/"):
            yield place


def _place(uri: str, target: str) -> str | None:
    """Return the place on the site of the file that a page's link leads to, `None` for a folder without a page."""
    origin = ORIGINS.get(uri, f"docs/{uri}")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
    if (ROOT / path).is_dir():
        path += "/README.md"
    place = {**PROJECT, **HOME}.get(path)
    if place is not None or not (ROOT / path).is_file():
        return place
    if path.startswith("docs/") and not fnmatch(path, "docs/example-plugin/*/*"):
        return path.removeprefix("docs/")
    return f"source/{path}.txt" if path.endswith(".md") else f"source/{path}"


def _relinked(match: re.Match[str], uri: str) -> str:
    place = _place(uri, match[3])
    if place is None:
        missing = not (ROOT / posixpath.dirname(ORIGINS.get(uri, f"docs/{uri}")) / match[3]).exists()
        return match[0] if missing else match[2]
    return f"{match[1]}[{match[2]}]({posixpath.relpath(place, posixpath.dirname(uri) or '.')}{match[4] or ''})"


def _named(entries: Any) -> Iterator[str]:
    """Yield the pages that the navigation names."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from _named(value)
        else:
            yield value


def _expanded(entries: Any, rest: list[str]) -> list[Any]:
    """Return entries of the navigation with the pages for which patterns stand."""
    result: list[Any] = []
    for entry in entries:
        if isinstance(entry, str) and "*" in entry:
            depth = entry.count("/")
            result += sorted(uri for uri in rest if fnmatch(uri, entry) and uri.count("/") == depth)
        elif isinstance(entry, dict):
            result.append(
                {key: _expanded(value, rest) if isinstance(value, list) else value for key, value in entry.items()}
            )
        else:
            result.append(entry)
    return result
