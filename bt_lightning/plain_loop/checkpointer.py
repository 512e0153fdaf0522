"""The front for training loops without a framework."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from bt_lightning.errors import InvalidSettingError
from bt_lightning.plain_loop.loop_state import LoopState
from bt_lightning.session import argument_checks
from bt_lightning.session.checkpoint_paths import DEFAULT_ROOT, absolute_root
from bt_lightning.session.checkpoint_writer import EXTRA, CheckpointWriter
from bt_lightning.session.options import Options
from bt_lightning.session.running_session import RunningSession
from bt_lightning.session.states_of_ranks import states_of_ranks
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from typing_extensions import Self

S = TypeVar("S", bound=dict[str, Any])

_OF_TRAINERS = (
    "fit_name",
    "grace",
    "interval",
    "failures_every",
    "max_overhead",
    "save_at_end",
    "strict",
)
"""Options for what only a Trainer can do by itself."""


class Checkpointer:
    """Saves the state of a training loop durably, publishes it, and resumes the loop.

    Every rank makes one when torch's process group is there, if there is one, and calls its methods
    at the same places::

        with Checkpointer("checkpoints", keep=3) as ck:
            state = ck.load_latest({"model": model, "optimizer": optimizer, "step": 0})
            while state["step"] < steps:
                train_one_step(model, optimizer)
                state["step"] += 1
                ck.step()
                if state["step"] % 100 == 0:
                    ck.save(state, state["step"], metrics={"loss": loss.item()})

    A save is a snapshot, which the worker process commits and publishes while the loop goes on; the
    block ends when all of it is done. What a crash interrupts is resumed by the same script.

    Args:
        dir: directory of the checkpoints; `$BT_CHECKPOINT_DIR`, else `bt_checkpoints`.
        store: URL of the store for committed checkpoints; `$BT_STORE_URL`, else none.
        keep: how many checkpoints to keep, the newest; None: all.
        options: as of `BTLightning`, but those for what only a Trainer does by itself.

    Raises:
        InvalidSettingError: for an argument that cannot be used.
        DirectoryUnusableError, StoreError: at the start of the block, on every rank.
        UploadFailedError, DirectoryFullError: once, at the next call, as of `BTLightning`.
    """

    def __init__(
        self,
        dir: str | os.PathLike[str] | None = None,
        store: str | None = None,
        *,
        keep: int | None = None,
        **options: Any,
    ) -> None:
        refused = sorted(set(_OF_TRAINERS).intersection(options))
        if refused:
            msg = f"{', '.join(refused)}: only a Trainer does that, a loop saves when you say so"
            raise InvalidSettingError(msg)
        self._keep = None if keep is None else argument_checks.whole("keep", keep, 1)
        self._options = Options.of(dir=dir, store=store, **options)
        self._writer = CheckpointWriter()
        self._kept: list[str] | None = None
        """Ids of the checkpoints that are there, the oldest first, from the first save on."""
        self._open: RunningSession | None = None

    def __enter__(self) -> Self:
        """Every rank: open the directory and the store, and find what to resume from."""
        options = self._options.merged(os.environ)
        self._writer.trusted = options.own_weights_only is False
        self._kept = None
        self._open = RunningSession(options, absolute_root(options.dir or DEFAULT_ROOT))
        return self

    def load_latest(self, state: S) -> S:
        """Every rank: restore `state` from the newest whole checkpoint of disk and store.

        Args:
            state: by name, what has `state_dict` and `load_state_dict` (modules, optimizers,
                schedulers, `StatefulDataLoader`s), tensors and plain values. Objects are restored
                in place; tensors and values are replaced in this dictionary.

        Returns:
            The same dictionary; as it was if there is nothing to resume from.

        Raises:
            CheckpointMismatchError: the checkpoint is not of this loop.
            CheckpointCorruptError, StoreError, UnsafeLoadError: it cannot be read.
        """
        run, found = self._running(), LoopState.of(state)
        checkpoint = run.session.load(run.start, run.root, map_location="cpu")
        if checkpoint is not None and run.start.warm:
            found.load_weights(checkpoint)
        elif checkpoint is not None:
            state.update(found.load(checkpoint, run.ranks.rank, run.ranks.world_size))
        _begin(run, found)
        return state

    def save(
        self,
        state: Mapping[str, Any],
        step: int,
        *,
        epoch: int = 0,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Every rank: save `state` as `checkpoint-<step>`.

        Args:
            state: as of `load_latest`; of plain values and shared objects, rank 0's.
            step: how many optimizer steps are behind it.
            epoch: how many epochs are.
            metrics: numbers to show beside it, by name.

        Raises:
            DirectoryUnusableError, UploadFailedError: an earlier save failed.
            RankLostError: another rank is gone.
        """
        run, found = self._running(), LoopState.of(state)
        step = argument_checks.whole("step", step, 0)
        epoch = argument_checks.whole("epoch", epoch, 0)
        numbers = {name: float(value) for name, value in (metrics or {}).items()}
        _begin(run, found)
        mine = found.of_this_rank(exact=run.options.exact)
        ranks = states_of_ranks(mine, lambda payload: run.peers.exchange(payload, unlimited))
        if ranks is None:
            return
        facts = {"metrics": numbers, "origin": {"world_size": run.ranks.world_size}}
        name = f"{_PREFIX}{step}"
        saves = run.session.saves
        if saves is not None:
            saves.saver.state_may_change()  # since the last save, whatever the loop did
        checkpoint = {"step": step, "epoch": epoch, **found.checkpoint(ranks), EXTRA: facts}
        run.session.save(self._writer, checkpoint, run.root / name, run.root)
        self._keep_newest(name, run)

    def step(self) -> None:
        """Every rank, after each optimizer step: raises what the worker could not do.

        Raises:
            DirectoryUnusableError, UploadFailedError: as `save`.
        """
        self._running().session.boundary()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Every rank: wait until all is committed and published; others wait for rank 0.

        After an exception, what was saved is published still, and further errors are warnings.
        """
        run, self._open = self._running(), None
        run.end(error)

    def _keep_newest(self, name: str, run: RunningSession) -> None:
        if self._keep is None:
            return
        if self._kept is None:
            self._kept = _of_loops(run.saved())
        self._kept = [*(one for one in self._kept if one != name), name]
        while len(self._kept) > self._keep:
            run.session.remove(run.root / self._kept.pop(0), run.root)

    def _running(self) -> RunningSession:
        if self._open is None:
            msg = "the Checkpointer is not open: use it in a `with` block"
            raise InvalidSettingError(msg)
        return self._open


_PREFIX = "checkpoint-"


def _begin(run: RunningSession, state: LoopState) -> None:
    optimizers = list(state.optimizers.values())
    run.begin(lambda: optimizers, device=state.device)


def _step(checkpoint_id: str) -> int:
    return int(checkpoint_id.removeprefix(_PREFIX))


def _of_loops(ids: list[str]) -> list[str]:
    """Those that a loop saved, by step."""
    steps = {found: found.removeprefix(_PREFIX) for found in ids if found.startswith(_PREFIX)}
    return sorted((one for one, step in steps.items() if step.isdecimal()), key=_step)
