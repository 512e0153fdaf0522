"""What this process is told by signals during a fit. A handler notes it, and returns at once.

Before the first batch there is nothing to save that is not committed: there SIGTERM ends the
process as it does by default. From then on it is obeyed where the training thread is at a boundary.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat_signals

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from lightning.pytorch import Trainer


@dataclass(frozen=True, slots=True)
class ReceivedSignal:
    """A signal that came."""

    signum: int
    at: float
    """`time.monotonic()`"""

    @property
    def name(self) -> str:
        """As the system calls it."""
        return signal.Signals(self.signum).name


class Signals:
    """Every rank has one during a fit. Called on the main thread, or not at all."""

    def __init__(self) -> None:
        self.told: ReceivedSignal | None = None
        """The run is to end: the first such signal."""
        self.requeue: ReceivedSignal | None = None
        """SLURM will end the run: save, and have the job queued again."""
        self._started = False
        self._early = False
        self._foreign = False
        self._trainer: Trainer | None = None
        self._on_death: Callable[[ReceivedSignal], None] = lambda _: None

    def listen(self, trainer: Trainer, on_death: Callable[[ReceivedSignal], None]) -> None:
        """From `setup` on; `on_death` is told when a signal ends the process before it trains."""
        self._trainer, self._on_death = trainer, on_death
        compat_signals.hook_signals(trainer, self._hand_over, self._on_sigterm, self._on_requeue)
        if _free():
            signal.signal(signal.SIGTERM, self._die)
            self._early = True

    def start(self) -> None:
        """The first batch begins: from now on there is something to save."""
        self._started = True

    def close(self) -> None:
        """Listen no more; idempotent."""
        self._put_back()
        if self._trainer is not None:
            compat_signals.unhook_signals(self._trainer)
        self._trainer = None

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Note SIGTERM also where Lightning has put back the default, which is to die at once."""
        if not _free():
            yield
            return
        signal.signal(signal.SIGTERM, self._hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _hand_over(self) -> None:
        """Lightning registers its handlers now, and composes them with what it finds."""
        self._put_back()
        self._foreign = not _free()

    def _put_back(self) -> None:
        if self._early:
            self._early = False
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        if self._started or self._foreign:  # a handler of the user's says that they want to live
            self._hear(signum, frame)
        else:
            self._die(signum, frame)

    def _hear(self, signum: int, _: Any) -> None:
        if self.told is None:
            self.told = ReceivedSignal(signum, time.monotonic())

    def _on_requeue(self, signum: int, _: Any) -> None:
        if self.requeue is None:
            self.requeue = ReceivedSignal(signum, time.monotonic())

    def _die(self, signum: int, _: Any) -> None:
        self._on_death(ReceivedSignal(signum, time.monotonic()))
        if self._trainer is not None:
            compat_signals.forward(self._trainer, signum)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _free() -> bool:
    """Whether SIGTERM does what it does by default, and this thread could change that."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
