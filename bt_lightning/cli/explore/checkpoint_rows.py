"""Rows of the panes of checkpoints and files, and a checkpoint's facts. Pure."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from rich.text import Text

from bt_lightning.cli.explore.sparkline import sparkline
from bt_lightning.cli.explore.table_rows import (
    RowColumn,
    TableRows,
    TextRows,
    cut_line,
    shorten_middle,
)
from bt_lightning.cli.render.checkpoint_details import role_lines, shards_text
from bt_lightning.cli.render.text import natural, printable, short_time
from bt_lightning.human_units import human_size
from bt_lightning.manage.checkpoint_items import NOT_COMMITTED, SYNCING
from bt_lightning.path_layout import SHARDS

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.checkpoint_kind import CheckpointKind
    from bt_lightning.manage.listed_tensors import RoleTotals
    from bt_lightning.manifest import Manifest

_SIGNS = {SYNCING: "S", NOT_COMMITTED: "U"}
_MOST_OPEN = 64
"""A folder of more files is closed at first."""


def same_listing(one: Sequence[CheckpointItem], other: Sequence[CheckpointItem]) -> bool:
    """Whether two listings show the same."""
    return [_facts(item) for item in one] == [_facts(item) for item in other]


def _facts(item: CheckpointItem) -> tuple[object, ...]:
    return item.name, item.manifest.digest, item.protected, item.sync_status


def metric_names(items: Sequence[CheckpointItem]) -> list[str]:
    """Every metric that a checkpoint has, by name."""
    return sorted({name for item in items for name in item.manifest.metrics})


def checkpoint_rows(
    items: Sequence[CheckpointItem],
    kinds: Sequence[CheckpointKind],
    metric: str | None,
    marked: Collection[str] = (),
) -> TableRows:
    """The checkpoints of a job, with the column of one metric and where it went since the last."""
    columns = (
        RowColumn(title="Checkpoint"),
        RowColumn(title="Step", right=True, rank=1),
        RowColumn(title=printable(metric or "Metric")[:16], right=True, style="cyan"),
        RowColumn(title="", rank=1, style="cyan"),
        RowColumn(title="", style="bold green"),
        RowColumn(title="Size", right=True, rank=2),
        RowColumn(title="Type", rank=6),
        RowColumn(title="Epoch", right=True, rank=7),
        RowColumn(title="Created", rank=5),
    )
    arrows = _arrows(items, metric)
    cells = [
        (
            printable(item.name),
            str(item.manifest.step),
            metric_value_text(item.manifest.metrics.get(metric)) if metric else "",
            arrows.get(item.name, ""),
            "P" * item.protected + _SIGNS.get(item.sync_status or "", ""),
            human_size(item.manifest.size),
            kind.kind,
            str(item.manifest.epoch),
            short_time(item.manifest.created_at),
        )
        for item, kind in zip(items, kinds, strict=True)
    ]
    orders: dict[str, Sequence[object] | None] = {
        "": None,
        "step": [item.manifest.step for item in items],
        "name": [natural(item.name) for item in items],
        "size": [item.manifest.size for item in items],
        "created": [item.manifest.created_at for item in items],
    }
    if metric:
        orders[printable(metric)] = [_sortable(item.manifest.metrics.get(metric)) for item in items]
    return TableRows(
        columns,
        cells,
        [item.name for item in items],
        orders=orders,
        marked=frozenset(marked),
        can_mark=True,
    )


def metric_value_text(value: object) -> str:
    """A metric's value in a few columns; empty if there is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    try:
        return f"{float(value):.4g}"
    except OverflowError:
        return f"{str(value)[:6]}…"


def _sortable(value: object) -> float | None:
    """The key of a value; None for none, which is last in any order."""
    known = isinstance(value, int | float) and not math.isnan(value)
    return float(value) if known and isinstance(value, int | float) else None


def _arrows(items: Sequence[CheckpointItem], metric: str | None) -> dict[str, str]:
    """Whether a metric rose or fell since the checkpoint before, by name."""
    found: dict[str, str] = {}
    last: float | None = None
    for item in sorted(items, key=lambda item: item.manifest.order) if metric else ():
        value = item.manifest.metrics.get(metric or "")
        if value is None or math.isnan(value):
            continue
        if last is not None:
            found[item.name] = "↑" if value > last else "↓" if value < last else "="
        last = value
    return found


def metric_values(items: Sequence[CheckpointItem], metric: str) -> list[float]:
    """One metric over a job, from its first checkpoint on."""
    ordered = sorted(items, key=lambda item: item.manifest.order)
    return [item.manifest.metrics[metric] for item in ordered if metric in item.manifest.metrics]


