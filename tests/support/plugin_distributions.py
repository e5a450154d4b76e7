"""Installed distributions that offer methods, made up in a folder."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

Add = Callable[..., None]
"""Installs a distribution, with the arguments of `install` after the folder."""

METHOD = """
    from modbalance import Method, hookimpl

    class Made(Method):
        name = "{name}"

    @hookimpl
    def modbalance_methods():
        return [Made]
"""


def install(
    folder: Path, distribution: str, source: str, entries: Mapping[str, str] | None = None, version: str = "1.2"
) -> Path:
    """Put a distribution of one module into ``folder``, which a test then puts on the path.

    Args:
        folder: A folder of its own; made where it is missing.
        distribution: Name; the module is called the same with underscores.
        source: Text of the module.
        entries: Method names to modules; default: ``made`` in this module.
        version: Version of the distribution.
    """
    module = distribution.replace("-", "_")
    metadata = folder / f"{module}-{version}.dist-info"
    metadata.mkdir(parents=True)
    (folder / f"{module}.py").write_text(textwrap.dedent(source))
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    lines = [f"{name} = {value}" for name, value in (entries or {"made": module}).items()]
    (metadata / "entry_points.txt").write_text("\n".join(["[modbalance]", *lines, ""]))
    return folder
