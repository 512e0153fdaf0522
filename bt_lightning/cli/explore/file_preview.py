"""The preview of a checkpoint's file: tensors as a table, text with colours."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING

from rich.syntax import Syntax
from rich.text import Text

from bt_lightning.cli.explore.table_rows import TextRows
from bt_lightning.cli.explore.tensor_rows import tensor_rows
from bt_lightning.cli.render.text import printable
from bt_lightning.human_units import human_size
from bt_lightning.manage.file_contents import has_tensors, tensors_of
from bt_lightning.manage.listed_tensors import ListedTensor
from bt_lightning.manage.verified_reads import open_reader, read_file
from bt_lightning.manage.whole_tensors import read_shards
from bt_lightning.path_layout import SHARDS

if TYPE_CHECKING:
    from bt_lightning.cli.explore.table_rows import Rows
    from bt_lightning.file_entries import FileEntry
    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

_MAX_TEXT_BYTES = 1_000_000
"""Larger text files are not shown, as in Baseten's explorer."""
_HIGHLIGHTED = 200_000
_MAX_LINES = 50_000
_MAX_INDENTED = 4_000_000
_LEXERS = {
    "json": "json",
    "yaml": "yaml",
    "yml": "yaml",
    "py": "python",
    "md": "markdown",
    "toml": "toml",
    "txt": "text",
}


def file_preview(source: JobCheckpoints, item: CheckpointItem, entry: FileEntry) -> Rows:
    """What to show of a file; of the index of shards, the whole tensors.

    Raises:
        CheckpointError: the file cannot be read, or is damaged.
    """
    path = entry.path
    if path == SHARDS and item.manifest.is_sharded:
        with open_reader(source, item) as reader:
            shards = read_shards(reader, item, is_verified=False)
        return tensor_rows([ListedTensor(path, t.tensor, t) for t in shards.tensors.values()], {})
    if has_tensors(path):
        with open_reader(source, item) as reader:
            header = tensors_of(reader, item, entry)
        return tensor_rows([ListedTensor(path, t, None) for t in header.tensors], header.metadata)
    if entry.size >= _MAX_TEXT_BYTES:
        size = human_size(entry.size)
        return TextRows([Text(f"{size} are not shown here: u shows the URL, g downloads")])
    return TextRows(text_lines(path, read_file(source, item, entry)))


def text_lines(path: str, data: bytes) -> list[Text]:
    """Lines of a text, with colours by the file's suffix; JSON is indented."""
    if b"\0" in data[:4096]:
        return [Text(f"{len(data)} bytes that are no text")]
    text = data.decode(errors="replace").expandtabs(4)
    ending = path.rpartition(".")[2].lower()
    if ending == "json":
        with contextlib.suppress(ValueError, RecursionError):  # no JSON: it is shown as it is
            text = _indented(text)
    lines = text.splitlines()
    clean = "\n".join(printable(line) for line in lines[:_MAX_LINES])
    lexer = _LEXERS.get(ending)
    if lexer is None or len(clean) > _HIGHLIGHTED or len(lines) > _MAX_LINES:
        more = [f"... and {len(lines) - _MAX_LINES:,} more lines"] * (len(lines) > _MAX_LINES)
        return [Text(line, no_wrap=True) for line in (*clean.split("\n"), *more)]
    drawn = Syntax("", lexer, theme="ansi_light").highlight(clean)
    return list(drawn.split("\n", allow_blank=True))


def _indented(text: str) -> str:
    """JSON with a line for each value, unless that is far longer: a few bytes can nest deeply."""
    parts, size = [], 0
    for part in json.JSONEncoder(indent=2, ensure_ascii=False).iterencode(json.loads(text)):
        parts.append(part)
        size += len(part)
        if size > _MAX_INDENTED:
            return text
    return "".join(parts)
