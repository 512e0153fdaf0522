"""What the tests of the format share. The tools are a module, so that classes have a home."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent

if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))
pytest.register_assert_rewrite("state_tools")


@pytest.fixture(autouse=True)
def _no_disk_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested here is content, not power cuts: fsync would be most of the time."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where a test's checkpoint goes."""
    return tmp_path / "checkpoint-1"


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for tests that save many checkpoints over each other."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture
def safe_globals():
    """`torch.serialization.add_safe_globals`, undone at the end."""
    import torch

    before = torch.serialization.get_safe_globals()
    yield torch.serialization.add_safe_globals
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)
