"""Open the store at a URL: a folder, S3, Azure, Google, or any other fsspec filesystem."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointNotFoundError, InvalidSettingError
from bt_lightning.path_layout import plain_folder
from bt_lightning.store.backends import azure, gcs
from bt_lightning.store.backends.fsspec_store import S3_SCHEMES, FsspecStore, default_options
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.interface import AS_IT_GOES, redact, translated
from bt_lightning.store.secrets import known_secrets

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.interface import Sending, Store

_NATIVE = {
    **dict.fromkeys(azure.SCHEMES, azure.azure_store),
    **dict.fromkeys(gcs.SCHEMES, gcs.gcs_store),
}


def open_store(
    url: str,
    storage_options: Mapping[str, object] | None = None,
    journal: Path | None = None,
    sending: Sending = AS_IT_GOES,
) -> Store:
    """Open the store at `url`: a plain path, `file://`, or any scheme of an installed fsspec.

    `journal` is a directory of the one process that uploads: with it, interrupted uploads to S3
    are resumed; without it, they start again. The limit in `sending` does not hold for a local
    folder.

    Raises:
        InvalidSettingError: no filesystem has that scheme, its package is not installed, or the
            path is relative and does not begin with `./`.
        StoreError: the options were refused.
    """
    folder = plain_folder(url)
    if folder is not None:
        return LocalStore(Path(folder).absolute())
    scheme = url.partition("://")[0]
    options = storage_options or {}
    if scheme in S3_SCHEMES:
        _check_no_user(url)
        from bt_lightning.store.s3.signed_reads import signed_read_store

        def opened() -> Store:
            _check_known(scheme, url)
            from bt_lightning.store.s3.s3_store import S3Store

            return S3Store(url, options, journal, sending=sending)

        return opened() if journal else signed_read_store(url, options, os.environ, opened)
    _check_known(scheme, url)
    store = FsspecStore(url, options, sending)
    native = _NATIVE.get(scheme)
    return store if native is None else native(store, url, options, os.environ)


def check_url(url: str) -> None:
    """Raise `InvalidSettingError` if no installed fsspec filesystem takes the URL."""
    scheme = url.partition("://")[0]
    if scheme in S3_SCHEMES:
        _check_no_user(url)
    _check_known(scheme, url)


def _check_no_user(url: str) -> None:
    """Refuse `s3://user:password@bucket`: S3 clients would take the user for the bucket's name."""
    rest = url.partition("://")[2]
    bucket = rest.partition("/")[0]
    if (":" not in bucket and "@" not in bucket) or bucket.startswith("arn:"):
        return
    msg = (
        f"the store URL names a user before {rest.rpartition('@')[2]!r}, which s3:// does not have:"
        " set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give storage_options={'key': ...,"
        " 'secret': ...}"
    )
    raise InvalidSettingError(msg)


def _check_known(scheme: str, url: str) -> None:
    import fsspec

    try:
        fsspec.get_filesystem_class(scheme)
    except ValueError as error:
        msg = (
            f"the store URL {redact(url)!r} has the scheme {scheme!r}, which no fsspec filesystem"
            " serves: use s3://, gs://, az://, file:// or another that fsspec knows"
        )
        raise InvalidSettingError(msg) from error
    except ImportError as error:
        msg = f"the store URL {redact(url)!r} needs a package that is not installed: {error}"
        raise InvalidSettingError(msg) from error


def download_url(url: str, target: Path) -> None:
    """Download the object at `url` to the local file `target`; for a file that no job published.

    Raises:
        CheckpointNotFoundError: there is no such object.
        StoreError: the store refused.
    """
    scheme = url.partition("://")[0]
    if scheme in S3_SCHEMES:
        _check_no_user(url)
        from bt_lightning.store.s3.s3_store import S3Store

        S3Store(url, {}).save(target)
        return
    import fsspec

    with translated(f"downloading {redact(url)}", known_secrets(url, {}, os.environ)):
        filesystem, path = fsspec.core.url_to_fs(url, **default_options(scheme))
        try:
            filesystem.get_file(path, str(target))
        except FileNotFoundError:
            msg = f"there is no {redact(url)}"
            raise CheckpointNotFoundError(msg) from None
