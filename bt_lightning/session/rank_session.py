"""The checkpoint directory as the rank that writes uses it: during a fit, and after one."""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from bt_lightning.errors import CheckpointError, RankLostError
from bt_lightning.lightning_plugin import compat_resume
from bt_lightning.lightning_plugin.resume import Decision
from bt_lightning.lightning_plugin.routed_checkpoint_io import Hooks
from bt_lightning.lightning_plugin.trainer_checks import is_of_a_save, portable
from bt_lightning.localdir.atomic_directory import temporary
from bt_lightning.localdir.local_checkpoints import list_committed
from bt_lightning.localdir.removal_requests import request_removal
from bt_lightning.session.writer_session import Session, SessionConfig, publish_late

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.manifest import Manifest
    from bt_lightning.session.options import Options
    from bt_lightning.session.saves import Saves

T = TypeVar("T")


class Writing:
    """Every rank has one; the session in it only the rank that writes, and only during a fit."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._config: SessionConfig | None = None
        self.session: Session | None = None
        self._mark = contextlib.ExitStack()
        self.pinned: set[str] = set()
        """Digests of what this run resumed from: it never deletes them."""
        self.failing = False
        """The fit has failed, and its own failure is to speak."""
        self.hooks = Hooks(
            self._committed, self._removed, self._missing, self._under_way, self._is_known
        )

    def __getstate__(self) -> dict[str, Any]:
        """A copy in another process has no processes of its own."""
        return {**self.__dict__, "session": None, "_mark": contextlib.ExitStack()}

    def open(self, root: Path, trainer: Trainer, *, again: bool) -> Decision:
        """Rank 0: open the session and decide; an error is a decision that every rank raises.

        `again` is for another fit of the same Trainer, which goes on where it stands.
        """
        asked, found = compat_resume.selection(trainer)
        try:
            self._config = self._options.session(root)
            self.session = Session(self._config)
            decision = self.session.decide(None if asked else found)
            decision = Decision(None, None, warm=False) if again else decision
            mark = self._make_mark(root) if trainer.world_size > 1 else None
            return replace(decision, asked=asked, mark=mark)
        except Exception as error:  # noqa: BLE001 - every rank waits to hear of it
            self.close()
            return Decision(None, None, warm=False, error=portable(error))

    def _make_mark(self, root: Path) -> str | None:
        with contextlib.suppress(OSError):  # a full disk says so at the first save
            return str(self._mark.enter_context(temporary(root)))
        return None

    def begin(self) -> Session | None:
        """The fit begins: every rank has looked for the mark. The session, on rank 0."""
        self._mark.close()
        return self.session

    def take(self) -> Session | None:
        """The session, which the caller ends; from here on there is none."""
        self._mark.close()
        session, self.session = self.session, None
        return session

    def close(self) -> None:
        """End the session of a fit that never began; idempotent."""
        session = self.take()
        if session is not None:
            session.close()

    def poll(self) -> None:
        """Raise what the worker could not do; a few microseconds when it is well."""
        if self.session is not None:
            self.report(self.session.poll)

    def report(self, act: Callable[[], None], on_error: str | None = None) -> None:
        """Run `act`; raise its failure, or warn of an upload's, as the user chose."""
        try:
            act()
        except CheckpointError as error:
            if (on_error or self._options.on_error) == "raise" or is_of_a_save(error):
                raise
            warnings.warn(str(error), stacklevel=2)

    def whole(
        self, collect: Callable[[], T], left_s: Callable[[], float], origin: dict[str, str]
    ) -> T | None:
        """Every rank: what `collect` has of all ranks; `origin` is told if that is not to be had.

        Raises:
            RankLostError: it is not to be had, on rank 0 if there is a whole checkpoint.
        """
        try:
            return collect()
        except RankLostError as error:
            self._lacks(error, left_s)
            origin["inexact"] = str(error)
            return None

    def _lacks(self, error: RankLostError, left_s: Callable[[], float]) -> None:
        """A save lacks the state of a rank: raise, unless there is nothing better."""
        session = self.session
        if session is None or self._config is None:
            raise error
        session.settle_saves(left_s)
        found = [one.manifest for one in list_committed(self._config.root)[0]]
        if session.known or any(m.resumable and "inexact" not in m.origin for m in found):
            msg = (
                f"{error}. The checkpoint was not saved, for it would lack that rank's generators"
                " and dataloader state: start again, which resumes from the newest one that is"
                " whole"
            )
            raise RankLostError(msg) from error
        warnings.warn(
            f"{error}. The checkpoint lacks that rank's generators and dataloader state, so a"
            " resume from it is not exact; it is saved since there is no other",
            stacklevel=2,
        )

    def _committed(self, manifest: Manifest) -> None:
        if self.session is not None:
            self.session.committed(manifest)
        elif self._config is not None:
            config, pinned = self._config, frozenset(self.pinned)
            on_error = "warn" if self.failing else None
            self.report(lambda: publish_late(config, pinned), on_error)

    def _removed(self, manifest: Manifest) -> None:
        if self.session is not None:
            if (saves := self.session.saves) is not None:
                saves.uploads.settle(manifest.checkpoint_id)
            self.session.remove(manifest)
        elif self._config is not None:
            try:
                request_removal(self._config.root, manifest.digest)  # for the next worker
            except OSError as error:
                name = manifest.checkpoint_id
                warnings.warn(f"{name} stays, though it may go: {error}", stacklevel=2)

    def _missing(self, checkpoint_id: str) -> None:
        if self.session is not None:
            self.session.remove_stored(checkpoint_id)

    def _is_known(self, checkpoint_id: str) -> bool:
        return self.session is not None and checkpoint_id in self.session.known

    def _under_way(self) -> Saves | None:
        return self.session.saves if self.session is not None else None
