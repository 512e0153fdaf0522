"""What is copied from a CUDA device: tensors, and constant bytes that lie between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class CopySource:
    """One tensor on a CUDA device, and its offset in the arena."""

    offset: int
    tensor: torch.Tensor
    owned: bool
    """Whether only optimizers change it."""
    constant: bool = False
    """Whether nothing changes it."""


def on_device(contents: Sequence[bytes], device: torch.device) -> Sequence[torch.Tensor]:
    """These bytes on the device, each as uint8 of shape `[bytes]`; they lie one after another.

    The upload is on a stream of its own: the host waits for it, and for no computation.
    """
    whole = torch.frombuffer(bytearray(b"".join(contents)), dtype=torch.uint8)
    with torch.cuda.stream(torch.cuda.Stream(device)):  # type: ignore[no-untyped-call]
        copied = whole.to(device)
    return torch.split(copied, [len(content) for content in contents])
