"""What a batch was drawn with that is fetched and not trained yet, so that a resume draws it again.

accelerate fetches a batch ahead. The Trainer saves the generators as they are behind that, and
restores them behind the first fetches of a resumed run, which draw from whatever is there: a
collator that masks or augments would give other batches. So the state before the pending fetch is
saved beside, and each fetch of a resumed run draws from the state that it drew from before.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import IterableDataset, dataloader

from bt_lightning.hf.patched_trainer import own_method
from bt_lightning.session.random_generators import (
    copied_states,
    restore_generators,
    storable_states,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.hf.start_of_training import StartOfTraining


class PendingBatch:
    """The fetches of one training on one rank, in its own process.

    Args:
        trainer: the Trainer.
        start: what the training starts from.
        resumed: the folder that it resumes from, if there is one.
    """

    def __init__(self, trainer: Any, start: StartOfTraining, resumed: str | None) -> None:
        self._trainer, self._start, self._resumed = trainer, start, resumed
        self._before: dict[str, Any] | None = None
        """The generators before the newest fetch."""
        self._iterator: object = None
        self._fetched = 0
        """Fetches of the iterator that is used."""
        self._is_first = True
        """Whether that is the first one of the training."""
        file = None if resumed is None else Path(resumed) / self._name
        self._saved = torch.load(file, weights_only=True) if file and file.is_file() else None
        self._restore = self._saved is not None
        """Whether the second fetch draws from what the Trainer has saved."""
        self._restored = False

    def methods(self) -> dict[str, Callable[..., Any]]:
        """What is called in place of methods of the Trainer."""
        return {"_load_rng_state": self._load_rng_state}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """In this block, fetches in this process are noted; those of worker processes are not."""
        kind: Any = dataloader._SingleProcessDataLoaderIter  # noqa: SLF001
        original = kind._next_index  # noqa: SLF001

        def next_index(iterator: Any) -> Any:
            if iterator._dataset is self._dataset:  # noqa: SLF001
                self._fetch(iterator)
            return original(iterator)

        kind._next_index = next_index  # noqa: SLF001
        try:
            yield
        finally:
            kind._next_index = original  # noqa: SLF001

    def file(self) -> dict[str, bytes]:
        """Name and content of what is saved of this rank; empty if no batch is pending."""
        step, steps = self._trainer.state.global_step, self._start.steps_of_epoch
        if self._before is None or not steps:
            return {}
        trained = self._batches(step % steps)
        skipped = self._batches((self._start.step or 0) % steps) if self._is_first else 0
        if not trained or skipped + self._fetched != trained + 1:
            return {}
        buffer = io.BytesIO()
        torch.save(storable_states(self._before), buffer)
        return {self._name: buffer.getvalue()}

    def _batches(self, steps: int) -> int:
        return steps * int(self._trainer.args.gradient_accumulation_steps)

    @property
    def _name(self) -> str:
        args = self._trainer.args
        rank = f"_{args.process_index}" if args.world_size > 1 else ""
        return f"bt_pending_batch{rank}.pth"

    @property
    def _dataset(self) -> object:
        """What is trained on; None of a stream, of which a resume fetches all again."""
        loader = self._trainer.callback_handler.train_dataloader
        dataset = getattr(loader, "dataset", None)
        return None if isinstance(dataset, IterableDataset) else dataset

    def _fetch(self, iterator: object) -> None:
        """A batch is drawn next."""
        if iterator is not self._iterator:
            self._is_first = self._iterator is None
            self._iterator, self._fetched = iterator, 0
        if self._saved is not None:
            restore_generators(self._saved, None)
            self._saved = None
        elif self._restore:
            self._restore, self._restored = False, True
            own_method(self._trainer, "_load_rng_state")(self._resumed)
        self._before = copied_states(None)
        self._fetched += 1

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """In place of the Trainer's method, which comes behind the first fetches."""
        restored, self._restored = self._restored, False
        if not restored:
            self._restore = False
            own_method(self._trainer, "_load_rng_state")(checkpoint)
