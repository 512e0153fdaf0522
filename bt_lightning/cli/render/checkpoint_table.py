"""Output of `list`: the columns of checkpoints, their order, and their JSON and CSV."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, json_number, table
from bt_lightning.cli.render.text import natural, short_time
from bt_lightning.errors import InvalidSettingError
from bt_lightning.human_units import human_size
from bt_lightning.manage.checkpoint_kind import checkpoint_kind

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.checkpoint_kind import CheckpointKind

SORTS = ("checkpoint-id", "size", "created", "type", "step")
METRIC = "metric:"

_CSV = (
    "Job ID",
    "Checkpoint ID",
    "Checkpoint Name",
    "Type",
    "Base Model",
    "Size (bytes)",
    "Size (human readable)",
    "Created At",
    "Step",
    "Epoch",
    "Metrics",
    "Sync Status",
    "Protected",
)


def check_sort(by: str) -> None:
    """Raise `InvalidSettingError` if `by` is no sort key."""
    if by not in SORTS and not (by.startswith(METRIC) and by != METRIC):
        msg = f"cannot sort by {by!r}: expected {', '.join(SORTS)} or {METRIC}<name>"
        raise InvalidSettingError(msg)


def check_metric(by: str, items: Sequence[CheckpointItem]) -> None:
    """Raise `InvalidSettingError` if `by` is a metric that none of the checkpoints has."""
    known = sorted({name for item in items for name in item.manifest.metrics})
    metric = by.removeprefix(METRIC)
    if by not in SORTS and items and metric not in known:
        has = f"there are {', '.join(known)}" if known else "they have no metrics"
        msg = f"no checkpoint has the metric {metric!r} to sort by: {has}"
        raise InvalidSettingError(msg)


def sort_items(
    source: JobCheckpoints, items: Sequence[CheckpointItem], by: str, order: str
) -> list[CheckpointItem]:
    """The items in order; items without the metric come last in both orders.

    Raises:
        InvalidSettingError: `by` is no sort key.
        StoreError: the store refused to read the types.
    """
    keys: dict[str, Callable[[CheckpointItem], Any]] = {
        "checkpoint-id": lambda item: natural(item.name),
        "size": lambda item: item.manifest.size,
        "created": lambda item: item.manifest.created_at,
        "step": lambda item: item.manifest.step,
    }
    if by == "type":
        kinds = checkpoint_kind([(source, item) for item in items])
        types = {item.where: one.kind for item, one in zip(items, kinds, strict=True)}
        keys["type"] = lambda item: types[item.where]
    reverse = order == "desc"
    if by in keys:
        named = sorted(items, key=lambda item: natural(item.name))
        return sorted(named, key=keys[by], reverse=reverse)
    check_sort(by)
    metric = by.removeprefix(METRIC)
    values = [(item.manifest.metrics.get(metric, math.nan), item) for item in items]
    with_it = [pair for pair in values if not math.isnan(pair[0])]
    with_it.sort(key=lambda pair: pair[0], reverse=reverse)
    return [item for _, item in [*with_it, *(pair for pair in values if math.isnan(pair[0]))]]


def records(pairs: Sequence[tuple[JobCheckpoints, CheckpointItem]]) -> list[dict[str, Any]]:
    """Checkpoints as JSON objects: Baseten's keys, then ours."""
    return [
        _record(item, one) for (_, item), one in zip(pairs, checkpoint_kind(pairs), strict=True)
    ]


def _record(item: CheckpointItem, known: CheckpointKind) -> dict[str, Any]:
    manifest = item.manifest
    return {
        "job_id": item.job,
        "id": manifest.digest if item.committed else None,
        "checkpoint_id": item.name,
        "checkpoint_type": known.kind,
        "base_model": known.base_model,
        "size_bytes": manifest.size,
        "size_human_readable": human_size(manifest.size),
        "created_at": manifest.created_at,
        **({} if known.adapter is None else {"lora_adapter_config": known.adapter}),
        "project": item.project,
        "node_rank": item.node_rank,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "metrics": {name: json_number(value) for name, value in manifest.metrics.items()},
        "resumable": manifest.resumable,
        **({} if manifest.format is None else {"format": manifest.format}),
        **({} if not manifest.is_sharded else {"shards": manifest.origin.get("shards")}),
        "sync_status": item.sync_status,
        "protected": item.protected,
    }


def render(
    found: Sequence[tuple[JobCheckpoints, Sequence[CheckpointItem]]],
    output_format: str,
    job_id: str | None,
) -> None:
    """Print the checkpoints of one job (`job_id`), or of several (None), to stdout."""
    rows = records([(source, item) for source, items in found for item in items])
    if output_format == "json":
        as_json({"job_id": job_id, "total_checkpoints": len(rows), "checkpoints": rows})
    elif output_format == "csv":
        as_csv(_CSV, [_csv_row(row) for row in rows])
    else:
        title = "Checkpoints of all jobs" if job_id is None else f"Checkpoints for job: {job_id}"
        columns = _COLUMNS if job_id is None else (_JOB, *_COLUMNS[1:])
        table(title, columns, rows)


def _csv_row(row: dict[str, Any]) -> list[object]:
    names = (
        "job_id",
        "id",
        "checkpoint_id",
        "checkpoint_type",
        "base_model",
        "size_bytes",
        "size_human_readable",
        "created_at",
        "step",
        "epoch",
    )
    last = [json.dumps(row["metrics"]), row["sync_status"] or "", str(row["protected"]).lower()]
    return [*(row[name] if row[name] is not None else "" for name in names), *last]


def _ranks(row: dict[str, Any]) -> str:
    """How many ranks have shards of it; empty for one of whole tensors."""
    shards = row.get("shards")
    return str(shards.get("world_size", "")) if isinstance(shards, dict) else ""


def _metrics(row: dict[str, Any]) -> str:
    values = row["metrics"].items()
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in values)


_JOB = Column("Job ID", lambda row: row["job_id"], rank=10)
_COLUMNS = (
    replace(_JOB, rank=2),
    Column("Checkpoint Name", lambda row: row["checkpoint_id"]),
    Column("Type", lambda row: row["checkpoint_type"], rank=6),
    Column("Ranks", _ranks, right=True, rank=7, hide_empty=True),
    Column("Base Model", lambda row: row["base_model"] or "", rank=5, hide_empty=True),
    Column("Step", lambda row: str(row["step"]), right=True),
    Column("Epoch", lambda row: str(row["epoch"]), right=True, rank=4),
    Column("Size", lambda row: row["size_human_readable"], right=True),
    Column("Created At", lambda row: short_time(row["created_at"]), rank=3),
    Column("Sync", lambda row: row["sync_status"] or "", rank=7, hide_empty=True),
    Column("Kept", lambda row: "protected" if row["protected"] else "", rank=1, hide_empty=True),
    Column("Metrics", _metrics, rank=8, hide_empty=True),
    Column("Checkpoint ID", lambda row: row["id"] or "", rank=9),
)
