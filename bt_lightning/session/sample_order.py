"""The order of a training's samples, kept apart from the ranks that share them.

An order is *seeded*, as of torch's `DistributedSampler`: each epoch's follows from a seed and the
epoch. Or it is *drawn* by a sampler from a generator when its iteration begins, as of
`RandomSampler`: it can be had again from the generator's state of that moment. Lightning may
shuffle a drawn order once more, by a seed.
"""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from bt_lightning.session.sample_position import Place


class SeededOrder:
    """The order that `DistributedSampler` has, or without a seed the one of the dataset."""

    def __init__(self, samples: int, seed: int | None) -> None:
        self._sampler: DistributedSampler[int] = DistributedSampler(
            range(samples),  # type: ignore[arg-type]  # only its length is read
            num_replicas=1,
            rank=0,
            shuffle=seed is not None,
            seed=seed or 0,
        )

    begin: torch.Tensor | None = None
    """It is drawn from no generator."""

    def note(self) -> None:
        """There is nothing to note."""

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch."""
        self._sampler.set_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Called on every rank before an epoch."""
        self.set_epoch(epoch)

    def indices(self) -> list[int]:
        """The order of this epoch."""
        return list(self._sampler)


class DrawnOrder:
    """The order that a sampler draws from its own generator, or from torch's global one.

    Args:
        sampler: draws an order each time that its iteration begins.
        shuffle: how what is drawn is put into order once more, if it is.
        exhausts: whether its iterations come to their end, where torch's draws once more.
        discards: how many orders are drawn before the one that an epoch trains.
        agree: a collective: rank 0's state of a generator, on every rank. None for one rank.
    """

    def __init__(
        self,
        sampler: Sampler[int],
        *,
        shuffle: SeededOrder | None = None,
        exhausts: bool = True,
        discards: int = 0,
        agree: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.sampler = sampler
        self.begin: torch.Tensor | None = None
        """The state that the order was drawn from, from which it can be had again."""
        self._expected: torch.Tensor | None = None
        """The state to draw the epoch's order from; None: wherever the generator stands."""
        self._exhausts, self._discards = exhausts, discards
        self._left = discards
        self.draws = 0
        """How often the dataloader draws from the same generator before the sampler does."""
        self._shuffle, self._agree = shuffle, agree

    @property
    def own(self) -> bool:
        """Whether the generator is the sampler's own."""
        return getattr(self.sampler, "generator", None) is not None

    @property
    def generator(self) -> torch.Generator:
        """What the order is drawn from."""
        found: torch.Generator = getattr(self.sampler, "generator", None) or torch.default_generator
        return found

    def note(self) -> None:
        """Note where the generator stands, right before the sampler draws by itself."""
        self.begin = self.generator.get_state()

    def set_epoch(self, epoch: int) -> None:
        """Take this epoch for what depends on a seed."""
        if self._shuffle is not None:
            self._shuffle.set_epoch(epoch)

    def begin_epoch(self, epoch: int) -> None:
        """Called on every rank before an epoch; ranks that draw apart would share no order."""
        self.set_epoch(epoch)
        self._expected, self._left = None, self._discards
        if self._agree is not None:
            self.expect(self._agree(self.generator.get_state()))

    def expect(self, state: torch.Tensor) -> None:
        """Draw the next order as from a generator in `state`, when its dataloader has drawn."""
        generator = torch.Generator()
        generator.set_state(state)
        for _ in range(self.draws):
            torch.empty((), dtype=torch.int64).random_(generator=generator)
        self._expected = generator.get_state()

    def draw_again(self, begin: torch.Tensor) -> None:
        """Have an order again that was drawn from the state `begin`."""
        self._expected, self._left = begin, 0

    def indices(self) -> list[int]:
        """The order of this epoch.

        A generator that stands where it is expected moves on as the sampler moves it. One that
        stands elsewhere is taken there: the sampler's own stays, the global one goes back, since
        it is not the samples' alone.
        """
        here = self.generator.get_state()
        wanted = here if self._expected is None else self._expected
        stays = self.own or torch.equal(here, wanted)
        self.generator.set_state(wanted)
        try:
            for _ in range(self._left):
                self._draw()
            self.begin = self.generator.get_state()
            order = self._draw()
        finally:
            if not stays:
                self.generator.set_state(here)
        return order if self._shuffle is None else [order[i] for i in self._shuffle.indices()]

    def _draw(self) -> list[int]:
        drawn = iter(self.sampler)
        return list(drawn if self._exhausts else islice(drawn, len(self.sampler)))  # type: ignore[arg-type]


Order = SeededOrder | DrawnOrder


class ContinuedSampler(Sampler[int]):
    """One rank's share of an order that another number of ranks, or another script, began.

    Its length is that of a whole epoch; in its first epoch it yields what is left from `place` on.
    """

    def __init__(self, order: Order, place: Place, epoch: int, rank: int, ranks: int) -> None:
        self.order = order
        self._place, self._epoch = place, epoch
        self._rank, self._ranks = rank, ranks

    def __len__(self) -> int:
        return math.ceil(self._place.length / self._ranks)

    def __iter__(self) -> Iterator[int]:
        yield from self._place.share(self.order.indices(), self._rank, self._ranks)

    def set_epoch(self, epoch: int) -> None:
        """Called on every rank before each epoch; again for the same one, it does nothing."""
        if epoch != self._epoch:
            self._epoch, self._place = epoch, type(self._place)(self._place.length)
            self.order.begin_epoch(epoch)


class NotedBatches:
    """An iteration over batches of indices that knows the state its order was drawn from.

    Args:
        order: what the batches are drawn from; it knows the state of its last draw.
        batches: the batches.
        begin: that state, if it was drawn before the first batch is asked for.
    """

    def __init__(
        self, order: Order, batches: Iterator[list[int]], begin: torch.Tensor | None
    ) -> None:
        self.begin = begin
        self._order, self._batches, self._begun = order, batches, begin is not None

    def __iter__(self) -> NotedBatches:
        return self

    def __next__(self) -> list[int]:
        if self._begun:
            return next(self._batches)
        self._order.note()
        self._begun = True
        try:
            return next(self._batches)
        finally:
            self.begin = self._order.begin


class NotedBatchSampler(BatchSampler):
    """A `BatchSampler` in the place of another one of torch's or torchdata's.

    Args:
        order: the order of its batches.
        replaced: the batch sampler that it stands for.
        continued: gives the indices, in the place of the sampler of `replaced`.
        eager: whether `replaced` draws when its iterator is made, not with its first batch.
    """

    def __init__(
        self,
        order: Order,
        replaced: Any,
        continued: ContinuedSampler | None = None,
        *,
        eager: bool = False,
    ) -> None:
        sampler = replaced.sampler if continued is None else continued
        super().__init__(sampler, replaced.batch_size, replaced.drop_last)
        self.order, self.replaced = order, replaced
        self._continued, self._eager = continued is not None, eager
        self.is_asked = False
        """Whether an iteration over it has begun."""

    def __iter__(self) -> Iterator[list[int]]:
        self.is_asked = True
        if self._continued:
            return NotedBatches(self.order, super().__iter__(), None)
        if self._eager:
            self.order.note()
        begin = self.order.begin if self._eager else None
        return NotedBatches(self.order, iter(self.replaced), begin)

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on; called where this stands for the sampler of a dataloader."""
        if isinstance(self.sampler, ContinuedSampler):
            self.sampler.set_epoch(epoch)
