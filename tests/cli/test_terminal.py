"""On a real terminal: its width, its colours, its Ctrl-C, and the explorer behind `list`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios

import pytest

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


def test_ctrl_c_at_a_question_deletes_nothing_and_shows_no_traceback(root):
    asked = Terminal("checkpoints", "delete", "checkpoint-3", "--dir", root)
    asked.until(b"Type yes")
    assert asked.interrupted() == 130
    assert b"Traceback" not in asked.shown
    assert (root / "checkpoint-3").is_dir()


def test_a_watch_follows_until_ctrl_c(root):
    watch = Terminal("status", "--watch", "--dir", root)
    watch.until(b"2 checkpoints")
    os.kill(watch.pid, signal.SIGINT)
    assert watch.ended() == 130
    assert b"Traceback" not in watch.shown
