"""Guards around every test: nothing may leak into the next one."""

from __future__ import annotations

import os
import random
import signal
import threading
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what is in its background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or no child could be interrupted
_OURS = ("BT_", "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_")


@pytest.fixture(autouse=True)
def _clean_environment(_no_leaks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of a platform reaches a test that did not set it."""
    for name in list(os.environ):
        if name.startswith("BT_") and name != "BT_TEST_WORKERS":
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """A leaked variable, thread, child process or signal handler is a failure of that test."""
    environ = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = set(threading.enumerate())
    state = random.getstate()
    yield
    random.setstate(state)
    left = [t.name for t in threading.enumerate() if t not in threads and not _is_shared(t)]
    now = {name: value for name, value in os.environ.items() if name.startswith(_OURS)}
    assert now == environ, "the test changed the environment"
    assert {n: signal.getsignal(n) for n in handlers} == handlers, "the test left a signal handler"
    assert not left, f"the test left threads: {left}"
    assert not _workers(), "the test left a worker process"


def _is_shared(thread: threading.Thread) -> bool:
    """Threads of libraries that live as long as the process: event loops, pools, progress bars."""
    shared = ("fsspecIO", "asyncio_", "ThreadPoolExecutor", "pytest_timeout", "tqdm_monitor")
    return thread.name.startswith(shared)


def _workers() -> list[int]:
    import multiprocessing

    return [child.pid or 0 for child in multiprocessing.active_children()]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """GPU tests skip where there is no GPU."""
    if not any("gpu" in item.keywords for item in items):
        return
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
