"""What the content pane reads of a checkpoint itself: its facts, its manifest, its verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from bt_lightning.cli.explore.checkpoint_rows import overview
from bt_lightning.cli.explore.table_rows import TextRows
from bt_lightning.cli.render.text import printable
from bt_lightning.manage.listed_tensors import list_tensors, totals_by_role
from bt_lightning.manage.verified_reads import open_reader

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.cli.explore.table_rows import Rows
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.manage.verify import Verdict


def overview_of(
    source: JobCheckpoints, item: CheckpointItem, items: Sequence[CheckpointItem]
) -> Rows:
    """The facts of a checkpoint; of its tensors only headers are read.

    Raises:
        CheckpointError: it is gone, or the store refused.
    """
    protection = source.protection(item) if item.protected else None
    with open_reader(source, item) as reader:
        tensors, left_out = list_tensors(reader, item)
        where = str(getattr(reader, "name", item.where))
    said = [
        ("protected", "" if protection is None else protection.reason),
        ("where", where),
        ("fit", item.manifest.fit or ""),
        ("digest", item.manifest.digest if item.committed else ""),
        *(("left out", reason) for reason in left_out),
    ]
    return overview(item, items, totals_by_role(tensors), said)


def manifest_rows(item: CheckpointItem) -> Rows:
    """The manifest as it was written."""
    lines = item.manifest.to_bytes().decode().splitlines()
    return TextRows([Text(printable(line), no_wrap=True) for line in lines])


def verdict_rows(verdicts: Sequence[Verdict]) -> Rows:
    """A line for each checkpoint that was verified."""
    damaged = sum(not verdict.whole for verdict in verdicts)
    first = f"{len(verdicts) - damaged} whole, {damaged} damaged: every byte was read"
    return TextRows(
        [
            Text(first, style="bold red" if damaged else "bold green", no_wrap=True),
            *(
                Text(f"whole    {printable(v.name)}  {printable(v.says)}", no_wrap=True)
                if v.whole
                else Text(f"damaged  {printable(v.says)}", style="red", no_wrap=True)
                for v in verdicts
            ),
        ]
    )
