"""What the matrix shares with the tests of the plugin: trainings, their script, their silence."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.plugin.conftest import (
    LIGHTNING_NOISE,
    _imported,
    _one_script,
    _quiet,
    measured,
    module_beside,
    names,
    runs,
)

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["_imported", "_one_script", "_quiet", "measured", "names", "runs"]

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Lightning's own advice is no failure of ours."""
    for item in items:
        if HERE in item.path.parents:
            for line in LIGHTNING_NOISE:
                item.add_marker(pytest.mark.filterwarnings(line))


@pytest.fixture(scope="session")
def matrix(measured: ModuleType) -> ModuleType:
    """The module `matrix_runs`, beside this file."""
    return module_beside("matrix_runs", HERE)
