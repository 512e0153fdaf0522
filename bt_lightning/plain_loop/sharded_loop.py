"""Saves and loads of a loop whose model has parts of tensors on each rank (DTensors).

FSDP2, tensor parallelism, both, and replicas of them, as `fully_shard` and `parallelize_module`
make them. Every rank saves and reads what is its own, and nothing is gathered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.session.checkpoint_writer import EXTRA
from bt_lightning.session.draw_part import draw_part
from bt_lightning.session.load_in_place import LoadInPlace
from bt_lightning.session.load_start_point import open_start_point, trusted
from bt_lightning.session.shard_exchange import ShardExchange
from bt_lightning.session.shard_writer import ShardWriter
from bt_lightning.session.states_of_ranks import OWN, on_cpu
from bt_lightning.snapshot.local_shards import is_dtensor, live_state

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from bt_lightning.plain_loop.loop_state import LoopState
    from bt_lightning.session.draw_part import DrawnPart
    from bt_lightning.session.running_session import RunningSession
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader


def lies_on_ranks(found: LoopState) -> bool:
    """Whether a model of the loop has parts of tensors; the same on every rank.

    Raises:
        InvalidSettingError: several models have.
    """
    parted = [
        name
        for name, model in found.models.items()
        if any(is_dtensor(each) for each in model.parameters())
    ]
    if not parted:
        return False
    model = found.main_model
    if len(parted) > 1 or model is not found.models[parted[0]]:
        msg = (
            f"the ranks hold parts of {', '.join(parted)}: expected one such model, 'model' if"
            " there are others. Put several into one torch.nn.ModuleDict"
        )
        raise InvalidSettingError(msg)
    return True


class ShardedLoop:
    """One on each rank, from the load of the state to the end of the loop."""

    def __init__(self, run: RunningSession) -> None:
        """Every rank: let each have a session of its own.

        Raises:
            InvalidSettingError: the nodes have directories of their own.
        """
        self._run = run
        run.session.share(run.root, run.ranks, run.start)
        self._exchange = ShardExchange(run.ranks, self._drawn)
        self.writer = ShardWriter(self._exchange)
        self.writer.trusted = run.options.own_weights_only is False
        self._state: LoopState | None = None
        self._known = -1

    def load_start(self, found: LoopState) -> dict[str, Any]:
        """Every rank: restore the loop from the start point; the plain values that it had.

        Raises:
            CheckpointMismatchError: the checkpoint is not of this loop.
            CheckpointCorruptError, StoreError, UnsafeLoadError: it cannot be read.
        """
        run = self._run
        if run.start.digest is not None:
            run.session.pinned.add(run.start.digest)
        weights_only = trusted(run.start, run.root, run.options)
        with open_start_point(run.start, run.root, run.options) as reader:
            if not run.start.warm:
                return self.load(found, reader, weights_only=weights_only)
            model = found.main_model
            assert model is not None  # since it is sharded
            LoadInPlace(reader, weights_only=weights_only).fill(model)
            return {}

    def load(
        self,
        found: LoopState,
        reader: CheckpointReader,
        *,
        strict: bool = True,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Every rank: restore the loop from an open checkpoint; raises as `load_start`."""
        load, ranks = LoadInPlace(reader, weights_only=weights_only), self._run.ranks
        model = found.main_model
        assert model is not None  # since it is sharded
        load.fill(model, found.saved_optimizers(load.rest), strict=strict)
        return found.load_beside_main(load.rest, ranks.rank, ranks.world_size)

    def look(self, found: LoopState | None = None) -> None:
        """Every rank, when the state is known, and after each step: let the ranks tell of it.

        Optimizers make their state in the first step; a save then finds all agreed.
        """
        self._state = found or self._state
        if self._state is None or self._state.main_model is None:
            return
        optimizers = list(self._state.optimizers.values())
        known = sum(len(optimizer.state) for optimizer in optimizers)
        if known != self._known:
            self._known = known
            self.writer.begin(live_state(self._state.main_model, optimizers))

    def draw(self) -> AbstractContextManager[DrawnPart]:
        """Every rank: begin a save, before anything that may fail on one rank alone."""
        return draw_part(self._run.session, self.writer.refuse)

    def save(
        self, found: LoopState, name: str, facts: dict[str, Any], drawn: DrawnPart, *, exact: bool
    ) -> None:
        """Every rank: save its part of the checkpoint `name`; `facts` are its counters and ours."""
        run, self._state = self._run, found
        mine = on_cpu(found.of_this_rank(exact=exact))
        checkpoint = {
            **facts,
            **found.checkpoint_of_parts(),
            EXTRA: {**facts[EXTRA], OWN: mine},
        }
        run.session.save(self.writer, checkpoint, run.root / name, run.root, drawn.take())

    def _drawn(self) -> int:
        parts = self._run.session.parts
        return 0 if parts is None else parts.saves

    def close(self) -> None:
        """Every rank: the loop is over."""
        self._exchange.close()
