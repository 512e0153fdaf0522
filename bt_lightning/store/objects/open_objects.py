"""Open the objects at a URL: a folder, S3, https, or any other fsspec filesystem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from bt_lightning.path_layout import plain_folder
from bt_lightning.store.backends.fsspec_store import S3_SCHEMES
from bt_lightning.store.open_store import check_url

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.objects.pinned_object import Objects


def open_objects(
    url: str, storage_options: Mapping[str, object] | None = None, token: str | None = None
) -> Objects:
    """Open what lies at `url`: `file://`, `https://`, or any scheme of an installed fsspec.

    `token` is a bearer token for the host of an `https://` URL.

    Raises:
        InvalidSettingError: no filesystem has that scheme, or its package is not installed.
        StoreError: the options were refused.
    """
    folder = plain_folder(url)
    if folder is not None:
        from bt_lightning.store.objects.folder_objects import FolderObjects

        return FolderObjects(Path(folder).absolute())
    scheme = url.partition("://")[0]
    if scheme == "https":
        from bt_lightning.store.objects.https_object import HttpsObject

        return HttpsObject(url, token)
    check_url(url)
    options = storage_options or {}
    if scheme in S3_SCHEMES:
        from bt_lightning.store.objects.s3_objects import S3Objects

        return S3Objects(url, options)
    from bt_lightning.store.objects.fsspec_objects import FsspecObjects

    return FsspecObjects(url, options)
