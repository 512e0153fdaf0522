"""Coordinates the end of a fit: no rank leaves before rank 0, and all end with the same outcome."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.session.process_group_store import next_key, process_group_store
from bt_lightning.session.ranks import DECIDING, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from bt_lightning.session.ranks import Ranks


class FitEnd:
    """The end of one fit: other ranks wait for rank 0, which says whether all end by a signal.

    A rank that left early could create the next process group and connect to the key-value store of
    this one. Every rank creates this object when the fit begins.
    """

    def __init__(self, ranks: Ranks, lost: Callable[[], str] | None = None) -> None:
        """`lost` returns which rank is gone, or an empty string; then no rank waits for rank 0."""
        self._lost = lost
        self._alone = ranks.world_size == 1
        if not self._alone:
            self._store, label = process_group_store(), next_key("fit_end")
            self._signalled_key, self._end_key = f"{label}/signalled", f"{label}/ended"

    def announce(self, *, signalled: bool) -> bool:
        """Called by rank 0 as its last step; returns whether all ranks end by a signal.

        They do if rank 0 received one (`signalled`), or a rank that already waits here did.
        """
        if self._alone:
            return signalled
        try:
            signalled = signalled or self._store.check([self._signalled_key])
            self._store.set(self._end_key, "stop" if signalled else "go")
        except RuntimeError:  # of torch.distributed: the rank with the store is gone
            return signalled
        return signalled

    def wait_for_rank_0(
        self, is_signalled: Callable[[], bool], limit: timedelta = DECIDING
    ) -> bool:
        """Called by every other rank: wait for rank 0; returns whether all end by a signal."""
        sent = False

        def is_over() -> bool:
            nonlocal sent
            if is_signalled() and not sent:
                self._store.set(self._signalled_key, "")
                sent = True
            gone = self._lost is not None and bool(self._lost())
            return gone or bool(self._store.check([self._end_key]))

        try:
            over = poll(is_over, limit) and self._store.check([self._end_key])
            return self._store.get(self._end_key) == b"stop" if over else is_signalled()
        except RuntimeError:  # rank 0 has ended, and the store with it
            return is_signalled()
