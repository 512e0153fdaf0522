"""`bt://project[@revision][/checkpoint][/file]` as a read-only fsspec filesystem.

Its root holds a folder `project@job` for each job, with the checkpoints in it, with their files in
them. `project` stands for `project@latest`; a path without a checkpoint, for the latest checkpoint.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec.callbacks import DEFAULT_CALLBACK
from fsspec.core import has_magic
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem
from fsspec.utils import isfilelike
from typing_extensions import override

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError, ReadOnlyError
from bt_lightning.path_layout import MANIFEST, part_name
from bt_lightning.store.catalog.bt_url_tree import Tree, open_bt_store
from bt_lightning.store.transfer.read_verified_range import (
    PIECE_BYTES,
    read_verified_range,
    save_file,
)
from bt_lightning.uri import SCHEME

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.catalog.projects import CatalogEntry

_CACHED_BLOCKS = 4


class BTFileSystem(AbstractFileSystem):  # type: ignore[misc]
    """Checkpoints of a store by the names that Baseten gives them; read-only.

    One filesystem object lists each job once and then keeps to that listing, so that what it listed
    is what it reads; `invalidate_cache()` or `ls(..., refresh=True)` lists again. `fsspec.open`
    makes a new object each time. Every byte is verified with the digests of the manifest.

    Args:
        store: URL of the store; `$BT_STORE_URL`.
        storage_options: keyword arguments of the store's own fsspec filesystem.

    Raises:
        InvalidSettingError: at construction, if no store is given; later, for a path that is not
            the part of a `bt://` URL after its scheme.
        CheckpointNotFoundError: there is no such job, checkpoint or file.
        CheckpointCorruptError: the store holds other bytes than were saved.
        ReadOnlyError: a method that writes, moves or deletes was called.
        StoreError: the store refused.
    """

    protocol = "bt"
    cachable = False  # an object keeps the listing of one moment
    blocksize = PIECE_BYTES

    def __init__(
        self,
        store: str | None = None,
        storage_options: Mapping[str, object] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._store = open_bt_store(store, storage_options)
        self._tree = Tree(self._store)

    # listing

    @override
    def ls(self, path: str, detail: bool = True, refresh: bool = False, **_: Any) -> Any:
        """Names in a folder, or the file itself; with `detail`, as `info` gives them."""
        if refresh:
            self.invalidate_cache()
        path = self._strip_protocol(path)
        node = self._tree.node(path)
        if node.entry is not None:
            infos = [_file_info(path, node.entry)]
        else:
            front = f"{path}/" if path else ""
            infos = [_folder_info(f"{front}{name}") for name in node.folders]
            infos += [_file_info(f"{front}{name}", entry) for name, entry in node.files]
        return infos if detail else [info["name"] for info in infos]

    @override
    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Name, size in bytes and type; for a file its digest too."""
        path = self._strip_protocol(path)
        node = self._tree.node(path)
        return _folder_info(path) if node.entry is None else _file_info(path, node.entry)

    @override
    def exists(self, path: str, **_: Any) -> bool:
        """Whether there is such a file or folder; raises if the store fails."""
        return self._type(path) is not None

    @override
    def isfile(self, path: str) -> bool:
        """Whether it is a file."""
        return self._type(path) == "file"

    @override
    def isdir(self, path: str) -> bool:
        """Whether it is a folder."""
        return self._type(path) == "directory"

    @override
    def walk(self, path: str, maxdepth: Any = None, *args: Any, **kwargs: Any) -> Iterator[Any]:
        """As fsspec's, but a failing store or a damaged manifest is raised, never skipped."""
        if kwargs.get("on_error", "omit") == "omit":
            kwargs["on_error"] = _raise_unless_missing
        yield from super().walk(path, maxdepth, *args, **kwargs)

    @override
    def expand_path(self, path: Any, *args: Any, **kwargs: Any) -> list[str]:
        """As fsspec's, but manifests last: an interrupted copy has none, so it is no checkpoint."""
        found: list[str] = super().expand_path(path, *args, **kwargs)
        return sorted(found, key=lambda name: name.rpartition("/")[2] == MANIFEST)

    @override
    def invalidate_cache(self, path: str | None = None) -> None:
        """List the store again at the next call."""
        self._tree.invalidate()
        super().invalidate_cache(path)

    # reading

    @override
    def cat_file(
        self, path: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """The bytes of a file, or of a range; negative numbers count from its end."""
        checkpoint, entry = self._file(path)
        first = _offset(start, entry.size, 0)
        return self.read_range(checkpoint, entry, first, _offset(end, entry.size, entry.size))

    @override
    def get_file(
        self,
        rpath: str,
        lpath: Any = None,
        callback: Any = DEFAULT_CALLBACK,
        outfile: Any = None,
        **kwargs: Any,
    ) -> None:
        """Copy one file to the local path `lpath`, whole or not at all; or into an open file."""
        if outfile is not None or isfilelike(lpath):
            super().get_file(rpath, lpath, callback=callback, outfile=outfile, **kwargs)
            return
        if self.isdir(rpath):
            Path(lpath).mkdir(parents=True, exist_ok=True)
            return
        checkpoint, entry = self._file(rpath)
        target = Path(lpath)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(part_name(f"{target.name[:200]}.{uuid.uuid4().hex[:8]}"))
        callback.set_size(entry.size)
        try:
            if entry.path == MANIFEST:
                part.write_bytes(checkpoint.data)
            else:
                save_file(self._store, checkpoint.location.base, entry, part)
            part.replace(target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        callback.relative_update(entry.size)

    @override
    def get(
        self, rpath: Any, lpath: Any, recursive: bool = False, *args: Any, **kwargs: Any
    ) -> None:
        """As fsspec's; `bt://project[@revision]`, without a checkpoint, gets the latest one."""
        if recursive and isinstance(rpath, str) and not has_magic(rpath):
            end = "/" if rpath.endswith("/") else ""
            rpath = self._tree.with_checkpoint(self._strip_protocol(rpath)) + end
        super().get(rpath, lpath, recursive, *args, **kwargs)

    @override
    def _open(
        self,
        path: str,
        mode: str = "rb",
        block_size: int | None = None,
        autocommit: bool = True,
        cache_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> BTFile:
        if mode != "rb":
            self._refuse(path)
        checkpoint, entry = self._file(path)
        if cache_options is not None:
            kwargs["cache_options"] = dict(cache_options)
        return BTFile(self, path, (checkpoint, entry), block_size=block_size, **kwargs)

    @override
    def created(self, path: str) -> Any:
        """When the path's checkpoint was saved, as a `datetime` with time zone."""
        checkpoint = self._tree.node(self._strip_protocol(path)).checkpoint
        if checkpoint is None:
            msg = f"{SCHEME}{path} is no part of a checkpoint"
            raise CheckpointNotFoundError(msg)
        return checkpoint.manifest.created

    modified = created

    def read_range(self, checkpoint: CatalogEntry, entry: FileEntry, start: int, end: int) -> bytes:
        """Verified bytes of one file of a checkpoint, `start` to `end`; called by `BTFile`."""
        if entry.path == MANIFEST:
            return checkpoint.data[start:end]
        return read_verified_range(self._store, checkpoint.location.base, entry, start, end)

    def _file(self, path: str) -> tuple[CatalogEntry, FileEntry]:
        node = self._tree.node(self._strip_protocol(path))
        if node.checkpoint is None or node.entry is None:
            msg = (
                f"{SCHEME}{path} is a folder, not a file. To load the checkpoint that it names,"
                " let bt_lightning read it: BTLightning() or BTCheckpointIO() in the Trainer"
            )
            raise CheckpointNotFoundError(msg)
        return node.checkpoint, node.entry

    def _type(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except (CheckpointNotFoundError, InvalidSettingError):
            return None

    # writing

    def _refuse(self, *paths: object, **_: object) -> NoReturn:
        named = next((f" {path}" for path in paths if isinstance(path, str)), "")
        msg = (
            f"bt:// is for reading, and{named} cannot be written, moved or deleted by it: publish"
            " with BTLightning(store=...), or use the store's own URL"
        )
        raise ReadOnlyError(msg)

    mkdir = makedirs = rmdir = touch = _refuse
    rm = rm_file = _rm = _refuse
    copy = cp_file = mv = _refuse
    put = put_file = pipe = pipe_file = _refuse
    start_transaction = _refuse


class BTFile(AbstractBufferedFile):  # type: ignore[misc]
    """One file, open for reading; it stays on the checkpoint that it was opened with."""

    DEFAULT_BLOCK_SIZE = PIECE_BYTES

    def __init__(
        self,
        fs: BTFileSystem,
        path: str,
        file: tuple[CatalogEntry, FileEntry],
        *,
        cache_type: str = "blockcache",
        **options: Any,
    ) -> None:
        self._file = file
        if cache_type == "blockcache":
            options.setdefault("cache_options", {"maxblocks": _CACHED_BLOCKS})
        options.pop("size", None)
        super().__init__(fs, path, "rb", cache_type=cache_type, size=file[1].size, **options)
        self.details = _file_info(path, file[1])

    def _fetch_range(self, start: int, end: int) -> bytes:
        """Called by fsspec's caches: `end` may lie behind the end of the file."""
        checkpoint, entry = self._file
        data: bytes = self.fs.read_range(checkpoint, entry, start, min(end, entry.size))
        return data


def _folder_info(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _file_info(path: str, entry: FileEntry) -> dict[str, Any]:
    return {"name": path, "size": entry.size, "type": "file", "xxh3_128": entry.xxh3_128}


def _offset(given: int | None, size: int, default: int) -> int:
    """A slice bound as an offset in a file of `size` bytes."""
    if given is None:
        return default
    return max(0, size + given) if given < 0 else min(given, size)


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, CheckpointNotFoundError):
        raise error
