"""The HTML report of a job: metrics across restarts, cost of saves, uploads, failures."""

from __future__ import annotations

import itertools
import math
from datetime import datetime, timezone
from html import escape
from typing import TYPE_CHECKING, Any

from bt_lightning.cli.render.svg_chart import Series, chart
from bt_lightning.cli.render.text import printable, short_time
from bt_lightning.human_units import human_duration, human_size
from bt_lightning.manage.run_history import run_history, stall_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#111827;max-width:760px;margin:2rem auto;
padding:0 1rem}
h1{font-size:1.5rem;margin:0}h2{font-size:1.05rem;margin:1.8rem 0 .4rem}
.sub{color:#6b7280;margin:.1rem 0 1.2rem;overflow-wrap:anywhere}
.tiles{display:flex;flex-wrap:wrap;gap:.6rem}
.tiles div{border:1px solid #e5e7eb;border-radius:8px;padding:.5rem .8rem;flex:1 1 120px}
.tiles b{display:block;font-size:1.15rem}.tiles span{color:#6b7280;font-size:.85rem}
figure{margin:0}svg{width:100%;height:auto}svg text{font:11px system-ui,sans-serif;fill:#6b7280}
.grid{stroke:#e5e7eb}.axis{stroke:#9ca3af}.mark{stroke:#dc2626;stroke-dasharray:4 3}
polyline{stroke-width:1.6}figcaption{font-size:.8rem;color:#374151}
figcaption span{margin-right:1rem}figcaption i{display:inline-block;width:.7em;height:.7em;
border-radius:2px;margin-right:.35em}
table{border-collapse:collapse;width:100%;font-size:.85rem}
th,td{text-align:left;padding:.25rem .5rem;border-bottom:1px solid #e5e7eb;overflow-wrap:anywhere}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
th,td.n,td.t{white-space:nowrap}
.bad{color:#b91c1c}.note{color:#6b7280;font-size:.85rem}
@media print{body{margin:0;max-width:none;font-size:12px}h2,figure,tr{break-inside:avoid}
h2{break-after:avoid}}
"""
_MAX_ROWS = 200
_MAX_METRICS = 6


def page(
    project: str,
    job: str,
    where: str,
    items: Sequence[CheckpointItem],
    refused: Sequence[str],
    events: Sequence[dict[str, Any]],
) -> str:
    """The page as HTML, without scripts, pictures or other files.

    `items` are newest first. `events` may be empty: then the cost of saves is not known.
    """
    saves = [event for event in events if event["event"] == "save"]
    restarts = _restarts(events, saves)
    parts = [
        f"<h1>{_text(job)}</h1>",
        f'<p class="sub">Project {_text(project)}, {_text(where)}</p>',
        _tiles(items, saves, restarts),
        _metrics(items, restarts),
        _costs(saves, events),
        _failures(refused, events),
        _table(items),
    ]
    body = "\n".join(part for part in parts if part)
    title = f"{_text(job)} - checkpoints"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _text(text: object) -> str:
    return escape(printable(str(text)))


def _restarts(events: Sequence[dict[str, Any]], saves: Sequence[dict[str, Any]]) -> list[float]:
    """Steps that restarts went on from."""
    runs = run_history(events).runs
    if runs:
        pairs = itertools.pairwise(runs)
        return [_number(after.began_step) for before, after in pairs if before.end != "ended"]
    found = []  # events of an older version: save numbers restart with a run
    for before, event in itertools.pairwise(saves):
        if _number(event.get("number", 0)) <= _number(before.get("number", 0)):
            found.append(_number(event.get("step", 0)))
    return found


def _tiles(
    items: Sequence[CheckpointItem], saves: Sequence[dict[str, Any]], restarts: Sequence[float]
) -> str:
    tiles = [
        (str(len(items)), "checkpoints"),
        (human_size(sum(item.manifest.size for item in items)), "in all"),
    ]
    if items:
        tiles.insert(0, (f"{items[0].manifest.step:,}", "newest step"))
    if saves:
        tiles += [
            (f"{sum(map(stall_s, saves)):.2f} s", f"of training went into {len(saves)} saves"),
            (str(len(restarts)), "restarts"),
        ]
        took = _number(saves[-1]["at"]) - _number(saves[0].get("began", saves[0]["at"]))
        if math.isfinite(took):
            tiles.append((human_duration(max(0.0, took)), "from first to last save"))
    html = "".join(f"<div><b>{escape(a)}</b><span>{escape(b)}</span></div>" for a, b in tiles)
    return f'<div class="tiles">{html}</div>'


def _metrics(items: Sequence[CheckpointItem], restarts: Sequence[float]) -> str:
    known = {name for item in items for name in item.manifest.metrics}
    names = sorted(known, key=lambda name: ("loss" not in name.lower(), name))
    ordered = sorted(items, key=lambda item: item.manifest.order)
    parts = []
    for name in names[:_MAX_METRICS]:
        points = [
            (_number(item.manifest.step), item.manifest.metrics[name])
            for item in ordered
            if name in item.manifest.metrics
        ]
        html = chart([Series(printable(name), points)], "step", printable(name), marks=restarts)
        if html:
            parts.append(f"<h2>{_text(name)}</h2>{html}")
    if parts and restarts:
        parts.append('<p class="note">A dashed line is where a restart went on.</p>')
    if len(names) > _MAX_METRICS:
        parts.append(f'<p class="note">{len(names) - _MAX_METRICS} more metrics.</p>')
    return "".join(parts)


def _costs(saves: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> str:
    if not saves:
        return '<p class="note">There are no events of the run: what its saves cost is unknown.</p>'
    number = [float(index) for index in range(1, len(saves) + 1)]
    waits = [(n, 1000 * stall_s(event)) for n, event in zip(number, saves, strict=True)]
    stall = Series("milliseconds that training waited", waits)
    parts = ["<h2>What each save cost training</h2>", chart([stall], "save", "ms", bars=True)]
    index = {str(event.get("checkpoint_id")): float(n) for n, event in enumerate(saves, 1)}
    done = [event for event in events if str(event.get("checkpoint")) in index]

    def points(kind: str, field: str, unit: float) -> list[tuple[float, float]]:
        own = [event for event in done if event["event"] == kind]
        found = [(index[str(e.get("checkpoint"))], _number(e.get(field)) / unit) for e in own]
        return sorted((x, y) for x, y in found if math.isfinite(y))

    ends = [
        Series("seconds until durable on the disk", points("durable", "local_durable_s", 1)),
        Series("seconds until durable in the store", points("published", "remote_durable_s", 1)),
    ]
    known = [one for one in ends if one.points]
    if known:
        parts += ["<h2>From the save to durable</h2>", chart(known, "save", "s")]
    sizes = points("durable", "bytes", 1e6)
    if sizes:
        html = chart([Series("megabytes", sizes)], "save", "MB", bars=True)
        parts += ["<h2>Sizes</h2>", html]
    return "".join(parts)


def _failures(refused: Sequence[str], events: Sequence[dict[str, Any]]) -> str:
    found = [f"damaged: {reason}" for reason in refused]
    for at, text in run_history(events).failures:
        found.append(f"{datetime.fromtimestamp(at, timezone.utc):%Y-%m-%d %H:%M:%SZ}: {text}")
    if not found and not events:
        return "<h2>Failures</h2><p>Not known: there are no events of the job.</p>"
    if not found:
        return "<h2>Failures</h2><p>None.</p>"
    lines = "".join(f'<li class="bad">{_text(line)}</li>' for line in found[:_MAX_ROWS])
    return f"<h2>Failures</h2><ul>{lines}</ul>"


def _table(items: Sequence[CheckpointItem]) -> str:
    rows = "".join(
        f'<tr><td>{_text(item.name)}</td><td class="n">{item.manifest.step:,}</td>'
        f'<td class="n">{human_size(item.manifest.size)}</td>'
        f'<td class="t">{_text(short_time(item.manifest.created_at))}</td>'
        f"<td>{_text(', '.join(f'{k} {v:.4g}' for k, v in item.manifest.metrics.items()))}</td>"
        f"<td>{'protected' if item.protected else ''}</td></tr>"
        for item in items[:_MAX_ROWS]
    )
    more = len(items) - _MAX_ROWS
    note = f'<p class="note">{more} older ones are left out.</p>' if more > 0 else ""
    return (
        '<h2>Checkpoints</h2><table><thead><tr><th>Name</th><th class="n">Step</th>'
        '<th class="n">Size</th><th>Created</th><th>Metrics</th><th></th></tr></thead>'
        f"<tbody>{rows}</tbody></table>{note}"
    )


def _number(value: object) -> float:
    """A number of an event or a manifest; NaN, which is not drawn, if it is no float."""
    try:
        return float(value) if isinstance(value, int | float) else math.nan
    except OverflowError:
        return math.nan
