"""Output of `show`, `files` and `diff`: the facts, files and tensors of checkpoints."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from bt_lightning.cli.render.checkpoint_table import records
from bt_lightning.cli.render.table_csv_json import Column, as_csv, as_json, json_number, table
from bt_lightning.cli.render.text import printable
from bt_lightning.human_units import human_size
from bt_lightning.manage.compare_tensors import compare_items, compare_with_norms
from bt_lightning.manage.listed_tensors import list_tensors, totals_by_role
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.tensor_files.tensor_headers import by_module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.listed_tensors import ListedTensor, RoleTotals
    from bt_lightning.manifest import Manifest
    from bt_lightning.tensor_files.tensor_headers import Difference, Tensor

_MAX_ROWS = 1000
"""Rows of a table: more take minutes to draw."""


def render_details(
    source: JobCheckpoints, item: CheckpointItem, output_format: str, *, every_tensor: bool
) -> None:
    """Print one checkpoint: facts, protection, files, and its tensors by module or each."""
    tensors = _tensors(source, item)
    protection = source.protection(item)
    if output_format == "json":
        said = {
            **records([(source, item)])[0],
            "location": _location(source, item),
            "protection": None if protection is None else asdict(protection),
            "origin": item.manifest.origin,
            "files": _files(item),
            "tensors": [
                {"file": one.file, **_tensor_record(one.tensor), **_division(one)}
                for one in tensors
            ],
        }
        as_json(said)
        return
    if output_format == "csv":
        titles = ("File", "Name", "Dtype", "Shape", "Parameters", "Size (bytes)", "Divided")
        as_csv(titles, [_tensor_cells(one) for one in tensors])
        return
    facts = {
        "Checkpoint": item.name,
        "Job": f"{item.job} of {item.project}",
        "Fit": item.manifest.fit,
        "Location": _location(source, item),
        "Step, epoch": f"{item.manifest.step}, {item.manifest.epoch}",
        "Created": item.manifest.created_at,
        "Size": f"{human_size(item.manifest.size)} in {len(item.manifest.files)} files",
        "Shards": shards_text(item.manifest),
        "Metrics": ", ".join(f"{k} {v:.6g}" for k, v in item.manifest.metrics.items()),
        "Left out": _base(item.manifest.origin),
        "Resumable": "yes" if item.manifest.resumable else "no: weights only",
        "Sync": item.sync_status or "",
        "Protected": "" if protection is None else protection.reason,
        "Written by": _origin(item.manifest.origin),
        "Digest": item.manifest.digest if item.committed else "",
    }
    width = max(map(len, facts))
    for name, value in facts.items():
        if value:
            click.echo(f"{click.style(name.rjust(width), bold=True)}  {printable(value)}")
    render_files(item, "cli-table")
    if not tensors:
        return
    if every_tensor:
        table("Tensors", _TENSOR_COLUMNS, tensors, _MAX_ROWS)
    else:
        totals = by_module((one.tensor for one in tensors), 2)
        title = "Tensors by module (--tensors shows each)"
        table(title, _MODULE_COLUMNS, list(totals.items()), _MAX_ROWS)
    for line in role_lines(totals_by_role(tensors)):
        click.echo(line)


def render_files(item: CheckpointItem, output_format: str) -> None:
    """Print the files of a checkpoint."""
    rows = _files(item)
    if output_format == "json":
        as_json({"checkpoint_id": item.name, "total_files": len(rows), "files": rows})
    elif output_format == "csv":
        as_csv(tuple(rows[0]) if rows else (), [list(row.values()) for row in rows])
    else:
        table("Files", _FILE_COLUMNS, rows, _MAX_ROWS)


def render_difference(
    before: tuple[JobCheckpoints, CheckpointItem],
    after: tuple[JobCheckpoints, CheckpointItem],
    output_format: str,
    *,
    with_norms: bool = False,
) -> bool:
    """Print the differences between the tensors of two checkpoints; return whether any exist."""
    found = compare_with_norms(before, after) if with_norms else compare_items(*before, *after)
    cells = (*_DIFF_CELLS, *_NORM_CELLS) if with_norms else _DIFF_CELLS
    if output_format == "json":
        as_json(
            {
                "before": before[1].name,
                "after": after[1].name,
                "differences": [
                    {
                        "name": d.name,
                        "kind": d.kind,
                        "before": None if d.before is None else _tensor_record(d.before),
                        "after": None if d.after is None else _tensor_record(d.after),
                        **({"norms": _norms_record(d)} if with_norms else {}),
                    }
                    for d in found
                ],
            }
        )
    elif output_format == "csv":
        titles = ("Name", "Kind", "Before", "After", *(("Norm", "Relative") * with_norms))
        as_csv(titles, [[cell(d) for cell in cells] for d in found])
    elif not found:
        click.echo("The tensors are the same, to the byte.")
    else:
        columns = (*_DIFF_COLUMNS, *_NORM_COLUMNS) if with_norms else _DIFF_COLUMNS
        table(f"{before[1].name} -> {after[1].name}", columns, found, _MAX_ROWS)
    return bool(found)


def _location(source: JobCheckpoints, item: CheckpointItem) -> str:
    location = getattr(source.reader(item), "name", item.where)
    return str(location)


def _base(origin: dict[str, Any]) -> str:
    """The frozen weights that a checkpoint names and does not have."""
    base = origin.get("base")
    if not isinstance(base, dict):
        return ""
    size, count = base.get("size"), base.get("tensors")
    shown = human_size(size) if isinstance(size, int) else "?"
    return f"{shown} in {count} frozen tensors of the base, digest {base.get('digest')}"


def _origin(origin: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v}" for k, v in sorted(origin.items()) if isinstance(v, str | int))


def _files(item: CheckpointItem) -> list[dict[str, Any]]:
    return [
        {
            "path": entry.path,
            "size_bytes": entry.size,
            "size_human_readable": human_size(entry.size),
            "blocks": len(entry.blocks),
        }
        for entry in sorted(item.manifest.files, key=lambda entry: entry.path)
    ]


def _tensors(source: JobCheckpoints, item: CheckpointItem) -> list[ListedTensor]:
    """The tensors of all files; those in shards whole. Files that are left out are said."""
    with open_reader(source, item) as reader:
        found, left_out = list_tensors(reader, item)
    for reason in left_out:
        click.secho(f"left out: {printable(reason)}", fg="yellow", err=True)
    return found


def _tensor_record(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "parameters": tensor.count,
        "size_bytes": tensor.size,
    }


def _division(one: ListedTensor) -> dict[str, Any]:
    """How a tensor in shards is divided."""
    if one.stored is None:
        return {}
    boxes = [
        {"file": box.file, "offsets": list(box.box.offsets), "shape": list(box.box.sizes)}
        for box in one.stored.boxes
    ]
    return {"divided": one.stored.divided, "boxes": boxes}


def _tensor_cells(one: ListedTensor) -> list[object]:
    tensor, shape = one.tensor, json.dumps(one.tensor.shape)
    cells = [one.file, tensor.name, tensor.dtype, shape, tensor.count, tensor.size]
    return [*cells, one.divided]


def role_lines(totals: Sequence[RoleTotals]) -> list[str]:
    """The model's parameters, and apart from them the values of each other part of the state."""
    cells = [
        (
            one.role,
            f"{one.count:,}",
            "parameters" if one.role == "model" else "values",
            human_size(one.size),
            f"{one.number:,} tensor{'' if one.number == 1 else 's'}",
        )
        for one in totals
    ]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        f"{role:<{widths[0]}}  {count:>{widths[1]}} {what:<{widths[2]}}  {size:>{widths[3]}}"
        f"  {number}"
        for role, count, what, size, number in cells
    ]


