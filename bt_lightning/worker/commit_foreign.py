"""Commits checkpoints that other programs wrote, when they are whole and at rest.

A folder or file that looks like one is kept back from the job files as long as it may become one.
Whole and unchanged for `REST_S` it gets digests and a sidecar, and is published like any other. If
its program deletes it, the store's copy goes as well, when something newer of its format is there.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.errors import CheckpointError, CheckpointNotFoundError
from bt_lightning.localdir.atomic_directory import delete_directory
from bt_lightning.localdir.commit_sidecar import commit_sidecar, digest_at_rest
from bt_lightning.localdir.find_job_files import Stamp
from bt_lightning.localdir.foreign_facts import facts_of_foreign
from bt_lightning.localdir.list_and_verify_checkpoints import stated_manifest
from bt_lightning.localdir.removal_requests import request_local_removal
from bt_lightning.localdir.sidecars import (
    CONTENT,
    ForeignContent,
    changed_file,
    is_gone,
    read_content,
    sidecars,
)
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.worker.foreign_candidates import ForeignCandidates

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.file_entries import FileEntry
    from bt_lightning.localdir.find_foreign import Candidate
    from bt_lightning.localdir.find_job_files import JobFiles
    from bt_lightning.manifest import Manifest
    from bt_lightning.worker.foreign_candidates import SeenCandidate

_NUMBER: Final = re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)?")
"""In the names of a program's checkpoints, which differ in numbers: step, epoch, metrics."""


@dataclass(frozen=True, slots=True)
class _Sidecar:
    path: Path
    manifest: Manifest
    content: ForeignContent


