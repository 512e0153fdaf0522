"""What a node that is not the first waits for before its torchrun starts: that of node 0.

A torchrun that ended closes the meeting for every node, and torchrun of node 0 listens until it has
ended too. Who came back in between would be turned away, and another attempt would be spent.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.runtime.command_process import Child

_CLOSED_S: Final = 60.0
"""Seconds for the torchrun of node 0 to end after one of ours; its processes see ours gone."""
_OPEN_S: Final = 600.0
"""Seconds for node 0 to start one; as long as torchrun itself waits for other nodes."""
_LOOK_S: Final = 0.25
_CONNECT_S: Final = 2.0


def await_leader(
    meeting: tuple[str, int], child: Child, tick: Callable[[], None], *, restarts: bool
) -> None:
    """Wait until node 0 listens; if this node `restarts`, until it has stopped before that.

    Returns as well after 60 and 600 seconds, or when the job is told to end. Main thread only.
    """
    if restarts:
        _await(lambda: not _listens(meeting), _CLOSED_S, child, tick)
    _await(lambda: _listens(meeting), _OPEN_S, child, tick)


def _await(
    over: Callable[[], bool], longest_s: float, child: Child, tick: Callable[[], None]
) -> None:
    until = time.monotonic() + longest_s
    while child.stopped_by is None and not over() and time.monotonic() < until:
        child.sleep(_LOOK_S, tick)


def _listens(meeting: tuple[str, int]) -> bool:
    try:
        socket.create_connection(meeting, _CONNECT_S).close()
    except (OSError, UnicodeError):  # a name such as `a..b` cannot be asked for
        return False
    return True