def shards_text(manifest: Manifest) -> str:
    """How many ranks hold a sharded checkpoint; empty for one of whole tensors."""
    said = manifest.origin.get("shards") if manifest.is_sharded else None
    if not isinstance(said, dict):
        return ""
    mesh = said.get("mesh")
    shape = " x ".join(map(str, mesh)) if isinstance(mesh, list) else "?"
    return f"{said.get('files')} shards of {said.get('world_size')} ranks, mesh {shape}"


def shape_text(tensor: Tensor) -> str:
    """A tensor's shape as `2 x 3`, or `scalar`."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def _norms_record(difference: Difference) -> dict[str, Any] | None:
    """The norms of a difference as JSON: numbers that JSON lacks are null."""
    norms = difference.norms
    if norms is None:
        return None
    return {
        "difference": json_number(norms.difference),
        "before": json_number(norms.before),
        "largest": json_number(norms.largest),
    }


def norm_text(difference: Difference) -> str:
    """How far a tensor moved; empty if that is not known."""
    return "" if difference.norms is None else f"{difference.norms.difference:.3g}"


def relative_text(difference: Difference) -> str:
    """How far a tensor moved, as a part of what it was."""
    part = None if difference.norms is None else difference.norms.relative
    return "" if part is None else f"{part:.2%}"


def _dtype_and_shape(tensor: Tensor | None) -> str:
    return "" if tensor is None else f"{tensor.dtype} {shape_text(tensor)}"


_FILE_COLUMNS = (
    Column("File", lambda row: row["path"]),
    Column("Size", lambda row: row["size_human_readable"], right=True),
)
_TENSOR_COLUMNS = (
    Column("Name", lambda row: row.tensor.name),
    Column("Dtype", lambda row: row.tensor.dtype),
    Column("Shape", lambda row: shape_text(row.tensor)),
    Column("Params", lambda row: f"{row.tensor.count:,}", right=True, rank=1),
    Column("Size", lambda row: human_size(row.tensor.size), right=True, rank=2),
    Column("Divided", lambda row: row.divided, rank=3, hide_empty=True),
    Column("File", lambda row: row.file, rank=4),
)
_MODULE_COLUMNS = (
    Column("Module", lambda row: row[0]),
    Column("Tensors", lambda row: f"{row[1][0]:,}", right=True),
    Column("Params", lambda row: f"{row[1][1]:,}", right=True),
    Column("Size", lambda row: human_size(row[1][2]), right=True),
)
_DIFF_CELLS: Sequence[Callable[[Difference], str]] = (
    lambda d: d.name,
    lambda d: d.kind,
    lambda d: _dtype_and_shape(d.before),
    lambda d: _dtype_and_shape(d.after),
)
_DIFF_COLUMNS = tuple(
    Column(title, cell, rank=rank)
    for title, cell, rank in zip(
        ("Tensor", "Is", "Before", "After"), _DIFF_CELLS, (0, 0, 1, 2), strict=True
    )
)
_NORM_CELLS: Sequence[Callable[[Difference], str]] = (norm_text, relative_text)
_NORM_COLUMNS = (
    Column("Norm", norm_text, right=True),
    Column("Relative", relative_text, right=True, rank=3),
)
