"""Text of the explorer's screens, as lines that are harmless to a terminal. Pure."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING

from rich.text import Text

from bt_lightning.cli.render.checkpoint_details import shards_text
from bt_lightning.cli.render.text import printable, short_time
from bt_lightning.human_units import human_size
from bt_lightning.path_layout import SHARDS
from bt_lightning.tensor_files.tensor_headers import by_module

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bt_lightning.manage.checkpoint_items import CheckpointItem
    from bt_lightning.manage.checkpoint_kind import CheckpointKind
    from bt_lightning.manage.tensor_bytes import StoredTensor
    from bt_lightning.manifest import FileEntry, Manifest
    from bt_lightning.tensor_files.tensor_headers import Difference, Header, Tensor

_BLOCKS = "▁▂▃▄▅▆▇█"
_COLOURS = {"added": "green", "removed": "red", "reshaped": "magenta", "changed": "yellow"}
_MAX_NAME, _MAX_LABEL = 80, 48
_MOST_METADATA = 1000


def labels(items: Sequence[CheckpointItem], known: Sequence[CheckpointKind]) -> list[str]:
    """One line for each checkpoint, in columns: as in Baseten's picker, with the step."""
    width = min(max((len(item.name) for item in items), default=0), _MAX_LABEL)
    return [_label(item, one.kind, width) for item, one in zip(items, known, strict=True)]


def _label(item: CheckpointItem, kind: str, width: int) -> str:
    parts = [
        printable(item.name).ljust(width),
        f"[{kind}]",
        human_size(item.manifest.size).rjust(9),
        short_time(item.manifest.created_at),
        f"step {item.manifest.step}",
    ]
    if item.protected:
        parts.append("protected")
    if item.sync_status == "SYNCING":
        parts.append("syncing")
    return "  ".join(parts)


def marked(text: str, places: Iterable[int], style: str = "") -> Text:
    """Text with the matched letters in bold."""
    drawn = Text(text, style=style, no_wrap=True)
    for place in places:
        drawn.stylize("bold underline", place, place + 1)
    return drawn


def facts(item: CheckpointItem) -> str:
    """A checkpoint's facts, for the foot of the list."""
    manifest = item.manifest
    metrics = "  ".join(f"{name} {value:.6g}" for name, value in manifest.metrics.items())
    lines = [
        f"step {manifest.step}, epoch {manifest.epoch}, generation {manifest.generation}, "
        f"{len(manifest.files)} files, {human_size(manifest.size)}"
        + ("" if manifest.resumable else ", weights only")
        + (f", {sharded}" if (sharded := shards_text(manifest)) else ""),
        metrics or "no metrics",
    ]
    return "\n".join(printable(line) for line in lines)


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as a line of blocks; a value that is not finite is a gap; many share a block."""
    if not values or width <= 0:
        return ""
    per = max(1, math.ceil(len(values) / width))
    groups = [values[start : start + per] for start in range(0, len(values), per)]
    means = []
    for group in groups:
        known = [value for value in group if math.isfinite(value)]
        means.append(math.fsum(value / len(known) for value in known) if known else None)
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    span = high / 2 - low / 2  # halved: the whole may be more than a float holds
    return "".join(
        " "
        if mean is None
        else _BLOCKS[round((mean / 2 - low / 2) / span * (len(_BLOCKS) - 1)) if span else 0]
        for mean in means
    )


def trend(items: Sequence[CheckpointItem], metric: str, width: int) -> str:
    """One metric over a job: first value, sparkline, last value."""
    ordered = sorted(items, key=lambda item: item.manifest.order)
    values = [item.manifest.metrics[metric] for item in ordered if metric in item.manifest.metrics]
    if not values:
        return ""
    ends = f"{values[0]:.4g}", f"{values[-1]:.4g}"
    name = printable(metric)
    drawn = sparkline(values, max(8, width - len(name) - len(ends[0]) - len(ends[1]) - 4))
    return f"{name} {ends[0]} {drawn} {ends[1]}"


def folder_lines(manifest: Manifest, folder: str) -> list[tuple[str, FileEntry | None, str]]:
    """Entries of a checkpoint's folder, folders first: each (name, file or None, line)."""
    front = f"{folder}/" if folder else ""
    folders: dict[str, list[FileEntry]] = {}
    files = []
    for entry in manifest.files:
        if entry.path.startswith(front):
            name, slash, _ = entry.path[len(front) :].partition("/")
            if slash:
                folders.setdefault(name, []).append(entry)
            else:
                whole = " [whole tensors]" if entry.path == SHARDS and manifest.is_sharded else ""
                line = f"{printable(name)} ({human_size(entry.size)}){whole}"
                files.append((name, entry, line))
    shown: list[tuple[str, FileEntry | None, str]] = []
    for name, inner in sorted(folders.items()):
        size = human_size(sum(entry.size for entry in inner))
        count = f"{len(inner)} file{'s' if len(inner) > 1 else ''}"
        tag = " [lora]" if any("adapter_config.json" in entry.path for entry in inner) else ""
        shown.append((name, None, f"{printable(name)}/ ({size}, {count}){tag}"))
    return [*shown, *sorted(files, key=lambda file: file[0])]


