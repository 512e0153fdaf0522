"""Objects of any fsspec filesystem, such as Google's and Azure's."""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.backends.fsspec_store import FsspecStore
from bt_lightning.store.objects.pinned_object import MOST_OBJECTS, PinnedObject, changed, too_many

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.interface import ReadProgress

_VERSIONS: Final = ("generation", "etag", "ETag", "mtime", "last_modified", "LastModified")
"""What filesystems call the version of an object, the most certain first."""


class FsspecObjects:
    """The objects at the URL of an fsspec filesystem: those of a folder, or one by its path."""

    connections = 8

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        self._store = FsspecStore(url.rstrip("/"), storage_options)

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._store.name

    def find(self) -> list[PinnedObject]:
        """Objects below the folder, in one listing, or the one of this very path."""
        found = []
        for key, info in self._store.details():
            if info.get("type") == "directory" or key.endswith("/"):
                continue
            found.append(_pinned(key, info))
            if len(found) > MOST_OBJECTS:
                raise too_many(self.name)
        if not found:
            msg = f"there is nothing at {self.name}"
            raise CheckpointNotFoundError(msg)
        return found

    def checksums(self, found: PinnedObject) -> Mapping[str, str]:
        """Those of the listing."""
        return found.checksums

    def read_into(
        self, found: PinnedObject, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read that range; then ask whether the object is still of that version."""
        self._store.read_into(found.key, offset, target, on_progress=on_progress)
        if _pinned(found.key, self._store.detail(found.key)).version != found.version:
            raise changed(self.name, found.key)


def _pinned(key: str, info: Mapping[str, Any]) -> PinnedObject:
    version = next((str(info[name]) for name in _VERSIONS if info.get(name)), "")
    sums = {}
    settings = info.get("content_settings") or {}
    given = {
        "md5": info.get("md5Hash") or settings.get("content_md5"),
        "crc32c": info.get("crc32c"),
    }
    for name, value in given.items():
        if isinstance(value, bytes | bytearray):
            sums[name] = bytes(value).hex()
        elif isinstance(value, str):
            try:
                sums[name] = base64.b64decode(value, validate=True).hex()
            except binascii.Error:
                continue
    return PinnedObject(key, int(info.get("size") or 0), version, sums)
