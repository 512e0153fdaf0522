"""Signal handlers of a fit, which record the signal and return at once.

Before the first batch there is no new state to save, so SIGTERM ends the process as by default.
After that the training thread handles it at its next boundary.
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
    """A signal that this process received."""

    signum: int
    at: float
    """`time.monotonic()` at its arrival."""

    @property
    def name(self) -> str:
        """The name of the signal, such as `SIGTERM`."""
        return signal.Signals(self.signum).name


class Signals:
    """The signals of one fit on one rank; methods and handlers run on the main thread."""

    def __init__(self) -> None:
        self.stop: ReceivedSignal | None = None
        """The first signal to end the run."""
        self.requeue: ReceivedSignal | None = None
        """The signal that SLURM will end the run: save, and requeue the job."""
        self._started = False
        self._own_handler = False
        self._user_handler = False
        self._trainer: Trainer | None = None
        self._on_death: Callable[[ReceivedSignal], None] = lambda _: None

    def listen(self, trainer: Trainer, on_death: Callable[[ReceivedSignal], None]) -> None:
        """Install handlers at `setup`; `on_death` is called if a signal ends it before training."""
        self._trainer, self._on_death = trainer, on_death
        compat_signals.hook_signals(
            trainer, self._before_registration, self._on_sigterm, self._on_requeue
        )
        if _is_default():
            signal.signal(signal.SIGTERM, self._die)
            self._own_handler = True

    def start(self) -> None:
        """Note that the first batch begins: from here on SIGTERM leads to a save."""
        self._started = True

    def close(self) -> None:
        """Remove the handlers; idempotent."""
        self._restore_default()
        if self._trainer is not None:
            compat_signals.unhook_signals(self._trainer)
        self._trainer = None

    @contextlib.contextmanager
    def noting_sigterm(self) -> Iterator[None]:
        """Record SIGTERM in the context, although Lightning has restored the default handler."""
        if not _is_default():
            yield
            return
        signal.signal(signal.SIGTERM, self._note_stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _before_registration(self) -> None:
        """Called before Lightning registers its handlers, which it composes with existing ones."""
        self._restore_default()
        self._user_handler = not _is_default()

    def _restore_default(self) -> None:
        if self._own_handler:
            self._own_handler = False
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        if self._started or self._user_handler:  # with a handler of its own, a script continues
            self._note_stop(signum, frame)
        else:
            self._die(signum, frame)

    def _note_stop(self, signum: int, _: Any) -> None:
        if self.stop is None:
            self.stop = ReceivedSignal(signum, time.monotonic())

    def _on_requeue(self, signum: int, _: Any) -> None:
        if self.requeue is None:
            self.requeue = ReceivedSignal(signum, time.monotonic())

    def _die(self, signum: int, _: Any) -> None:
        self._on_death(ReceivedSignal(signum, time.monotonic()))
        if self._trainer is not None:
            compat_signals.forward(self._trainer, signum)
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)


def _is_default() -> bool:
    """Whether SIGTERM has the default handler and this thread can change it."""
    main = threading.current_thread() is threading.main_thread()
    return main and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
