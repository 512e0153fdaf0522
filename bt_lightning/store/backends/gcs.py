"""Google Cloud Storage as a store: obstore moves the bytes, as the user that gcsfs found.

It adds two things to obstore: the CRC32C of each stored object is compared with what was sent, and
unfinished uploads of killed processes are aborted, which Google would keep, and bill, for ever.
"""

from __future__ import annotations

import base64
import contextlib
import logging
import threading
import xml.etree.ElementTree as ET
from datetime import timezone
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from bt_lightning.errors import StoreTransientError
from bt_lightning.store.backends.obstore_client import NativeStore, make_client, plain
from bt_lightning.store.backends.obstore_config import gs_certain
from bt_lightning.store.interface import translated
from bt_lightning.store.secrets import known_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from bt_lightning.store.backends.obstore_client import ThrottledStore
    from bt_lightning.store.interface import Store

log = logging.getLogger(__name__)

SCHEMES: Final = ("gs", "gcs")
_MOST_PARTS: Final = 8_000
"""Google allows 10,000."""
_GOOGLE: Final = "https://storage.googleapis.com"
_REGIONAL: Final = frozenset({"NON_HIERARCHICAL", "HIERARCHICAL"})
_UNASKED: Final = "credential provider"
"""How obstore's messages name the source of tokens; its other errors mean a refusal."""
_JSON_API: Final = "/storage/v1/"


class GcsStore(NativeStore):
    """A `NativeStore` of a Google bucket.

    Args:
        inner: the same store through gcsfs.
        client: obstore's client of the bucket.
        credential: the source of that client's tokens.
        root: the root of `inner`: the bucket, or a folder in it.
        secrets: texts that no message may hold.
    """

    def __init__(
        self,
        inner: ThrottledStore,
        client: Any,
        credential: Credential,
        root: str,
        secrets: Collection[str],
    ) -> None:
        self._bucket, _, folder = root.partition("/")
        super().__init__(inner, client, folder, secrets, _MOST_PARTS)
        self._credential = credential
        self._lock = threading.Lock()
        self._under_way: set[str] = set()

    @contextlib.contextmanager
    def _sending(self, path: str) -> Iterator[Callable[[bytes], None]]:
        """Compare the stored object's CRC32C with that of the bytes that were sent."""
        import google_crc32c

        checksum: Any = google_crc32c.Checksum  # it has no types
        sent = checksum()
        with self._lock:
            self._under_way.add(path)
        try:
            yield sent.update
        finally:
            with self._lock:
                self._under_way.discard(path)
        names = (self._bucket, path)
        metadata = self._inner.filesystem.call("GET", "b/{}/o/{}", *names, json_out=True)
        stored = metadata.get("crc32c")
        # objects under a customer-supplied encryption key have none
        if stored and stored != base64.b64encode(sent.digest()).decode():
            msg = f"gs://{self._bucket}/{path} does not hold the bytes that were sent"
            raise StoreTransientError(msg)

    def abandon(self, prefix: str, keep: Collection[str]) -> None:  # noqa: ARG002
        """Abort multipart uploads, those to a key in `keep` too: obstore cannot resume them."""
        folder = "/".join(filter(None, (self._folder, prefix)))
        with self._doing("giving up uploads under", prefix):
            for path, upload in list(self._uploads(f"{folder}/" if folder else "")):
                with self._lock:
                    ours = path in self._under_way
                if not ours:
                    with contextlib.suppress(FileNotFoundError):
                        self._ask("DELETE", f"/{quote(path)}", uploadId=upload)

    def _uploads(self, prefix: str) -> Iterator[tuple[str, str]]:
        """Key and id of each multipart upload to a key that begins with `prefix`."""
        start: dict[str, str] = {}
        while True:
            page = ET.fromstring(  # noqa: S314 - of the server that holds the data
                self._ask("GET", "", uploads="", prefix=prefix, **start)
            )
            fields = {_tag(element): element.text or "" for element in page}
            for element in page:
                if _tag(element) == "Upload":
                    upload = {_tag(child): child.text or "" for child in element}
                    if upload["Key"].startswith(prefix):
                        yield upload["Key"], upload["UploadId"]
            before = start
            start = {
                "key-marker": fields.get("NextKeyMarker", ""),
                "upload-id-marker": fields.get("NextUploadIdMarker", ""),
            }
            if fields.get("IsTruncated") != "true" or start == before:
                return

    def _ask(self, method: str, path: str, **query: str) -> bytes:
        """Send one request to the XML API through gcsfs, which itself uses the JSON API."""
        filesystem = self._inner.filesystem
        url = f"{_endpoint(filesystem)}/{self._bucket}{path}"
        _, body = filesystem.call(method, url, **query)
        return bytes(body)

    def _cause(self, error: Exception) -> Exception:
        """The reason why there was no token, if that was the error: obstore reports a refusal."""
        failure = self._credential.failure
        if failure is not None and _UNASKED in str(error):
            return failure
        return super()._cause(error)


