"""The entries that `BTLightning` adds to the state of each save, under a key of its own."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin.mismatch_errors import save_facts

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.exact_resume import ExactResume
    from bt_lightning.lightning_plugin.save_boundary import SaveBoundary
    from bt_lightning.session.rank_session import RankSession


def extra_entries(
    trainer: Trainer,
    checkpoint: dict[str, Any],
    session: RankSession,
    boundary: SaveBoundary,
    exact: ExactResume | None,
) -> dict[str, Any]:
    """Every rank: the metrics, facts for the manifest, and what an exact resume needs.

    Raises:
        RankLostError: what an exact resume needs of another rank is not to be had.
    """
    origin: dict[str, Any] = {"fit": session.fit_facts}
    if boundary.interim.reason is not None:
        origin["interim"] = boundary.interim.reason
    extra: dict[str, Any] = {**save_facts(trainer), "origin": origin}
    if exact is not None:
        collect = partial(exact.on_save, trainer, checkpoint, boundary.exchange)
        extra["exact"] = session.whole(collect, boundary.left_s, origin)
    return extra
