"""Writes one rank's part of a folder that a framework's ranks write together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import xxhash

from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.snapshot.shard_files import own_files
from bt_lightning.snapshot.state_files import EncodingCache

if TYPE_CHECKING:
    from bt_lightning.snapshot.state_files import Snapshot


@dataclass(frozen=True, kw_only=True)
class FolderPart(Folder):
    """The files of one rank, whose paths no other rank has, and what is saved beside them."""

    layout: str
    """What must be alike on all ranks, or nothing is committed."""
    own: Any
    """Of this rank, in the files of `ranks/`: a tree of typed values, without pickle."""


class FolderPartWriter(FolderWriter):
    """Writes a rank's part of each save; one on every rank, used on its training thread.

    Args:
        rank: the global rank of this process.
    """

    base = None
    """All weights are stored."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self._rank = rank

    def take(self, state: Folder, cache: EncodingCache | None = None) -> Snapshot:
        """Lay out the files of this rank; copies no tensor.

        Raises:
            UnsupportedStateError: a file cannot be written.
        """
        assert isinstance(state, FolderPart)
        cache = EncodingCache() if cache is None else cache
        snapshot = super().take(state, cache)
        beside, small = own_files(state.own, self._rank, cache)
        return replace(
            snapshot,
            tensor_files={**snapshot.tensor_files, **beside},
            small_files={**snapshot.small_files, **small},
            fingerprint=xxhash.xxh3_128_hexdigest(state.layout.encode()),
        )
