"""Redaction of secrets in messages. Pure.

Known values are hidden, not words that look like secrets: an error may say "credentials".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, quote_plus, unquote

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

_LEAST: Final = 6
"""Characters; a shorter value would occur in any text by chance."""
_PLAIN_URL: Final = re.compile(r"https?://[^@\s?]*")
_PUBLIC: Final = frozenset(
    {
        "account_name",
        "acl",
        "addressing_style",
        "contenttype",
        "profile",
        "project",
        "region_name",
        "serversideencryption",
        "signature_version",
        "storageclass",
    }
)
"""Options whose values are no secrets, and which messages must be able to name."""
_VARIABLE: Final = re.compile(
    r"(AWS|AZURE|FSSPEC|GCSFS|GOOGLE|BOTO)_\w*(KEY|SECRET|TOKEN|PASSWORD|SAS|CONNECTION_STRING)\w*"
)
_LOGGED: Final = re.compile(
    r"(?i)(?:.*_)?(?:(?:API|ACCESS)?KEY|SECRET|TOKEN|PASS(?:WORD|WD|PHRASE)|CREDENTIALS?|SAS|DSN"
    r"|CONNECTION_STRING)(?:_(?:ID|VALUE))?"
)
"""Names of variables whose values must not be in what a training prints. Wider
than `_VARIABLE`: a message must be able to name a place, while the screen still has what a log
hides."""
_LINE: Final = 16
"""Characters; a shorter line of a secret of several lines, as of a PEM file, is none by itself."""
_NAMES_PLACE: Final = ("_FILE", "_PATH", "_URI", "_URL")
_USERINFO: Final = re.compile(r"(?<=://)(?:[^/\s]+|[^/\s@]*:(?!\d+/)[^\s@]*)@")
"""The user of a URL. A password may hold a `/`; `host:port/` is not taken for one."""
_SIGNED: Final = re.compile(
    r"(?i)([?&;](?:sig|signature|token|access_token|key|secret|password|awsaccesskeyid|accountkey"
    r"|sharedaccesssignature|x-(?:amz|goog)-(?:signature|credential|security-token))=)"
    r"[^\s&;\"'<>]+"
)
"""The signature of a presigned URL: clients quote such URLs in their messages."""


def hide(text: str, secrets: Collection[str] = ()) -> str:
    """`text` without `secrets`, and without the user and the signature of any URL in it."""
    for secret in sorted(secrets, key=len, reverse=True):  # one may be the start of another
        text = text.replace(secret, "***")
    return _SIGNED.sub(r"\1***", _USERINFO.sub("***@", text))


def known_secrets(
    url: str, options: Mapping[str, object], environment: Mapping[str, str]
) -> frozenset[str]:
    """Every secret of the store at `url`: from `options`, the environment, and the URL itself."""
    found = [value for name, value in environment.items() if _is_secret(name)]
    return with_spellings({*secrets_of(found), *secrets_of(options), *_of_text(url)})


def log_secrets(environment: Mapping[str, str], known: Collection[str] = ()) -> frozenset[str]:
    """Every secret in the environment that a training may print, as text and inside of JSON.

    `known` are more of them.
    """
    named = [value for name, value in environment.items() if _LOGGED.fullmatch(name)] + [*known]
    lines = [line for value in named for line in value.splitlines() if len(line) >= _LINE]
    in_urls = [one for value in environment.values() if "://" in value for one in _of_text(value)]
    spelled = with_spellings([*named, *lines, *in_urls])
    return spelled | {json.dumps(one)[1:-1] for one in spelled}


def with_spellings(secrets: Collection[str]) -> frozenset[str]:
    """`secrets` also as a URL spells them; without those shorter than `_LEAST`."""
    spelled = [spell(one) for one in secrets for spell in (str, quote, quote_plus, _quote_all)]
    return frozenset(one for one in spelled if len(one) >= _LEAST)


def secrets_of(options: object) -> frozenset[str]:
    """Every string inside nested storage options that may be a secret, and its secret parts."""
    if isinstance(options, str):
        plain = len(options) < _LEAST or _PLAIN_URL.fullmatch(options)
        return frozenset(() if plain else (options, *_of_text(options)))
    if isinstance(options, Mapping):
        inner = [value for name, value in options.items() if str(name).lower() not in _PUBLIC]
        return frozenset().union(*map(secrets_of, inner))
    if isinstance(options, list | tuple):
        return frozenset().union(*map(secrets_of, options))
    return frozenset()


def _is_secret(name: str) -> bool:
    return _VARIABLE.fullmatch(name) is not None and not name.endswith(_NAMES_PLACE)


def _of_text(text: str) -> Iterator[str]:
    """User, password and signature of a URL, and the values of a connection string."""
    info = _USERINFO.search(text)
    whole = info.group().removesuffix("@") if info else ""
    if ":" in whole:  # without a password it may be an Azure container
        parts = (whole, *whole.split(":", 1))
        yield from (one for part in parts for one in (part, unquote(part)) if len(one) >= _LEAST)
    for match in _SIGNED.finditer(f"?{text}"):
        value = match.group().partition("=")[2]
        yield from (one for one in (value, unquote(value)) if len(one) >= _LEAST)


def _quote_all(text: str) -> str:
    return quote(text, safe="")
