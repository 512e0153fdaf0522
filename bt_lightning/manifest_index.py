"""The index of a job's manifests in a store: a listing reads it instead of each manifest.

It is a copy, and never the truth: an entry counts only for an object of the size and the MD5 that
it states, which the store's own listing has to give. So an index that is old, or missing, costs
reads, and shows nothing that is not there.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from bt_lightning.file_limits import RECORD, parse_json
from bt_lightning.manifest_summary import summary_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.manifest import Manifest

_FORMAT: Final = "bt_lightning.manifests"
_VERSION: Final = 1
_MOST_BYTES: Final = RECORD.size // 2
"""Of an index; the newest checkpoints go first."""


class IndexedManifest(NamedTuple):
    """What an index says of one manifest."""

    size: int
    """Bytes."""
    md5: str
    summary: dict[str, Any]
    """For `manifest_summary.listed_manifest`."""


def index_bytes(manifests: Mapping[str, Manifest]) -> bytes:
    """The index of the manifests of one node of a job, by their folders."""
    left, texts = _MOST_BYTES, []
    newest = sorted(manifests.items(), key=lambda one: one[1].order, reverse=True)
    for folder, manifest in newest:
        summary = summary_of(manifest)
        if summary is None:
            continue
        data = manifest.to_bytes()
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        text = f"{json.dumps(folder)}: {json.dumps([len(data), md5, summary])}"
        left -= len(text)
        if left < 0:
            break
        texts.append(text)
    head = f'{{"format": "{_FORMAT}", "version": {_VERSION}, "manifests": {{\n'
    return (head + ",\n".join(texts) + "\n}}\n").encode("ascii")


def indexed_manifests(data: bytes) -> dict[str, IndexedManifest]:
    """Folder -> what the index says of its manifest.

    Raises:
        ValueError: it is no index, or one of a newer version.
    """
    payload = parse_json(data, RECORD)
    if not isinstance(payload, dict) or payload.get("format") != _FORMAT:
        msg = f"expected a JSON object of format {_FORMAT!r}"
        raise ValueError(msg)
    if payload.get("version") != _VERSION or not isinstance(payload.get("manifests"), dict):
        msg = f"the index has version {payload.get('version')!r}, expected {_VERSION}"
        raise ValueError(msg)
    found = {}
    for folder, entry in payload["manifests"].items():
        if not isinstance(entry, list) or [type(one) for one in entry] != [int, str, dict]:
            msg = f"the entry of {folder!r} is not a size, an MD5 and a summary"
            raise ValueError(msg)
        found[folder] = IndexedManifest(*entry)
    return found
