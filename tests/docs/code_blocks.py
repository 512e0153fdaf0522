"""The code of a page: fenced blocks, and what a reader does with each.

A reader saves a block whose first line is a comment with the name of a file, `# train.py`, under
that name; runs every other block of Python and of a shell, in the order of the page, in one folder
and one shell; and compares a block of plain text with what the shell's block above it printed:
`...` stands for anything in a line, and for lines that are left out.
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parents[2]
PAGES = [
    "README.md",
    "docs/index.md",
    "docs/tutorial.md",
    "docs/monitoring.md",
    "docs/serving.md",
    *(f"docs/guides/{path.name}" for path in sorted((PROJECT / "docs" / "guides").glob("*.md"))),
    "docs/reference/events_and_metrics.md",
]
NOT_HERE = {
    "--elastic": "needs eight GPUs, or other machines",
    "curl": "asks a cloud",
    "kubectl": "needs a cluster",
    "nox": "makes environments",
    "pip": "installs",
    "sbatch": "needs a cluster",
    "srun": "needs a cluster",
    "torchrun": "needs eight GPUs, or other machines",
    "truss": "needs an account",
}
"""What is only parsed, by a word of a command, and why."""
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```\s*$", re.MULTILINE | re.DOTALL)
_NAME = re.compile(r"# ([\w./-]+\.(?:py|sh|yaml))\n")
_WORD = re.compile(r"(?:^|[|&;(]| -m | exec )[ ]*([a-z][\w-]*)|(--elastic)", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def file(self) -> str | None:
        """The name under which a reader saves it."""
        named = _NAME.match(self.text)
        return named[1] if named else None

    @property
    def not_here(self) -> list[str]:
        """Why a block of a shell is only parsed."""
        said = re.sub(r"^\s*#.*$", "", self.text, flags=re.MULTILINE)
        words = [word or option for word, option in _WORD.findall(said)]
        return [NOT_HERE[word] for word in words if word in NOT_HERE]

    @property
    def is_run(self) -> bool:
        if self.file:
            return False
        return self.language == "python" or (self.language == "bash" and not self.not_here)


def blocks(page: str) -> list[Block]:
    """Every fenced block of a page, in order."""
    text = (PROJECT / page).read_text()
    return [
        Block(page, text[: found.start()].count("\n") + 1, found[2], textwrap.dedent(found[3]))
        for found in _FENCE.finditer(text)
    ]


def shows(shown: str, printed: str) -> bool:
    """Whether the lines of a block of plain text are in what was printed, in their order."""
    lines = [line.strip() for line in shown.splitlines() if line.strip() not in {"", "..."}]
    patterns = [re.compile(re.escape(line).replace(r"\.\.\.", ".*")) for line in lines]
    rest = iter(printed.splitlines())
    return all(any(pattern.search(line) for line in rest) for pattern in patterns)
