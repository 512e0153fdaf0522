"""Messages for checkpoints that were not uploaded before the deadline."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DrainTimeoutError

if TYPE_CHECKING:
    from bt_lightning.worker_messages import Drained

_NAMED: Final = 20


def drain_report(result: Drained | None, seconds: float) -> DrainTimeoutError:
    """The error for what is not in the store after `seconds`; None: the worker did not answer."""
    names = _some(result.waiting) if result is not None else "unknown"
    reason = (result.reason if result is not None else None) or "the store is too slow"
    return DrainTimeoutError(
        f"not everything reached the store within {seconds:.0f} s ({reason}). Waiting on"
        f" disk: {names}. The next start with the same BT_CHECKPOINT_DIR sends it"
    )


def _some(names: tuple[str, ...]) -> str:
    """All names, or the first 20 and the number of the rest: there may be thousands."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
