"""SIGTERM in a run without a Trainer of Lightning: all ranks hear of it at one step."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.localdir.event_log import note
from bt_lightning.preemption import rest_s

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.rank_protocol import Request
    from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
    from bt_lightning.session.fit_ranks import FitRanks
    from bt_lightning.snapshot.save_record import SaveRecord

_SIGNAL = signal.SIGTERM


class EndBySignal:
    """The end of one run by SIGTERM, on one rank; used on the main thread.

    Until the first step the signal ends the process as without us: there is nothing to save.

    Args:
        peers: the ranks of the run, which have begun.
        grace_s: seconds that the platform leaves after the signal; None: not known.
    """

    def __init__(self, peers: FitRanks, grace_s: float | None) -> None:
        self._peers, self._grace_s = peers, grace_s
        self._agreement: SingleRankAgreement | RankAgreement | None = None
        self._previous: Any = None
        self._at: float | None = None
        self._steps = 0
        self.agreed = False
        """Whether every rank has heard of it, at the same step."""

    def told(self) -> bool:
        """Every rank, after each step: whether to save and leave, on all ranks at the same step.

        Raises:
            RankLostError: another rank is gone.
        """
        if self._agreement is None:
            self._listen()
            self._agreement = self._peers.agreement(self._request)
        self._steps += 1
        if self._agreement.requested_at((self._steps, 0)) is not None:
            self._hear()
            self.agreed = True
            self._peers.agreed()
        return self.agreed

    def left_s(self) -> float:
        """Seconds that are left for the end of the process; infinity if nothing limits them."""
        if self._at is None or self._grace_s is None:
            return math.inf
        return rest_s(self._grace_s - self._seconds())

    @property
    def heard(self) -> bool:
        """Whether this rank knows of the signal."""
        return self._at is not None

    def close(self) -> None:
        """Put back the handler that was there; idempotent."""
        if self._agreement is None:
            return
        self._agreement.close()
        self._agreement = None
        if signal.getsignal(_SIGNAL) == self._on_signal:
            signal.signal(_SIGNAL, self._previous)

    def note(self, root: Path, newest: SaveRecord | None) -> None:
        """Write the event, with the `newest` save, to the log of the checkpoint directory."""
        id_, step = (newest.checkpoint_id, newest.step) if newest is not None else (None, None)
        facts = {"seconds": self._seconds(), "grace": self._grace_s, "checkpoint": id_}
        with contextlib.suppress(OSError):  # a lost event does no harm
            note(root, "preempted", signal=signal.Signals(_SIGNAL).name, step=step, **facts)

    def exit(self, *, writes: bool) -> SystemExit:
        """The exception that ends this rank; `writes`: whether it is the one that writes.

        Only that one, which ends last, has a status other than 0: launchers kill the other ranks
        when one fails, and would kill it while it still publishes.
        """
        return SystemExit(128 + _SIGNAL if writes else 0)

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            msg = "grace needs a loop on the main thread, which alone hears of signals"
            raise InvalidSettingError(msg)
        self._previous = signal.signal(_SIGNAL, self._on_signal)

    def _on_signal(self, signum: int, frame: Any) -> None:
        self._hear()
        if callable(self._previous):
            self._previous(signum, frame)

    def _hear(self) -> None:
        if self._at is None:
            self._at = time.monotonic()

    def _request(self) -> Request | None:
        """Called on any thread."""
        return "stop" if self._at is not None else None

    def _seconds(self) -> float:
        return 0.0 if self._at is None else time.monotonic() - self._at
