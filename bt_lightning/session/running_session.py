"""The session of one run on one rank, from its start to its end, with the other ranks of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.localdir.list_and_verify_checkpoints import list_committed
from bt_lightning.retention import TierCheckpoint
from bt_lightning.session.fit_ranks import FitRanks
from bt_lightning.session.rank_session import RankSession
from bt_lightning.session.ranks import Ranks
from bt_lightning.session.start_point import NO_OFFER
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from bt_lightning.session.fit_selection import FitRequest
    from bt_lightning.session.options import Options
    from bt_lightning.session.start_point import OfferedCheckpoint, StartPoint


class RunningSession:
    """For adapters of what trains in torch's process group; every rank makes one.

    Args:
        options: merged with the environment.
        root: the checkpoint directory, absolute.
        offered, request: as of `RankSession.open`.
        loads_whole: whether a single rank loads the start point by `RankSession.load`.

    Raises:
        CheckpointError: as `RankSession.open`; on every rank, and nothing is left running.
    """

    def __init__(
        self,
        options: Options,
        root: Path,
        offered: OfferedCheckpoint = NO_OFFER,
        request: Callable[[], FitRequest] | None = None,
        *,
        loads_whole: bool = False,
    ) -> None:
        self.options = options
        self.root = root
        self.ranks = Ranks.of_process_group()
        self.ranks.begin_meetings()
        self.session = RankSession(options)
        self.session.first_read.keeps = loads_whole and self.ranks.world_size == 1
        self.start: StartPoint = self.session.open(root, self.ranks, offered, request)
        self.peers = FitRanks(self.ranks)
        try:
            self.peers.begin()
        except BaseException:
            self.session.close()  # or its worker would wait for this process
            raise
        self._began = False

    def checkpoints(self) -> list[TierCheckpoint]:
        """Those on disk and in the store, one of each id, oldest first; its place is the id.

        Empty on ranks that do not write.
        """
        writer = self.session.writer
        if writer is None:
            return []
        is_there = self.root.is_dir()
        listed = list_committed(self.root, foreign=False).found if is_there else []
        local = [TierCheckpoint.of(m.checkpoint_id, m) for m in (one.manifest for one in listed)]
        found = sorted((*local, *writer.known.newest), key=lambda one: one.order)
        return list({one.checkpoint_id: one for one in found}.values())

    def begin(
        self,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        device: torch.device | None,
    ) -> None:
        """Let the worker publish and delete; from now on saves are snapshots. Idempotent."""
        if not self._began:
            self._began = True
            self.session.begin(optimizers, device=device)

    def end(
        self,
        error: BaseException | None,
        left_s: Callable[[], float] = unlimited,
        is_signalled: Callable[[], bool] = lambda: False,
    ) -> bool:
        """Every rank: wait until all is committed and published; others wait for rank 0.

        After an error, what was saved is published still, and further errors are warnings.

        Args:
            error: with which the run ends.
            left_s: seconds that are left; asked again and again.
            is_signalled: whether this rank was told to end by a signal.

        Returns:
            Whether all ranks end by a signal.

        Raises:
            DrainTimeoutError, DirectoryUnusableError, UploadFailedError: as `RankSession.finish`.
        """
        try:
            if error is None:
                self.session.finish(left_s)
            else:
                self._fail(error, left_s)
        finally:
            signalled = self.peers.end_fit(is_signalled)
            self.peers.close()
        return signalled

    def _fail(self, error: BaseException, left_s: Callable[[], float]) -> None:
        self.session.failing = True
        writer = self.session.take()
        self.peers.fail(error)
        if writer is not None:
            writer.abandon(left_s)
