"""Runs examples as their docstrings say, in a folder of their own.

The docstring of an example names its command in backticks, `python examples/NAME.py WORDS`, and
then shows, indented, what it prints: `...` stands for lines that are left out.
"""

from __future__ import annotations

import ast
import importlib.util
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.fork_server import script_environ

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fork_server import ForkServer

EXAMPLES = Path(__file__).parents[2] / "examples"
LIMIT_S = 110
LEFT_OUT = "..."
_COMMAND = re.compile(r"`python (examples/\S+\.py)([^`]*)`")
_NUMBER = re.compile(r"\d+\.\d+")
_TOLERANCE = 0.02
"""Of a loss on another CPU, whose kernels round differently; what is counted is exact."""


class Example:
    """What an example says of itself."""

    def __init__(self, path: Path) -> None:
        tree = ast.parse(path.read_text())
        text = ast.get_docstring(tree) or ""
        command = _COMMAND.search(text)
        self.path = path
        self.name = path.relative_to(EXAMPLES).as_posix()
        self.command = [command[1], *command[2].split()] if command else []
        self.prints = [line.strip() for line in text.splitlines() if line.startswith("    ")]
        self._imported = set(_imported(tree))

    def missing(self) -> list[str]:
        """Packages that it imports and that are not installed."""
        beside = {file.stem for file in self.path.parent.glob("*.py")}
        names = {name.partition(".")[0] for name in self._imported} - beside
        return sorted(name for name in names if importlib.util.find_spec(name) is None)

    def run(
        self,
        server: ForkServer,
        folder: Path,
        stop: Callable[[list[str], subprocess.Popen[str]], None] | None = None,
    ) -> list[str]:
        """Lines that it prints, in `folder`, as a new user starts it.

        `stop` sees the lines so far and the process after each line.
        """
        shutil.copytree(EXAMPLES, folder / "examples", dirs_exist_ok=True)
        lines: list[str] = []
        with (
            (folder / "stderr").open("w") as told,
            server.popen(
                [sys.executable, *self.command],
                cwd=folder,
                env=script_environ(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=told,
                text=True,
                start_new_session=True,
            ) as process,
        ):
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    lines.append(line.rstrip("\n"))
                    if stop is not None:
                        stop(lines, process)
                process.wait(LIMIT_S)
            finally:
                process.kill()
        said = f"{self.name} ended with {process.returncode}: {(folder / 'stderr').read_text()}"
        assert stop is not None or process.returncode == 0, said
        return lines

    def matches(self, lines: list[str]) -> bool:
        """Whether `lines` are what the docstring shows."""
        rest = iter(lines)
        shown = [line for line in self.prints if line != LEFT_OUT]
        if len(shown) == len(self.prints) and len(shown) != len(lines):
            return False
        return all(any(_alike(line, one) for line in rest) for one in shown)


def found() -> list[Example]:
    """Every example whose docstring shows what it prints."""
    examples = map(Example, sorted(EXAMPLES.rglob("*.py")))
    return [example for example in examples if example.command and example.prints]


def _alike(line: str, shown: str) -> bool:
    if _NUMBER.sub("#", line) != _NUMBER.sub("#", shown):
        return False
    pairs = zip(_NUMBER.findall(line), _NUMBER.findall(shown), strict=True)
    return all(
        math.isclose(float(a), float(b), rel_tol=_TOLERANCE, abs_tol=_TOLERANCE) for a, b in pairs
    )


def _imported(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
