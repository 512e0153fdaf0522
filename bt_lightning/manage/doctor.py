"""A test of all that a save needs, on the disk and in the store; it cleans up after itself."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning import __version__
from bt_lightning.errors import CheckpointError, CheckpointExistsError
from bt_lightning.localdir.atomic_directory import temporary, tidy
from bt_lightning.localdir.digest import Hasher
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.fsync import write_out
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.store.catalog.bt_url_tree import open_bt_store
from bt_lightning.store.transfer.file_source import FileSource

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.store.interface import Store

_MB = 1_000_000
_PROBE_BYTES = 64 * 1024 * 1024
_SLOW = 100 * _MB
_MAX_SKEW_S = 5
_BAD_LIGHTNING = {"2.6.2", "2.6.3"}
_PACKAGES = ("torch", "lightning", "safetensors", "fsspec", "s3fs")
_OPTIONAL = ("awscrt", "gcsfs", "adlfs", "obstore")


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    name: str
    result: str
    """`ok`, `warning` (saves work, with a drawback), or `failed`."""
    says: str
    remedy: str = ""


def examine(directory: str | None, store: str | None) -> Iterator[Finding]:
    """Run all checks; yield each finding at once. Errors that it tests for become findings."""
    yield from _versions()
    written = None
    if directory is None:
        yield Finding(
            "directory",
            "warning",
            "none is named",
            "set BT_CHECKPOINT_DIR, or give --dir, to have it tried",
        )
    else:
        root = Path(directory).expanduser().absolute()
        written = yield from _disk(root)
        yield from _next_save(root, written)
    if store is None:
        yield Finding(
            "store",
            "warning",
            "none is named: checkpoints stay on the disk",
            "set BT_STORE_URL, or give --store; on Baseten none is needed",
        )
    else:
        yield from _store(store)


def _versions() -> Iterator[Finding]:
    found = {name: _version(name) for name in (*_PACKAGES, *_OPTIONAL)}
    missing = [name for name in _PACKAGES if found[name] is None]
    said = ", ".join(f"{name} {version}" for name, version in found.items() if version)
    ours = f"bt-lightning {__version__}, Python {platform.python_version()}"
    python = f"{ours}, {platform.system()}, {said}"
    if missing:
        yield Finding("versions", "failed", f"{python}; without {', '.join(missing)}", "install it")
    elif found["lightning"] in _BAD_LIGHTNING:
        yield Finding(
            "versions",
            "failed",
            f"lightning {found['lightning']} was published by an attacker",
            "install another version, and treat every secret of this machine as known",
        )
    else:
        yield Finding("versions", "ok", python)


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _disk(root: Path) -> Generator[Finding, None, float | None]:
    """Check the directory; return its write speed in bytes a second, None if it has none."""
    try:
        check_root(root)
    except CheckpointError as error:
        yield Finding("directory", "failed", str(error), "use another directory, or mend this one")
        return None
    yield Finding("directory", "ok", f"{root} takes files and renames")
    usage = shutil.disk_usage(root)
    free = f"{usage.free / 1e9:.1f} of {usage.total / 1e9:.1f} GB free"
    if usage.free < 2 * _PROBE_BYTES:
        yield Finding("disk", "failed", free, "free some space")
        return None
    try:
        speed = _write_speed(root)
    except OSError as error:
        yield Finding("disk", "failed", f"{free}; writing failed: {error}", "check the volume")
        return None
    finally:
        tidy(root)
    skew = _skew(root)
    if abs(skew) > _MAX_SKEW_S:
        says = f"the volume's clock differs by {skew:+.0f} s from this machine's"
        yield Finding("clock", "warning", says, "set both by NTP: times of checkpoints mislead")
    slow = speed < _SLOW
    yield Finding(
        "disk",
        "warning" if slow else "ok",
        f"{free}; writes {speed / _MB:,.0f} MB/s, durable",
        "saves will wait for it; use a local disk" if slow else "",
    )
    return speed


def _write_speed(root: Path) -> float:
    block = os.urandom(4 * 1024 * 1024)
    with temporary(root) as folder, (folder / "probe").open("wb") as stream:
        began = time.perf_counter()
        for _ in range(_PROBE_BYTES // len(block) - 1):
            stream.write(block)
        write_out(stream, block)
        return _PROBE_BYTES / (time.perf_counter() - began)


def _skew(root: Path) -> float:
    with temporary(root) as folder:
        (folder / "now").touch()
        skew = (folder / "now").stat().st_mtime - time.time()
    tidy(root)
    return skew


def _next_save(root: Path, speed: float | None) -> Iterator[Finding]:
    found: list[LocalCheckpoint] = []
    if root.is_dir():
        listed = list_committed(root)
        found = listed.found
        for item in listed.refused:
            yield Finding("checkpoints", "warning", item.reason, "delete it: it is never loaded")
        for item in listed.unread:
            yield Finding("checkpoints", "warning", item.reason, "what lies there is never loaded")
    if not found or speed is None:
        return
    newest = max(found, key=lambda checkpoint: checkpoint.manifest.order).manifest
    free = shutil.disk_usage(root).free
    fit = free // max(newest.size, 1)
    says = (
        f"as large as {newest.checkpoint_id} ({newest.size / _MB:,.1f} MB), it takes"
        f" {newest.size / speed:.1f} s to the disk, beside training; {fit} more fit"
    )
    short = fit < 2  # noqa: PLR2004 - a save is written beside the one it replaces
    remedy = "free some space, or lower save_top_k" if short else ""
    yield Finding("next save", "failed" if not fit else "warning" if short else "ok", says, remedy)


def _store(url: str) -> Iterator[Finding]:
    try:
        store = open_bt_store(url, None)
        folder = f".bt_lightning-doctor/{uuid.uuid4().hex}"
        began = time.perf_counter()
        next(iter(store.list(folder)), None)
    except CheckpointError as error:
        yield Finding("store", "failed", str(error), "check the URL, the credentials, the network")
        return
    wait = (time.perf_counter() - began) * 1000
    yield Finding("store", "ok", f"{store.name} answers a listing in {wait:.0f} ms")
    try:
        for name, trial, remedy in _TRIALS:
            try:
                says = trial(store, folder)
            except CheckpointError as error:
                yield Finding(name, "failed", str(error), remedy)
            else:
                yield Finding(name, "ok", says)
    finally:
        with suppress(CheckpointError):  # reported above, if it cannot be deleted
            store.delete([info.key for info in store.list(folder)])
        with suppress(CheckpointError):  # the same
            store.abandon(folder, ())


def _put(store: Store, folder: str) -> str:
    store.put(f"{folder}/put", b"1")
    store.put(f"{folder}/put", b"2")
    return _checked(store.read(f"{folder}/put") == b"2", "writes, and reads its own writes at once")


def _put_new(store: Store, folder: str) -> str:
    store.put_new(f"{folder}/new", b"1")
    try:
        store.put_new(f"{folder}/new", b"2")
    except CheckpointExistsError:
        return _checked(store.read(f"{folder}/new") == b"1", "of two writers of a name, one wins")
    msg = "it overwrote a name that may be written only once"
    raise CheckpointError(msg)


def _list(store: Store, folder: str) -> str:
    store.put(f"{folder}/listed", b"1")
    names = {info.key for info in store.list(folder)}
    return _checked(f"{folder}/listed" in names, "lists what was just written")


def _delete(store: Store, folder: str) -> str:
    store.put(f"{folder}/deleted", b"1")
    store.delete([f"{folder}/deleted"])
    return _checked(store.read(f"{folder}/deleted") is None, "deletes")


def _large(store: Store, folder: str) -> str:
    with _probe_file() as source:
        began = time.perf_counter()
        store.send(source, f"{folder}/large")
        upload_s = time.perf_counter() - began
        is_stored = store.size(f"{folder}/large") == source.size
        buffer = memoryview(bytearray(source.size))
        began = time.perf_counter()
        store.read_into(f"{folder}/large", 0, buffer)
        download_s = time.perf_counter() - began
    rates = [_PROBE_BYTES / seconds / _MB for seconds in (upload_s, download_s)]
    return _checked(
        is_stored, f"uploads {rates[0]:,.0f} MB/s in parts, downloads {rates[1]:,.0f} MB/s"
    )


def _abandon(store: Store, folder: str) -> str:
    store.abandon(folder, ())
    return "aborts unfinished uploads"


@contextmanager
def _probe_file() -> Iterator[FileSource]:
    import tempfile

    with tempfile.TemporaryDirectory(prefix="bt_lightning-") as name:
        file = Path(name) / "probe"
        data = os.urandom(_PROBE_BYTES)
        file.write_bytes(data)
        hasher = Hasher()
        hasher.update(data)
        with FileSource(file, hasher.entry("probe")) as source:
            yield source


def _checked(holds: object, says: str) -> str:
    if not holds:
        msg = "the store did not do what was requested"
        raise CheckpointError(msg)
    return says


_TRIALS = (
    ("put", _put, "allow s3:PutObject and s3:GetObject (or its like) below this URL"),
    ("conditional put", _put_new, "use a server with If-None-Match, or never two writers"),
    ("list", _list, "allow s3:ListBucket"),
    ("large files", _large, "allow multipart uploads; check the network"),
    (
        "abandon",
        _abandon,
        "allow s3:AbortMultipartUpload and s3:ListBucketMultipartUploads (or its like)",
    ),
    ("delete", _delete, "allow s3:DeleteObject"),
)
