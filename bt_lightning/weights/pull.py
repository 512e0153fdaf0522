"""Pull weights: resolve every source, then download what is missing, then mount."""

from __future__ import annotations

import posixpath
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias
from urllib.parse import unquote, urlsplit

from bt_lightning.errors import InvalidSettingError
from bt_lightning.localdir.atomic_directory import tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.disk_space import measure
from bt_lightning.path_layout import safe_parts
from bt_lightning.store.catalog.bt_url_tree import find_checkpoint, open_bt_store
from bt_lightning.store.interface import redact
from bt_lightning.store.objects.open_objects import open_objects
from bt_lightning.store.transfer.parallel_reads import in_parallel
from bt_lightning.uri import is_bt
from bt_lightning.weights.blob_cache import BlobCache, full
from bt_lightning.weights.checkpoint_source import CheckpointSource
from bt_lightning.weights.hub_source import HubSource
from bt_lightning.weights.joined_source import JoinedSource
from bt_lightning.weights.mount_directory import MountDirectory
from bt_lightning.weights.object_source import ObjectSource
from bt_lightning.weights.source_secrets import access_to
from bt_lightning.weights.weight_source import WeightFile, WeightSource, checked_files

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bt_lightning.truss_definitions.weights import WeightsSource
    from bt_lightning.weights.blob_cache import Blob
    from bt_lightning.weights.source_secrets import Secrets

    Progress: TypeAlias = Callable[[str, int], AbstractContextManager[Callable[[int], object]]]
    """Called with a title and the total bytes; what it yields is called with bytes that came."""

_SMALL_BYTES: Final = 8 * 1024 * 1024
_SMALL_AT_ONCE: Final = 12


@dataclass(frozen=True, slots=True)
class Resolved:
    """One source with its files, before anything is downloaded."""

    source: WeightSource
    mount: MountDirectory
    files: tuple[WeightFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """One source, mounted."""

    location: Path
    source: str
    """The URL at its revision, without secrets."""
    files: int
    size: int
    """Bytes."""
    downloaded: int
    """Bytes that were not in the cache."""
    verified: dict[str, int]
    """Digest of the source -> files that were compared with it; `size` where it told none."""
    mounted: bool
    """False if the mount held all of this already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullPlaces:
    """Where weights come from and go to on this machine."""

    root: Path
    """Stands in for `/` of mount locations."""
    cache: Path
    store_url: str | None
    """The store that `bt://` is looked up in; None: `$BT_STORE_URL`."""
    secrets: Secrets


def resolve_weights(
    weights: WeightsSource, places: PullPlaces, notice: Callable[[str], object]
) -> Resolved:
    """List one source; nothing is written.

    Raises:
        InvalidSettingError: the source or its secret cannot be used.
        CheckpointNotFoundError: there is nothing, or the patterns select nothing.
        CheckpointCorruptError: a path of the listing leaves the mount location.
        StoreError: the source refused.
    """
    source = _opened(weights, places, notice)
    files = checked_files(
        source.name, source.files(), weights.allow_patterns or (), weights.ignore_patterns or ()
    )
    location = places.root / weights.mount_location.strip("/")
    if [file.path for file in files] == [""]:
        name = _file_name(weights.source)
        if location.name != name:
            location /= name
    return Resolved(source, MountDirectory(location, places.cache / "mounts"), tuple(files))


def pull_weights(
    resolved: Sequence[Resolved], cache: BlobCache, progress: Progress, *, replace: bool = False
) -> list[Pulled]:
    """Download what the cache lacks, verified, and mount each source, in this order.

    What was interrupted is gone on with. Without `replace`, a location where somebody else wrote
    is an error, and then nothing is downloaded.

    Raises:
        CheckpointExistsError: a location is taken.
        CheckpointCorruptError: bytes differ from what the source says of them.
        DirectoryFullError, DirectoryUnusableError: the weights do not fit, or cannot be written.
        StoreError, CheckpointNotFoundError: a source refused.
    """
    check_root(cache.folder)
    tidy(cache.folder)
    cache.sweep()
    if not replace:
        for one in resolved:
            one.mount.check_replaceable()
    missing = {
        file.identity or f"{one.source.name}/{file.path}": file.size - cache.arrived(file.identity)
        for one in resolved
        for file in one.files
        if cache.known(file.identity, file.size) is None
    }
    if sum(missing.values()) > measure(cache.folder, None).room:
        raise full(cache.folder, sum(missing.values()))
    return [_pull_one(one, cache, progress, replace=replace) for one in resolved]


def _pull_one(one: Resolved, cache: BlobCache, progress: Progress, *, replace: bool) -> Pulled:
    known = {file.path: cache.known(file.identity, file.size) for file in one.files}
    missing = [file for file in one.files if known[file.path] is None]
    blobs: dict[str, Blob] = {path: blob for path, blob in known.items() if blob is not None}
    total = sum(file.size for file in missing)
    with progress(one.source.name, total) if missing else nullcontext(int) as on_bytes:

        def bring(file: WeightFile) -> Blob:
            name = f"{one.source.name}/{file.path}"
            with directory_errors(cache.folder):
                return cache.bring(
                    name,
                    file.identity,
                    file.size,
                    lambda folder: one.source.fetch(file, folder, on_bytes),
                )

        small = [file for file in missing if file.size <= _SMALL_BYTES]
        large = [file for file in missing if file.size > _SMALL_BYTES]
        for files, at_once in ((small, _SMALL_AT_ONCE), (large, one.source.large_at_once)):
            brought = in_parallel(bring, files, at_once)
            blobs |= dict(zip((file.path for file in files), brought, strict=True))
    held = one.mount.holds(blobs)
    if not held:
        one.mount.mount(blobs, replace=replace)
    return Pulled(
        location=one.mount.location,
        source=one.source.name,
        files=len(one.files),
        size=one.size,
        downloaded=total,
        verified=dict(Counter(blob.verified for blob in blobs.values())),
        mounted=not held,
    )


def _opened(
    weights: WeightsSource, places: PullPlaces, notice: Callable[[str], object]
) -> WeightSource:
    access = access_to(weights, places.secrets, notice)
    if is_bt(access.url):
        store = open_bt_store(places.store_url, None)
        found = find_checkpoint(store, access.url)
        kind = JoinedSource if found.manifest.is_sharded else CheckpointSource
        return kind(store, found)
    if access.url.startswith("hf://"):
        return HubSource(access.url, access.token)
    return ObjectSource(open_objects(access.url, access.options, access.token))


def _file_name(url: str) -> str:
    """The name of the one file at `url`.

    Raises:
        InvalidSettingError: the URL ends with no name.
    """
    name = posixpath.basename(unquote(urlsplit(url).path).rstrip("/"))
    if not safe_parts(name):
        msg = f"{redact(url)} ends with no name of a file: name the file itself"
        raise InvalidSettingError(msg)
    return name
