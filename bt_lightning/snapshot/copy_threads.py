"""Thread pools for copies, with a lower priority than the training thread."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 5
_START_S = 60.0


def copy_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads with a raised nice value, which have started when this returns.

    At equal priority, a copy thread that the training thread wakes may preempt it on its core.
    Source: setpriority(2), whose "process" is a thread on Linux. Whoever starts a thread waits for
    it to run, which is no wait for a save.
    """
    pool = ThreadPoolExecutor(count, name, initializer=_lower_priority)
    all_started = threading.Event()
    for _ in range(count):  # each has one of these, since none is over
        pool.submit(all_started.wait, _START_S)
    all_started.set()
    return pool


def _lower_priority() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
