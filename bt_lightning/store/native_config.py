"""What a native client of Google Cloud Storage or Azure is told, from what fsspec's would be told.

Pure. None means that fsspec's client might find other credentials than the native one, or that
nobody can tell: then fsspec's moves the bytes, slower and surely as the right user.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Config = dict[str, object]

_GS_KNOWN: Final = frozenset({"token", "endpoint_url"})
_GS_ENV: Final = "GOOGLE_APPLICATION_CREDENTIALS"
_GS_FILES: Final = {
    "service_account": "service_account",
    "authorized_user": "application_credentials",
}
"""Type of a credentials file -> the native option that takes its path."""
_GS_NATIVE: Final = ("GOOGLE_SERVICE_ACCOUNT", "GOOGLE_BEARER_TOKEN", "GOOGLE_BASE_URL")
"""Variables that only the native client reads (and longer ones that begin so)."""

_AZ_KNOWN: Final = (
    "account_name",
    "account_key",
    "connection_string",
    "sas_token",
    "client_id",
    "client_secret",
    "tenant_id",
)
"""adlfs takes each as an option, or as a variable AZURE_STORAGE_...."""
_AZ_SECRETS: Final = ("account_key", "connection_string", "sas_token", "client_secret")
_AZ_NEEDS: Final = {
    "account_key": ("account_key",),
    "sas_token": ("sas_token",),
    "client_secret": ("client_id", "client_secret", "tenant_id"),
}
_AZ_NAMES: Final = {"sas_token": "sas_key"}
_AZ_NATIVE: Final = ("AZURE_",)


def gs_config(
    options: Mapping[str, object],
    environment: Mapping[str, str],
    file_type: Callable[[str], str | None],
) -> Config | None:
    """Options of `obstore.store.GCSStore`; None if gcsfs has to do it.

    `file_type` tells the `type` of a credentials file, None if it is none.
    """
    if not _GS_KNOWN.issuperset(options) or _any_begins(environment, _GS_NATIVE):
        return None
    config: Config = {}
    place = options.get("endpoint_url") or environment.get("STORAGE_EMULATOR_HOST")
    if place and "://" not in str(place):
        return None
    if place:
        config["base_url"] = str(place).rstrip("/")
    found = _gs_credentials(options.get("token"), environment, file_type)
    return None if found is None else {**config, **found}


def _gs_credentials(
    token: object, environment: Mapping[str, str], file_type: Callable[[str], str | None]
) -> Config | None:
    if isinstance(token, dict):
        usable = token.get("type") == "service_account"
        return {"service_account_key": json.dumps(token)} if usable else None
    path = environment.get(_GS_ENV) if token in {None, "google_default"} else token
    option = _GS_FILES.get(file_type(path) or "") if isinstance(path, str) and path else None
    return None if option is None else {option: path}


def az_config(options: Mapping[str, object], environment: Mapping[str, str]) -> Config | None:
    """Options of `obstore.store.AzureStore`; None if adlfs has to do it."""
    if not set(_AZ_KNOWN).issuperset(options):
        return None
    variables = {f"AZURE_STORAGE_{name.upper()}": name for name in _AZ_KNOWN}
    if any(name.startswith(_AZ_NATIVE) and name not in variables for name in environment):
        return None
    given = {name: environment.get(variable) for variable, name in variables.items()}
    given.update({name: str(value) for name, value in options.items() if value})
    facts = {name: value for name, value in given.items() if value}
    if len(set(_AZ_SECRETS).intersection(facts)) != 1:
        return None  # none: adlfs has ways of its own; two: who wins is not the same in both
    if "connection_string" in facts:
        return _of_connection_string(facts["connection_string"])
    kind = next(name for name in _AZ_SECRETS if name in facts)
    names = ("account_name", *_AZ_NEEDS[kind])
    if not set(names).issubset(facts):
        return None
    return {_AZ_NAMES.get(name, name): facts[name].lstrip("?") for name in names}


def _of_connection_string(text: str) -> Config | None:
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {name.lower(): value for name, value in pairs.items()}
    account, key = names.get("accountname"), names.get("accountkey")
    if not account or not key or "sharedaccesssignature" in names:
        return None
    suffix = names.get("endpointsuffix", "core.windows.net")
    protocol = names.get("defaultendpointsprotocol", "https")
    place = names.get("blobendpoint") or f"{protocol}://{account}.blob.{suffix}"
    return {"account_name": account, "account_key": key, "endpoint": place.rstrip("/")}


def _any_begins(environment: Mapping[str, str], starts: tuple[str, ...]) -> bool:
    return any(name.startswith(starts) for name in environment)
