"""The start of a worker process: by `spawn`, without running the user's script again."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
import weakref
from typing import TYPE_CHECKING

from bt_lightning.errors import InvalidSettingError
from bt_lightning.worker.worker_process import run_worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from multiprocessing.context import SpawnContext, SpawnProcess

    from bt_lightning.worker_messages import WorkerConfig

log = logging.getLogger(__name__)

_FORKING = "--multiprocessing-fork"
"""The argument by which `multiprocessing` starts a frozen program as a child."""


def spawn(config: WorkerConfig) -> tuple[SpawnProcess | None, Connection]:
    """Start a worker; return its process, None if it was killed at once, and our end of its pipe.

    Called in the process that trains or runs the job.

    Raises:
        InvalidSettingError: this process may have no children, or was itself started as one.
    """
    if _frozen() and sys.argv[1:2] == [_FORKING]:
        msg = f"this process was started as a worker, and ran the program instead{frozen_advice()}"
        raise InvalidSettingError(msg)
    context = _context()
    ours, theirs = context.Pipe()
    process = context.Process(
        target=run_worker, args=(theirs, config), daemon=True, name="bt_lightning worker"
    )
    try:
        with _hidden_main():
            process.start()
    except AssertionError as error:  # multiprocessing: a daemonic process has no children
        ours.close()
        msg = "the worker cannot be started here: this process is a daemonic child itself"
        raise InvalidSettingError(msg) from error
    except BrokenPipeError:
        log.debug("the worker was killed while it started")
        return None, ours
    finally:
        theirs.close()
    atexit.register(_disconnect, weakref.ref(ours))
    return process, ours


def _context() -> SpawnContext:
    if "torch" in sys.modules:
        from torch.multiprocessing import get_context
    else:  # the same without torch, which a job runner does not need
        from multiprocessing import get_context
    return get_context("spawn")


def _disconnect(ours: weakref.ref[Connection]) -> None:
    """Close the pipe to a worker that nobody stopped, before `multiprocessing` joins it at exit.

    The worker then does what it does when its trainer has died: it publishes, within its own
    deadline, and ends.
    """
    connection = ours()
    if connection is not None:
        connection.close()


def frozen_advice() -> str:
    """What to do if a frozen program cannot start its worker; empty if it is not frozen."""
    if not _frozen():
        return ""
    return (
        ". This program is frozen (sys.frozen), so a worker is started by running it again: let its"
        " main module call multiprocessing.freeze_support() before anything else"
    )


def _frozen() -> bool:
    return bool(getattr(sys, "frozen", False))


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
    """Keep `multiprocessing` from running the user's script again in the child.

    Its imports cost seconds and hundreds of MB there, and a script without a main guard, from
    stdin or a notebook has no second run at all.
    """
    main = sys.modules["__main__"]
    hidden = {name: main.__dict__.pop(name, None) for name in ("__file__", "__spec__")}
    main.__spec__ = None
    try:
        yield
    finally:
        for name, value in hidden.items():
            if value is not None:
                setattr(main, name, value)
