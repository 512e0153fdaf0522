"""When a save of our own is due: by a fixed interval, or one that follows what is measured."""

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
"""After a boundary at which it could not save, at most."""


class SaveSchedule:
    """Kept by the rank that writes. Counts from the newest save, whoever asked for it."""

    def __init__(self, options: Options, root: Path) -> None:
        self._root = root
        self._fixed = isinstance(options.interval, timedelta)
        self._prior_s = options.failures_every.total_seconds()
        self._overhead = options.max_overhead
        self._record = FailureRecord()
        self.interval_s: float | None = None
        """Seconds from one save to the next; None: there are none of our own."""
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

    def answered(self, now: float, *, saved: bool) -> None:
        """What was due has been decided."""
        if saved:
            self._saved_at = now
        else:
            self._not_before = now + min(_AGAIN_S, self.interval_s or _AGAIN_S)

    def look(self, now: float, rhythm: StepTimings, *, taken: int) -> None:
        """After a batch, beside which so many saves were taken: follow what they took."""
        if taken:
            self._saved_at = now
        cost_s = rhythm.cost_s
        if self.interval_s is None or self._fixed or cost_s is None:
            return
        record = FailureRecord(self._record.observed_s + now - self._began, self._record.failures)
        mtbf_s = record.mtbf_s(self._prior_s)
        takes_s = rhythm.takes_s
        found = best_interval(cost_s, mtbf_s, self._overhead, takes_s)
        if abs(found - self.interval_s) > 0.1 * self.interval_s:
            with contextlib.suppress(OSError):  # an event is no checkpoint
                facts = {"cost_s": cost_s, "mtbf_s": mtbf_s, "takes_s": takes_s}
                note(self._root, "interval", interval_s=found, **facts)
            self.interval_s = found
