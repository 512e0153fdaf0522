"""The spans of saves: the call, and below it the commit and the upload, which the worker did.

The worker traces nothing by itself: what it did is told with its times, and becomes a span of this
process, of the provider that the script has set.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.traces import NAME, attributes, tracing

if TYPE_CHECKING:
    from bt_lightning.snapshot.save_record import SaveRecord

_MOST: Final = 1000
_GAVE_WAY: Final = ("skipped", "replaced")


class SaveTraces:
    """The spans of one fit's saves; used on the training thread."""

    def __init__(self) -> None:
        self._saves: dict[int, tuple[float, Any]] = {}
        """Number of a save -> the seconds of the epoch from which its times count (it waits for an
        arena before that), and the context of its span."""

    def called(self, record: SaveRecord, began: float) -> None:
        """The call to save that began at `began`, in seconds of the epoch, is about to return."""
        if (api := tracing()) is None:
            return
        facts = attributes(
            number=record.number,
            checkpoint=record.checkpoint_id,
            step=record.step,
            snapshot=record.snapshot,
            decision=record.decision,
        )
        tracer = api.get_tracer(NAME)
        span = tracer.start_span(f"{NAME}.save", attributes=facts, start_time=_ns(began))
        span.end()
        counts_from = max(began, time.time() - record.call_ms / 1000)
        self._saves[record.number] = (counts_from, api.set_span_in_context(span))
        if len(self._saves) > _MOST:  # without a store none is ever published
            del self._saves[next(iter(self._saves))]

    def ended(self, record: SaveRecord) -> None:
        """The save is committed, or has failed."""
        if record.number not in self._saves or record.decision in _GAVE_WAY:
            return
        began, _ = self._saves[record.number]
        until = began + record.local_durable_s if record.is_kept else time.time()
        facts = {
            "decision": record.decision,
            "write_s": record.write_s,
            "cpu_s": record.cpu_s,
            "evicted": record.evicted,
            "streamed": record.streamed,
        }
        self._add("commit", record, until - record.write_s, until, **facts)

    def published(self, record: SaveRecord, seconds: float) -> None:
        """The checkpoint is in the store, after an upload of `seconds`."""
        if record.number in self._saves:
            until = self._saves[record.number][0] + record.remote_durable_s
            self._add("upload", record, until - seconds, until)
            del self._saves[record.number]

    def _add(
        self, name: str, record: SaveRecord, began: float, until: float, **facts: object
    ) -> None:
        api, (earliest, context) = tracing(), self._saves[record.number]
        assert api is not None  # it was there when the save was called
        known = {"number": record.number, "checkpoint": record.checkpoint_id, "bytes": record.bytes}
        span = api.get_tracer(NAME).start_span(
            f"{NAME}.{name}",
            context=context,
            attributes=attributes(**known, **facts),
            start_time=_ns(max(began, earliest)),
        )
        if not record.is_kept:
            span.set_status(api.Status(api.StatusCode.ERROR, f"the save was {record.decision}"))
        span.end(end_time=_ns(max(until, began, earliest)))


def _ns(at: float) -> int:
    return int(at * 1e9)
