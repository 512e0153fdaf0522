"""What a run's steps, validations and saves take: measured, for those who decide when to save."""

from __future__ import annotations

from collections import deque
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bt_lightning.snapshot.save_record import SaveRecord

_RECENT = 5
_STEPS = 65


class StepTimings:
    """Kept by the rank that writes, on its training thread; every time in seconds."""

    def __init__(self) -> None:
        self._steps: deque[float] = deque(maxlen=_STEPS)
        self._ended_at: float | None = None
        self._beside = 0.0
        self._saves = 0
        self._costs: deque[float] = deque(maxlen=_RECENT)
        self._held: deque[float] = deque(maxlen=_RECENT)
        self._local: deque[float] = deque(maxlen=_RECENT)
        self._remote: deque[float] = deque(maxlen=_RECENT)
        self._validation_at = 0.0
        self._batches = 0
        self.validation_s: float | None = None
        """The last whole validation."""

    # measuring

    def batch(self, now: float, saves: int, *, busy: bool) -> None:
        """A batch ended; `saves` were taken since the last one, `busy` if one is under way."""
        before, self._ended_at = self._ended_at, now
        self._saves += saves
        if before is None:
            return
        if not busy and not self._saves:
            self._steps.append(now - before)
            return
        self._beside += now - before - self.step_s
        if not busy:  # the stretch beside saves is over
            if self._saves and self._steps:
                self._costs.append(max(0.0, self._beside) / self._saves)
            self._beside, self._saves = 0.0, 0

    def paused(self, now: float) -> None:
        """Something that is no step took the time until now."""
        self._ended_at = now

    def validation(self, now: float, *, begins: bool) -> None:
        """A validation began, or ended."""
        if begins:
            self._validation_at, self._batches = now, 0
        else:
            self.validation_s = now - self._validation_at
            self.paused(now)

    def validated(self) -> None:
        """A batch of it ended."""
        self._batches += 1

    def saved(self, record: SaveRecord) -> None:
        """A save ended, on the disk or in the store."""
        if not record.is_kept:
            return
        if record.remote_durable_s:
            self._remote.append(record.remote_durable_s)
        elif record.local_durable_s:
            self._local.append(record.local_durable_s)
            self._held.append((record.call_ms + record.guard_ms) / 1000)

    # what came out

    @property
    def step_s(self) -> float:
        """A step beside which no save was under way."""
        return median(self._steps) if self._steps else 0.0

    @property
    def save_s(self) -> float | None:
        """From the call that saves until the disk has it: the longest of the last few."""
        return max(self._local, default=None)

    @property
    def takes_s(self) -> float:
        """Until a save is where it is to go: in the store, if there is one."""
        return max((*self._local, *self._remote), default=0.0)

    @property
    def cost_s(self) -> float | None:
        """What one save takes from training; None before the first."""
        if not self._held:
            return None
        return max(median(self._costs) if self._costs else 0.0, median(self._held))

    def rest_of_validation_s(self, now: float, batches: float) -> float | None:
        """Until a validation of so many batches ends, by those of it that ended."""
        if not self._batches:
            return self.validation_s
        if batches == float("inf"):
            return None
        left = max(0.0, batches - self._batches)
        return left * (now - self._validation_at) / self._batches
