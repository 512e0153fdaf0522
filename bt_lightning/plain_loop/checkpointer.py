"""The front for training loops without a framework."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, TypeVar

from bt_lightning.errors import InvalidSettingError
from bt_lightning.plain_loop.loop_retention import loop_policy
from bt_lightning.plain_loop.loop_state import LoopState
from bt_lightning.plain_loop.open_loop import PREFIX, OpenLoop
from bt_lightning.session import argument_checks
from bt_lightning.session.checkpoint_writer import EXTRA, CheckpointWriter
from bt_lightning.session.options import Options
from bt_lightning.session.states_of_ranks import states_of_ranks

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager
    from datetime import timedelta
    from types import TracebackType

    from typing_extensions import Self

    from bt_lightning.retention import RetentionPolicy
    from bt_lightning.session.draw_part import DrawnPart

S = TypeVar("S", bound=dict[str, Any])

_OF_TRAINERS = (
    "fit_name",
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
        keep: which checkpoints to keep: the number of the newest, or one policy or several of
            `bt_lightning.retention`, such as `[KeepLatest(2), KeepBest("loss", "min")]`; what none
            of them keeps goes, when a newer one is safe. None: all.
        grace: seconds, or a `timedelta`, that the platform leaves after SIGTERM. With it, `step`
            says when the loop is told to end, and the loop must save and leave; the block ends then
            with the exit status 143. None: SIGTERM ends the process as without us.
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
        keep: int | RetentionPolicy | Sequence[RetentionPolicy] | None = None,
        grace: timedelta | float | None = None,
        **options: Any,
    ) -> None:
        refused = sorted(set(_OF_TRAINERS).intersection(options))
        if refused:
            msg = f"{', '.join(refused)}: only a Trainer does that, a loop saves when you say so"
            raise InvalidSettingError(msg)
        self._policy = loop_policy(keep)
        self._options = Options.of(dir=dir, store=store, grace=grace, **options)
        self._writer = CheckpointWriter()
        self._open: OpenLoop | None = None

    def __enter__(self) -> Self:
        """Every rank: open the directory and the store, and find what to resume from."""
        options = self._options.merged(os.environ)
        self._writer.trusted = options.own_weights_only is False
        # a loop that does not say so never asks whether to leave, and is to end at once
        hears_sigterm = self._options.grace is not None
        self._open = OpenLoop(options, self._policy, hears_sigterm=hears_sigterm)
        return self

    def load_latest(self, state: S) -> S:
        """Every rank: restore `state` from the newest whole checkpoint of disk and store.

        Args:
            state: by name, what has `state_dict` and `load_state_dict` (modules, optimizers,
                schedulers, a `StatefulDataLoader`), tensors and plain values. Objects are restored
                in place; tensors and values are replaced in this dictionary.

        Returns:
            The same dictionary; as it was if there is nothing to resume from.

        Raises:
            CheckpointMismatchError: the checkpoint is not of this loop.
            CheckpointCorruptError, StoreError, UnsafeLoadError: it cannot be read.
        """
        loop, found = self._running(), LoopState.of(state)
        run, model, base = loop.run, found.main_model, loop.base
        parts = loop.parts_of(found)
        if parts is not None:
            if run.start.path is not None:
                state.update(parts.load_start(found))
            loop.begin(found)
            loop.look(found)
            return state
        if model is not None:
            base.note(model, self._writer, run.ranks)
        read = run.session.load(run.start, run.root, map_location="cpu")
        if read is not None:
            whole = read if model is None else base.completed(read, model, run.ranks)
            if run.start.warm:
                found.load_weights(whole)
            else:
                state.update(found.load(whole, run.ranks.rank, run.ranks.world_size))
            base.loaded(read)
        base.begin()
        loop.begin(found)
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
        loop, found = self._running(), LoopState.of(state)
        run, parts = loop.run, loop.parts_of(found)
        drawing: AbstractContextManager[DrawnPart | None]
        drawing = contextlib.nullcontext() if parts is None else parts.draw()
        with drawing as drawn:  # before what may fail on one rank alone
            step = argument_checks.whole("step", step, 0)
            epoch = argument_checks.whole("epoch", epoch, 0)
            numbers = {name: float(value) for name, value in (metrics or {}).items()}
            name = f"{PREFIX}{step}"
            loop.begin(found)
            saves = run.session.saves
            if saves is not None:
                saves.saver.state_may_change()  # since the last save, whatever the loop did
            facts = {"metrics": numbers, "origin": {"world_size": run.ranks.world_size}}
            counted = {"step": step, "epoch": epoch, EXTRA: facts}
            if parts is not None and drawn is not None:
                parts.save(found, name, counted, drawn, exact=run.options.exact)
            else:
                mine = found.of_this_rank(exact=run.options.exact)
                ranks = states_of_ranks(mine, loop.exchange)
                if ranks is None:
                    return
                checkpoint = {**counted, **found.checkpoint(ranks)}
                run.session.save(self._writer, checkpoint, run.root / name, run.root)
        if run.ranks.is_zero:
            loop.keep(name, step, numbers)

    def step(self) -> bool:
        """Every rank, after each optimizer step: raises what the worker could not do.

        Returns:
            Whether SIGTERM came and the loop must save and leave, on every rank at the same step;
            only with `grace`.

        Raises:
            DirectoryUnusableError, UploadFailedError: as `save`.
            RankLostError: as `save`.
        """
        return self._running().ended_step()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Every rank: wait until all is committed and published; others wait for rank 0.

        After an exception, what was saved is published still, and further errors are warnings.

        Raises:
            SystemExit: with status 143 (0 on other ranks), if `step` has said that the loop must
                leave.
        """
        loop, self._open = self._running(), None
        loop.end(error)

    def _running(self) -> OpenLoop:
        if self._open is None:
            msg = "the Checkpointer is not open: use it in a `with` block"
            raise InvalidSettingError(msg)
        return self._open
