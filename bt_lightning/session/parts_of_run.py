"""Which rank writes parts of a run's checkpoints, where these meet, and which saves they are of."""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bt_lightning.session.shared_directory_check import where_parts_meet
from bt_lightning.sharding.save_part import SaveKey, SavePart

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from bt_lightning.session.ranks import Ranks
    from bt_lightning.session.shared_directory_check import PartsMeet

_PATIENCE_S = 5.0
_NOT_LAID_OUT = "0" * 32
"""The fingerprint of a part until its state is laid out."""


@dataclass(slots=True)
class PartsOfRun:
    """One on each rank of a run that is sharded."""

    rank: int
    hosts: tuple[str, ...]
    """The host of each rank."""
    meet: PartsMeet
    run: str = ""
    """As `SaveKey.run`; rank 0 draws it."""
    saves: int = 0
    """How many there were, which every rank counts at the same place."""

    @classmethod
    def of(cls, ranks: Ranks, root: Path, *, stored: bool) -> PartsOfRun:
        """Called by every rank when a fit starts.

        Args:
            ranks: all ranks.
            root: the checkpoint directory, absolute.
            stored: whether there is a store.

        Raises:
            InvalidSettingError: on every rank, if the parts can meet nowhere.
            DirectoryUnusableError: on every rank, if rank 0 cannot write to the directory.
        """
        hosts = tuple(ranks.gather(socket.gethostname()))
        return cls(ranks.rank, hosts, where_parts_meet(ranks, root, stored=stored))

    def next(self) -> SavePart:
        """This rank's part of the next save."""
        self.saves += 1
        key = SaveKey(self.run, self.saves)
        size = len(self.hosts)
        return SavePart(key=key, rank=self.rank, world_size=size, fingerprint=_NOT_LAID_OUT)


def shortly(left_s: Callable[[], float]) -> Callable[[], float]:
    """The seconds left for the parts of other ranks, of a run that failed: they may be dead.

    Workers go on after their training process for a while, and parts may still come together.
    """
    until = time.monotonic() + _PATIENCE_S
    return lambda: min(left_s(), until - time.monotonic())
