"""Find what looks like a checkpoint of another program among the files of a directory."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from bt_lightning.checkpoint_formats.pretrained_folder import MODULES, PIPELINE, is_own_name
from bt_lightning.checkpoint_formats.single_files import recognize_file
from bt_lightning.checkpoint_formats.table import format_of, recognize
from bt_lightning.checkpoint_formats.tensor_file_checks import is_checkpoint_name
from bt_lightning.localdir.folder_on_disk import view_of_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from bt_lightning.checkpoint_formats.results import Incomplete, Whole
    from bt_lightning.localdir.find_job_files import JobFiles, Stamp

_OWN_NAME: Final = "model"
"""Last part of the id of what lies beside other things in one folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """What may be a checkpoint: a folder, or some of its files, or a single file."""

    folder: str
    """Posix path below the root; empty for the root itself."""
    file: str = ""
    """Its name, if it is a single file."""
    stamps: Mapping[str, Stamp]
    """Posix path below the folder -> stamp."""
    alone: bool = True
    """Whether there is nothing else in the folder."""

    @property
    def place(self) -> tuple[str, str]:
        """Folder and file: no two candidates have the same."""
        return self.folder, self.file

    def paths(self) -> list[str]:
        """Posix paths of its files below the root."""
        return [f"{self.folder}/{path}" if self.folder else path for path in self.stamps]

    def recognize(
        self, root: Path, *, settled: bool, copied: bool = False
    ) -> Whole | Incomplete | None:
        """What it is, read from the disk; see `FolderView`.

        Raises:
            OSError: a file changed or vanished since it was found, or cannot be read.
        """
        folder = root / self.folder
        view = view_of_folder(folder, self.stamps, settled=settled, copied=copied)
        return recognize_file(view, self.file) if self.file else recognize(view)

    def proposed_id(self, root: Path, is_taken: Callable[[str], bool]) -> str:
        """The id that it should have: its path, without its suffix unless that is taken."""
        if self.file:
            stem = self.file.rpartition(".")[0]
            short = f"{self.folder}/{stem}" if self.folder else stem
            whole = f"{self.folder}/{self.file}" if self.folder else self.file
            return whole if os.path.lexists(root / short) or is_taken(short) else short
        if self.folder and self.alone:
            return self.folder
        own = f"{self.folder}/{_OWN_NAME}" if self.folder else _OWN_NAME
        number = 1
        while os.path.lexists(root / own) or is_taken(own):
            number += 1
            own = f"{self.folder}/{_OWN_NAME}-{number}" if self.folder else f"{_OWN_NAME}-{number}"
        return own


@dataclass(slots=True)
class _Folder:
    files: dict[str, Stamp] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)


def find_foreign(
    found: JobFiles, is_none: Callable[[Candidate], bool], root_name: str = ""
) -> list[Candidate]:
    """The candidates among the files that a walk found, each file in one at most.

    `is_none` says whether a folder that looks like a checkpoint by its names is known to be none.
    Folders of which the user excluded a file are left out: the rest goes as the user wants.
    """
    tree = _tree(found)
    candidates: list[Candidate] = []
    pending = [""] if tree else []
    while pending:
        folder = pending.pop()
        here = tree[folder]
        inside = f"{folder}/" if folder else ""
        name = folder.rpartition("/")[2] or root_name
        form = format_of(name, here.files.keys(), here.folders)
        own: dict[str, Stamp] = {}
        taken: set[str] = set()
        if form is not None:
            own, taken = _claimed(tree, folder, takes_all=form.takes_all)
            alone = taken >= here.folders and own.keys() >= here.files.keys()
            candidate = Candidate(folder=folder, stamps=own, alone=alone)
            if _is_excluded(folder, found.excluded):
                pass  # what is left of it goes as plain files
            elif own and not is_none(candidate):
                candidates.append(candidate)
            else:
                own, taken = {}, set()
        candidates += [
            Candidate(folder=folder, file=name, stamps={name: stamp})
            for name, stamp in here.files.items()
            if name not in own and is_checkpoint_name(name)
        ]
        pending += [f"{inside}{name}" for name in here.folders - taken]
    return sorted(candidates, key=lambda one: one.place)


def _tree(found: JobFiles) -> dict[str, _Folder]:
    tree: dict[str, _Folder] = {}
    for path, stamp in (*found.files.items(), *found.metadata.items()):
        folder, _, name = path.rpartition("/")
        here = tree.get(folder)
        if here is None:
            here = tree[folder] = _Folder()
            inner = folder
            while inner:
                outer, _, last = inner.rpartition("/")
                above = tree.setdefault(outer, _Folder())
                if last in above.folders:
                    break
                above.folders.add(last)
                inner = outer
        here.files[name] = stamp
    return tree


def _all_below(tree: dict[str, _Folder], folder: str) -> dict[str, Stamp]:
    own: dict[str, Stamp] = {}
    pending = [""]
    while pending:
        inner = pending.pop()
        here = tree[f"{folder}/{inner}".strip("/")]
        inside = f"{inner}/" if inner else ""
        own |= {f"{inside}{name}": stamp for name, stamp in here.files.items()}
        pending += [f"{inside}{name}" for name in here.folders]
    return own


def _claimed(
    tree: dict[str, _Folder], folder: str, *, takes_all: bool
) -> tuple[dict[str, Stamp], set[str]]:
    """The files of a folder that looks like a checkpoint, and the folders that belong to it."""
    if takes_all and folder:
        return _all_below(tree, folder), tree[folder].folders
    return _own_files(tree, folder, deep=takes_all)


def _own_files(
    tree: dict[str, _Folder], folder: str, *, deep: bool
) -> tuple[dict[str, Stamp], set[str]]:
    """The files of a model that lies beside other things, and the folders of its components."""
    here = tree[folder]
    own = {name: stamp for name, stamp in here.files.items() if deep or is_own_name(name)}
    taken: set[str] = set()
    if deep or {MODULES, PIPELINE}.intersection(here.files):
        for name in here.folders:
            path = f"{folder}/{name}" if folder else name
            inner = tree[path]
            form = format_of(name, inner.files.keys(), inner.folders)
            if form is None or not form.takes_all or deep:
                taken.add(name)
                own |= {f"{name}/{p}": stamp for p, stamp in _all_below(tree, path).items()}
    return own, taken


def _is_excluded(folder: str, excluded: set[str]) -> bool:
    inside = f"{folder}/" if folder else ""
    return folder in excluded or any(one.startswith(inside) for one in excluded if inside)
