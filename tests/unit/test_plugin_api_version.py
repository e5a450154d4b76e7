"""A method that needs another version of the plugin API is refused with the fix."""

from __future__ import annotations

from typing import ClassVar

import pytest

from modbalance import PLUGIN_API, Method, PluginLoadError
from modbalance._plugins import build_methods

MAJOR, MINOR = PLUGIN_API


def method_of(version: tuple[int, int]) -> Method:
    class Versioned(Method):
        name: ClassVar[str] = "versioned"
        plugin_api: ClassVar[tuple[int, int]] = version

    return Versioned()


@pytest.mark.parametrize("version", [PLUGIN_API, (MAJOR, 0)])
def test_a_method_of_this_version_or_an_older_one_is_taken(version: tuple[int, int]) -> None:
    assert [each.name for each in build_methods(method_of(version), "official", {})] == ["versioned"]


@pytest.mark.parametrize(
    ("version", "fix"),
    [
        ((MAJOR, MINOR + 1), "upgrade modbalance"),
        ((MAJOR + 1, 0), "upgrade modbalance"),
        ((MAJOR - 1, 9), "upgrade the package of the method"),
    ],
)
def test_a_method_of_another_version_is_refused(version: tuple[int, int], fix: str) -> None:
    with pytest.raises(PluginLoadError, match=rf"`versioned` needs version {version[0]}\.{version[1]}.*: {fix}"):
        build_methods(method_of(version), "official", {})
