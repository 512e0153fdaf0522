"""Classifies checkpoint paths (local, URL, temporary) and opens readers of URLs."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import (
    DirectoryUnusableError,
    InvalidSettingError,
    ReadOnlyError,
    StoreError,
    StorePermanentError,
)
from bt_lightning.localdir.disk_errors import advice, refused
from bt_lightning.localdir.disk_space import is_full
from bt_lightning.localdir.folder_on_disk import is_dcp_folder
from bt_lightning.path_layout import MANIFEST
from bt_lightning.store.catalog.listing import newest_folder
from bt_lightning.store.interface import redact
from bt_lightning.store.open_store import download_url, open_store
from bt_lightning.store.retry import RetryingStore
from bt_lightning.store.transfer.checkpoint_reader import StoreReader
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Iterator

_WEB = ("http://", "https://")
_TEMPORARY = re.compile(r"\.(lr_find_.*|scale_batch_size_.*|temp)\.ckpt")
"""Temporary files of Lightning's Tuner and process launchers, which save, load and remove them."""


DEFAULT_ROOT = "bt_checkpoints"
"""Name of the checkpoint directory that nobody named."""


def absolute_root(chosen: str | os.PathLike[str]) -> Path:
    """The checkpoint directory of the option `dir`, absolute.

    Raises:
        InvalidSettingError: `chosen` is a URL.
    """
    path = os.fspath(chosen)
    if "://" in path and not path.startswith("file://"):
        msg = (
            f"dir is {redact(path)!r}, a URL: checkpoints are written to a local directory"
            " first. Give dir (or BT_CHECKPOINT_DIR) a path, and the URL as store (or"
            " BT_STORE_URL)"
        )
        raise InvalidSettingError(msg)
    return Path(path.removeprefix("file://")).expanduser().resolve()


def is_url(path: str | Path) -> bool:
    """Whether `path` is a URL that does not name the local disk."""
    return isinstance(path, str) and "://" in path and not path.startswith(("file://", "local://"))


def is_temporary(path: str | Path) -> bool:
    """Whether `path` is a temporary file of Lightning's, which its own IO writes and reads."""
    return _TEMPORARY.fullmatch(str(path).rpartition("/")[2]) is not None


def split_checkpoint_url(url: str) -> tuple[str, str]:
    """The URL of the parent folder of `url`, and the last component.

    Raises:
        ReadOnlyError: it is a `bt://` URL, which is read-only.
    """
    if is_bt(url):
        msg = f"{url} is for reading: save to a path, or to the store's own URL"
        raise ReadOnlyError(msg)
    scheme, _, rest = url.partition("://")
    parent, _, name = rest.rstrip("/").rpartition("/")
    return f"{scheme}://{parent}", name


def local_path(path: str | Path) -> Path:
    """The absolute path of a local checkpoint; symbolic links are not resolved."""
    text = str(path)
    return Path(
        text.partition("://")[2] if text.startswith(("file://", "local://")) else text
    ).absolute()


def url_reader(url: str) -> StoreReader | None:
    """A reader of the committed checkpoint at `url`; None if there is none.

    Raises:
        InvalidSettingError: no fsspec filesystem has this protocol.
        StoreTransientError: the store did not answer.
    """
    if "::" in url:
        return None  # checkpoints are never committed through a chain of filesystems
    if url.startswith(_WEB):
        return _http_reader(url)
    parent, name = split_checkpoint_url(url)
    store = RetryingStore(open_store(parent))
    try:
        found = newest_folder(store, "", name)
    except StorePermanentError:
        return None  # without permission to list, a stock file may still be readable
    return None if found is None else StoreReader(store, "", found[0])


def reader_of_url(path: str | Path) -> StoreReader | None:
    """As `url_reader`, for any path; None also for a local path and for an unknown protocol."""
    if is_bt(path) or not is_url(path):
        return None
    try:
        return url_reader(str(path))
    except InvalidSettingError:
        return None  # Lightning's own error explains it


def _http_reader(url: str) -> StoreReader | None:
    """As `url_reader`, for a web server: reads the manifest in the folder, without a listing.

    None if the server has no manifest there; then the URL is read as a stock file.
    """
    if "?" in url or "#" in url:
        return None
    parent, name = split_checkpoint_url(url)
    store = open_store(parent)
    try:
        data = store.read(f"{name}/{MANIFEST}")
    except StoreError:
        return None
    if data is None or not data.lstrip().startswith(b"{"):
        return None  # some servers answer any name with an HTML page
    return StoreReader(RetryingStore(store), "", name, listed=False)


@contextmanager
def downloaded(url: str) -> Iterator[Path]:
    """Yield a local copy of the stock file at `url`."""
    with tempfile.TemporaryDirectory(prefix="bt_lightning-") as folder:
        file = Path(folder) / "checkpoint.ckpt"
        download_url(url, file)
        yield file


def is_committed(path: str | Path) -> bool:
    """Whether the local `path` is a committed checkpoint directory."""
    return not is_url(path) and (local_path(path) / MANIFEST).is_file()


def is_loadable(path: str | Path) -> bool:
    """Whether the local `path` is a directory that we load: a committed one, or one of DCP."""
    return is_committed(path) or (not is_url(path) and is_dcp_folder(local_path(path)))


def unwritten_error(checkpoint_id: str, root: Path, error: OSError) -> DirectoryUnusableError:
    """The error of a save that could not be written to the disk, with advice."""
    try:
        free = f"{shutil.disk_usage(root).free:,} bytes free"
    except OSError:
        free = "free space unknown"
    if is_full(error):
        what = f"{advice(root, error)}, keep fewer checkpoints (save_top_k),"
    else:
        what = advice(root, error)
    return refused(
        f"the checkpoint {checkpoint_id} could not be written to {root}"
        f" ({error.strerror or error}, {free}). What was committed before is untouched: {what}"
        " or use another BT_CHECKPOINT_DIR",
        error,
    )
