"""Examples print what their docstrings say, also if they are killed and started again."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

from tests.examples.example_runs import EXAMPLES, Example, found

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import Popen

    from tests.fork_server import ForkServer

pytestmark = pytest.mark.timeout(300)


LONG = {
    "ddp.py",
    "kfold.py",
    "lightning_gpt.py",
    "lightning_hf_finetune.py",
    "tensor_parallel.py",
    "trl_sft.py",
}
"""Of half a minute to two each; every kind of them has a shorter one here."""


@pytest.mark.matrix
@pytest.mark.parametrize(
    "example",
    [pytest.param(each, marks=[pytest.mark.slow] * (each.name in LONG)) for each in found()],
    ids=lambda example: example.name,
)
def test_an_example_that_is_killed_goes_on_and_prints_what_its_docstring_says(
    fork_server: ForkServer, tmp_path: Path, example: Example
) -> None:
    """By `kill -9` half-way, then by Ctrl-C at the next line, then left alone."""
    if missing := example.missing():
        pytest.skip(f"needs {', '.join(missing)}")
    whole = example.run(fork_server, _made(tmp_path / "whole"))
    assert example.matches(whole), whole
    kill_after = max(2, len(whole) // 2)

    def kill(lines: list[str], process: Popen[str]) -> None:
        if len(lines) == kill_after:
            process.kill()

    def interrupt(lines: list[str], process: Popen[str]) -> None:
        if len(lines) == 1:
            process.send_signal(signal.SIGINT)

    folder = _made(tmp_path / "killed")
    starts = [
        example.run(fork_server, folder, kill),
        example.run(fork_server, folder, interrupt),
        example.run(fork_server, folder),
    ]
    first, *others = starts
    assert first == whole[: len(first)], "the same until it is killed"
    for lines in others:
        rest = iter(whole)
        assert all(line in rest for line in lines), "goes on as if nothing had been"
        assert len(lines) < len(whole), "began again"
    assert set(whole) == {line for lines in starts for line in lines}
    assert starts[-1][-1] == whole[-1]


def test_the_readme_lists_every_example() -> None:
    listed = (EXAMPLES / "README.md").read_text()
    entries = (path for path in EXAMPLES.iterdir() if path.suffix == ".py" or path.is_dir())
    names = [path.name for path in entries if not path.name.startswith(("_", "."))]
    assert [name for name in names if f"`{name}" not in listed] == []


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
