"""Examples print what their docstrings say."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("name", ["plain_loop.py", "fabric.py"])
def test_an_example_prints_what_its_docstring_says(
    run_ranks: Any, tmp_path: Path, name: str
) -> None:
    (out,) = run_ranks(EXAMPLES / name, cwd=tmp_path)
    said = ast.get_docstring(ast.parse((EXAMPLES / name).read_text())) or ""
    wanted = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    shown = [line for line in wanted if line != "..."]
    assert len(shown) == 4
    assert [line for line in out if line in shown] == shown
