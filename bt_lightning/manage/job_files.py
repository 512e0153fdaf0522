"""Job files, which belong to no checkpoint: their list in a store, and their download.

No manifest describes them: only their sizes can be checked.
"""

from __future__ import annotations

import contextlib
import os
import stat
import uuid
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Final

from bt_lightning.errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    DirectoryUnusableError,
)
from bt_lightning.localdir.no_symlinks import READ, folder, made_folder, new_file, split
from bt_lightning.localdir.rename_noreplace import rename_new_in
from bt_lightning.path_layout import hidden, jobs_prefix, safe_parts, slug, under
from bt_lightning.store.catalog.listing import list_job
from bt_lightning.store.transfer.file_source import PIECE_BYTES
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from bt_lightning.glob_patterns import Patterns
    from bt_lightning.store.interface import Store

_THREADS: Final = 8
_PIECE: Final = PIECE_BYTES // 4
_COMPARE_BYTES: Final = 1024 * 1024
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of a job."""

    node_rank: int
    path: str
    """Below the node's checkpoint directory."""
    size: int
    """Bytes."""
    key: str
    name: str
    """Its path among the files of all nodes: below `rank-<node>` if there are several nodes."""


def job_files(store: Store, project: str, job: str, patterns: Patterns) -> list[StoredFile]:
    """The job files that the patterns select. One listing.

    Raises:
        CheckpointNotFoundError: there are none.
        StoreError: the store refused.
    """
    prefix = jobs_prefix(project, job)
    found: list[tuple[int, str, int, str]] = []
    for path, size in list_job(store, prefix).job_files().items():
        node, _, rest = path.partition("/")
        word, _, rank = node.partition("-")
        is_node_file = word == "rank" and rank.isascii() and rank.isdigit() and safe_parts(rest)
        if is_node_file and not hidden(rest) and patterns.choose(rest):
            found.append((int(rank), rest, size, under(prefix, path)))
    if not found:
        msg = (
            f"{store.name} has no such files of the job {slug(job)} of the project"
            f" {slug(project)}, besides its checkpoints"
        )
        raise CheckpointNotFoundError(msg)
    several = len({rank for rank, *_ in found}) > 1
    return [
        StoredFile(rank, path, size, key, f"rank-{rank}/{path}" if several else path)
        for rank, path, size, key in sorted(found)
    ]


def download_job_files(
    store: Store,
    files: Sequence[StoredFile],
    target: Path,
    on_bytes: Callable[[int], None],
    *,
    replace: bool = False,
) -> None:
    """Download files below the directory `target`, several at a time; each appears when complete.

    An existing file stays, unless `replace` is set; an identical one is accepted.

    Raises:
        CheckpointExistsError: other files have these names; if sizes differ, nothing was written.
        DirectoryUnusableError: the directory cannot be written, or a symlink is on the path.
        StoreError, CheckpointNotFoundError: the store refused, or a file was deleted meanwhile.
    """
    if not replace:
        taken = [file.name for file in files if _name_is_taken(target, file)]
        if taken:
            raise _exists_error(target, taken)

    def download_one(file: StoredFile) -> None:
        with _file_errors(target, file), made_folder(target, split(file.name)[0]) as folder:
            _download(store, file, folder, target if not replace else None, on_bytes)

    in_parallel(download_one, files, _THREADS)


def _download(
    store: Store, file: StoredFile, within: int, new: Path | None, on_bytes: Callable[[int], None]
) -> None:
    """Write one file into its folder; `new` is the target where it must replace none, or None."""
    name, part = split(file.name)[1], f".{uuid.uuid4().hex}.part"
    descriptor = new_file(within, part)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            buffer = memoryview(bytearray(min(_PIECE, file.size)))
            for offset in range(0, file.size, _PIECE):
                piece = buffer[: file.size - offset]
                store.read_into(file.key, offset, piece)
                stream.write(piece)
                on_bytes(len(piece))
        if new is None:
            os.replace(part, name, src_dir_fd=within, dst_dir_fd=within)
        else:
            _rename_new(within, part, name, file, new)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(part, dir_fd=within)


def _rename_new(within: int, part: str, name: str, file: StoredFile, target: Path) -> None:
    try:
        rename_new_in(within, part, name)
    except FileExistsError as error:
        with (
            os.fdopen(os.open(part, READ, dir_fd=within), "rb") as ours,
            os.fdopen(os.open(name, READ, dir_fd=within), "rb") as theirs,
        ):
            same = all(a == b for a, b in zip(_pieces(ours), _pieces(theirs), strict=False))
            if not same or os.fstat(ours.fileno()).st_size != os.fstat(theirs.fileno()).st_size:
                raise _exists_error(target, [file.name]) from error


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(_COMPARE_BYTES), b"")


def _name_is_taken(target: Path, file: StoredFile) -> bool:
    """Whether something else certainly has that name, judged without reading it."""
    place, name = split(file.name)
    try:
        with _file_errors(target, file), folder(target, place) as within:
            status = os.stat(name, dir_fd=within, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return not stat.S_ISREG(status.st_mode) or status.st_size != file.size


@contextlib.contextmanager
def _file_errors(target: Path, file: StoredFile) -> Iterator[None]:
    """Turn a system error in the block into one that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, CheckpointError | FileNotFoundError):
            raise
        msg = f"{target / file.name} cannot be written: {error.strerror}"
        raise DirectoryUnusableError(msg) from error


def _exists_error(target: Path, names: Sequence[str]) -> CheckpointExistsError:
    more = f", and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return CheckpointExistsError(
        f"{target} has other files of these names: {', '.join(names[:_NAMED])}{more}. They were"
        " left as they are: name another directory, or say that they are to be replaced"
    )
