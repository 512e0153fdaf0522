"""Credentials, region and endpoint for `signed_reads`, where they are certain. Pure.

None means that botocore might find other credentials or another endpoint than this module, or that
this cannot be told: then botocore's client asks, slower but surely as the right user at the right
endpoint.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]")
"""Bucket names for every way of addressing; names with dots do not fit every certificate."""
_REGION: Final = re.compile(r"(?:af|ap|ca|eu|il|me|mx|sa|us)-[a-z]+-[0-9]")
"""Regions of the partition `aws`; other partitions have other domains."""
_DEFAULT_REGION: Final = "us-east-1"
_PLAIN: Final = ("key", "secret", "token", "endpoint_url")
_CLIENT: Final = ("endpoint_url", "region_name")
_VARIABLES: Final = {
    "AWS_ACCESS_KEY_ID": "key",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_SESSION_TOKEN": "token",
    "AWS_DEFAULT_REGION": "region",
    "AWS_ENDPOINT_URL": "endpoint",
    "AWS_ENDPOINT_URL_S3": "endpoint_s3",
}
_OPTIONS: Final = {
    "FSSPEC_S3_KEY": "key",
    "FSSPEC_S3_SECRET": "secret",
    "FSSPEC_S3_TOKEN": "token",
    "FSSPEC_S3_ENDPOINT_URL": "endpoint_url",
}
"""Options of s3fs that fsspec reads from the environment if the caller gives none."""
_HARMLESS: Final = {"AWS_EC2_METADATA_DISABLED", "AWS_PAGER", "AWS_REGION"}
"""botocore reads the first one only for credentials of the machine, and the others not at all."""
_PROFILE: Final = {
    "aws_access_key_id": "key",
    "aws_secret_access_key": "secret",
    "aws_session_token": "token",
    "region": "region",
    "endpoint_url": "endpoint",
}
_NO_MATTER: Final = {"output", "cli_pager", "cli_auto_prompt", "cli_timestamp_format"}
_ELSEWHERE: Final = ("AWS_", "FSSPEC_", "BOTO_")
_TRUST: Final = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE")


@dataclass(frozen=True, slots=True)
class BucketAccess:
    """Endpoint and credentials of a bucket."""

    url: str
    """URL of the bucket, without a `/` at its end; no secret."""
    region: str
    key: str = field(repr=False)
    secret: str = field(repr=False)
    token: str | None = field(repr=False, default=None)
    trust: str | None = None
    """File of certificates to trust instead of the default ones."""


def find_access(
    bucket: str,
    options: Mapping[str, object],
    environment: Mapping[str, str],
    profile: Mapping[str, str],
) -> BucketAccess | None:
    """Endpoint and credentials of a bucket; None if botocore has to find them.

    `options` are those of s3fs; `profile` is the default profile in the user's AWS files.
    """
    if not _NAME.fullmatch(bucket) or _unsure(environment):
        return None
    if not {*_PROFILE, *_NO_MATTER}.issuperset(profile):
        return None
    given = _of_options({**_set_by_fsspec(environment), **options})
    if given is None:
        return None
    env = {name: environment.get(variable, "") for variable, name in _VARIABLES.items()}
    file = {name: profile.get(line, "") for line, name in _PROFILE.items()}
    keys = next((own for own in (given, env, file) if own.get("key") or own.get("secret")), {})
    region = given.get("region") or env["region"] or file["region"]
    endpoint = given.get("endpoint") or env["endpoint_s3"] or env["endpoint"] or file["endpoint"]
    url = _bucket_url(bucket, endpoint, region)
    if url is None or not keys.get("key") or not keys.get("secret"):
        return None
    token = keys.get("token") or None
    trust = next((environment[name] for name in _TRUST if environment.get(name)), None)
    return BucketAccess(url, region or _DEFAULT_REGION, keys["key"], keys["secret"], token, trust)


def _unsure(environment: Mapping[str, str]) -> bool:
    """Whether a variable is set that may change what botocore does."""
    known = {*_VARIABLES, *_OPTIONS, *_HARMLESS, *_TRUST}
    if any(environment.get(name) == "" for name in _OPTIONS):
        return True  # s3fs would use the empty value
    for name, value in environment.items():
        if not value:
            continue
        proxy = name.lower().endswith("_proxy") and name.lower() != "no_proxy"
        if proxy or (name.startswith(_ELSEWHERE) and name not in known):
            return True
    return False


def _set_by_fsspec(environment: Mapping[str, str]) -> dict[str, object]:
    """The options that fsspec reads from the environment; it parses values that are JSON."""
    found: dict[str, object] = {}
    for variable, name in _OPTIONS.items():
        if variable in environment:
            text = environment[variable]
            try:
                found[name] = json.loads(text)
            except ValueError:
                found[name] = text
    return found


def _of_options(options: Mapping[str, object]) -> dict[str, str] | None:
    client = options.get("client_kwargs", {})
    if not isinstance(client, dict) or not set(_CLIENT).issuperset(client):
        return None
    if not {*_PLAIN, "client_kwargs"}.issuperset(options):
        return None
    given = {name: value for name, value in options.items() if name in _PLAIN}
    first, second = given.pop("endpoint_url", None), client.get("endpoint_url")
    if first and second and first != second:
        return None  # s3fs refuses two endpoints
    given.update(endpoint=first or second, region=client.get("region_name"))
    found = {name: value for name, value in given.items() if value is not None}
    if not all(isinstance(value, str) for value in found.values()):
        return None
    return {name: str(value) for name, value in found.items()}


def _bucket_url(bucket: str, endpoint: str, region: str) -> str | None:
    """The bucket's URL as botocore makes it: a path of a given endpoint, else a host name."""
    if not endpoint:
        at = "s3" if region == _DEFAULT_REGION else f"s3.{region}"
        return f"https://{bucket}.{at}.amazonaws.com" if _REGION.fullmatch(region) else None
    try:
        url = urlsplit(endpoint)
        port = url.port
    except ValueError:
        return None
    plain = url.path in {"", "/"} and not url.query and not url.fragment
    if url.scheme not in {"http", "https"} or not url.hostname or not plain:
        return None
    ours = {url.hostname, f"{url.hostname}:{port}"}  # in lower case, and without a user
    usual = {"http": 80, "https": 443}[url.scheme]
    if ":" in url.hostname or url.netloc not in ours or port == usual:
        return None
    if url.hostname.endswith((".amazonaws.com", ".amazonaws.com.cn")):
        return None  # host names of AWS select more than this module knows
    return f"{url.scheme}://{url.netloc}/{bucket}"
