"""Azure as a store: obstore moves the bytes where it is certain to act as the same user as adlfs.

Blocks of an unfinished upload need no cleaning: Azure deletes them after a week.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from bt_lightning.store.backends.obstore_client import NativeStore, make_client, plain
from bt_lightning.store.backends.obstore_config import az_config
from bt_lightning.store.interface import translated
from bt_lightning.store.secrets import known_secrets, secrets_of, with_spellings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bt_lightning.store.backends.obstore_client import ThrottledStore
    from bt_lightning.store.interface import Store

SCHEMES: Final = ("az",)
_MOST_PARTS: Final = 40_000
"""Azure allows 50,000 blocks."""


def azure_store(
    inner: ThrottledStore, url: str, options: Mapping[str, object], environment: Mapping[str, str]
) -> Store:
    """The store at `url`; `inner` is the same store through adlfs. Called for `SCHEMES`.

    Raises:
        StoreError: the options were refused.
    """
    root = url.partition("://")[2].rstrip("/")
    container, _, folder = root.partition("/")
    config = az_config(options, environment)
    if not plain(root) or "@" in container or config is None:
        return inner
    try:
        from obstore.store import AzureStore
    except ImportError:
        return inner
    http = str(config.get("endpoint", "")).startswith("http://")
    secrets = known_secrets(url, options, environment) | with_spellings(secrets_of(config))
    with translated(f"opening {inner.name}", secrets):
        client = make_client(AzureStore, container, config, http=http)
    return NativeStore(inner, client, folder, secrets, _MOST_PARTS)
