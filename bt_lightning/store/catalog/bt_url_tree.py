"""Resolve `bt://` paths to folders, checkpoints and files of a store."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.localdir.digest import Hasher
from bt_lightning.path_layout import MANIFEST, slug
from bt_lightning.store.catalog.projects import list_node_folders, view_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.uri import SCHEME, BtUri, is_bt, parse

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.store.catalog.projects import CatalogEntry, JobView
    from bt_lightning.store.interface import Store


@dataclass(frozen=True, slots=True)
class TreeNode:
    """A folder, or one file of a checkpoint."""

    checkpoint: CatalogEntry | None = None
    """The checkpoint that the node is, or belongs to."""
    entry: FileEntry | None = None
    """The file's entry in the manifest; None for a folder."""
    folders: tuple[str, ...] = ()
    """Sorted names of the folders in this folder."""
    files: tuple[tuple[str, FileEntry], ...] = ()
    """Sorted names of the files in this folder, with their entries in the manifest."""


class Tree:
    """The tree of `bt://` paths: `project@job`, in it checkpoints, in them their files.

    Each job is listed once, until `invalidate`. May be used by several threads.

    Raises, from every method that takes a path:
        InvalidSettingError: the path is not valid.
        CheckpointNotFoundError: nothing is there.
        CheckpointCorruptError: a manifest that was needed is damaged.
        StoreError: the store refused.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._views: dict[tuple[str, str], JobView] = {}
        self._jobs: tuple[str, ...] | None = None
        self._lock = threading.RLock()

    def invalidate(self) -> None:
        """List the store again at the next call."""
        with self._lock:
            self._views.clear()
            self._jobs = None

    def node(self, path: str) -> TreeNode:
        """The node at `path`, given without scheme and without a `/` at its end."""
        if not path:
            return TreeNode(folders=self._roots())
        uri = parse(SCHEME + path)
        view = self._view(uri)
        found = view.split_path(uri.path) if uri.path else None
        node = None if found is None else _inside(*found)
        children = view.children(uri.path)
        if node is not None and node.entry is None and children:
            folders = {*node.folders, *children}
            return TreeNode(node.checkpoint, folders=tuple(sorted(folders)), files=node.files)
        if node is None and children:
            return TreeNode(folders=tuple(sorted(children)))
        if node is None and found is None and uri.path:
            node = _inside(view.latest(), uri.path)
        if node is None:
            msg = f"there is no {SCHEME}{path} in {view.describe()} of {self._store.name}"
            raise CheckpointNotFoundError(msg)
        return node

    def checkpoint(self, uri: BtUri) -> CatalogEntry:
        """The checkpoint that `uri` names; the latest if `uri` has no path."""
        return checkpoint_of(self._view(uri), uri, self._store.name)

    def with_checkpoint(self, path: str) -> str:
        """`path`; with the latest checkpoint appended if it names only a project or a job."""
        uri = parse(SCHEME + path)
        if uri.path:
            return path
        view = self._view(uri)
        return f"{path}/{view.name_of(view.latest())}"

    def _view(self, uri: BtUri) -> JobView:
        key = (slug(uri.project), uri.revision)
        with self._lock:
            if key not in self._views:
                self._views[key] = view_job(self._store, uri.project, uri.revision)
            return self._views[key]

    def _roots(self) -> tuple[str, ...]:
        with self._lock:
            if self._jobs is None:
                locations = list_node_folders(self._store)
                self._jobs = tuple(
                    sorted({f"{location.project}@{location.job}" for location in locations})
                )
            return self._jobs


def checkpoint_of(view: JobView, uri: BtUri, store_name: str) -> CatalogEntry:
    """The checkpoint of a job that `uri` names; the latest if `uri` has no path.

    Raises:
        CheckpointNotFoundError: there is none, or `uri` names a file in a checkpoint.
    """
    if not uri.path:
        return view.latest()
    found = view.split_path(uri.path)
    if found is None:
        msg = f"there is no checkpoint {uri.path!r} in {view.describe()} of {store_name}"
        raise CheckpointNotFoundError(msg)
    checkpoint, rest = found
    if rest:
        msg = f"{uri} names {rest!r} in a checkpoint: name the checkpoint, without what is in it"
        raise CheckpointNotFoundError(msg)
    return checkpoint


def find_checkpoint(store: Store, url: str) -> CatalogEntry:
    """The checkpoint that a `bt://` URL names in `store` at this moment.

    Raises:
        InvalidSettingError: `url` is no `bt://` URL.
        CheckpointNotFoundError: there is no such checkpoint, or `url` names a file in one.
        CheckpointCorruptError: its manifest is damaged.
        StoreError: the store refused.
    """
    return Tree(store).checkpoint(parse(url))


def open_bt_store(url: str | None, storage_options: Mapping[str, object] | None) -> Store:
    """The store that `bt://` URLs are looked up in: `url`, else `$BT_STORE_URL`.

    Raises:
        InvalidSettingError: no URL is given, or it is a `bt://` URL itself.
        StoreError: the options were refused.
    """
    url = url or os.environ.get("BT_STORE_URL")
    if not url:
        msg = (
            "bt:// URLs need a store to be looked up in: set BT_STORE_URL, or pass"
            " store='s3://bucket/...' (and storage_options of its filesystem)"
        )
        raise InvalidSettingError(msg)
    if is_bt(url):
        msg = f"the store is {url!r}, but bt:// names checkpoints in a store: give its own URL"
        raise InvalidSettingError(msg)
    return RetryingStore(open_store(url, storage_options))


def _inside(checkpoint: CatalogEntry, path: str) -> TreeNode | None:
    """The folder or file `path` of a checkpoint; None if there is none; "" is its root.

    The manifest is one of the files, so that a copy of all files is a checkpoint again.
    """
    hasher = Hasher()
    hasher.update(checkpoint.data)
    front = f"{path}/" if path else ""
    folders: set[str] = set()
    files: list[tuple[str, FileEntry]] = []
    for entry in (*checkpoint.manifest.files, hasher.entry(MANIFEST)):
        if entry.path == path:
            return TreeNode(checkpoint, entry)
        if entry.path.startswith(front):
            name, slash, _ = entry.path[len(front) :].partition("/")
            if slash:
                folders.add(name)
            else:
                files.append((name, entry))
    if not folders and not files:
        return None
    files.sort(key=lambda item: item[0])
    return TreeNode(checkpoint, folders=tuple(sorted(folders)), files=tuple(files))
