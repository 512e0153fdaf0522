"""How far a save of several ranks has come, as the files say that its ranks meet by."""

from __future__ import annotations

import contextlib
import os
import re
from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_NAME = re.compile(r"([0-9a-f]{32})-([1-9][0-9]*)")


class Stage(IntEnum):
    """What is there last of a save."""

    NOTHING = 0
    JOINED = 1
    """A worker has begun with its part."""
    WRITING = 2
    """A file of a part; in a store: the claim of its folder."""
    SOME = 3
    """The record of a part."""
    WHOLE = 4
    """The records of all parts."""
    DECIDED = 5
    """The verdict, which is not carried out."""
    DONE = 6
    """It is committed, or given up."""


class SaveWatch:
    """The saves of one start; made before it."""

    def __init__(self, folders: list[Path], ranks: int) -> None:
        """`folders`: of gathers in directories, or of a meeting place in a store."""
        self._folders, self._ranks = folders, ranks
        self._old = {run for folder in folders for run, _, _ in _gathers(folder)}
        self._homes: dict[tuple[Path, int], Path] = {}

    def newest(self) -> int:
        """The greatest number of a save of this start; 0 if there is none."""
        return max(
            (number for folder in self._folders for number, _ in self._new(folder)), default=0
        )

    def stage(self, number: int) -> Stage:
        """How far the save of this number is, in that place where it is farthest."""
        return max(self._look(folder, number) for folder in self._folders)

    def _new(self, folder: Path) -> Iterator[tuple[int, Path]]:
        for run, number, home in _gathers(folder):
            if run not in self._old:
                yield number, home

    def _look(self, folder: Path, number: int) -> Stage:
        home = self._homes.get((folder, number))
        if home is None:
            home = next((path for found, path in self._new(folder) if found == number), None)
            if home is None:
                return Stage.NOTHING
            self._homes[folder, number] = home
        try:
            names = set(os.listdir(home))  # noqa: PTH208 - again and again
        except FileNotFoundError:
            return Stage.DONE
        return self._of(names, home)

    def _of(self, names: set[str], home: Path) -> Stage:
        parts = sum(name.startswith("part-") for name in names)
        begun = "claim.json" in names or _has_files(home / "files")
        reached = {
            Stage.DONE: "done" in names,
            Stage.DECIDED: "outcome.json" in names,
            Stage.WHOLE: parts == self._ranks,
            Stage.SOME: parts > 0,
            Stage.WRITING: begun,
        }
        return next((stage for stage, there in reached.items() if there), Stage.JOINED)


def _gathers(folder: Path) -> Iterator[tuple[str, int, Path]]:
    """Run, number and folder of each save."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(folder):  # noqa: PTH208 - again and again
            if found := _NAME.fullmatch(name):
                yield found[1], int(found[2]), folder / name


def _has_files(folder: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool(os.listdir(folder))  # noqa: PTH208
    return False
