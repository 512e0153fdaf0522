"""Stands in for the save and the load of a Fabric strategy whose ranks hold parts of tensors.

Such a strategy takes no CheckpointIO. Its methods are replaced on the instance; what is no
checkpoint of the directory, and states without such a model, reach those that were there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bt_lightning.errors import InvalidSettingError
from bt_lightning.plain_loop.loop_state import ENTRIES, LoopState
from bt_lightning.plain_loop.sharded_loop import ShardedLoop, lies_on_ranks
from bt_lightning.session.checkpoint_writer import EXTRA

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bt_lightning.session.running_session import RunningSession
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

_SAVE, _LOAD = "save_checkpoint", "load_checkpoint"


class StrategySaves:
    """One on every rank, between the start and the end of its session.

    Args:
        strategy: of the Fabric.
        run: the session.
        id_of: the checkpoint id of a path; None for a path elsewhere.
        opened: opens what is committed at a path; yields None for anything else.
    """

    def __init__(
        self,
        strategy: Any,
        run: RunningSession,
        id_of: Callable[[str | Path], str | None],
        opened: Callable[[str | Path], AbstractContextManager[CheckpointReader | None]],
    ) -> None:
        self._strategy, self._run = strategy, run
        self._id_of, self._opened = id_of, opened
        self._stock = {name: getattr(strategy, name) for name in (_SAVE, _LOAD)}
        self._before = {name: vars(strategy).get(name) for name in self._stock}
        self._parts: ShardedLoop | None = None
        vars(strategy).update({_SAVE: self.save, _LOAD: self.load})

    def close(self) -> None:
        """Every rank: give the methods back, when all is saved."""
        for name, before in self._before.items():
            if before is None:
                del vars(self._strategy)[name]
            else:
                vars(self._strategy)[name] = before
        if self._parts is not None:
            self._parts.close()

    def save(self, path: str | Path, state: dict[str, Any], *args: Any, **more: Any) -> None:
        """Every rank: save its part of `state`, with the arguments of `Strategy.save_checkpoint`.

        Raises:
            InvalidSettingError: a filter or storage options were given.
            DirectoryUnusableError, UploadFailedError: an earlier save failed, on rank 0.
        """
        name, found = self._id_of(path), LoopState.of(state)
        parts = None if name is None else self._parts_of(found)
        if name is None or parts is None:
            self._stock[_SAVE](path, state, *args, **more)
            return
        with parts.draw() as drawn:
            if any(one is not None for one in (*args, *more.values())):
                msg = f"a save to {path} takes no filter and no storage options: save less of it"
                raise InvalidSettingError(msg)
            optimizers = list(found.optimizers.values())
            self._run.begin(lambda: optimizers, found.device)
            self._run.session.boundary()  # since the last save, the loop may have changed anything
            parts.save(found, name, self._facts(found), drawn, exact=False)

    def _facts(self, found: LoopState) -> dict[str, Any]:
        """What a checkpoint says beside the state: the counters of the script, and ours."""
        facts = {EXTRA: {"origin": {"world_size": self._run.ranks.world_size}}}
        counts = {  # those of other names are among the plain values only
            key: each
            for key, each in found.values.items()
            if isinstance(each, int) and key not in ENTRIES
        }
        return {**counts, **facts}

    def load(
        self,
        path: str | Path,
        state: Any = None,
        strict: bool = True,  # noqa: FBT001, FBT002 - as Fabric calls it
        weights_only: bool | None = None,  # noqa: FBT001
    ) -> dict[str, Any]:
        """Every rank: restore `state`, and its plain values; as `Strategy.load_checkpoint`.

        Raises:
            CheckpointMismatchError: it is of another state.
            CheckpointCorruptError, StoreError, UnsafeLoadError: it cannot be read.
        """
        found = LoopState.of(state) if isinstance(state, dict) else None
        parts = None if found is None else self._parts_of(found)
        with self._opened(path) as reader:
            if reader is None or parts is None or found is None:
                more = {} if weights_only is None else {"weights_only": weights_only}
                return self._stock[_LOAD](path, state, strict, **more)  # type: ignore[no-any-return]
            state.update(parts.load(found, reader, strict=strict, weights_only=weights_only))
        return {}

    def _parts_of(self, found: LoopState) -> ShardedLoop | None:
        if self._parts is None and lies_on_ranks(found):
            self._parts = ShardedLoop(self._run)
        return self._parts
