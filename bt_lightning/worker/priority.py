"""Low priority for the worker: training comes first on the cores and on the disk."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform

_NICE = 10
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_WHO_PROCESS = 1
_BEST_EFFORT_LOWEST = (2 << 13) | 7  # not the idle class: a busy disk would stop commits for ever


def lower_priority() -> None:
    """Lower this process's CPU and I/O priority; what the system refuses stays as it is.

    Source: nice(2), ioprio_set(2).
    """
    with contextlib.suppress(OSError):
        os.nice(_NICE)
    number = _IOPRIO_SET.get(platform.machine())
    if number is not None:
        ctypes.CDLL(None).syscall(number, _WHO_PROCESS, 0, _BEST_EFFORT_LOWEST)
