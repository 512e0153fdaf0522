"""Exports of checkpoints: what other programs read, whole or not at all, from a disk or a store."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bt_lightning.errors import CheckpointCorruptError, CheckpointExistsError, UnsupportedStateError
from bt_lightning.localdir.atomic_directory import sweep_temporaries, temporary, tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.fsync import sync_directory, write_file
from bt_lightning.localdir.rename_noreplace import rename_new
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.dcp_export import write_dcp
from bt_lightning.manage.download_copy import CountingReader, serving_entries
from bt_lightning.manage.joined_file import write_joined
from bt_lightning.manage.saved_tree import read_document
from bt_lightning.manage.serving_weights import (
    MOST_FILE_BYTES,
    left_out_weights,
    plan_serving_files,
    shortened,
)
from bt_lightning.manage.verified_blocks import VerifiedBlocks
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.whole_tensors import read_state
from bt_lightning.path_layout import ADAPTER_CONFIG, BASE
from bt_lightning.store.transfer.resumable_download import download_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], object]]]


@dataclass(frozen=True, slots=True)
class Exported:
    """What an export wrote."""

    size: int
    """Bytes of all files."""
    left_out: tuple[str, ...] = ()
    """What the checkpoint has and the export lacks, for people."""


@dataclass(frozen=True, slots=True)
class ExportForm:
    """What to write."""

    name: Literal["ckpt", "dcp", "hf"]
    """`hf`: a folder with the weights and what a server reads beside them; `dcp`: a directory of
    `torch.distributed.checkpoint`; `ckpt`: a file as Lightning writes it."""
    trust_pickle: bool = False
    """Whether a `ckpt` has what was saved with pickle too: code of the checkpoint runs."""
    most_file_bytes: int = MOST_FILE_BYTES
    """Of tensors in one file of weights that are joined from shards."""


def export_item(
    source: JobCheckpoints, item: CheckpointItem, form: ExportForm, output: Path, progress: Progress
) -> Exported:
    """Write a checkpoint in another form to the new path `output`, in one rename, durably.

    Nothing is kept on the disk but what is written; memory in use is some 250 MB, and for `ckpt`
    that of the largest tensor. `progress` is entered with the bytes that will be read, and gives
    what to call with the bytes of each read.

    Raises:
        CheckpointExistsError: something has that path.
        CheckpointNotFoundError: the checkpoint is gone, or has no weights to serve.
        CheckpointCorruptError: its bytes differ from its manifest.
        UnsupportedStateError: the form has no place for what the checkpoint holds.
        DirectoryFullError, DirectoryUnusableError: it does not fit, or cannot be written.
        StoreError: the store refused.
    """
    if output.exists() or output.is_symlink():
        msg = f"{output} is there already: move it, or name another"
        raise CheckpointExistsError(msg)
    item = with_digests(source, item)
    root = check_root(output.parent)
    sweep_temporaries(root)  # of an export that was killed
    try:
        with directory_errors(root), temporary(root) as scratch:
            job = _Export(source, item, scratch / "made", progress)
            done = job.written(form)
            _rename(job.made, output)
    finally:
        tidy(root)
    return done


def _rename(made: Path, output: Path) -> None:
    try:
        rename_new(made, output)
    except FileExistsError as error:
        msg = f"{output} was created by another process meanwhile: it was not changed"
        raise CheckpointExistsError(msg) from error
    sync_directory(output.parent)


@dataclass(frozen=True)
class _Export:
    source: JobCheckpoints
    item: CheckpointItem
    made: Path
    """What is to be written, and does not exist yet."""
    progress: Progress

    def written(self, form: ExportForm) -> Exported:
        """Write it, durably."""
        if form.name == "ckpt":
            return self._ckpt(trust_pickle=form.trust_pickle)
        self.made.mkdir()
        done = self._dcp() if form.name == "dcp" else self._hf(form.most_file_bytes)
        sync_directory(self.made)
        return done

    @contextlib.contextmanager
    def _reading(self, size: int) -> Iterator[CheckpointReader]:
        with self.progress(size) as on_bytes, open_reader(self.source, self.item) as reader:
            yield CountingReader(reader, on_bytes)

    def _ckpt(self, *, trust_pickle: bool) -> Exported:
        """A file that Lightning loads."""
        from bt_lightning.restore.export_ckpt import write_ckpt

        with self._reading(self.item.manifest.size) as reader:
            count = write_ckpt(reader, self.made, trust_pickle=trust_pickle)
        lacks = (
            f"the {count} frozen tensors of the base, which the checkpoint left out: load it with"
            " strict=False into a model that has them"
        )
        return Exported(self.made.stat().st_size, (lacks,) if count else ())

    def _dcp(self) -> Exported:
        """A directory of DCP."""
        if self.item.manifest.format is not None:
            msg = (
                f"{self.item.name} is of another program ({self.item.manifest.format}): only what"
                " bt_lightning saved is exported to dcp"
            )
            raise UnsupportedStateError(msg)
        with open_reader(self.source, self.item) as reader:
            state = read_state(reader, self.item)
        with self._reading(self.item.manifest.size) as reader:
            blocks = VerifiedBlocks(reader, self.item.manifest.files)
            left_out = write_dcp(self.made, state, blocks)
        lacks = []
        if self.item.manifest.entry(BASE) is not None:
            lacks.append("the frozen tensors of the base, which the checkpoint left out")
        if left_out.values:
            named = shortened(left_out.values)
            lacks.append(f"{len(left_out.values)} values that are no plain ones: {named}")
        if left_out.tensors:
            count, named = sum(left_out.tensors.values()), shortened([*left_out.tensors])
            lacks.append(f"{count} tensors beside weights and states of optimizers: in {named}")
        return Exported(_size(self.made), tuple(lacks))

    def _hf(self, most_file_bytes: int) -> Exported:
        """A folder that `from_pretrained` and model servers read."""
        manifest = self.item.manifest
        entries = serving_entries(manifest)
        if not manifest.is_sharded:
            with self._reading(sum(entry.size for entry in entries)) as reader:
                download_files(reader, self.made, tuple(entries))
            for folder in {path.parent for path in self.made.rglob("*")}:
                sync_directory(folder)
            return Exported(_size(self.made), self._left_out_by_tree())
        with open_reader(self.source, self.item) as reader:
            state = read_state(reader, self.item)
        plans, small = plan_serving_files(self.source, self.item, state, most_file_bytes)
        size = sum(entry.size for entry in entries) + sum(plan.size for plan in plans)
        with self._reading(size) as reader:
            download_files(reader, self.made, tuple(entries))
            blocks = VerifiedBlocks(reader, manifest.files)
            for plan in plans:
                write_joined(self.made / plan.path, plan, blocks)
            for path, data in small.items():
                write_file(self.made / path, path, [data])
        return Exported(_size(self.made), self._left_out(state.tree))

    def _left_out_by_tree(self) -> tuple[str, ...]:
        """As `_left_out`, of whole tensors, which need no tree; nothing of other programs."""
        if self.item.manifest.format is not None:
            return ()
        try:
            with open_reader(self.source, self.item) as reader:
                tree = read_document(reader, self.item)["tree"]
        except CheckpointCorruptError as error:
            return (f"a look at what the weights lack: {error}",)
        return self._left_out(tree)

    def _left_out(self, tree: Any) -> tuple[str, ...]:
        """What the weights have and the folder lacks; an adapter is meant to be alone."""
        manifest = self.item.manifest
        if manifest.entry(ADAPTER_CONFIG) is not None:
            return ()
        return tuple(left_out_weights(tree, manifest.weights_prefix))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
