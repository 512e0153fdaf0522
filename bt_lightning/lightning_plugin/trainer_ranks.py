"""Makes the `Ranks` of `session` from a Trainer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.session.ranks import Ranks

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def ranks_of(trainer: Trainer) -> Ranks:
    """The ranks of a Trainer; called on every rank, once the processes are launched."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    return Ranks(
        rank=trainer.global_rank,
        world_size=trainer.world_size,
        broadcast=trainer.strategy.broadcast,
        host=environment.main_address if environment is not None else "127.0.0.1",
    )


def data_ranks(trainer: Trainer) -> tuple[int, int]:
    """This rank among those that share the samples out, and how many these are.

    Ranks that hold parts of one layer, as with tensor parallelism, read the same samples.
    """
    given = trainer.distributed_sampler_kwargs or {}
    return given.get("rank", trainer.global_rank), given.get("num_replicas", trainer.world_size)
