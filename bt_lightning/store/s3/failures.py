"""What goes wrong with one request, and whether another try may help."""

from __future__ import annotations

import http.client
import ssl
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import StoreTransientError
from bt_lightning.store.port import class_of

if TYPE_CHECKING:
    from collections.abc import Mapping

SLOW_DOWN: Final = frozenset({"SlowDown", "503", "429", "TooManyRequests", "ThrottlingException"})
ELSEWHERE: Final = frozenset(
    {
        "301",
        "307",
        "PermanentRedirect",
        "TemporaryRedirect",
        "AuthorizationHeaderMalformed",
        "AuthorizationQueryParametersError",
    }
)
"""The bucket is in another region; the last is said of a signature in a URL."""
NO_UPLOAD: Final = "NoSuchUpload"
MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
UNLISTED: Final = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405", "AccessDenied"})
"""Answers of a server that does not tell of uploads."""
UNKNOWN_TO_SERVER: Final = frozenset(
    {
        "400",
        "501",
        "InvalidArgument",
        "InvalidRequest",
        "NotImplemented",
        "InvalidChecksumAlgorithm",
    }
)
"""Answers of a server to a parameter that it does not know."""
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRANSIENT_CODES: Final = SLOW_DOWN | {
    "BadDigest",  # the bytes changed on the way
    "XAmzContentChecksumMismatch",
    "XAmzContentSHA256Mismatch",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
}
_WORDS: Final = 500


class Failure(Exception):
    """A request that did not do its work. Its text holds no URL."""

    def __init__(self, text: str, *, code: str = "", transient: bool) -> None:
        super().__init__(text)
        self.code = code
        self.transient = transient


def of_reply(status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
    """The failure that an answer tells of."""
    code, message = str(status), ""
    try:
        root = ET.fromstring(body)  # noqa: S314 - of the server that holds the data; 64 KiB at most
    except (ET.ParseError, LookupError, ValueError):
        pass  # a page of a proxy, in an encoding that nobody knows
    else:
        for element in root.iter():
            name = element.tag.rpartition("}")[2]
            if name == "Code":
                code = element.text or code
            elif name == "Message":
                message = (element.text or "")[:_WORDS]
    if region := headers.get("x-amz-bucket-region"):
        message += f" (the bucket is in {region})"
    transient = status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
    return Failure(f"{status} {code} {message}".rstrip(), code=code, transient=transient)


def of_exception(error: Exception) -> Failure:
    """The failure that a client's exception tells of."""
    if isinstance(error, Failure):
        return error
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        transient = status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
        text = f"{status} {code} {str(details.get('Message', ''))[:_WORDS]}"
        return Failure(text.rstrip(), code=code, transient=transient)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, http.client.HTTPException):
        return Failure(type(error).__name__ + ": the answer was cut off", transient=True)
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLCertVerificationError):
        return Failure(text, transient=not isinstance(error, PermissionError | FileNotFoundError))
    return Failure(text, transient=class_of(error) is StoreTransientError)
