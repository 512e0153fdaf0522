"""Events and rows of metrics as text for people."""

from __future__ import annotations

import math
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.cli.render.text import printable
from bt_lightning.human_units import human_duration, human_size
from bt_lightning.manage.run_history import attempt_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from bt_lightning.manage.job_logs import Logged
    from bt_lightning.manage.run_history import RunHistory

_KNOWN: Final = {"event", "at"}
_LONGEST: Final = 200
_HUGE: Final = 10**300
"""A larger whole number is no float."""


def event_time(at: float) -> str:
    """Seconds of the epoch as `2026-01-02 03:04:05Z`."""
    return f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%SZ}"


def event_text(event: dict[str, Any]) -> str:
    """What an event says beside its kind and its time; printable."""
    said = _TEXTS.get(event["event"])
    if said is not None:
        return printable(said(event))
    known = {n: v for n, v in event.items() if n not in _KNOWN and v is not None}
    return printable(", ".join(f"{name} {value}" for name, value in known.items())[:_LONGEST])


def _save(event: dict[str, Any]) -> str:
    took = _ms(event.get("call_ms")) + _ms(event.get("guard_ms"))
    text = f"{event.get('checkpoint_id')}, step {event.get('step')}: {event.get('decision')}"
    return f"{text}, training waited {took:.1f} ms"


def _ended(event: dict[str, Any]) -> str:
    how = "with an error" if event.get("failed") else "well"
    return f"{how}, newest {event.get('checkpoint')}, step {event.get('step')}"


def _durable(event: dict[str, Any], where: str, seconds: object) -> str:
    size = human_size(_ms(event.get("bytes")))
    after = f", {_ms(seconds):.2f} s after its save" if seconds is not None else ""
    return f"{event.get('checkpoint')}: {size} {where}{after}"


def _ms(value: object) -> float:
    """A number of an event; 0 if it is none."""
    try:
        number = float(value) if isinstance(value, int | float) else 0.0
    except OverflowError:
        return 0.0
    return number if math.isfinite(number) else 0.0


_TEXTS: Final[dict[str, Callable[[dict[str, Any]], str]]] = {
    "save": _save,
    "durable": lambda event: _durable(event, "on the disk", event.get("local_durable_s")),
    "published": lambda event: _durable(event, "in the store", event.get("remote_durable_s")),
    "streamed": lambda event: _durable(event, "in the store", event.get("remote_durable_s")),
    "attempt_ended": lambda event: f"attempt {event.get('number')}: {attempt_end(event)}",
    "ended": _ended,
    "stop_asked": lambda event: f"{event.get('by')} asked the job to stop",
    "left_out": lambda event: f"up to {human_size(_ms(event.get('bytes')))} are kept no more",
}


def metric_rows(logged: Iterable[Logged], *, everything: bool) -> list[dict[str, Any]]:
    """Rows of metrics, one a step: `step`, `epoch`, `at`, `node_rank`, `values`.

    Steps that a restart did again count once, as it did them; with `everything` each row is as it
    was logged.
    """
    rows: list[dict[str, Any]] = []
    for one in logged:
        step, values = one.event.get("step"), one.event.get("values")
        if isinstance(step, bool) or not isinstance(step, int) or not isinstance(values, dict):
            continue
        numbers = {
            str(name): float(value)
            for name, value in values.items()
            if isinstance(value, float) or (isinstance(value, int) and abs(value) < _HUGE)
        }
        row = {
            "step": step,
            "epoch": one.event.get("epoch"),
            "at": one.at,
            "node_rank": one.node_rank,
            "values": numbers,
        }
        if not everything:
            while rows and rows[-1]["step"] > step:
                rows.pop()  # done again
            if rows and rows[-1]["step"] == step:
                row["values"] = {**rows.pop()["values"], **numbers}
        rows.append(row)
    return rows


def history_lines(history: RunHistory) -> list[str]:
    """The history of a job as lines for people."""
    if not history.known:
        return ["runs, restarts, failures: not known, there are no events"]
    lines = [f"runs: {len(history.runs)}, restarts: {history.restarts}"]
    if history.redone_steps:
        took = f" (about {human_duration(history.redone_s)})" if history.redone_s >= 1 else ""
        lines.append(f"lost work: {history.redone_steps} steps were done again{took}")
    lines.append(f"saves: {history.saves} kept, training waited {history.stall_s:.2f} s for them")
    for at, text in history.failures[-5:]:
        lines.append(f"{event_time(at)}: {text}")
    if not history.failures:
        lines.append("failures: none in the events")
    return [printable(line) for line in lines]
