"""What a checkpoint holds, without the bytes of its weights and of its optimizers' tensors.

Each rank opens it by itself, takes from the tree what is small, and reads its parts of the tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bt_lightning.restore.saved_tensors import SavedTensors
    from bt_lightning.snapshot.base_table import BaseTable


@dataclass(frozen=True, slots=True)
class SavedState:
    """A checkpoint, opened."""

    name: str
    """The directory or URL, for messages."""
    tensors: SavedTensors
    rest: dict[str, Any]
    """The dictionary that was saved, without the weights and the states of optimizers."""
    weights: Mapping[str, Any]
    """Name in the state dictionary -> `SavedTensor`, or a value of another kind."""
    optimizers: Sequence[Any]
    """The state of each optimizer as it was saved, with `SavedTensor`s; parameters have names, or
    numbers in order of the groups."""
    base: BaseTable | None = None
    """Names the weights that are not in the checkpoint."""
    read_bytes: int = 0
    """Bytes of tensors that were read to open it."""
