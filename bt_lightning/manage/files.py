"""Files of a job that belong to no checkpoint: which there are in a store, and bringing them back.

No manifest speaks for them: what arrives is what the store gives, of the size that it names.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import CheckpointNotFoundError, DirectoryUnusableError
from bt_lightning.layout import hidden, jobs_prefix, safe_parts, slug, under
from bt_lightning.store.catalog import look
from bt_lightning.store.parallel import in_parallel
from bt_lightning.store.sources import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bt_lightning.globs import Patterns
    from bt_lightning.store.port import Store

_READERS: Final = 8
_PIECE: Final = PIECE_BYTES // 4


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
    """Its path among those of all nodes: below `rank-<node>`, if there are several."""


def job_files(store: Store, project: str, job: str, patterns: Patterns) -> list[StoredFile]:
    """The files of a job that belong to no checkpoint and that the patterns name: one listing.

    Raises:
        CheckpointNotFoundError: there are none.
        StoreError: the store refused.
    """
    prefix = jobs_prefix(project, job)
    found: list[tuple[int, str, int, str]] = []
    for path, size in look(store, prefix).loose().items():
        node, _, rest = path.partition("/")
        word, _, rank = node.partition("-")
        ours = word == "rank" and rank.isascii() and rank.isdigit() and safe_parts(rest)
        if ours and not hidden(rest) and patterns.choose(rest):
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


def download_files(
    store: Store, files: Sequence[StoredFile], target: Path, on_bytes: Callable[[int], None]
) -> None:
    """Bring files below the directory `target`, several at a time; each appears when it is whole.

    A file that is there is replaced.

    Raises:
        DirectoryUnusableError: the directory cannot be written, or a link leads out of it.
        StoreError, CheckpointNotFoundError: the store refused, or a file is gone meanwhile.
    """
    root = Path(os.path.realpath(target))

    def bring(file: StoredFile) -> None:
        final = root / file.name
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            if Path(os.path.realpath(final.parent)) != final.parent:
                msg = f"{final.parent} is a link: a file of the store is not written through one"
                raise DirectoryUnusableError(msg)
            _bring(store, file, final, on_bytes)
        except OSError as error:
            if isinstance(error, DirectoryUnusableError | CheckpointNotFoundError):
                raise
            if error.errno is None:
                raise
            msg = f"{final} cannot be written: {error.strerror}"
            raise DirectoryUnusableError(msg) from error

    in_parallel(bring, files, _READERS)


def _bring(store: Store, file: StoredFile, final: Path, on_bytes: Callable[[int], None]) -> None:
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=".part", dir=final.parent)
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            buffer = memoryview(bytearray(min(_PIECE, file.size)))
            for offset in range(0, file.size, _PIECE):
                piece = buffer[: file.size - offset]
                store.read_into(file.key, offset, piece)
                stream.write(piece)
                on_bytes(len(piece))
        part.chmod(0o666 & ~_umask())
        part.replace(final)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise


def _umask() -> int:
    """That of this process, which only setting it tells otherwise."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").split("\n"):
        if line.startswith("Umask:"):
            return int(line.partition(":")[2], 8)
    return 0o022
