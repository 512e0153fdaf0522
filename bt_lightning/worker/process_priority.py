"""The worker process's CPU and I/O priority, session and name."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

from bt_lightning.worker_messages import WORKER_NAME

_NICE = 10
_SET_NAME = 15
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS = 1
_BEST_EFFORT_LOWEST = (2 << 13) | 7  # not the idle class: a busy disk would stop commits for ever


def leave_session() -> None:
    """Start a session of its own, under the name by which a job runner leaves it alive.

    A signal to the process group, SIGKILL at last, is for the training: the worker of a killed
    trainer may be committing its last checkpoint, and ends by its own deadline. Source: prctl(2).
    """
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    ctypes.CDLL(None).prctl(_SET_NAME, WORKER_NAME.encode("ascii"), 0, 0, 0)


def lower_priority() -> None:
    """Lower CPU and I/O priority: training comes first; refusals are ignored.

    Source: nice(2), ioprio_set(2).
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)
