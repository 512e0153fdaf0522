"""What is said when something still waits for the store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.errors import DrainTimeoutError

if TYPE_CHECKING:
    from bt_lightning.worker_messages import Drained

_NAMED: Final = 20


def drain_report(result: Drained | None, seconds: float) -> DrainTimeoutError:
    """What to raise when something still waits for the store after `seconds`."""
    names = _some(result.waiting) if result is not None else "unknown"
    reason = (result.reason if result is not None else None) or "the store is too slow"
    return DrainTimeoutError(
        f"not everything reached the store within {seconds:.0f} s ({reason}). Waiting on"
        f" disk: {names}. The next start with the same BT_CHECKPOINT_DIR sends it"
    )


def _some(names: tuple[str, ...]) -> str:
    """All of them, or the first and how many more: there may be thousands of files."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
