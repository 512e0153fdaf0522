"""What looks like checkpoints of other programs in one directory, from scan to scan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from bt_lightning.checkpoint_formats.hf_files import is_weights
from bt_lightning.checkpoint_formats.results import Incomplete, Whole
from bt_lightning.checkpoint_formats.trainer_folder import is_trainer_folder
from bt_lightning.localdir.find_foreign import find_foreign

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from bt_lightning.localdir.find_foreign import Candidate
    from bt_lightning.localdir.find_job_files import JobFiles

_MODELS: Final = frozenset({"hf-pretrained", "peft"})


@dataclass(slots=True)
class SeenCandidate:
    """A candidate, and what the last look at it said."""

    candidate: Candidate
    unchanged_since: float
    """When it was first seen with these stamps, by the clock."""
    verdict: Whole | Incomplete | None = None
    looked: bool = False
    """Whether `verdict` is of these stamps."""
    settled: bool = False
    """Whether another one beside it was like it at that look."""

    @property
    def name(self) -> str:
        """Its path below the root, for people."""
        return "/".join(part for part in self.candidate.place if part) or "."

    def kept_back(self, *, ending: bool) -> list[str]:
        """Paths below the root of its files that are no job files; `ending`: no more is written."""
        candidate, verdict = self.candidate, self.verdict
        if not self.looked:
            return candidate.paths()
        if verdict is None or (
            isinstance(verdict, Incomplete) and ending and not verdict.kept_back
        ):
            return []
        inside = f"{candidate.folder}/" if candidate.folder else ""
        return [f"{inside}{path}" for path in verdict.files]


class ForeignCandidates:
    """Those of one directory. Used by one thread."""

    def __init__(self, root: Path, rest_s: float, clock: Callable[[], float]) -> None:
        """A candidate is at rest when it did not change for `rest_s` seconds."""
        self._root = root
        self._rest_s = rest_s
        self._clock = clock
        self._seen: dict[tuple[str, str], SeenCandidate] = {}
        self._none: dict[str, SeenCandidate] = {}
        """Folders that look like checkpoints by their names, and are none."""
        self._asked: set[str] = set()
        """Folders that look so in this scan."""

    def __iter__(self) -> Iterator[SeenCandidate]:
        return iter(list(self._seen.values()))

    def __contains__(self, place: tuple[str, str]) -> bool:
        return place in self._seen

    def scan(self, found: JobFiles, *, gone: bool) -> None:
        """Look at what a walk found; if who wrote it is `gone`, all of it counts as at rest."""
        now = self._clock()
        self._asked.clear()
        while True:
            self._update(find_foreign(found, self._is_none), now)
            before = len(self._none)
            for seen in self:
                if gone or now - seen.unchanged_since >= self._rest_s:
                    self._look(seen)
            if len(self._none) == before:
                self._none = {
                    folder: self._none[folder] for folder in self._asked & set(self._none)
                }
                return  # else files of a folder that is none may be checkpoints by themselves

    def look_again(self, seen: SeenCandidate) -> None:
        """It changed meanwhile: it has to come to rest again."""
        seen.looked, seen.unchanged_since = False, self._clock()

    def _update(self, candidates: Iterable[Candidate], now: float) -> None:
        seen: dict[tuple[str, str], SeenCandidate] = {}
        for candidate in candidates:
            known = self._seen.get(candidate.place)
            if known is None or known.candidate.stamps != candidate.stamps:
                none = self._none.get(candidate.folder)
                known = SeenCandidate(candidate, now if none is None else none.unchanged_since)
            known.candidate = candidate
            seen[candidate.place] = known
        self._seen = seen

    def _is_none(self, candidate: Candidate) -> bool:
        """Whether the last look at these very files said that they are no checkpoint."""
        known = self._none.get(candidate.folder)
        self._asked.add(candidate.folder)
        if known is not None and known.candidate.stamps != candidate.stamps:
            del self._none[candidate.folder]
            return False
        return known is not None

    def _look(self, seen: SeenCandidate) -> None:
        settled = self._has_like_it(seen.candidate)
        if seen.looked and seen.settled == settled:
            return
        try:
            seen.verdict = seen.candidate.recognize(self._root, settled=settled)
        except OSError:  # it changed, or went: the next scan sees it
            self.look_again(seen)
            return
        seen.looked, seen.settled = True, settled
        if seen.verdict is None and not seen.candidate.file:
            self._none[seen.candidate.folder] = seen

    def _has_like_it(self, candidate: Candidate) -> bool:
        """Whether beside it lies another model under a Trainer's name, without a Trainer's files.

        The Trainer leaves one such folder, where it was killed; a loop that names its models so
        leaves one for each.
        """
        parent = candidate.folder.rpartition("/")[0]
        for other in self._seen.values():
            place = other.candidate.place
            beside = place != candidate.place and place[0].rpartition("/")[0] == parent
            if beside and not place[1] and is_trainer_folder(place[0].rpartition("/")[2]):
                incomplete = isinstance(other.verdict, Incomplete) and not other.verdict.kept_back
                model = isinstance(other.verdict, Whole) and other.verdict.format in _MODELS
                if (incomplete and any(map(is_weights, other.candidate.stamps))) or model:
                    return True
        return False
