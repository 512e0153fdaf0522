"""Rules for field values. Each returns what was expected and what to do, or None."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final, TypeAlias

from bt_lightning.path_layout import hidden, safe_parts

if TYPE_CHECKING:
    from collections.abc import Callable

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_MEMORY: Final = re.compile(r"[0-9]+(\.[0-9]*)?([kMGTPE]|[KMGTPE]i|[eE][0-9]+)?")


def at_least(least: int, advice: str) -> Callable[[int], str | None]:
    """The rule that a number is at least `least`; `advice` says what to do."""

    def rule(value: int) -> str | None:
        return None if value >= least else f"expected at least {least}: {advice}"

    return rule


def _not_blank(value: str) -> str | None:
    return None if value.strip() else "expected text: write one, or leave the field out"


def _name(value: str) -> str | None:
    if not value.strip() or _CONTROL.search(value):
        return "expected a name without control characters: write it as Baseten shows it"
    return None


def _is_id(value: str) -> str | None:
    if "/" in value or not safe_parts(value):
        return (
            "expected an id such as 'gvpql31', which is no path: take it from"
            " `bt-lightning jobs list` or from Baseten's page of the job"
        )
    return None


def _checkpoint(value: str) -> str | None:
    if value == "." or (safe_parts(value) and not hidden(value)):
        return None
    return (
        "expected the name of a checkpoint, a relative path such as 'checkpoint-20', without '..',"
        " dot folders, empty parts and control characters: take it from"
        " `bt-lightning checkpoints list`"
    )


def _path(value: str) -> str | None:
    if not value.strip() or _CONTROL.search(value):
        return "expected a path without control characters: write one, or leave the field out"
    return None


def _absolute(value: str) -> str | None:
    if not value.startswith("/") or _CONTROL.search(value):
        return "expected an absolute path such as '/models/base': begin it with '/'"
    return None


def _memory(value: str) -> str | None:
    if _MEMORY.fullmatch(value):
        return None
    return "expected a number with a unit, such as '16Gi' or '512Mi': write it so"


Text: TypeAlias = Annotated[str, _not_blank]
"""Text that is not blank."""
Name: TypeAlias = Annotated[str, _name]
"""Name of a project, a job or a secret: may hold blanks and `/`."""
Id: TypeAlias = Annotated[str, _is_id]
"""Id of a job or a run: one path part that stays in its folder."""
CheckpointName: TypeAlias = Annotated[str, _checkpoint]
"""Folder of a checkpoint below its job's; `.` is the job's folder itself."""
FilePath: TypeAlias = Annotated[str, _path]
AbsolutePath: TypeAlias = Annotated[str, _absolute]
Memory: TypeAlias = Annotated[str, _memory]
"""An amount of memory as Kubernetes writes it, such as `16Gi`."""
