"""The end of a child process, told where nobody keeps its exit status.

Where SIGCHLD is ignored the kernel forgets a child that ends, and a handler of somebody else's may
have waited for it: `multiprocessing` then takes it for alive for ever, will not close it, and would
send signals to whoever has its number next. The end of its pipe is the truth. Source: wait(2).
"""

from __future__ import annotations

from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

_UNKNOWN: Final = 255


def is_over(process: SpawnProcess, timeout_s: float = 0.0) -> bool:
    """Whether the process ends within that time, as its end of the pipe says."""
    return bool(wait([process.sentinel], timeout_s))


def exit_code(process: SpawnProcess, timeout_s: float) -> int | None:
    """The code that it ends with within that time; None if it does not, or nobody knows it."""
    process.join(timeout_s)
    return process.exitcode


def collect_exit(process: SpawnProcess) -> None:
    """Kill what still lives, wait for its end, and forget it."""
    if not is_over(process):
        process.kill()
    process.join()
    if process.exitcode is None:
        popen: Any = process._popen  # type: ignore[attr-defined]  # noqa: SLF001 - no other way
        popen.returncode = _UNKNOWN
        process.join()
    process.close()
