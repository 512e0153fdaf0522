"""The schedule of interval saves (`interval=`): fixed, or adapted to the measured cost."""

from __future__ import annotations

import contextlib
import logging
import time
from datetime import timedelta
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.localdir.event_log import note, read_events
from bt_lightning.optimal_save_interval import FIRST_S, FailureRecord, best_interval, record_of

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.session.options import Options
    from bt_lightning.session.step_timings import StepTimings

log = logging.getLogger(__name__)

_AGAIN_S = 1.0
"""Longest delay until the next attempt, in seconds, when a due save could not be made."""


class SaveSchedule:
    """The schedule on the rank that writes; counts from the newest save of any kind."""

    def __init__(self, options: Options, root: Path) -> None:
        self._root = root
        self._fixed = isinstance(options.interval, timedelta)
        self._prior_s = options.failures_every.total_seconds()
        self._overhead = options.max_overhead
        self._record = FailureRecord()
        self.interval_s: float | None = None
        """Seconds from one save to the next; None if interval saves are off."""
        if isinstance(options.interval, timedelta):
            self.interval_s = options.interval.total_seconds()
        elif options.interval == "auto":
            self.interval_s = FIRST_S
            try:
                self._record = record_of(read_events(root))
            except FileNotFoundError:
                pass  # the first run
            except (OSError, CheckpointCorruptError) as error:
                log.warning("the events of earlier runs cannot be read: %s", error)
        self._began = self._saved_at = time.monotonic()
        self._not_before = 0.0

    def is_due(self, now: float) -> bool:
        """Whether to save at the next boundary; called on any thread."""
        wanted = self.interval_s is not None and now - self._saved_at >= self.interval_s
        return wanted and now >= self._not_before

    def note_decision(self, now: float, *, saved: bool) -> None:
        """Note whether a due save was made."""
        if saved:
            self._saved_at = now
        else:
            self._not_before = now + min(_AGAIN_S, self.interval_s or _AGAIN_S)

    def update(self, now: float, timings: StepTimings, *, taken: int) -> None:
        """After a batch: adapt the interval; `taken` saves were begun since the last call."""
        if taken:
            self._saved_at = now
        cost_s = timings.cost_s
        if self.interval_s is None or self._fixed or cost_s is None:
            return
        record = FailureRecord(self._record.observed_s + now - self._began, self._record.failures)
        mtbf_s = record.mtbf_s(self._prior_s)
        durable_s = timings.durable_s
        interval_s = best_interval(cost_s, mtbf_s, self._overhead, durable_s)
        if abs(interval_s - self.interval_s) > 0.1 * self.interval_s:
            with contextlib.suppress(OSError):  # a lost event does no harm
                facts = {"cost_s": cost_s, "mtbf_s": mtbf_s, "takes_s": durable_s}
                note(self._root, "interval", interval_s=interval_s, **facts)
            self.interval_s = interval_s
