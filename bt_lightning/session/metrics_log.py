"""Rows of logged metrics on their way to the worker, which writes them to the log of metrics."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Final

from bt_lightning.localdir.event_log import log_line

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_PAUSE_S: Final = 0.1
"""Seconds between two messages: a training that logs at each step must not wake the worker so
often."""
_MESSAGE_BYTES: Final = 16 * 1024
_ROWS: Final = 4096
"""Rows that wait for a worker that does not read; the oldest go first."""
_VALUES: Final = 256
_NAME_CHARS: Final = 200


class MetricsLog:
    """Used by the training thread of the rank that writes; never waits, and does no I/O to disk."""

    def __init__(
        self, send: Callable[[bytes], bool], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`send` hands lines to the worker, and returns whether it took them."""
        self._send = send
        self._clock = clock
        self._waiting: deque[bytes] = deque(maxlen=_ROWS)
        self._sent_at = -_PAUSE_S

    def add(self, step: int, values: Mapping[str, float], epoch: float | None = None) -> None:
        """One row: the metrics of an optimizer step. A NaN or an infinity stays what it is."""
        few = {name[:_NAME_CHARS]: values[name] for name in list(values)[:_VALUES]}
        self._waiting.append(log_line("metrics", time.time(), step=step, epoch=epoch, values=few))
        self.pass_on()

    def pass_on(self) -> None:
        """Hand rows to the worker, if some wait and the last ones are not just sent."""
        if self._waiting and self._clock() - self._sent_at >= _PAUSE_S:
            self.flush()

    def flush(self) -> None:
        """Hand over whatever waits, as far as the worker takes it."""
        while self._waiting:
            lines, size = [], 0
            while self._waiting and size + len(self._waiting[0]) <= _MESSAGE_BYTES:
                lines.append(self._waiting.popleft())
                size += len(lines[-1])
            if not lines:  # a single row of long names
                lines.append(self._waiting.popleft())
            if not self._send(b"".join(lines)):
                self._waiting.extendleft(reversed(lines))
                break
        self._sent_at = self._clock()
