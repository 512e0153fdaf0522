"""Check answers of S3 before they are used: the endpoint may be anybody's, and send anything.

An answer that no S3 server gives is an error, `Hostile`, and the request is repeated neither by
this client nor by another. Redirects are not followed, since the request holds credentials. If the
answer names the bucket's region, botocore uses the region's own host.
"""

from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from bt_lightning.store.s3.progress_timeout import Allowance
from bt_lightning.store.s3.request_errors import Hostile, TooLarge

if TYPE_CHECKING:
    from bt_lightning.store.s3.http_connection import Reply

PAGE: Final = Allowance(8 * 1024 * 1024, most_s=600.0)
"""For a page of a listing: 1,000 keys of 1,024 bytes, each byte encoded in three."""
WORKING: Final = Allowance(64 * 1024, most_s=900.0, slowest=0.0)
"""For operations that take minutes, while the server sends a space now and then."""
_MOST_TAGS: Final = 100_000
_SERVER_ERROR: Final = 500
_REDIRECTS: Final = range(300, 400)
_NOT_MODIFIED: Final = 304


def check_reply(reply: Reply) -> Reply:
    """`reply`, checked for redirects and size; the body of a long 5xx error is dropped.

    Raises `Hostile`.
    """
    if reply.status in _REDIRECTS and reply.status != _NOT_MODIFIED and not _names_region(reply):
        host = urlsplit(reply.headers.get("location", "")).hostname or "nowhere"
        msg = (
            f"{reply.status}: the server redirects to {host!r}, which gets no credentials; if that"
            " is the right host, set it as the endpoint"
        )
        raise Hostile(msg)
    if not reply.cut:
        return reply
    if reply.status < _SERVER_ERROR:  # a server error may be a long page of a proxy
        raise TooLarge(len(reply.body))
    return dataclasses.replace(reply, body=b"", cut=False)


def _names_region(reply: Reply) -> bool:
    return "x-amz-bucket-region" in reply.headers or b"Redirect</Code>" in reply.body


def count_tags(body: bytes) -> None:
    """Raise `Hostile` for XML that would take much memory when parsed."""
    if body.count(b"<") > _MOST_TAGS:
        msg = f"the answer has more than {_MOST_TAGS:,} tags"
        raise Hostile(msg)


def parse_xml(body: bytes) -> ET.Element | None:
    """The root element of `body`; None if it is not XML. Raises `Hostile`."""
    count_tags(body)
    if b"<!ENTITY" in body:
        msg = "the answer defines entities"
        raise Hostile(msg)
    try:
        return ET.fromstring(body)  # noqa: S314 - of bounded size
    except (ET.ParseError, LookupError, ValueError):
        return None


def tag(element: ET.Element) -> str:
    """The name of an element, without its namespace."""
    return element.tag.rpartition("}")[2]


def fields(element: ET.Element) -> dict[str, str]:
    """Name -> text of each child of `element`."""
    return {tag(child): child.text or "" for child in element}
