"""What users import, and what importing costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import bt_lightning


def test_every_public_name_can_be_imported_and_nothing_else_is_promised():
    assert sorted(bt_lightning.__all__) == bt_lightning.__all__
    for name in bt_lightning.__all__:
        assert getattr(bt_lightning, name).__name__ == name
    assert set(bt_lightning._HOME) == set(bt_lightning.__all__)


def test_an_unknown_name_is_an_attribute_error_that_says_so():
    with pytest.raises(AttributeError, match="nothing"):
        _ = bt_lightning.nothing


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"{statement}\nimport sys; print(*{{name.split('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"torch", "lightning", "numpy", "fsspec", "s3fs", "click", "rich", "xxhash"}
    assert not modules_after("import bt_lightning") & heavy


def test_the_worker_loads_neither_torch_nor_lightning():
    heavy = {"torch", "lightning", "pytorch_lightning", "numpy", "click", "rich"}
    assert not modules_after("import bt_lightning.worker.worker_process") & heavy