def shape_of(tensor: Tensor) -> str:
    """A tensor's shape as `2 x 3`, or `scalar`."""
    return " x ".join(map(str, tensor.shape)) or "scalar"


def tensor_lines(header: Header) -> list[Text]:
    """A file's metadata, its totals by module, and each tensor."""
    said = islice(header.metadata.items(), _MOST_METADATA)
    lines = [Text(printable(f"{key[:100]}: {value[:200]}"[:200])) for key, value in said]
    return lines + _tensor_lines(header.tensors)


def whole_tensor_lines(found: Sequence[StoredTensor]) -> list[Text]:
    """The tensors of a sharded checkpoint: totals, and each with how ranks divide it."""
    lines = _tensor_lines([one.tensor for one in found])
    for line, one in zip(lines[len(lines) - len(found) :], found, strict=True):
        line.append(f"  {printable(one.divided)}", style="green")
    return lines


def _tensor_lines(tensors: Sequence[Tensor]) -> list[Text]:
    lines = []
    size = human_size(sum(tensor.size for tensor in tensors))
    count = sum(tensor.count for tensor in tensors)
    lines.append(
        Text(f"Tensors: {len(tensors)}  |  Parameters: {count:,}  |  Size: {size}", style="bold")
    )
    modules = by_module(tensors, 2)
    if 1 < len(modules) < len(tensors):
        lines += [
            Text(
                f"  {printable(name)}: {_tensors(number)}, {elements:,} parameters, "
                f"{human_size(module)}",
                style="dim",
            )
            for name, (number, elements, module) in modules.items()
        ]
    names = [printable(tensor.name) for tensor in tensors]
    width = min(max(map(len, names), default=0), _MAX_NAME)
    cells = [(printable(t.dtype), shape_of(t), f"{t.count:,}", human_size(t.size)) for t in tensors]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for name, (dtype, shape, elements, size_text) in zip(names, cells, strict=True):
        line = Text(no_wrap=True)
        line.append(name.ljust(width))
        line.append(f"  {dtype:<{widths[0]}}", style="cyan")
        line.append(f"  {shape:<{widths[1]}}")
        line.append(f"  {elements:>{widths[2]}}  {size_text:>{widths[3]}}", style="dim")
        lines.append(line)
    return lines


def _tensors(number: int) -> str:
    return f"{number:,} tensor{'' if number == 1 else 's'}"


def difference_lines(found: Sequence[Difference]) -> list[Text]:
    """Differences between two checkpoints, one line for each tensor."""
    if not found:
        return [Text("The tensors are the same, to the byte.", style="green")]
    kinds = [difference.kind for difference in found]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in _COLOURS if kind in kinds)
    lines = [Text(counts, style="bold")]
    for difference in found:
        line = Text(no_wrap=True)
        line.append(f"{difference.kind:<9}", style=_COLOURS[difference.kind])
        line.append(printable(difference.name))
        forms = [
            f"{printable(tensor.dtype)} {shape_of(tensor)}"
            for tensor in (difference.before, difference.after)
            if tensor is not None
        ]
        said = " -> ".join(dict.fromkeys(forms))
        line.append(f"  {said}", style="dim")
        lines.append(line)
    return lines
