"""Thread pools for copies, with a lower priority than the training thread."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 5


def copy_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads with a raised nice value.

    At equal priority, a copy thread that the training thread wakes may preempt it on its core.
    Source: setpriority(2), whose "process" is a thread on Linux.
    """
    return ThreadPoolExecutor(count, name, initializer=_lower_priority)


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
