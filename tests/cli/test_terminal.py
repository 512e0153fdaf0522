"""On a real terminal: its width, its colours, its Ctrl-C, and the explorer behind `list`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest

pytestmark = pytest.mark.matrix

PATIENCE_S = 40


class Terminal:
    """A command on a terminal of some width."""

    def __init__(self, *args, width=100, **env):
        self.shown = b""
        self.pid, self._side = pty.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 24, width, 0, 0))
                kept = {k: v for k, v in os.environ.items() if not k.startswith(("BT_", "COL"))}
                kept.update(TERM="xterm-256color", **env)
                words = [sys.executable, "-m", "bt_lightning", *map(str, args)]
                os.execvpe(words[0], words, kept)
            os._exit(99)

    def until(self, word):
        while word not in self.shown:
            assert select.select([self._side], [], [], PATIENCE_S)[0], self.shown[-500:]
            self.shown += os.read(self._side, 65536)

    def type(self, keys):
        os.write(self._side, keys)

    def interrupted(self):
        """Its exit code after Ctrl-C, pressed again while nothing comes of it.

        A signal between Python's last look for one and the read that blocks is seen by neither.
        """
        for _ in range(PATIENCE_S):
            self.type(b"\x03")
            if self._said_everything(within_s=1):
                break
        return self.ended()

    def ended(self):
        """Its exit code, when it has said everything."""
        if not self._said_everything(within_s=PATIENCE_S):
            os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        os.close(self._side)
        return os.waitstatus_to_exitcode(status)

    def _said_everything(self, within_s):
        with contextlib.suppress(OSError):  # a terminal whose last writer is gone
            while select.select([self._side], [], [], within_s)[0]:
                data = os.read(self._side, 65536)
                if not data:
                    return True
                self.shown += data
            return False
        return True


@pytest.fixture
def root(tmp_path, make):
    for step in (3, 20):
        make(tmp_path / "ck", f"checkpoint-{step}", step)
    return tmp_path / "ck"


LIST = ("checkpoints", "list", "--non-interactive")


def test_columns_that_do_not_fit_are_left_out_and_named(root):
    wide = Terminal(*LIST, "--dir", root, width=200)
    assert wide.ended() == 0
    assert b"not shown" not in wide.shown
    assert b"Metrics" in wide.shown
    narrow = Terminal(*LIST, "--dir", root, width=60)
    assert narrow.ended() == 0
    assert b"not shown in this width" in narrow.shown
    rows = [line for line in narrow.shown.decode().splitlines() if "checkpoint-20" in line]
    assert len(rows) == 1
    assert "12.00 KB" in rows[0]


def test_no_color_is_no_colour(root):
    (root / "checkpoint-3" / "trainer.json").write_bytes(b"short")
    for env, coloured in (({}, True), ({"NO_COLOR": "1"}, False)):
        verify = Terminal("checkpoints", "verify", "--dir", root, **env)
        assert verify.ended() == 12
        assert (b"\x1b[31m" in verify.shown) == coloured
        missing = Terminal("checkpoints", "show", "none", "--dir", root, **env)
        assert missing.ended() == 10
        assert (b"\x1b[31m" in missing.shown) == coloured


def test_a_list_on_a_terminal_is_the_explorer(root):
    listed = Terminal("checkpoints", "list", "--dir", root)
    listed.until(b"checkpoint-20")
    assert b"\x1b[?1049h" in listed.shown  # the other screen
    listed.type(b"\x03")
    assert listed.ended() == 0
    assert b"\x1b[?1049l" in listed.shown


@pytest.mark.parametrize("env", [{}, {"NO_COLOR": "1"}])
def test_the_explorer_has_the_terminals_own_colours_or_none(root, env):
    """A colour of its own, as one of 24 bits, would be illegible on some light or dark terminal."""
    shown = Terminal("checkpoints", "explore", "--dir", root, **env)
    shown.until(b"digest")
    shown.type(b"\x03")
    assert shown.ended() == 0
    codes = {
        int(one)
        for one in re.findall(
            rb"(?<=[\[;])\d+(?=[;m])", b"".join(re.findall(rb"\x1b\[[\d;]*m", shown.shown))
        )
    }
    attributes = {0, 1, 2, 4, 7, 22, 24, 27, 39, 49}
    colours = {*range(30, 38), *range(90, 98)}
    assert codes - attributes <= (set() if env else colours)
    assert not codes.intersection({38, 48})
    assert 7 in codes  # what is chosen is seen without a colour


def test_the_explorer_keeps_the_order_that_was_asked_for(root):
    wrong = Terminal("checkpoints", "list", "--dir", root, "--sort", "nonsense")
    assert wrong.ended() == 2
    assert b"cannot sort by" in wrong.shown
    assert b"\x1b[?1049h" not in wrong.shown
    for order, first in (("asc", b"checkpoint-3"), ("desc", b"checkpoint-20")):
        listed = Terminal("checkpoints", "list", "--dir", root, "--sort", "step", "--order", order)
        listed.until(b"digest")
        listed.type(b"o")  # the manifest of what is chosen, which is the first
        listed.until(first + b": manifest")
        listed.type(b"\x03")
        assert listed.ended() == 0
    missing = Terminal("checkpoints", "list", "--dir", root, "--checkpoint-name", "none")
    assert missing.ended() == 10
    assert b"Traceback" not in missing.shown


def test_ctrl_c_at_a_question_deletes_nothing_and_shows_no_traceback(root):
    asked = Terminal("checkpoints", "delete", "checkpoint-3", "--dir", root)
    asked.until(b"Type yes")
    assert asked.interrupted() == 130
    assert b"Traceback" not in asked.shown
    assert (root / "checkpoint-3").is_dir()


def piped(*args, stdout=subprocess.PIPE, **env):
    """Run a command that has no terminal."""
    words = [sys.executable, "-m", "bt_lightning", *map(str, args)]
    return subprocess.run(
        words, stdout=stdout, stderr=subprocess.PIPE, env={**os.environ, **env}, check=False
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("command", ["list", "show", "verify"])
def test_a_locale_without_a_sign_for_something_shows_the_rest(root, make, encoding, command):
    make(root, "größe-💥\u202e", 30)
    done = piped("checkpoints", command, "--dir", root, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, b"")
    shown = "größe-💥\N{REPLACEMENT CHARACTER}"
    ways = [shown.encode(way, errors="replace") for way in (encoding, "utf-8")]
    assert any(way in done.stdout for way in ways)  # click takes plain ASCII for a mistake


@pytest.mark.parametrize("form", ["cli-table", "csv", "json"])
def test_who_listens_no_more_hears_of_no_error(root, form):
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "wb") as pipe:
        done = piped("checkpoints", "list", "--dir", root, "-o", form, stdout=pipe)
    assert b"Traceback" not in done.stderr
    assert b"error" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize(
    "args", [("checkpoints", "list"), ("--help",), ("checkpoints", "--help"), ("--version",)]
)
def test_a_full_disk_under_the_output_is_said_in_one_line(root, args):
    place = ("--dir", root) if args[-1] == "list" else ()
    with Path("/dev/full").open("wb") as full:
        done = piped(*args, *place, stdout=full)
    assert done.returncode == 27
    assert done.stderr.startswith(b"error: ")
    assert done.stderr.count(b"\n") == 1


def test_a_file_that_cannot_be_written_is_said_in_one_line(root, tmp_path):
    for output, code in ((tmp_path / "none" / "report.html", 17), (tmp_path, 2)):
        done = piped("report", "--dir", root, "--output", output)
        assert done.returncode == code
        assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_completes(shell):
    start = "from bt_lightning.cli.app import main; main(prog_name='bt-lightning')"
    variable = {"_BT_LIGHTNING_COMPLETE": f"{shell}_source"}
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        env={**os.environ, **variable},
        check=True,
    )
    assert "_bt_lightning_completion" in done.stdout
    asked = {"COMP_WORDS": "bt-lightning checkpoints pro", "COMP_CWORD": "2"}
    if shell == "fish":
        asked["COMP_CWORD"] = "pro"
    variable = {"_BT_LIGHTNING_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", start],
        capture_output=True,
        text=True,
        env={**os.environ, **variable, **asked},
        check=True,
    )
    assert "protect" in done.stdout


def test_a_watch_follows_until_ctrl_c(root):
    watch = Terminal("status", "--watch", "--dir", root)
    watch.until(b"2 checkpoints")
    os.kill(watch.pid, signal.SIGINT)
    assert watch.ended() == 130
    assert b"Traceback" not in watch.shown
