"""Commands on a directory in which somebody put odd things: named, and the rest is shown."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.oddities import (
    KINDS,
    MOST_MB,
    as_anybody,
    closed_to_us,
    committed,
    folder,
    limited,
    nowhere,
    spoil,
)

pytestmark = pytest.mark.matrix

_COMMAND = """
import sys
from bt_lightning.cli.app import main
main(sys.argv[1:])
"""
_COMMANDS = (
    "checkpoints list -o json --dir {}",
    "checkpoints verify --dir {}",
    "checkpoints show good --dir {}",
    "status --dir {}",
    "report --dir {} --output {}/report.html",
)


@pytest.mark.parametrize("put", KINDS, ids=lambda put: put.__name__)
def test_every_command_shows_the_good_ones_within_its_limits(put, tmp_path):
    """300 MB, and 5 s of one core for each."""
    spoil(tmp_path, put)
    named = put is not folder and put is not nowhere
    for line in _COMMANDS:
        command = line.replace("{}", str(tmp_path)).split()
        done, peak = limited(_COMMAND, *command, environ={"COLUMNS": "200"})
        verify = command[1] == "verify"
        assert done.returncode == (12 if verify and named else 0), (command, done)
        assert peak < MOST_MB, command
        if command[1] == "list":
            said = json.loads(done.stdout)
            assert [one["checkpoint_id"] for one in said["checkpoints"]] == ["good", "protected"]
            assert (f"left out: the manifest {tmp_path / 'bad'}" in done.stderr) == named
        if verify:
            assert done.stdout.count("whole ") == 2
            assert done.stdout.count("damaged ") == named


def test_a_folder_that_cannot_be_read_is_named_and_the_rest_is_shown(tmp_path):
    """The top of an ext4 volume has `lost+found`, which only root can read."""
    committed(tmp_path, "good", 1)
    if not closed_to_us(tmp_path / "lost+found"):
        pytest.skip("root cannot give up its rights here")
    for command, shown in (
        ("checkpoints list -o csv", "good"),
        ("checkpoints verify", "whole"),
        ("checkpoints show latest", "good"),
        ("status", "1 checkpoints, 12 B"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", _COMMAND, *command.split(), "--dir", tmp_path],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            preexec_fn=as_anybody,
        )
        assert done.returncode == 0, done
        assert shown in done.stdout
        if command.startswith(("checkpoints list", "checkpoints verify")):
            said = f"{tmp_path}/lost+found: Permission denied: it is left out"
            assert done.stderr.count(said) == 1, done.stderr
