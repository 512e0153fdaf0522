"""`bt://project[@revision][/checkpoint][/file]`, Baseten's name of a checkpoint. Pure.

Nothing is decoded: a `%` is literal. Only the store knows where the checkpoint ends and the file
begins, since both may hold `/`; so they stay one path here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, TypeGuard

from bt_lightning.errors import InvalidSettingError
from bt_lightning.path_layout import safe_parts

SCHEME: Final = "bt://"
LATEST: Final = "latest"
"""The revision that means the most recent job of a project."""

_ESCAPE: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_FORM: Final = "expected bt://project[@job or latest][/checkpoint][/file]"
_LOOPS: Final = "loops:"
_MAX_SHOWN: Final = 200


@dataclass(frozen=True, slots=True)
class BtUri:
    """The parts of a `bt://` URL.

    Raises:
        InvalidSettingError: a part is invalid.
    """

    project: str
    """The project's name, or its form in the store: without `/` and `@`."""
    revision: str = LATEST
    """A job id, or `latest`."""
    path: str = ""
    """Checkpoint id and file; empty for the latest checkpoint."""

    def __post_init__(self) -> None:
        _check_name("project", self.project)
        _check_name("revision", self.revision)
        if self.project.startswith(_LOOPS):
            msg = (
                f"{self.project!r} names a checkpoint of Baseten Loops, which only Baseten's own"
                f" service reads: {_FORM}, of a training project"
            )
            raise InvalidSettingError(msg)
        if self.path and not safe_parts(self.path):
            msg = (
                f"the path {_short(self.path)} of a bt:// URL cannot be used: expected parts"
                " joined by '/', none of them empty, '.' or '..', of at most 255 bytes, without"
                " control characters and backslashes"
            )
            raise InvalidSettingError(msg)

    def __str__(self) -> str:
        """The shortest URL that `parse` reads as this value."""
        revision = "" if self.revision == LATEST else f"@{self.revision}"
        return f"{SCHEME}{self.project}{revision}{'/' if self.path else ''}{self.path}"


def is_bt(path: object) -> TypeGuard[str]:
    """Whether `path` begins with `bt://`, valid or not."""
    return isinstance(path, str) and path.startswith(SCHEME)


def parse(text: str) -> BtUri:
    """Parse a `bt://` URL; one `/` at its end is allowed.

    Raises:
        InvalidSettingError: it is invalid; names the wrong part and what was expected.
    """
    if not is_bt(text):
        msg = f"{_short(text)} is no bt:// URL: {_FORM}"
        raise InvalidSettingError(msg)
    names, slash, path = text[len(SCHEME) :].partition("/")
    if not names:
        msg = f"{_short(text)} names no project: {_FORM}"
        raise InvalidSettingError(msg)
    project, at, revision = names.partition("@")
    if "@" in revision:
        msg = (
            f"{_short(names)} has more than one '@': {_FORM}. In a name, write '-' for '@' and '/',"
            " as the store does"
        )
        raise InvalidSettingError(msg)
    if slash and path.endswith("/"):
        path = path[:-1] or "/"  # bt://project// has an empty part
    return BtUri(project, revision if at else LATEST, path)


def _check_name(what: str, name: str) -> None:
    if not name:
        msg = f"a bt:// URL has an empty {what}: {_FORM}"
    elif "/" in name or "@" in name:
        msg = (
            f"the {what} {_short(name)} cannot stand in a bt:// URL: write '-' for '@' and '/', as"
            " the store does"
        )
    elif _ESCAPE.search(name):
        msg = (
            f"the {what} {_short(name)} of a bt:// URL has a percent escape, and none is decoded:"
            " write the name as it is, with '-' for '@' and '/'"
        )
    elif not safe_parts(name):
        msg = (
            f"the {what} {_short(name)} of a bt:// URL cannot be used: expected at most 255 bytes,"
            " without control characters and backslashes, and not '.' or '..'"
        )
    else:
        return
    raise InvalidSettingError(msg)


def _short(text: object) -> str:
    shown = repr(text)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}..."
