"""Processes that a command started, wherever they went: own sessions, daemons, orphans.

torchrun starts each of its processes in a session of its own: no signal to a process group reaches
them, and they outlive an agent that is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
from pathlib import Path
from typing import Final

from bt_lightning.worker_messages import WORKER_NAME

_SET_CHILD_SUBREAPER: Final = 36
"""Source: prctl(2)."""
_PROC: Final = Path("/proc")
_DEAD: Final = frozenset("ZX")


def adopt_orphans() -> None:
    """Make this process the parent of descendants that lose theirs, instead of init.

    An init that reaps nothing, as in many containers, would leave them as zombies.
    """
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def descendants() -> list[int]:
    """Pids of the live descendants that commands started: those in another session.

    Without the children of `multiprocessing`, which are our own, and without workers: the worker of
    a killed training may be committing its last checkpoint, and ends by itself.
    """
    below: dict[int, list[tuple[int, int, str]]] = {}
    for pid in _pids():
        if (found := _stat(pid)) is not None:
            parent, session, state, name = found
            if name != WORKER_NAME:
                below.setdefault(parent, []).append((pid, session, state))
    own_children, own_session = _multiprocessing_children(), os.getsid(0)
    living, pending = [], [os.getpid()]
    while pending:
        for pid, session, state in below.get(pending.pop(), ()):
            if pid in own_children:
                continue
            pending.append(pid)
            if session != own_session and state not in _DEAD:
                living.append(pid)
    return living


def reap(command: int) -> None:
    """Reap the orphans that ended, but not the process `command`, whose exit code is needed."""
    own_children = {*_multiprocessing_children(), command}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) is not None:
            found = _stat(ended.si_pid)
            if ended.si_pid in own_children or found is None or found[1] == os.getsid(0):
                return  # not an orphan: its own waiter reaps it; the next call goes on
            os.waitpid(ended.si_pid, os.WNOHANG)


def has_handler(pid: int, number: int) -> bool:
    """Whether a process has a handler for the signal `number`."""
    try:
        lines = (_PROC / str(pid) / "status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    caught = next((line for line in lines.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0")
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def _multiprocessing_children() -> set[int | None]:
    return {process.pid for process in multiprocessing.active_children()}


def _pids() -> list[int]:
    return [int(name) for name in os.listdir(_PROC) if name.isdigit()]  # noqa: PTH208 - it is faster


def _stat(pid: int) -> tuple[int, int, str, str] | None:
    """Parent, session, state and name of a process; None if it is gone."""
    try:
        line = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    front, _, rest = line.rpartition(b")")  # the name may hold anything
    state, parent, _, session = rest.split()[:4]
    name = front.partition(b"(")[2].decode("utf-8", "replace")
    return int(parent), int(session), state.decode("ascii"), name
