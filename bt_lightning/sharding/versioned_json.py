"""Small files of JSON with a format and a version, that anybody may have written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bt_lightning.errors import CheckpointCorruptError, FormatVersionError
from bt_lightning.file_limits import parse_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.file_limits import Bounds

T = TypeVar("T")


def read_versioned(
    data: bytes, form: tuple[str, int], bounds: Bounds, parse: Callable[[dict[str, Any]], T]
) -> T:
    """What `parse` makes of a JSON object of `form`, its format and the greatest version.

    The message of an error begins with "it", so the caller names the file.

    Raises:
        FormatVersionError: it is of a newer version.
        CheckpointCorruptError: it is no such object, or `parse` found it wrong by an
            `ArithmeticError`, `AttributeError`, `LookupError`, `TypeError` or `ValueError`.
    """
    document = parse_json(data, bounds)
    if not isinstance(document, dict) or document.get("format") != form[0]:
        refuse(f"it is no JSON object of format {form[0]!r}")
    version = number_within(document.get("version"), 1)
    if version > form[1]:
        msg = f"it has version {version}, this bt_lightning reads up to {form[1]}: upgrade it"
        raise FormatVersionError(msg)
    try:
        return parse(document)
    except CheckpointCorruptError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        msg = f"it lacks {error}" if isinstance(error, KeyError) else f"it has an error: {error}"
        raise CheckpointCorruptError(msg) from error


def number_within(value: object, least: int, most: int = 2**63) -> int:
    """Return `value` if it is a whole number in this range.

    Raises:
        CheckpointCorruptError: it is none.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        refuse(f"it has {value!r:.50}, expected a whole number from {least} to {most}")
    return value


def refuse(reason: str) -> NoReturn:
    """Raise `CheckpointCorruptError`."""
    raise CheckpointCorruptError(reason)
