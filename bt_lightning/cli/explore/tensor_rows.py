"""Rows of the content pane that are tensors: of a file, or different in two checkpoints. Pure."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from rich.text import Text

from bt_lightning.cli.explore.table_rows import RowColumn, TableRows, TextRows, cut_line
from bt_lightning.cli.render.checkpoint_details import (
    norm_text,
    relative_text,
    role_lines,
    shape_text,
)
from bt_lightning.cli.render.text import natural, printable
from bt_lightning.human_units import human_size
from bt_lightning.manage.listed_tensors import ROLES, role_of, totals_by_role
from bt_lightning.path_layout import SHARDS
from bt_lightning.tensor_files.tensor_headers import by_module

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from bt_lightning.cli.explore.table_rows import Rows
    from bt_lightning.manage.listed_tensors import ListedTensor, Role
    from bt_lightning.tensor_files.tensor_headers import Difference

_MOST_METADATA = 1000
_FEW_MODULES = 4
"""Totals by module are shown where a module has so many tensors on average."""
_STYLES = {"added": "green", "removed": "red", "reshaped": "magenta", "changed": "cyan"}


def tensor_rows(found: Sequence[ListedTensor], metadata: Mapping[str, str]) -> Rows:
    """A file's tensors: its metadata, totals of the model and the rest, and each tensor."""
    lines = [
        Text(printable(f"{key[:100]}: {value[:200]}"[:200]), style="dim", no_wrap=True)
        for key, value in islice(metadata.items(), _MOST_METADATA)
    ]
    lines += [Text(line, style="bold", no_wrap=True) for line in role_lines(totals_by_role(found))]
    if not found:
        lines.append(Text("No tensors.", style="bold"))
    modules = by_module((one.tensor for one in found), 2)
    if 1 < len(modules) <= len(found) // _FEW_MODULES:
        lines += [
            Text(
                f"  {printable(name)[:60]}: {_tensors(number)}, {elements:,} values,"
                f" {human_size(size)}",
                style="dim",
                no_wrap=True,
            )
            for name, (number, elements, size) in modules.items()
        ]
    columns = (
        RowColumn(title="Tensor"),
        RowColumn(title="Dtype", style="cyan"),
        RowColumn(title="Shape", right=True),
        RowColumn(title="Values", right=True, rank=2),
        RowColumn(title="Size", right=True),
        RowColumn(title="Divided", rank=3, style="green"),
    )
    tensors = [one.tensor for one in found]
    cells = [
        (
            printable(one.tensor.name),
            printable(one.tensor.dtype),
            shape_text(one.tensor),
            f"{one.tensor.count:,}",
            human_size(one.tensor.size),
            printable(one.divided),
        )
        for one in found
    ]
    orders: dict[str, Sequence[object] | None] = {
        "": None,
        "size": [-tensor.size for tensor in tensors],
        "name": [natural(tensor.name) for tensor in tensors],
    }
    ids = [(one.file, one.tensor.name) for one in found]
    return TableRows(columns, cells, ids, orders=orders, lines=[cut_line(line) for line in lines])


def difference_rows(found: Sequence[Difference]) -> Rows:
    """The differences of two checkpoints: the model's first, and of each part the largest."""
    if not found:
        return TextRows([Text("The tensors are the same, to the byte.", style="green")])
    kinds = [difference.kind for difference in found]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _STYLES if kind in kinds)
    columns = (
        RowColumn(title="Tensor"),
        RowColumn(title="Norm", right=True, style="cyan"),
        RowColumn(title="Relative", right=True, rank=1, style="cyan"),
        RowColumn(title="Largest", right=True, rank=3),
        RowColumn(title="Before and after", rank=2),
    )
    cells = []
    for one in found:
        forms = [
            f"{printable(tensor.dtype)} {shape_text(tensor)}"
            for tensor in (one.before, one.after)
            if tensor is not None
        ]
        norms = one.norms
        cells.append(
            (
                printable(one.name),
                norm_text(one) or one.kind,
                relative_text(one),
                "" if norms is None else f"{norms.largest:.3g}",
                " -> ".join(dict.fromkeys(forms)),
            )
        )
    roles = [_role(one) for one in found]
    by_norm = [
        (ROLES.index(role), one.norms is None, 0.0 if one.norms is None else -one.norms.sortable)
        for role, one in zip(roles, found, strict=True)
    ]
    orders: dict[str, Sequence[object] | None] = {
        "norm": by_norm,
        "name": [natural(one.name) for one in found],
        "kind": [one.kind for one in found],
    }
    return TableRows(
        columns,
        cells,
        [one.name for one in found],
        orders=orders,
        lines=[cut_line(Text(counts, style="bold")), *_moved(found, roles)],
    )


def _role(one: Difference) -> Role:
    """What a tensor belongs to; names begin with their file where there are several."""
    file, colon, name = one.name.partition(": ")
    if colon:
        return role_of(file, name)
    role = role_of(SHARDS, one.name)  # of shards, else of the only file, which has weights
    return "model" if role == "other state" else role


def _moved(found: Sequence[Difference], roles: Sequence[Role]) -> list[Callable[[int], Text]]:
    """How far each part of the state moved as a whole."""
    lines = []
    for role in ROLES:
        norms = [
            one.norms
            for one, own in zip(found, roles, strict=True)
            if own == role and one.norms is not None
        ]
        if norms:
            apart = math.hypot(*(one.difference for one in norms))
            before = math.hypot(*(one.before for one in norms))
            part = f", {apart / before:.2%} of what changed" if before else ""
            said = f"{role}: {_tensors(len(norms))} moved by {apart:.4g}{part}"
            lines.append(cut_line(Text(said, style="bold" if role == "model" else "")))
    return lines


def _tensors(number: int) -> str:
    return f"{number:,} tensor{'' if number == 1 else 's'}"
