"""Invalidation of the listings that fsspec caches in this process."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def forget_listings(url: str) -> None:
    """Clear the listings of every fsspec filesystem object of this process that may hold `url`.

    fsspec caches one object for each set of options and each thread, with its listings, which do
    not see what other clients write. Lightning asks such an object which names are taken.
    """
    spec = sys.modules.get("fsspec.spec")
    if spec is None:
        return
    scheme = url.partition("://")[0]
    for kind in _kinds(spec.AbstractFileSystem):
        protocols = (kind.protocol,) if isinstance(kind.protocol, str) else tuple(kind.protocol)
        if scheme in protocols:
            for filesystem in list(vars(kind).get("_cache", {}).values()):
                filesystem.invalidate_cache()


def _kinds(kind: type[Any]) -> Iterator[type[Any]]:
    yield kind
    for other in kind.__subclasses__():
        yield from _kinds(other)
