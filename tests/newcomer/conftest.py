"""A fresh environment for readers of the documentation, who have no checkout."""

from __future__ import annotations

from pathlib import Path

import filelock
import pytest

from support.fresh_environment import FreshEnvironment, built_wheel, fresh_environment


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Return the folder of this test session, the same for all of its workers."""
    folder = tmp_path_factory.getbasetemp()
    return folder if worker_id == "master" else folder.parent


@pytest.fixture(scope="session")
def wheel(shared: Path) -> Path:
    """Return the wheel, built once per session."""
    return built_wheel(shared)


@pytest.fixture(scope="session")
def environment(shared: Path, wheel: Path) -> FreshEnvironment:
    """Return an environment with the wheel, for tests that install nothing into it."""
    folder = shared / "environment"
    with filelock.FileLock(shared / "environment.lock"):
        if (built := folder / "built").is_file():
            return FreshEnvironment(folder)
        environment = fresh_environment(folder, wheel)
        built.touch()
        return environment
