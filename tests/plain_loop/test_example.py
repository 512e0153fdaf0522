"""The example prints what its docstring says."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fork_server import script_environ

if TYPE_CHECKING:
    from tests.fork_server import ForkServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "plain_loop.py"


def test_the_example_prints_what_its_docstring_says(
    fork_server: ForkServer, tmp_path: Path
) -> None:
    process = fork_server.popen(
        [sys.executable, str(EXAMPLE)],
        cwd=tmp_path,
        env=script_environ(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    out, err = process.communicate(timeout=90)
    assert process.returncode == 0, err
    said = ast.get_docstring(ast.parse(EXAMPLE.read_text())) or ""
    wanted = [line.strip() for line in said.splitlines() if line.startswith("    ")]
    shown = [line for line in wanted if line != "..."]
    assert len(shown) == 4
    assert [line for line in out.splitlines() if line in shown] == shown
