"""What the system knows of a worker: its low priority, its session, its name."""

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


def stand_apart() -> None:
    """Leave the session of the training, under a name that tells a job's runner to spare it.

    What ends a group, SIGKILL at last, is for the training: a worker whose trainer was killed may
    be just committing its last checkpoint, and ends by its own deadline. Source: prctl(2).
    """
    with contextlib.suppress(PermissionError):  # it leads one already
        os.setsid()
    ctypes.CDLL(None).prctl(_SET_NAME, WORKER_NAME.encode("ascii"), 0, 0, 0)


def lower_priority() -> None:
    """Lower CPU and I/O priority: training comes first; what the system refuses stays as it is.

    Source: nice(2), ioprio_set(2).
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)
