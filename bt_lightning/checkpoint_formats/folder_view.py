"""A folder as the formats see it: names, sizes, times, and reads that have a bound."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.file_limits import Bounds


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderView:
    """The files of one folder at one moment."""

    name: str
    """Last part of its path."""
    files: Mapping[str, int]
    """Posix path below it -> bytes."""
    read: Callable[[str, int, int], bytes]
    """Read (path, first byte, number of bytes); fewer at the end of the file."""
    times: Mapping[str, int] | None = None
    """Posix path -> time of the last write, in ns; None if the times say nothing, as of a copy."""
    settled: bool = True
    """Whether a model under the HF Trainer's name counts as one, and not as the beginning of the
    Trainer's own checkpoint."""

    def read_whole(self, path: str, bounds: Bounds) -> bytes:
        """All bytes of a small file.

        Raises:
            CheckpointCorruptError: it is missing, too large, or shorter than the listing says.
        """
        size = self.files.get(path)
        if size is None:
            msg = f"{path} is missing"
            raise CheckpointCorruptError(msg)
        try:
            bounds.check_size(size)
        except CheckpointCorruptError as error:
            msg = f"{path} cannot be read: {error}"
            raise CheckpointCorruptError(msg) from error
        data = self.read(path, 0, size)
        if len(data) != size:
            msg = f"{path} changed while it was read"
            raise CheckpointCorruptError(msg)
        return data

    def read_object(self, path: str, bounds: Bounds) -> dict[str, Any]:
        """The JSON object in a small file.

        Raises:
            CheckpointCorruptError: as `read_whole`, or it holds no whole JSON object.
        """
        data = self.read_whole(path, bounds)
        try:
            value = parse_json(data, bounds)
        except CheckpointCorruptError as error:
            msg = f"{path} is not whole: {error}"
            raise CheckpointCorruptError(msg) from error
        if not isinstance(value, dict):
            msg = f"{path} is not whole: it holds no JSON object"
            raise CheckpointCorruptError(msg)
        return value

    def optional_object(self, path: str, bounds: Bounds) -> dict[str, Any]:
        """As `read_object`; empty if there is no such file."""
        return self.read_object(path, bounds) if path in self.files else {}
