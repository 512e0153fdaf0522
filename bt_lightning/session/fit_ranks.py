"""Communication with the other ranks during one fit, from `setup` to teardown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.session.agree_on_boundary import RankAgreement, SingleRankAgreement
from bt_lightning.session.leave_fit_together import FitEnd
from bt_lightning.session.process_group_store import next_key
from bt_lightning.session.rank_exchange import RankExchange

if TYPE_CHECKING:
    from collections.abc import Callable

    from bt_lightning.rank_protocol import Request
    from bt_lightning.session.ranks import Ranks


class FitRanks:
    """The other ranks of one fit; every rank creates it when the process group exists."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._peers = RankExchange(ranks) if ranks.world_size > 1 else None
        self._fit_end: FitEnd | None = None
        self._ends_as_agreed = False

    def begin(self) -> None:
        """Called by every rank when the fit starts: from here on, the death of one is noticed."""
        if self._peers is not None:
            self._peers.wait_until_watched()
        lost = self._peers.lost if self._peers is not None else None
        self._fit_end = FitEnd(self._ranks, lost)

    def agreement(
        self, request: Callable[[], Request | None]
    ) -> SingleRankAgreement | RankAgreement:
        """Called by every rank when training starts: the agreement on where to save or stop."""
        if self._peers is None:
            return SingleRankAgreement(request)
        return RankAgreement(self._peers, next_key("agreement"), request)

    def exchange(self, payload: bytes, left_s: Callable[[], float]) -> list[bytes] | None:
        """Called by every rank in a save: the payloads of all ranks on rank 0, None on the others.

        Raises:
            RankLostError: a rank is gone, or did not send within half an hour or `left_s` seconds.
        """
        return [payload] if self._peers is None else self._peers.exchange(payload, left_s)

    def agreed(self) -> None:
        """Note that all ranks agreed to end here: an exception of this rank is no failure."""
        self._ends_as_agreed = True

    def fail(self, error: BaseException) -> None:
        """Called by a rank whose fit ends with an exception: the others do not wait for it."""
        if self._peers is not None and not self._ends_as_agreed:
            self._peers.leave(error)

    def end_fit(self, is_signalled: Callable[[], bool]) -> bool:
        """Called by every rank as its last step: wait for rank 0.

        Returns whether all ranks end by a signal.
        """
        fit_end, self._fit_end = self._fit_end, None
        if fit_end is None:
            return False  # the fit did not begin
        if self._peers is None or self._peers.rank == 0:
            return fit_end.announce(signalled=is_signalled())
        return fit_end.wait_for_rank_0(is_signalled)

    def close(self) -> None:
        """Close the connections to the other ranks."""
        if self._peers is not None:
            self._peers.close()
