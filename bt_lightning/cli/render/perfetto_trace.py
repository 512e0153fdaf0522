"""A trace of a run's events for Perfetto and chrome://tracing. Pure."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

_LANES = {"training waits": 1, "copy": 2, "write to disk": 3, "publish": 4}


def render_trace(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The JSON object of the trace event format; times are in microseconds.

    Events that lack a needed field are left out.

    Source: the "Trace Event Format" document of the Chromium project.
    """
    made: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
        for name, lane in _LANES.items()
    ]
    for event in events:
        with contextlib.suppress(KeyError, TypeError, OverflowError):  # written by another version
            made += _SPANS.get(event["event"], _nothing)(event)
    return {"traceEvents": made, "displayTimeUnit": "ms"}


def _nothing(_: dict[str, Any]) -> list[dict[str, Any]]:
    return []


def _save(event: dict[str, Any]) -> list[dict[str, Any]]:
    name, began = event["checkpoint_id"], event["began"]
    returned = began + event["call_ms"] / 1000
    copied = returned + event["copy_ms"] / 1000
    spans = [_span(f"save {name}", "training waits", began, event["call_ms"] / 1000, event)]
    if event["copy_ms"]:
        spans.append(_span(name, "copy", returned, event["copy_ms"] / 1000, event))
    if event["guard_ms"]:
        guard = event["guard_ms"] / 1000
        spans.append(_span(f"guard {name}", "training waits", copied - guard, guard, event))
    return spans


def _durable(event: dict[str, Any]) -> list[dict[str, Any]]:
    start = event["at"] - event["write_s"]
    return [_span(event["checkpoint"], "write to disk", start, event["write_s"], event)]


def _published(event: dict[str, Any]) -> list[dict[str, Any]]:
    start = event["at"] - event["publish_s"]
    return [_span(event["checkpoint"], "publish", start, event["publish_s"], event)]


def _span(
    name: str, lane: str, start: float, seconds: float, facts: dict[str, Any]
) -> dict[str, Any]:
    return {
        "name": name,
        "ph": "X",
        "pid": 1,
        "tid": _LANES[lane],
        "ts": 1e6 * start,
        "dur": 1e6 * seconds,
        "args": {key: value for key, value in facts.items() if key != "event"},
    }


_SPANS = {"save": _save, "durable": _durable, "published": _published}