def gcs_store(
    inner: ThrottledStore, url: str, options: Mapping[str, object], environment: Mapping[str, str]
) -> Store:
    """The store at `url`; `inner` is the same store through gcsfs. Called for `SCHEMES`.

    Raises:
        StoreError: the options were refused.
    """
    root = url.partition("://")[2].rstrip("/")
    if not plain(root) or not gs_certain(options, environment):
        return inner
    bucket = root.partition("/")[0]
    try:
        import google_crc32c  # noqa: F401 - gcsfs comes with it
        from obstore.store import GCSStore
    except ImportError:
        return inner
    secrets = known_secrets(url, options, environment)
    filesystem = inner.filesystem
    with translated(f"opening {inner.name}", secrets):
        if not _alike(filesystem) or not _regional(filesystem, bucket):
            return inner
    credential, endpoint = Credential(filesystem.credentials), _endpoint(filesystem)
    config: dict[str, Any] = {"credential_provider": credential}
    if endpoint != _GOOGLE:
        config["base_url"] = endpoint
    with translated(f"opening {inner.name}", secrets):
        client = make_client(GCSStore, bucket, config, http=endpoint.startswith("http://"))
    return GcsStore(inner, client, credential, root, secrets)


class Credential:
    """Gives obstore the token of gcsfs, so that both act as one user."""

    def __init__(self, credentials: Any) -> None:
        self._credentials = credentials
        self.failure: Exception | None = None
        """The error of the last renewal that failed."""

    def __call__(self) -> dict[str, object]:
        """The token, renewed first if it is about to expire; called on a thread of obstore's."""
        found = self._credentials.credentials
        try:
            self._credentials.maybe_refresh()
        except Exception as error:
            self.failure = error
            if not found.valid:
                raise
        ends = found.expiry and found.expiry.replace(tzinfo=timezone.utc)
        return {"token": found.token, "expires_at": ends}


def _alike(filesystem: Any) -> bool:
    """Whether gcsfs authenticates by a token and nothing else, as obstore does."""
    from google.auth.credentials import AnonymousCredentials

    found = filesystem.credentials.credentials
    return (
        found is not None  # None means no credentials: a public bucket
        and not isinstance(found, AnonymousCredentials)
        and not getattr(found, "quota_project_id", None)
        and not filesystem.requester_pays
        and not filesystem.session_kwargs
        and not getattr(filesystem, "_use_client_cert", False)
    )


def _regional(filesystem: Any, bucket: str) -> bool:
    """Whether the bucket is certainly not a zonal one, which the XML API does not serve.

    gcsfs asks the same before its own requests, and caches the answer.
    """
    lookup = getattr(filesystem, "_lookup_bucket_type", None)
    if lookup is None:
        return True  # this gcsfs knows no zonal buckets, or was told not to ask
    from fsspec.asyn import sync

    kind = sync(filesystem.loop, lookup, bucket).name
    if kind not in _REGIONAL:
        log.warning(
            "gs://%s is a bucket of the kind %s for gcsfs, which moves the bytes", bucket, kind
        )
    return kind in _REGIONAL


def _endpoint(filesystem: Any) -> str:
    return str(filesystem.base).removesuffix(_JSON_API)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]
