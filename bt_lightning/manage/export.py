"""Exports of checkpoints: what other programs read, whole or not at all, from a disk or a store."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from bt_lightning.errors import CheckpointExistsError, UnsupportedStateError
from bt_lightning.localdir.atomic_directory import sweep_temporaries, temporary, tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.fsync import sync_directory, write_file
from bt_lightning.localdir.rename_noreplace import rename_new
from bt_lightning.manage.complete_items import with_digests
from bt_lightning.manage.dcp_export import write_dcp
from bt_lightning.manage.download_copy import CountingReader, serving_entries
from bt_lightning.manage.joined_file import write_joined
from bt_lightning.manage.serving_weights import MOST_FILE_BYTES, plan_serving_files
from bt_lightning.manage.verified_blocks import VerifiedBlocks
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.whole_tensors import read_state
from bt_lightning.store.transfer.resumable_download import download_files

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

    Progress = Callable[[int], contextlib.AbstractContextManager[Callable[[int], object]]]

_NAMED: Final = 5
"""Values that were left out that are named."""


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
        state = read_state(self.source, self.item)
        with self._reading(self.item.manifest.size) as reader:
            blocks = VerifiedBlocks(reader, self.item.manifest.files)
            places = write_dcp(self.made, state, blocks)
        named = ", ".join(places[:_NAMED]) + (", ..." if len(places) > _NAMED else "")
        lacks = (f"{len(places)} values that are no plain ones: {named}",) if places else ()
        return Exported(_size(self.made), lacks)

    def _hf(self, most_file_bytes: int) -> Exported:
        """A folder that `from_pretrained` and model servers read."""
        manifest = self.item.manifest
        entries = serving_entries(manifest)
        if not manifest.is_sharded:
            with self._reading(sum(entry.size for entry in entries)) as reader:
                download_files(reader, self.made, tuple(entries))
            for folder in {path.parent for path in self.made.rglob("*")}:
                sync_directory(folder)
            return Exported(_size(self.made))
        state = read_state(self.source, self.item)
        plans, small = plan_serving_files(self.source, self.item, state, most_file_bytes)
        size = sum(entry.size for entry in entries) + sum(plan.size for plan in plans)
        with self._reading(size) as reader:
            download_files(reader, self.made, tuple(entries))
            blocks = VerifiedBlocks(reader, manifest.files)
            for plan in plans:
                write_joined(self.made / plan.path, plan, blocks)
            for path, data in small.items():
                write_file(self.made / path, path, [data])
        return Exported(_size(self.made))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
