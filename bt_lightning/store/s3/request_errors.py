"""Failures of a single S3 request, and whether another try may succeed."""

from __future__ import annotations

import http.client
import ssl
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import StoreError, StorePermanentError, StoreTransientError
from bt_lightning.store.interface import AnsweredTooSlowlyError, class_of
from bt_lightning.store.s3.progress_timeout import TooSlow

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
"""Codes for a bucket in another region; the last one is for a signature in a URL."""
NO_UPLOAD: Final = "NoSuchUpload"
NO_BUCKET: Final = "NoSuchBucket"
MISSING: Final = frozenset({"404", "NoSuchKey", "NotFound"})
TAKEN: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
"""Codes for a key that is taken, in answer to a conditional write."""
UNLISTED: Final = frozenset({"NotImplemented", "501", "MethodNotAllowed", "405", "AccessDenied"})
"""Codes of a server that does not list uploads."""
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
"""Codes of a server for a parameter that it does not know."""
_EXPIRED: Final = frozenset(
    {"ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"}
)
_UNKNOWN_USER: Final = frozenset({"InvalidAccessKeyId", "InvalidToken"})
_NO_CREDENTIALS: Final = frozenset(
    {
        "ConfigParseError",
        "CredentialRetrievalError",
        "MetadataRetrievalError",
        "NoCredentialsError",
        "PartialCredentialsError",
        "SSOError",
        "TokenRetrievalError",
    }
)
"""botocore's exception classes for sources of credentials that fail."""
_TRANSIENT_STATUS: Final = frozenset({408, 425, 429, 500, 502, 503, 504, 509})
_TRANSIENT_CODES: Final = SLOW_DOWN | {
    "BadDigest",  # the bytes changed in transit
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
    """A request that failed. Its text holds no URL."""

    def __init__(self, text: str, *, code: str = "", transient: bool) -> None:
        super().__init__(text)
        self.code = code
        self.transient = transient


class SlowAnswer(Failure):
    """An answer that came too slowly; the request is not repeated at once."""

    def __init__(self, text: str) -> None:
        super().__init__(text, transient=True)


class Hostile(Failure):
    """An answer that no S3 server gives. The request is not repeated, by no client."""

    def __init__(self, text: str) -> None:
        super().__init__(text, transient=False)


class TooLarge(Hostile):
    """An answer that is larger than its limit."""

    def __init__(self, size: int) -> None:
        super().__init__(f"the answer has more than {size:,} bytes")


def of_store(failure: Failure, text: str) -> StoreError:
    """The store error for a failure, with the message `text`."""
    if isinstance(failure, SlowAnswer):
        return AnsweredTooSlowlyError(text)
    return (StoreTransientError if failure.transient else StorePermanentError)(text)


def of_reply(status: int, body: bytes, headers: Mapping[str, str]) -> Failure:
    """The failure that an error answer describes."""
    code, message = str(status), ""
    try:
        root = ET.fromstring(body)  # noqa: S314 - of the server that holds the data; 64 KiB at most
    except (ET.ParseError, LookupError, ValueError):
        pass  # a page of a proxy, or an unknown encoding
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


def of_credentials(failure: Failure, *, has_token: bool) -> Failure | None:
    """The failure to raise if the credentials have expired; None if it is about something else.

    Expired credentials are a transient failure: they may be renewed. `has_token` says whether they
    have a session token.
    """
    if failure.code in _UNKNOWN_USER:
        return failure
    bare = failure.code == "400" and has_token  # the answer to a HEAD has no body with a code
    if failure.code not in _EXPIRED | _NO_CREDENTIALS and not bare:
        return None
    text = (
        "the AWS credentials, or their session token, have expired, and there are no newer ones:"
        f" renew them ({failure})"
    )
    return Failure(text, code=failure.code, transient=True)


def of_exception(error: Exception) -> Failure:
    """The failure for an exception of botocore or of a connection."""
    if isinstance(error, Failure | TooSlow):
        return error if isinstance(error, Failure) else SlowAnswer(str(error))
    from botocore.exceptions import ClientError

    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        code = str(details.get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        transient = status in _TRANSIENT_STATUS or code in _TRANSIENT_CODES
        text = f"{status} {code} {str(details.get('Message', ''))[:_WORDS]}"
        return Failure(text.rstrip(), code=code, transient=transient)
    text = f"{type(error).__name__}: {error}"
    names = {kind.__name__ for kind in type(error).__mro__} & _NO_CREDENTIALS
    if names:
        return Failure(text, code=min(names), transient=False)
    if isinstance(error, http.client.HTTPException):
        return Failure(type(error).__name__ + ": the answer was cut off", transient=True)
    if isinstance(error, OSError) and not isinstance(error, ssl.SSLCertVerificationError):
        return Failure(text, transient=not isinstance(error, PermissionError | FileNotFoundError))
    return Failure(text, transient=class_of(error) is StoreTransientError)
