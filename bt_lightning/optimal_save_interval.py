"""The best interval between saves: the cost of saves against the loss at a failure.

Pure; every time is in seconds. A save every `t` seconds costs the fraction `cost / t` of the time;
a failure loses `t / 2` on average, and one comes every `mtbf`. Young (1974) balances the two:
`sqrt(2 * cost * mtbf)`. Daly (2006, A higher order estimate of the optimum checkpoint interval,
eq. 37) also counts the failures during saves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

LEAST_S = 1.0
"""The shortest interval: a resume alone takes longer."""
MOST_S = 3600.0
"""The longest interval, however rare failures are."""
FIRST_S = 60.0
"""The interval before the first save of a run, which measures the cost."""


def daly(cost_s: float, mtbf_s: float) -> float:
    """The interval, from the end of a save to the next, that loses the least time."""
    if cost_s >= 2 * mtbf_s:
        return mtbf_s
    share = math.sqrt(cost_s / (2 * mtbf_s))
    return math.sqrt(2 * cost_s * mtbf_s) * (1 + share / 3 + share * share / 9) - cost_s


def best_interval(cost_s: float, mtbf_s: float, max_overhead: float, takes_s: float) -> float:
    """The interval to save at.

    Args:
        cost_s: what one save takes from training: the call, the guard, and slower steps beside it.
        mtbf_s: mean time between failures.
        max_overhead: the fraction of the time that saves may cost; it wins over `mtbf_s`.
        takes_s: time until a save is durable; before that another save would only queue.
    """
    least = max(LEAST_S, takes_s, cost_s / max_overhead)
    return max(least, min(daly(cost_s, mtbf_s), MOST_S))


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """The observed failures of a job."""

    observed_s: float = 0.0
    """Seconds of training."""
    failures: int = 0
    """Number of ends that were not requested."""

    def mtbf_s(self, prior_s: float) -> float:
        """Mean time between failures; the prior counts as one failure in `prior_s`.

        The mean of a gamma posterior of shape 1: without failures it grows with the observed time,
        after many failures it approaches the observed mean.
        """
        return (prior_s + self.observed_s) / (1 + self.failures)


def record_of(events: Iterable[Mapping[str, Any]]) -> FailureRecord:
    """The failures of earlier runs in one directory, from its events.

    A run failed if it began and neither ended nor was preempted, or if it ended by an error.
    """
    observed, failures = 0.0, 0
    began: float | None = None
    last = 0.0
    for event in events:
        kind, at = event["event"], float(event["at"])
        if kind == "began":
            if began is not None:
                observed, failures = observed + last - began, failures + 1
            began = at
        elif began is not None and kind in {"ended", "preempted"}:
            observed += at - began
            failures += event.get("failed") is True
            began = None
        last = at
    if began is not None:
        observed, failures = observed + last - began, failures + 1
    return FailureRecord(max(0.0, observed), failures)
