"""The end of a fit on several ranks: none leaves before rank 0, and all end alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.session.process_group_store import next_key, process_group_store
from bt_lightning.session.ranks import DECIDING, poll

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import timedelta

    from bt_lightning.session.ranks import Ranks


class FitEnd:
    """The end of a fit: no rank leaves it before rank 0, and none ends by a signal alone.

    A rank that goes on early may make the next process group, and would find the key-value store
    of this one. Made by every rank when the fit begins.
    """

    def __init__(self, ranks: Ranks, lost: Callable[[], str] | None = None) -> None:
        """`lost` says which rank is gone, if one is: nobody waits for rank 0 then."""
        self._lost = lost
        self._alone = ranks.world_size == 1
        if not self._alone:
            self._store, label = process_group_store(), next_key("farewell")
            self._told, self._over = f"{label}/told", f"{label}/over"

    def say(self, *, told: bool) -> bool:
        """Rank 0, when it has nothing left to do: whether all end by a signal.

        So they do when rank 0 was told to end by one, or any rank that is at its own end.
        """
        if self._alone:
            return told
        try:
            told = told or self._store.check([self._told])
            self._store.set(self._over, "stop" if told else "go")
        except RuntimeError:  # of torch.distributed: the others are gone, and the store with one
            return told
        return told

    def hear(self, is_told: Callable[[], bool], limit: timedelta = DECIDING) -> bool:
        """Every other rank: wait for rank 0; whether all end by a signal."""
        said = False

        def look() -> bool:
            nonlocal said
            if is_told() and not said:
                self._store.set(self._told, "")
                said = True
            gone = self._lost is not None and bool(self._lost())
            return gone or bool(self._store.check([self._over]))

        try:
            over = poll(look, limit) and self._store.check([self._over])
            return self._store.get(self._over) == b"stop" if over else is_told()
        except RuntimeError:  # rank 0 left, and the store with it
            return is_told()