class ForeignCheckpoints:
    """Those of one directory. Used by the publisher's thread."""

    def __init__(self, root: Path, rest_s: float, clock: Callable[[], float]) -> None:
        """A candidate is at rest when it did not change for `rest_s` seconds."""
        self._root = root
        self._candidates = ForeignCandidates(root, rest_s, clock)
        self._named: set[str] = set()
        self._digests: dict[tuple[str, Stamp], FileEntry] = {}
        """Of files of what is being committed: a pause does not lose them."""
        self._sidecars: dict[tuple[str, str], _Sidecar] = {}
        self._read: dict[tuple[Path, Stamp], _Sidecar] = {}
        """The same by path and stamp of their content."""
        self.ids: set[str] = set()
        """Of all that it knew at any time: only this decides what of them stays in the store."""
        self.ready = False
        """Whether something may be committed now, or is to be deleted, as of the last scan."""
        self.complaints: list[str] = []
        """What could not be committed, once each, since the reader last emptied it."""

    def scan(self, found: JobFiles, *, ending: bool, gone: bool) -> set[str]:
        """Look at what a walk found; return the paths of files that are no job files.

        When the training is `ending`, what is not whole is said. When it is `gone`, nobody writes
        any more, and all that is there counts as at rest.
        """
        self._read_sidecars()
        self._candidates.scan(found, gone=gone)
        kept_back: set[str] = set()
        self.ready = any(self._may_go(one) for one in self._sidecars.values())
        for seen in self._candidates:
            kept_back.update(seen.kept_back(ending=ending))
            self.ready = self.ready or self._is_due(seen)
            if ending and isinstance(seen.verdict, Incomplete) and seen.verdict.kept_back:
                self._complain_of(seen, seen.verdict)
        return kept_back

    @property
    def unsettled(self) -> list[str]:
        """Places of what may still become a checkpoint, or is one that is not committed."""
        return [s.name for s in self._candidates if not s.looked or self._is_due(s)]

    def commit(
        self, newest: Callable[[str], Manifest | None], check: Callable[[], None] = lambda: None
    ) -> None:
        """Commit what is due, and carry on deletions; called when the store is known.

        `newest` gives the newest generation of an id in the store. `check` is called between two
        blocks; what it raises passes through, and the next call goes on.

        Raises:
            OSError: the disk does not take a sidecar.
        """
        self.ready = False
        self._read_sidecars()
        for seen in self._candidates:
            if self._is_due(seen) and isinstance(seen.verdict, Whole):
                try:
                    self._commit(seen.candidate, seen.verdict, newest, check)
                except CheckpointNotFoundError:
                    self._candidates.look_again(seen)
                except CheckpointError as error:
                    self._complain(seen.name, str(error))
                    seen.verdict = None
        self._digests.clear()
        self._carry_on_deletions(newest)

    # what is on the disk

    def _read_sidecars(self) -> None:
        found: dict[tuple[str, str], _Sidecar] = {}
        read: dict[tuple[Path, Stamp], _Sidecar] = {}
        for path in sidecars(self._root):
            try:
                stamp = Stamp.of((path / CONTENT).stat())
                one = self._read.get((path, stamp))
                if one is None:
                    one = _Sidecar(path, stated_manifest(path), read_content(path))
            except (CheckpointError, OSError):
                continue  # listed as refused
            read[path, stamp] = found[one.content.place] = one
        self._read = read
        self._sidecars = found
        self.ids.update(one.manifest.checkpoint_id for one in found.values())

    # what is to be done

    def _is_due(self, seen: SeenCandidate) -> bool:
        if not (seen.looked and isinstance(seen.verdict, Whole)):
            return False
        sidecar = self._sidecars.get(seen.candidate.place)
        own = {path: seen.candidate.stamps[path] for path in seen.verdict.files}
        if sidecar is None:
            return True
        return own != sidecar.content.stamps and not _is_shrinking(own, sidecar.content)

    def _may_go(self, sidecar: _Sidecar) -> bool:
        """Whether its program deleted it, and left something newer; or a person deleted it."""
        content = sidecar.content
        if content.place in self._candidates or not is_gone(self._root, content):
            return False
        return not content.rotated or self._has_newer(sidecar.manifest)

    # commits

    def _commit(
        self,
        candidate: Candidate,
        whole: Whole,
        newest: Callable[[str], Manifest | None],
        check: Callable[[], None],
    ) -> None:
        folder = self._root / candidate.folder
        before = self._sidecars.get(candidate.place)
        stamps = {path: candidate.stamps[path] for path in whole.files}
        entries = tuple(
            self._entry(folder, path, stamp, before, check) for path, stamp in stamps.items()
        )
        checkpoint_id = before.manifest.checkpoint_id if before else self._id(candidate, newest)
        content = ForeignContent(
            folder=candidate.folder, file=candidate.file, stamps=stamps, rotated=whole.rotated
        )
        facts = facts_of_foreign(whole, stamps.values())
        known = [before.manifest] if before is not None else []
        stored = newest(checkpoint_id)
        known += [stored] if stored is not None else []
        same = next((m for m in known if m.files == entries and m.step == facts.step), None)
        generation = max((m.generation for m in known), default=0) + 1
        manifest = same or facts.manifest(checkpoint_id, generation, entries)
        path = commit_sidecar(self._root, manifest, content)
        self._sidecars[content.place] = _Sidecar(path, manifest, content)
        self.ids.add(checkpoint_id)

    def _entry(
        self,
        folder: Path,
        path: str,
        stamp: Stamp,
        before: _Sidecar | None,
        check: Callable[[], None],
    ) -> FileEntry:
        """The entry of one file; one that did not change since it was committed is not read."""
        if before is not None and before.content.stamps.get(path) == stamp:
            known = before.manifest.entry(path)
            if known is not None:
                return known
        key = (str(folder / path), stamp)
        if key not in self._digests:
            self._digests[key] = digest_at_rest(folder, path, stamp, check)
        return self._digests[key]

    def _id(self, candidate: Candidate, newest: Callable[[str], Manifest | None]) -> str:
        own = {one.manifest.checkpoint_id for one in self._sidecars.values()}

        def is_taken(name: str) -> bool:
            stored = newest(name)
            return name in own or (stored is not None and stored.format is None)

        return check_checkpoint_id(candidate.proposed_id(self._root, is_taken))

    # deletions

    def _carry_on_deletions(self, newest: Callable[[str], Manifest | None]) -> None:
        """What its program deleted goes from the store too, once something newer is there."""

        def is_stored(manifest: Manifest) -> bool:
            stored = newest(manifest.checkpoint_id)
            return stored is not None and stored.digest == manifest.digest

        for one in list(self._sidecars.values()):
            if not self._may_go(one):
                continue
            if one.content.rotated and not self._has_newer(one.manifest, is_stored):
                continue
            if one.content.rotated:
                request_local_removal(self._root, one.manifest.digest)
            delete_directory(one.path, self._root)
            self._sidecars.pop(one.content.place, None)

    def _has_newer(
        self, manifest: Manifest, counts: Callable[[Manifest], bool] = lambda _: True
    ) -> bool:
        """Whether a newer one of its format and series lies here.

        So a wiped directory deletes nothing, and a file stands in for none of another name.
        """
        series = _NUMBER.sub("#", manifest.checkpoint_id)
        return any(
            one.manifest.format == manifest.format
            and _NUMBER.sub("#", one.manifest.checkpoint_id) == series
            and one.manifest.order > manifest.order
            and changed_file(self._root, one.content) is None
            and counts(one.manifest)
            for one in self._sidecars.values()
        )

    def _complain_of(self, seen: SeenCandidate, verdict: Incomplete) -> None:
        sidecar = self._sidecars.get(seen.candidate.place)
        if sidecar is None or not _is_shrinking(dict(seen.candidate.stamps), sidecar.content):
            kind = f"it looks like a checkpoint ({verdict.format})"
            self._complain(seen.name, f"{kind}, and is not whole: {verdict.reason}")

    def _complain(self, name: str, why: str) -> None:
        if name not in self._named:
            self._named.add(name)
            self.complaints.append(f"{name} is not in the store: {why}")


def _is_shrinking(stamps: dict[str, Stamp], committed: ForeignContent) -> bool:
    """Whether these are some of the committed files and nothing else: they are being deleted."""
    return len(stamps) < len(committed.stamps) and stamps.items() <= committed.stamps.items()
