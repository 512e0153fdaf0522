"""What is copied from a CUDA device: tensors, and constant bytes that lie between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bt_lightning.snapshot import device_streams

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

Gap = tuple[int, bytes]
"""Constant bytes between the tensors of a file, and their offset in it."""


@dataclass(frozen=True, slots=True)
class CopySource:
    """One tensor on a CUDA device, and its offset in the arena."""

    offset: int
    tensor: torch.Tensor
    owned: bool
    """Whether only optimizers change it."""
    constant: bool = False
    """Whether nothing changes it."""
    whole: torch.Tensor | None = None
    """The DTensor of which it is this rank's part: writes are counted there, not in the part."""

    @property
    def counted(self) -> list[torch.Tensor]:
        """The tensors whose version counters show that it changed."""
        return [self.tensor] if self.whole is None else [self.tensor, self.whole]


def split_gaps(
    sources: Iterable[CopySource], start: int, gaps: Iterable[Gap]
) -> tuple[dict[torch.device, list[Gap]], list[Gap]]:
    """The gaps of the file at `start` of an arena: by device those between two of its tensors.

    Copied from there, they let the tensors come down in one copy. The others are second.
    """
    begins, ends = {}, {}
    for source in sources:
        begins[source.offset] = source.tensor.device
        ends[source.offset + source.tensor.nbytes] = source.tensor.device
    between: dict[torch.device, list[Gap]] = {}
    others = []
    for offset, content in gaps:
        device = ends.get(start + offset)
        if device is not None and begins.get(start + offset + len(content)) == device:
            between.setdefault(device, []).append((offset, content))
        else:
            others.append((offset, content))
    return between, others


def constant_sources(gaps: Sequence[Gap], start: int, device: torch.device) -> Iterator[CopySource]:
    """The gaps of the file at `start` of an arena, on a CUDA device.

    The upload is on a stream of its own: the host waits for it, and for no computation.
    """
    joined = bytearray(b"".join(content for _, content in gaps))
    with device_streams.on_stream(device_streams.new_stream(device)):
        whole = torch.frombuffer(joined, dtype=torch.uint8).to(device)
    parts = torch.split(whole, [len(content) for _, content in gaps])
    for (offset, _), part in zip(gaps, parts, strict=True):
        yield CopySource(start + offset, part, owned=True, constant=True)
