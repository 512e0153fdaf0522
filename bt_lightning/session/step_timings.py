"""Measures how long steps, validations and saves take, to decide when to save."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.snapshot.save_record import SaveRecord

_RECENT = 5
_STEPS = 65


class StepTimings:
    """The timings of one fit, in seconds; used on the training thread of the rank that writes."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._ended_at: float | None = None
        self._extra_s = 0.0
        self._saves = 0
        self._costs: deque[float] = deque(maxlen=_RECENT)
        self._blocked: deque[float] = deque(maxlen=_RECENT)
        self._local: deque[float] = deque(maxlen=_RECENT)
        self._remote: deque[float] = deque(maxlen=_RECENT)
        self._validation_at = 0.0
        self._batches = 0
        self.validation_s: float | None = None
        """Duration of the last complete validation."""

    # measuring

    def batch_ended(self, now: float, saves: int, *, busy: bool) -> None:
        """A batch ended; `saves` were begun since the last one, `busy` if one is in progress."""
        previous_end, self._ended_at = self._ended_at, now
        self._saves += saves
        if previous_end is None:
            return
        if not busy and not self._saves:
            self._steps.append(now - previous_end)
            return
        self._extra_s += now - previous_end - self.step_s
        if not busy:  # the last save in progress has ended
            if self._saves and self._steps:
                self._costs.append(max(0.0, self._extra_s) / self._saves)
            self._extra_s, self._saves = 0.0, 0

    def exclude_until(self, now: float) -> None:
        """Exclude the time until now, which was not spent in a step."""
        self._ended_at = now

    def validation(self, now: float, *, begins: bool) -> None:
        """A validation began, or ended."""
        if begins:
            self._validation_at, self._batches = now, 0
        else:
            self.validation_s = now - self._validation_at
            self.exclude_until(now)

    def validation_batch_ended(self) -> None:
        """A batch of the validation ended."""
        self._batches += 1

    def save_ended(self, record: SaveRecord) -> None:
        """A save was committed to the disk, or is in the store."""
        if not record.is_kept:
            return
        if record.remote_durable_s:
            self._remote.append(record.remote_durable_s)
        elif record.local_durable_s:
            self._local.append(record.local_durable_s)
            self._blocked.append((record.call_ms + record.guard_ms) / 1000)

    # results

    @property
    def step_s(self) -> float:
        """The median duration of a step without a save in progress; 0 before the first."""
        return median(self._steps) if self._steps else 0.0

    @property
    def save_s(self) -> float | None:
        """From the call that saves until the commit on disk: the longest of the last few saves."""
        return max(self._local, default=None)

    @property
    def durable_s(self) -> float:
        """From the call that saves until it is durable: in the store, if there is one."""
        return max((*self._local, *self._remote), default=0.0)

    @property
    def cost_s(self) -> float | None:
        """The training time that one save costs; None before the first save."""
        if not self._blocked:
            return None
        return max(median(self._costs) if self._costs else 0.0, median(self._blocked))

    def rest_of_validation_s(self, now: float, batches: float) -> float | None:
        """Estimated time until a validation of `batches` batches ends; None if unknown."""
        if not self._batches:
            return self.validation_s
        if batches == float("inf"):
            return None
        left = max(0.0, batches - self._batches)
        return left * (now - self._validation_at) / self._batches
