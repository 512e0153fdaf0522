"""The configuration of obstore's Azure and Google clients, from the options of fsspec's. Pure.

Where fsspec's client might find other credentials than obstore's, or where this module cannot
tell, there is none: then fsspec's client moves the bytes, slower but surely as the right user.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

    Config = dict[str, object]

_AZ_KNOWN: Final = (
    "account_name",
    "account_key",
    "connection_string",
    "sas_token",
    "client_id",
    "client_secret",
    "tenant_id",
)
"""adlfs takes each as an option, or from a variable AZURE_STORAGE_...."""
_AZ_SECRETS: Final = ("account_key", "connection_string", "sas_token", "client_secret")
_AZ_NEEDS: Final = {
    "account_key": ("account_key",),
    "sas_token": ("sas_token",),
    "client_secret": ("client_id", "client_secret", "tenant_id"),
}
_AZ_NAMES: Final = {"sas_token": "sas_key"}
_AZ_NATIVE: Final = "AZURE_"
"""Prefix of the variables that obstore reads; adlfs reads only AZURE_STORAGE_ ones."""
_GS_KNOWN: Final = ("access", "endpoint_url", "project", "token")
_GS_NATIVE: Final = (
    "GOOGLE_BASE_URL",
    "GOOGLE_BEARER_TOKEN",
    "GOOGLE_SERVICE_ACCOUNT",
    "GOOGLE_SERVICE_ACCOUNT_KEY",
    "GOOGLE_SERVICE_ACCOUNT_PATH",
    "GOOGLE_SKIP_SIGNATURE",
    "SERVICE_ACCOUNT",
)
"""Variables that obstore reads and gcsfs does not."""


def az_config(options: Mapping[str, object], environment: Mapping[str, str]) -> Config | None:
    """Options of `obstore.store.AzureStore`; None if adlfs has to move the bytes."""
    if not set(_AZ_KNOWN).issuperset(options):
        return None
    variables = {f"AZURE_STORAGE_{name.upper()}": name for name in _AZ_KNOWN}
    if any(name.startswith(_AZ_NATIVE) and name not in variables for name in environment):
        return None
    given = {name: environment.get(variable) for variable, name in variables.items()}
    given.update({name: str(value) for name, value in options.items() if value})
    facts = {name: value for name, value in given.items() if value}
    if len(set(_AZ_SECRETS).intersection(facts)) != 1:
        return None  # none: adlfs finds its own; two: the clients do not prefer the same one
    if "connection_string" in facts:
        return _of_connection_string(facts["connection_string"])
    kind = next(name for name in _AZ_SECRETS if name in facts)
    names = ("account_name", *_AZ_NEEDS[kind])
    if not set(names).issubset(facts):
        return None
    return {_AZ_NAMES.get(name, name): facts[name].lstrip("?") for name in names}


def gs_certain(options: Mapping[str, object], environment: Mapping[str, str]) -> bool:
    """Whether `obstore.store.GCSStore` and gcsfs would be configured alike."""
    return set(_GS_KNOWN).issuperset(options) and not any(map(environment.get, _GS_NATIVE))


def _of_connection_string(text: str) -> Config | None:
    pairs = dict(part.split("=", 1) for part in text.split(";") if "=" in part)
    names = {name.lower(): value for name, value in pairs.items()}
    account, key = names.get("accountname"), names.get("accountkey")
    if not account or not key or "sharedaccesssignature" in names:
        return None
    suffix = names.get("endpointsuffix", "core.windows.net")
    protocol = names.get("defaultendpointsprotocol", "https")
    endpoint = names.get("blobendpoint") or f"{protocol}://{account}.blob.{suffix}"
    return {"account_name": account, "account_key": key, "endpoint": endpoint.rstrip("/")}
