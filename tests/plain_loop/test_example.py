"""The example prints what its docstring says."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"


def test_the_example_prints_what_its_docstring_says(run_ranks: Any, tmp_path: Path) -> None:
    (out,) = run_ranks(EXAMPLE, cwd=tmp_path)
    said = ast.get_docstring(ast.parse(EXAMPLE.read_text())) or ""
    wanted = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    shown = [line for line in wanted if line != "..."]
    assert len(shown) == 4
    assert [line for line in out if line in shown] == shown
