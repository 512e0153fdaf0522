"""Which checkpoints of a loop stay: what the loop's policies keep, and the newest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.retention import Decision, FirstOf, KeepLatest, Tier, TierCheckpoint
from bt_lightning.session import argument_checks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bt_lightning.retention import RetentionPolicy


def loop_policy(keep: int | RetentionPolicy | Sequence[RetentionPolicy] | None) -> Any:
    """The policy of the argument `keep`; None to keep everything.

    Raises:
        InvalidSettingError: it is no number of at least 1, and no policy.
    """
    if keep is None or callable(getattr(keep, "decide", None)):
        return keep
    if isinstance(keep, (list, tuple)) and keep:
        if all(callable(getattr(one, "decide", None)) for one in keep):
            return FirstOf(tuple(keep))
        msg = f"keep is {keep!r}: expected policies of bt_lightning.retention in it"
        raise InvalidSettingError(msg)
    return KeepLatest(argument_checks.whole("keep", keep, 1))


class LoopRetention:
    """The checkpoints of a loop by their ids, on the rank that writes.

    Args:
        policy: which to keep; what it does not keep may go, but the newest stays.
        there: those that are there already.
    """

    def __init__(self, policy: RetentionPolicy, there: Iterable[TierCheckpoint]) -> None:
        self._policy = policy
        self._there = {one.checkpoint_id: one for one in there}

    def saved(self, checkpoint_id: str, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Note a save; the ids of what may go, oldest first."""
        older = self._there.get(checkpoint_id)
        generation = 1 if older is None else older.generation + 1
        newest = TierCheckpoint(
            place=checkpoint_id,
            checkpoint_id=checkpoint_id,
            digest="",
            order=(step, generation, ""),
            metrics={name: float(value) for name, value in metrics.items()},
        )
        self._there[checkpoint_id] = newest
        tier = Tier(name="disk", checkpoints=sorted(self._there.values(), key=lambda c: c.order))
        decided = zip(tier.checkpoints, self._policy.decide(tier), strict=True)
        gone = [
            one.checkpoint_id
            for one, decision in decided
            if decision is not Decision.KEEP and one.checkpoint_id != checkpoint_id
        ]
        for id_ in gone:
            del self._there[id_]
        return gone
