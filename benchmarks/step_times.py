"""Times of the steps and saves of one run of `stall.py`, measured alike in every system."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import resource
import statistics
import time
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SKIPPED = 5
"""The first steps import, allocate, and touch."""


class StepTimes:
    """When each step of a run began, and what each save took of the training thread; in seconds."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ended = 0.0
        self.calls: list[float] = []
        self.at: list[int] = []
        """The step in which each save was."""

    def start_step(self) -> None:
        """Called as each step begins.

        Before the measured ones Python's garbage is collected, in every system: a full collection
        of what torch and Lightning import takes 0.4 s at some later step, of a run without saves
        too, and which save it falls on is chance.
        """
        if len(self.starts) == SKIPPED:
            gc.collect()
        self.starts.append(time.perf_counter())

    @contextlib.contextmanager
    def saving(self) -> Iterator[None]:
        """Around each save, on the training thread."""
        started = time.perf_counter()
        yield
        self.calls.append(time.perf_counter() - started)
        self.at.append(len(self.starts) - 1)

    def end(self) -> None:
        """Called when the last step has ended."""
        self.ended = time.perf_counter()

    def facts(self, told: Callable[[], dict[str, object]]) -> dict[str, object]:
        """The row of the run; `told` returns what the system says of its saves."""
        times = [*self.starts, self.ended]
        steps = [later - sooner for sooner, later in itertools.pairwise(times)]
        usual = statistics.median(steps)
        extra = [
            steps[i] + (steps[i + 1] if i + 1 < len(steps) else usual) - 2 * usual for i in self.at
        ]
        own, children = (
            resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        )
        return {
            "run_s": self.ended - self.starts[SKIPPED],
            "step_s": usual,
            "saves": len(self.calls),
            "call_s": self.calls,
            "extra_s": extra,
            "durable_s": [],
            **told(),
            "cpu_s": sum(u.ru_utime + u.ru_stime for u in (own, children)),
            "peak_rss": own.ru_maxrss * 1024,
        }


def quiet() -> None:
    """Nothing is printed but the row."""
    warnings.filterwarnings("ignore")
    for noisy in ("lightning.pytorch", "lightning.fabric", "torch.distributed", ""):
        logging.getLogger(noisy).setLevel(logging.ERROR)
