"""Detecting and collecting the exit of a child process, also where its exit status is lost.

Where SIGCHLD is ignored the kernel drops the status of a child that ends, and a foreign handler may
have waited for it: `multiprocessing` then takes the child for alive, will not close it, and would
send signals to whichever process gets its pid next. The end of its pipe is reliable. Source:
wait(2).
"""

from __future__ import annotations

from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_UNKNOWN: Final = 255


def is_over(process: SpawnProcess, timeout_s: float = 0.0) -> bool:
    """Whether the process ends within `timeout_s`, judged by its sentinel pipe."""
    return bool(wait([process.sentinel], timeout_s))


def exit_code(process: SpawnProcess, timeout_s: float) -> int | None:
    """The exit code, if the process ends within `timeout_s`; None if not, or if it is lost."""
    process.join(timeout_s)
    return process.exitcode


def collect_exit(process: SpawnProcess) -> None:
    """Kill the process if it still runs, wait for its end, and close it."""
    if not is_over(process):
        process.kill()
    process.join()
    if process.exitcode is None:
        popen: Any = process._popen  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
        popen.returncode = _UNKNOWN
        process.join()
    process.close()