def trend_line(values: Sequence[float], width: int) -> str:
    """First value, sparkline, last value."""
    if not values:
        return ""
    ends = f"{values[0]:.4g}", f"{values[-1]:.4g}"
    drawn = sparkline(values, max(8, width - len(ends[0]) - len(ends[1]) - 2))
    return f"{ends[0]} {drawn} {ends[1]}"


def overview(
    item: CheckpointItem,
    items: Sequence[CheckpointItem],
    totals: Sequence[RoleTotals],
    said: Sequence[tuple[str, str]],
) -> TextRows:
    """What the content pane says of a checkpoint: facts, parameters, each metric and its trend.

    `said` are further facts, each with its name.
    """
    manifest = item.manifest
    facts = [
        ("step, epoch", f"{manifest.step}, {manifest.epoch}"),
        ("created", short_time(manifest.created_at)),
        ("size", f"{human_size(manifest.size)} in {len(manifest.files)} files"),
        ("shards", shards_text(manifest)),
        ("resumes", "" if manifest.resumable else "no: weights only"),
        ("sync", item.sync_status or ""),
        *said,
    ]
    facts = [(name, value) for name, value in facts if value]
    width = max(len(name) for name, _ in facts)
    lines: list[Text | Callable[[int], Text]] = [
        _fact_line(name.rjust(width), printable(value)) for name, value in facts
    ]
    if totals:
        lines.append(Text())
        for one, line in zip(totals, role_lines(totals), strict=True):
            lines.append(cut_line(Text(line, style="bold" if one.role == "model" else "")))
    names = metric_names(items)
    if names:
        lines.append(Text())
        wide = min(24, max(len(printable(name)) for name in names))
        lines += [_metric_line(item, items, name, wide) for name in names]
    return TextRows(lines)


def _fact_line(name: str, value: str) -> Callable[[int], Text]:
    """A fact; its middle is left out where it is longer than the pane."""

    def line(width: int) -> Text:
        return Text.assemble((name, "bold"), "  ", shorten_middle(value, width - len(name) - 2))

    return line


def _metric_line(
    item: CheckpointItem, items: Sequence[CheckpointItem], metric: str, wide: int
) -> Callable[[int], Text]:
    """One metric here, and over the job; as wide as the pane."""
    value = metric_value_text(item.manifest.metrics.get(metric)) or "-"
    name, values = printable(metric)[:wide], metric_values(items, metric)

    def line(width: int) -> Text:
        drawn = trend_line(values, width - wide - 12)
        return Text.assemble(f"{name:<{wide}} ", (f"{value:>9}", "bold cyan"), "  ", drawn)

    return line


def file_rows(manifest: Manifest, opened: Collection[str], closed: Collection[str]) -> TableRows:
    """A checkpoint's files as a tree; an id is a file's path, or a folder's with a `/`.

    `opened` and `closed` are folders that a user opened or closed.
    """
    sizes: dict[str, tuple[int, int]] = {}
    for entry in manifest.files:
        parts = entry.path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            folder = "/".join(parts[:depth]) + "/"
            count, size = sizes.get(folder, (0, 0))
            sizes[folder] = (count + 1, size + entry.size)
    shut = {
        folder
        for folder, (count, _) in sizes.items()
        if folder in closed or (count > _MOST_OPEN and folder not in opened)
    }
    of_files = {entry.path: entry.size for entry in manifest.files}
    paths = sorted([*sizes, *of_files], key=_tree_key)
    paths = [path for path in paths if not any(_below(path, folder) for folder in shut)]
    cells = [
        _folder_cells(path, *sizes[path], is_shut=path in shut)
        if path in sizes
        else (
            f"{_indent(path)}{printable(path.rpartition('/')[2])}",
            human_size(of_files[path]),
            "whole tensors" if path == SHARDS and manifest.is_sharded else "",
        )
        for path in paths
    ]
    columns = (
        RowColumn(title=""),
        RowColumn(title="", right=True, style="cyan"),
        RowColumn(title="", rank=1),
    )
    return TableRows(columns, cells, paths, names=[printable(path) for path in paths])


def _tree_key(path: str) -> list[tuple[bool, list[tuple[int, int, str]]]]:
    """Folders before files, in each folder."""
    *folders, last = path.rstrip("/").split("/")
    is_folder = path.endswith("/")
    return [(False, natural(part)) for part in folders] + [(not is_folder, natural(last))]


def _below(path: str, folder: str) -> bool:
    return path.startswith(folder) and path != folder


def _indent(path: str) -> str:
    return "  " * path.rstrip("/").count("/")


def _folder_cells(path: str, count: int, size: int, *, is_shut: bool) -> tuple[str, str, str]:
    name = printable(path.rstrip("/").rpartition("/")[2])
    sign = "▸" if is_shut else "▾"
    files = f"{count:,} file{'' if count == 1 else 's'}"
    return f"{_indent(path)}{sign} {name}/", human_size(size), files
