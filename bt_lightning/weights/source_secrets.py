"""Secrets by the names that a config gives them, as Baseten has them, and what they open.

A secret's value is in no message. Where a named secret is not on this machine, the credentials of
the environment are used instead, and that is said.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import InvalidSettingError
from bt_lightning.file_limits import RECORD
from bt_lightning.localdir.small_files import read_small_file
from bt_lightning.path_layout import safe_parts
from bt_lightning.store.interface import redact

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.truss_definitions.weights import WeightsSource

BASETEN_SECRETS: Final = Path("/secrets")
"""Where secrets lie in a container of Baseten's: a file each, of the secret's name."""
_VARIABLE: Final = "TRUSS_SECRET_"
_AWS: Final = ("aws_access_key_id", "aws_secret_access_key")
_DEFAULT_REGION: Final = "us-east-1"
_ENVIRONMENT: Final = "the credentials of this environment are used"
_COREWEAVE: Final = "https://cwobject.com"


@dataclass(frozen=True, slots=True)
class Access:
    """How one source is opened."""

    url: str = field(repr=False)
    """As fsspec takes it."""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Options of the fsspec filesystem."""
    token: str | None = field(default=None, repr=False)
    """A bearer token."""


class Secrets:
    """Looks secrets up as Truss does: a file of that name, else `$TRUSS_SECRET_<name>`."""

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder, self._environ = folder, environ

    def value(self, name: str) -> str | None:
        """The value of the secret `name`; None if it is not here.

        Raises:
            InvalidSettingError: the name is a path, or its file cannot be read.
        """
        if "/" in name or not safe_parts(name):
            msg = f"the secret's name {name!r} is a path, expected the name of a secret"
            raise InvalidSettingError(msg)
        try:
            return read_small_file(self.folder / name, RECORD).decode().strip() or None
        except FileNotFoundError:
            return self._environ.get(f"{_VARIABLE}{name}") or None
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no small text file"
            msg = f"the secret {self.folder / name} cannot be read: {why}"
            raise InvalidSettingError(msg) from None


def access_to(source: WeightsSource, secrets: Secrets, notice: Callable[[str], object]) -> Access:
    """How `source` is opened, with the secret that it names.

    Raises:
        InvalidSettingError: the secret has not the form that the kind of source needs.
    """
    scheme, _, rest = source.source.partition("://")
    secret = _secret(source, secrets, notice)
    if scheme in {"hf", "https", "bt", "file"}:
        return Access(source.source, token=secret)
    if scheme in {"s3", "r2", "cw"}:
        return _of_s3(scheme, rest, source, secret)
    if scheme == "gs":
        return Access(source.source, {"token": _json(secret, source)} if secret else {})
    account, _, path = rest.partition("/")
    return Access(f"abfs://{path}", {"account_name": account, **_of_azure(secret)})


def _secret(source: WeightsSource, secrets: Secrets, notice: Callable[[str], object]) -> str | None:
    auth, shown = source.auth, redact(source.source)
    name = source.auth_secret_name or (auth.auth_secret_name if auth else None)
    if name is None:
        if auth is not None:
            notice(f"{shown}: {auth.auth_method.value} works on Baseten only, so {_ENVIRONMENT}")
        return None
    value = secrets.value(name)
    if value is None:
        used = "no token is sent" if shown.startswith("https://") else _ENVIRONMENT
        where = f"neither in {secrets.folder} nor in ${_VARIABLE}{name}"
        notice(f"{shown}: the secret {name} is {where}, so {used}")
    return value


def _of_s3(scheme: str, rest: str, source: WeightsSource, secret: str | None) -> Access:
    options: dict[str, Any] = {}
    client: dict[str, Any] = {}
    if secret is not None:
        given = _json(secret, source)
        missing = [name for name in _AWS if not isinstance(given.get(name), str)]
        if missing:
            lacks = " and no ".join(missing)
            msg = f"the secret of {redact(source.source)} has no {lacks}: add it as text"
            raise InvalidSettingError(msg)
        options = {"key": given[_AWS[0]], "secret": given[_AWS[1]]}
        if given.get("aws_session_token"):
            options["token"] = str(given["aws_session_token"])
        client["region_name"] = str(given.get("aws_region") or _DEFAULT_REGION)
    elif source.auth is not None and source.auth.aws_oidc_region:
        client["region_name"] = source.auth.aws_oidc_region
    if scheme == "r2":
        account, dot, rest = rest.partition(".")
        if not dot:
            msg = f"{source.source} names no account, expected r2://account_id.bucket/path"
            raise InvalidSettingError(msg)
        client |= {
            "endpoint_url": f"https://{account}.r2.cloudflarestorage.com",
            "region_name": "auto",
        }
    elif scheme == "cw":
        from bt_lightning.store.backends.fsspec_store import default_options

        client["endpoint_url"] = _COREWEAVE
        virtual = {"s3": {"addressing_style": "virtual"}}
        options["config_kwargs"] = {**default_options("s3")["config_kwargs"], **virtual}
    if client:
        options["client_kwargs"] = client
    return Access(f"s3://{rest}", options)


def _of_azure(secret: str | None) -> dict[str, Any]:
    """A connection string, or the options of adlfs as a JSON object."""
    if secret is None:
        return {}
    try:
        given = json.loads(secret)
    except ValueError:
        return {"connection_string": secret}
    return given if isinstance(given, dict) else {"connection_string": secret}


def _json(secret: str, source: WeightsSource) -> dict[str, Any]:
    try:
        given = json.loads(secret)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        shown = redact(source.source)
        msg = f"the secret of {shown} is no JSON object, expected the credentials as one"
        raise InvalidSettingError(msg)
    return given
