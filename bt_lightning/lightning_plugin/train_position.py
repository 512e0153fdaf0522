"""Saves where a run stands in its samples, and goes on from there, on any number of ranks.

A place is recorded in samples of the epoch's order (`session.sample_position`), and the order by
what it is made from (`session.sample_order`). A resume on another number of ranks, in a script
whose dataloader has another order, or with a dataloader without a state of its own gets a sampler
that yields what is left, and in later epochs what the run that began would have trained.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bt_lightning.lightning_plugin import compat_dataloaders as compat
from bt_lightning.lightning_plugin.compat import iterates_at_train_start
from bt_lightning.lightning_plugin.train_loader import TrainLoader, describe_loader, make_order
from bt_lightning.lightning_plugin.trainer_ranks import data_ranks, ranks_of
from bt_lightning.session.sample_order import (
    ContinuedSampler,
    DrawnOrder,
    NotedBatchSampler,
    SeededOrder,
)
from bt_lightning.session.sample_position import Batching, Place

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from lightning.pytorch import Trainer

    from bt_lightning.lightning_plugin.compat_reloaded_dataloaders import Replaced
    from bt_lightning.session.sample_order import Order

log = logging.getLogger(__name__)


class TrainPosition:
    """The place of a fit in its train dataloader; one on every rank."""

    def __init__(self) -> None:
        self._saved: dict[str, Any] | None = None
        """What the checkpoint says, until the dataloader is there."""
        self._torch_state: torch.Tensor | None = None
        """Of rank 0's global generator, in the checkpoint."""
        self._continued: dict[str, Any] | None = None
        """The order that this fit goes on with, in the place of its dataloader's."""
        self._found: TrainLoader | str = "the train dataloader is not set up"
        self._drawn: DrawnOrder | None = None
        self._watched: NotedBatchSampler | None = None
        """Of a dataloader that iterates in its own way, to see whether it is asked at all."""
        self._at_generator: tuple[torch.Generator, torch.Tensor] | None = None
        """A sampler's own one, and its state in the checkpoint, until the loops begin."""
        self._differs: tuple[dict[str, Any], str | None] | None = None
        """What the checkpoint says, and why its order is not continued, until that is said."""
        self._epoch, self._start, self._done = 0, 0, 0
        """In this epoch the fit began at this sample, with so many batches counted as done."""

    @property
    def is_known(self) -> bool:
        """Whether the order of the train dataloader's samples can be gone on with."""
        unasked = self._watched is not None and not self._watched.is_asked
        return isinstance(self._found, TrainLoader) and not unasked

    def record(self, trainer: Trainer, *, epoch_end: bool) -> dict[str, Any]:
        """What a checkpoint of this moment says; on every rank, for rank 0 to save."""
        found = self._found
        if isinstance(found, str):
            return {"unknown": found}
        if not self.is_known and not epoch_end:
            return {"unknown": f"{type(found.loader).__name__} iterates in a way of its own"}
        batching, order = found.batching, self._continued or {**found.order, **found.draws}
        said = {
            **order,
            "ranks": batching.ranks,
            "batch_size": batching.batch_size,
            "native": found.native and self._continued is None,
            "workers": found.loader.num_workers,
            "accumulate": trainer.accumulate_grad_batches,
            "sample": 0 if epoch_end else self._place(trainer, order["length"], batching).sample,
        }
        if order["drawn_by"] is not None and said["sample"]:
            said["begin"] = compat.begin_state(trainer)
            if said["begin"] is None:
                return {"unknown": "the train dataloader was not iterated over by Lightning alone"}
        if order["own_generator"]:
            drawn = self._drawn or DrawnOrder(found.drawn_by)
            said["now"] = drawn.generator.get_state()
        return said

    def load(self, saved: dict[str, Any] | None, ranks: int, torch_state: torch.Tensor) -> None:
        """Called on every rank with what a checkpoint of `ranks` ranks says; None: of before."""
        self._saved = saved or {"unknown": "the checkpoint does not say it"}
        # of a mesh of ranks, those along one dimension read the same
        self._saved = {"ranks": ranks, **self._saved, "world_size": ranks}
        self._torch_state = torch_state

    def reset(self, trainer: Trainer) -> None:
        """Give the dataloaders back as the script made them, and forget the checkpoint."""
        for loader in compat.train_loaders(trainer):
            compat.restore_batch_sampler(loader)
        self.__init__()  # type: ignore[misc]

    def before_iterator(
        self, trainer: Trainer, *, epoch_end: bool, replaced: Replaced = None
    ) -> bool:
        """Called on every rank when the train dataloader is set up, before its iterator is made.

        Args:
            trainer: of the fit.
            epoch_end: whether the checkpoint is of the end of an epoch.
            replaced: what Lightning made of the dataloader before the first batch.

        Returns:
            Whether the fit goes on in its samples by this object, not by the dataloader's state.
        """
        loaders = compat.train_loaders(trainer)
        for loader in loaders:
            compat.restore_batch_sampler(loader)
        self._found = found = describe_loader(loaders, data_ranks(trainer)[1])
        self._watched = None
        saved, self._saved = self._saved, None
        if saved is not None and replaced == "new":  # with a generator that begins
            saved = {name: value for name, value in saved.items() if name != "now"}
        if saved is None and self._continued is not None:  # reloaded in a later epoch
            saved = {**self._continued, "sample": 0, "ranks": None}
            return isinstance(found, TrainLoader) and self._continue(trainer, found, saved)
        if saved is not None and self._is_ours(found, saved, epoch_end=epoch_end):
            reason = self._cannot(found, saved)
            self._differs = saved, reason
            if reason is None and isinstance(found, TrainLoader):
                reloaded = replaced is not None
                return self._continue(trainer, found, saved, resumed=True, reloaded=reloaded)
        if isinstance(found, TrainLoader) and (found.drawn_by is not None or found.own_iteration):
            self._note(found)
        return False

    def after_train_start(self, trainer: Trainer) -> None:
        """Called on every rank when the loops begin, before the first batch is drawn."""
        if self._at_generator is not None and iterates_at_train_start(trainer):
            # its first iterator, which Lightning replaces, drew from the sampler's generator
            generator, state = self._at_generator
            generator.set_state(state)
        self._at_generator = None
        self.say_what_differs(trainer)

    def say_what_differs(self, trainer: Trainer) -> None:
        """Log once, on rank 0, what is not as in the uninterrupted run; when the loops begin."""
        differs, self._differs = self._differs, None
        if differs is None or not trainer.is_global_zero:
            return
        saved, reason = differs
        other_ranks = saved["world_size"] != trainer.world_size
        what = self._other_steps(trainer, saved) if reason is None else None
        samples = self._found.samples if isinstance(self._found, TrainLoader) else None
        other_data = saved.get("samples", samples) != samples
        if reason is not None and (other_ranks or other_data):
            what = (
                f"the order of the samples is not known ({reason}), so a resume inside an epoch"
                " begins its data again: some are trained twice, others not at all"
            )
        elif what is None and other_ranks:
            what = (
                "each step takes the samples of the uninterrupted run. What a rank draws (dropout,"
                " augmentation) is not the same, and sums over ranks are rounded differently"
            )
        if what is not None:
            ranks = "saved by %d ranks, resumed on %d: %s"
            log.warning(ranks, saved["world_size"], trainer.world_size, what)

    def _other_steps(self, trainer: Trainer, saved: dict[str, Any]) -> str | None:
        assert isinstance(self._found, TrainLoader)  # since the order is continued
        before = saved["ranks"] * saved["batch_size"] * saved["accumulate"]
        after = self._found.batching.global_batch * trainer.accumulate_grad_batches
        if before == after:
            return None
        return (
            f"a step takes {after} samples and took {before}. This epoch goes on at its sample"
            f" {saved['sample']} of {saved['length']}, none twice and none left out, but steps, and"
            " what is scheduled by them, are not those of the uninterrupted run"
        )

    def _place(self, trainer: Trainer, length: int, batching: Batching) -> Place:
        batches = compat.batches_trained(trainer)
        if compat.epochs_trained(trainer) != self._epoch:
            return Place(length).after(batches, batching)
        return Place(length, self._start).after(batches - self._done, batching)

    @staticmethod
    def _is_ours(found: TrainLoader | str, saved: dict[str, Any], *, epoch_end: bool) -> bool:
        """Whether the dataloader by itself would not go on as the checkpoint's run did."""
        if isinstance(found, str) or "unknown" in saved:
            return True
        batching = found.batching
        before = (saved["ranks"], saved["batch_size"])
        if before != (batching.ranks, batching.batch_size):
            return True
        if any(saved[name] != value for name, value in found.order.items()):
            return True
        if found.native:  # torchdata's state is of its workers
            return not saved["native"] or bool(saved["workers"] != found.loader.num_workers)
        return not epoch_end or "now" in saved

    @staticmethod
    def _cannot(found: TrainLoader | str, saved: dict[str, Any]) -> str | None:
        """Why the order cannot be continued, if so."""
        if isinstance(found, str):
            return found
        if "unknown" in saved:
            return str(saved["unknown"])
        if found.samples != saved["samples"]:
            return f"it reads {found.samples} samples, it read {saved['samples']}"
        order = make_order(found, saved, None)
        return order if isinstance(order, str) else None

    def _continue(
        self,
        trainer: Trainer,
        found: TrainLoader,
        saved: dict[str, Any],
        *,
        resumed: bool = False,
        reloaded: bool = True,
    ) -> bool:
        agree = _agreement(trainer) if found.batching.ranks > 1 else None
        order = make_order(found, saved, agree)
        if isinstance(order, str):
            return False
        epoch, place = compat.epochs_trained(trainer), Place(saved["length"], saved["sample"])
        if isinstance(order, DrawnOrder):
            self._drawn = order
            order.draws *= compat.iterators_of_reload(trainer) if reloaded else 1
        if isinstance(order, DrawnOrder) and resumed:
            order.set_epoch(epoch)
            self._set_generator(order, saved, found.batching.ranks)
        else:
            order.begin_epoch(epoch)
        rank, ranks = data_ranks(trainer)
        sampler = ContinuedSampler(order, place, epoch, rank, ranks)
        noted = NotedBatchSampler(order, compat.index_batches(found.loader), sampler)
        compat.set_batch_sampler(found.loader, noted)
        compat.forget_loader_states(trainer)
        compat.limit_batches_anew(trainer)
        self._continued = {name: saved[name] for name in (*found.order, *found.draws)}
        if resumed and place.sample:
            self._epoch, self._start = epoch, place.sample
            self._done = place.batches_done(found.batching)
            compat.set_batches_trained(trainer, self._done)
        return True

    def _set_generator(self, order: DrawnOrder, saved: dict[str, Any], ranks: int) -> None:
        """Let the next order be the one that the run of the checkpoint has, or had next."""
        if saved["sample"]:
            order.draw_again(saved["begin"].cpu())
            return
        if order.own and "now" in saved:
            order.generator.set_state(saved["now"].cpu())
            self._at_generator = order.generator, order.generator.get_state()
        state = order.generator.get_state() if order.own else self._torch_state
        if ranks > 1 and state is not None:
            order.expect(state.cpu())

    def _note(self, found: TrainLoader) -> None:
        """Keep, with each iterator, the state that its order was drawn from."""
        if found.native:
            return
        batches = compat.index_batches(found.loader)
        order: Order = SeededOrder(found.samples, found.seed)
        if found.drawn_by is not None:
            order = self._drawn = DrawnOrder(found.drawn_by)
        noted = NotedBatchSampler(order, batches, eager=found.eager)
        compat.set_batch_sampler(found.loader, noted)
        self._watched = noted if found.own_iteration else None


def _agreement(trainer: Trainer) -> Callable[[torch.Tensor], torch.Tensor]:
    ranks = ranks_of(trainer)
    return lambda state: ranks.from_zero(lambda: state)
