"""The threads that copy: beside training, and after it on the cores."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

_NICE = 5


def copy_threads(count: int, name: str) -> ThreadPoolExecutor:
    """A pool of `count` threads that give way to the training thread.

    Without it a copy that is woken by the training thread may push it off its core. Source:
    setpriority(2), whose "process" is a thread on Linux.
    """
    return ThreadPoolExecutor(count, name, initializer=_give_way)


def _give_way() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
