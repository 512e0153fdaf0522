"""The saves of one training: what `_save_checkpoint` writes goes to the session, as a snapshot."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.hf.best_checkpoint import load_best, wait_until_committed
from bt_lightning.hf.captured_files import capture_writes
from bt_lightning.hf.constant_files import ConstantFiles
from bt_lightning.hf.patched_trainer import leaving_checkpoints, own_method, replaced_methods
from bt_lightning.hf.place_in_memory import place_in_memory
from bt_lightning.hf.save_limit import KeptCheckpoints
from bt_lightning.hf.trainer_state_text import TrainerStateText
from bt_lightning.localdir.small_files import replace_small
from bt_lightning.session.folder_writer import Folder, FolderWriter
from bt_lightning.session.states_of_ranks import states_of_ranks
from bt_lightning.snapshot.folder_files import SafetensorsFile, TorchFile
from bt_lightning.snapshot.size_estimate import state_size
from bt_lightning.worker.worker_handle import unlimited

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from bt_lightning.hf.captured_files import CapturedWrites
    from bt_lightning.session.running_session import RunningSession
    from bt_lightning.snapshot.folder_files import Content

FORMAT: Final = "hf-trainer"
_REHEARSED: Final = "rehearsed"
_MOST_OF_RANK: Final = 64 << 20
"""Bytes that a rank beside rank 0 adds to a checkpoint: generators."""
_RECENT: Final = 64
"""Entries of the history that are looked at for metrics."""
_NO_METRICS: Final = frozenset({"step", "epoch"})


class CheckpointSaves:
    """On every rank; one for a training.

    Args:
        trainer: the Trainer that saves.
        run: its session.
        best: name of the folder of the checkpoint that was best until here.
        optimizers: torch's own.
        more: further files of this rank, by name, for a resume.
    """

    def __init__(
        self,
        trainer: Any,
        run: RunningSession,
        best: str | None,
        optimizers: Callable[[], Sequence[torch.optim.Optimizer]],
        more: Callable[[], dict[str, bytes]] = dict,
    ) -> None:
        self._trainer, self._run = trainer, run
        self.folder: Path = run.root / run.start.fit_folder
        """Where the checkpoints of this training are."""
        self._writer = FolderWriter()
        self._kept = KeptCheckpoints(run, self.folder, best)
        self._state_text = TrainerStateText()
        self._run_dir: Path | None = None
        self._place = run.root
        """On whose volume the Trainer writes what is read back."""
        self._constant = ConstantFiles()
        self._optimizers, self._more = optimizers, more
        self._rehearsed: dict[str, Content] = {}
        """The large files of a save, from its rehearsal until the first step is over."""
        self.newest: int | None = None
        """The newest step that can be resumed from and is saved, or being saved."""

    def prepare(self) -> None:
        """Every rank, before the first step: write the files once, so that no save is the first.

        What cannot be saved is found here. Memory for the snapshots is allocated in the background.
        """
        trainer = self._trainer
        with capture_writes(self._run.root) as captured, self._constant.used_in(captured, trainer):
            trainer.save_model(str(captured.run_dir / _REHEARSED), _internal_call=True)
            files = captured.files(_REHEARSED)
        small = sum(len(one) for one in files.values() if isinstance(one, bytes))
        self._place = place_in_memory(small) or self._place
        saves = self._run.session.saves
        if saves is None:
            return
        self._rehearsed = {p: one for p, one in files.items() if not isinstance(one, bytes)}
        tensors = (
            tensor
            for one in self._rehearsed.values()
            if isinstance(one, SafetensorsFile)
            for tensor in one.tensors.values()
        )
        weights = sum(tensor.nbytes for tensor in tensors)
        saves.saver.prepare(weights + state_size(torch.nn.Module(), self._optimizers()))

    def encode_early(self) -> None:
        """Every rank, after a step: lay the first save out beside training, once."""
        saves = self._run.session.saves
        if saves is None or not self._rehearsed or not any(o.state for o in self._optimizers()):
            return
        files, self._rehearsed = self._rehearsed, {}
        if not self._trainer.args.save_only_model:
            files["optimizer.pt"] = TorchFile(self._trainer.optimizer.state_dict())
        saves.saver.encode_early(self._writer.encode_early(files))

    def methods(self) -> dict[str, Callable[..., Any]]:
        """What is called in place of methods of the Trainer and of its subclass."""
        return {
            "_save_checkpoint": self.save,
            "_get_output_dir": lambda *_, **__: str(self._run_dir or self.folder),
            "_load_best_model": partial(load_best, self._trainer, self._run),
            "_rotate_checkpoints": lambda *_, **__: None,
            "_sorted_checkpoints": lambda *_, **__: [],
        }

    def save(self, *given: Any, **named: Any) -> None:
        """Every rank, in place of `_save_checkpoint`: save the state as `checkpoint-<step>`."""
        trainer = self._trainer
        self.save_as(f"checkpoint-{trainer.state.global_step}", {}, *given, **named)
        self._kept.saved(trainer.state, trainer.args.save_total_limit)

    def end(self) -> None:
        """Every rank, when training is over: what waited for a commit goes."""
        limit = self._trainer.args.save_total_limit
        if limit:
            wait_until_committed(self._run)
            self._kept.remove_stock(limit)

    def save_interim(self, name: str, reason: str) -> None:
        """Every rank: save a state that the Trainer does not ask for; all of it."""
        args = self._trainer.args
        only_model, args.save_only_model = args.save_only_model, False
        try:
            self.save_as(name, {"interim": reason}, self._trainer.model, None)
        finally:
            args.save_only_model = only_model

    def save_as(self, name: str, origin: dict[str, Any], *given: Any, **named: Any) -> None:
        """Every rank: save the state as the folder `name`; `origin` are facts of its manifest."""
        trainer, run = self._trainer, self._run
        folder = f"checkpoint-{trainer.state.global_step}"
        if not trainer.args.save_only_model:
            self.newest = trainer.state.global_step
        with capture_writes(self._place) as captured:
            self._capture(captured, folder, *given, **named)
            files = self._of_all_ranks(captured.files(folder))
            beside = captured.beside(folder)
        if files is None:
            return
        for path, content in beside.items():
            (self.folder / path).parent.mkdir(parents=True, exist_ok=True)
            replace_small(self.folder / path, content, durable=False)
        facts = {
            "format": FORMAT,
            "fit": run.session.fit_facts,
            "world_size": run.ranks.world_size,
            **origin,
        }
        state = trainer.state
        saved = Folder(
            files=files,
            step=state.global_step,
            epoch=int(state.epoch or 0),
            metrics=_metrics(state),
            origin=facts,
            resumable=not trainer.args.save_only_model,
        )
        saves = run.session.saves
        if saves is not None:
            saves.saver.state_may_change()  # since the last save, whatever the Trainer did
        run.session.save(self._writer, saved, self.folder / name, run.root)

    def _capture(self, captured: CapturedWrites, folder: str, *given: Any, **named: Any) -> None:
        """Let the Trainer's own code write the folder."""
        trainer, state = self._trainer, self._trainer.state
        best = self._kept.best(state)
        if best is not None and best != folder:
            (captured.run_dir / best).mkdir()  # it asks whether the best one is there

        def save_to_json(path: str) -> None:
            state.best_model_checkpoint = self._kept.path_of(state.best_model_checkpoint)
            content = self._state_text.of(state, {})
            captured.note(path, lambda: content)

        self._run_dir = captured.run_dir
        try:
            with (
                leaving_checkpoints(str(captured.run_dir)),
                self._constant.used_in(captured, trainer),
                replaced_methods(state, {"save_to_json": save_to_json}),
            ):
                own_method(trainer, "_save_checkpoint")(*given, **named)
        finally:
            self._run_dir = None
            state.best_model_checkpoint = self._kept.path_of(state.best_model_checkpoint)

    def _of_all_ranks(self, files: dict[str, Content]) -> dict[str, Content] | None:
        """Every rank: the files of all, on the one that writes; None on the others."""
        run, args = self._run, self._trainer.args
        more = {} if args.save_only_model else self._more()
        if run.ranks.world_size == 1:
            return {**files, **more}
        own = f"rng_state_{args.process_index}.pth"
        mine = dict(more)
        if not run.ranks.is_zero:
            wanted = {own} if args.should_save else files.keys()
            mine |= {path: _as_bytes(path, files[path]) for path in wanted & files.keys()}
        ranks = states_of_ranks(mine, lambda payload: run.peers.exchange(payload, unlimited))
        if ranks is None:
            return None
        others = {path: content for each in ranks for path, content in each.items()}
        return {**others, **files}


def _as_bytes(path: str, content: Content) -> bytes:
    """What another rank than rank 0 writes: a small file.

    Raises:
        UnsupportedStateError: it is a part of the state, which only rank 0 saves here.
    """
    if isinstance(content, bytes) and len(content) <= _MOST_OF_RANK:
        return content
    msg = (
        f"{path} is written by a rank beside rank 0, and is too large: BTTrainerCallback saves what"
        " rank 0 writes, and the generators of each rank"
    )
    raise UnsupportedStateError(msg)


def _metrics(state: Any) -> dict[str, float]:
    """The newest value of each number that was logged of late."""
    found: dict[str, float] = {}
    for entry in state.log_history[-_RECENT:]:
        found.update(
            (name, float(value))
            for name, value in entry.items()
            if isinstance(value, int | float) and name not in _NO_METRICS
        )
    return found
