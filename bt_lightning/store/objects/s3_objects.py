"""Objects of S3 and of servers like it, each at the version that its ETag names."""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.store.objects.pinned_object import MOST_OBJECTS, PinnedObject, changed, too_many
from bt_lightning.store.s3.s3_store import S3Store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.interface import ReadProgress

_MD5: Final = re.compile(r"[0-9a-f]{32}")
_CHECKSUMS: Final = ("SHA256", "SHA1", "CRC64NVME", "CRC32C", "CRC32")


class S3Objects:
    """The objects at an `s3://` URL: those of a folder, or one by its key."""

    connections = 12

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        url = url.rstrip("/")
        self._store = S3Store(url, storage_options)
        self._is_bucket = "/" not in url.partition("://")[2]

    @property
    def name(self) -> str:
        """The URL without secrets."""
        return self._store.name

    def find(self) -> list[PinnedObject]:
        """Objects below the folder, in one listing; if there are none, that of this very key."""
        found = []
        for info in self._store.list(""):
            if info.key.endswith("/") and not info.size:
                continue  # what consoles make for an empty folder
            found.append(PinnedObject(info.key, info.size, info.version or ""))
            if len(found) > MOST_OBJECTS:
                raise too_many(self.name)
        answer = None if found or self._is_bucket else self._store.head("")
        if answer is not None:
            return [PinnedObject("", int(answer["ContentLength"]), _etag(answer))]
        if not found:
            msg = f"there is nothing at {self.name}"
            raise CheckpointNotFoundError(msg)
        return found

    def checksums(self, found: PinnedObject) -> Mapping[str, str]:
        """Those of the whole object that the server stored; its MD5 where the ETag is one."""
        answer = self._store.head(found.key)
        if answer is None or _etag(answer) != found.version:
            raise changed(self.name, found.key)
        sums = {}
        if answer.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
            for name in _CHECKSUMS:
                value = answer.get(f"Checksum{name}")
                if isinstance(value, str) and "-" not in value:  # "-" ends one of several parts
                    sums[name.lower()] = base64.b64decode(value).hex()
        encrypted = str(answer.get("ServerSideEncryption", ""))
        own_key = "kms" in encrypted or "SSECustomerAlgorithm" in answer
        if _MD5.fullmatch(found.version) and not own_key:  # else the ETag is no digest of the bytes
            sums["md5"] = found.version
        return sums

    def read_into(
        self, found: PinnedObject, offset: int, target: memoryview, on_progress: ReadProgress = int
    ) -> None:
        """Read that range in one request, if the object still has that ETag."""
        if not self._store.read_version(found.key, found.version, offset, target, on_progress):
            raise changed(self.name, found.key)


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')
