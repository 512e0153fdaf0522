"""Verifies what a run may start from, by the very read that restores it: no byte is hashed twice.

Where the load that follows takes all tensors on the host, those that were verified are kept for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.restore.dcp_folder import committed_reader
from bt_lightning.restore.load_to_device import HOST
from bt_lightning.restore.read_documents import parts_of_tree, read_tree
from bt_lightning.restore.shared_reads import others_read_too
from bt_lightning.restore.tensors_of_tree import tensors_of_tree
from bt_lightning.snapshot.shared_tensors import TENSOR_FILES
from bt_lightning.store.transfer.resumable_download import verify_bytes
from bt_lightning.traces import span

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    Tensors = Mapping[str, Mapping[str, torch.Tensor]]


class FirstRead:
    """The first read of the checkpoint that a run starts from; used on rank 0's training thread."""

    def __init__(self) -> None:
        self.keeps = False
        """Whether tensors are kept for a load, which takes the memory that it would take itself."""
        self._kept: tuple[str, Tensors] | None = None

    def verify(self, path: Path) -> None:
        """Read every byte of the checkpoint at `path`, or of a near copy, by several threads.

        Raises:
            CheckpointNotFoundError: nothing is committed there, or it was deleted meanwhile.
            CheckpointCorruptError: a file is missing or differs, or its header is malformed.
        """
        is_read_again = not self.takes(read_manifest(path)) or others_read_too()
        with committed_reader(path, fills_cache=is_read_again) as reader:
            self.read(reader)

    def read(self, reader: CheckpointReader) -> None:
        """As `verify`, of a checkpoint that is open, maybe in a store."""
        manifest = reader.manifest
        facts = {"checkpoint": manifest.checkpoint_id, "step": manifest.step}
        with span("verify", bytes=manifest.size, **facts):
            self._read(reader, manifest)

    def _read(self, reader: CheckpointReader, manifest: Manifest) -> None:
        self.clear()
        for entry in manifest.files:
            reader.check(entry)  # before gigabytes are read
        tensors = self._tensors(reader) if self.takes(manifest) else None
        read = set(TENSOR_FILES.values()) if tensors is not None else set[str]()
        verify_bytes(reader, [entry for entry in manifest.files if entry.path not in read])
        self._kept = None if tensors is None else (manifest.digest, tensors)

    def takes(self, manifest: Manifest) -> bool:
        """Whether such a checkpoint is kept: of our own layout, each tensor whole in one file."""
        return self.keeps and manifest.format is None and not manifest.is_sharded

    def take(self, manifest: Manifest) -> Tensors | None:
        """What was kept of this checkpoint, once: label of the file -> name -> tensor."""
        if self._kept is None or self._kept[0] != manifest.digest:
            return None
        tensors = self._kept[1]
        self.clear()
        return tensors

    def clear(self) -> None:
        """Keep nothing."""
        self._kept = None

    def _tensors(self, reader: CheckpointReader) -> Tensors | None:
        try:
            return tensors_of_tree(reader, parts_of_tree(read_tree(reader)), HOST)
        except MemoryError:
            return None  # a load may find more, or says so
