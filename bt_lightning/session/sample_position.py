"""Where a run stands in the samples of an epoch, whatever the number of its ranks.

The samples of an epoch have one order. Rank r of n takes its samples r, r + n, r + 2n, ...: so the
k-th batches of all ranks together are the k-th `n * batch_size` samples of that order, for each n.
A place in the order means the same to every number of ranks; a number of batches does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Batching:
    """How ranks share the samples of an epoch out in batches."""

    ranks: int
    batch_size: int
    """Of one rank."""
    drop_last: bool = False
    """Whether a last batch that is not full is left out."""

    @property
    def global_batch(self) -> int:
        """Samples that all ranks train together in one batch of each."""
        return self.ranks * self.batch_size

    def batches(self, samples: int) -> int:
        """Batches of each rank for this number of samples."""
        mine = -(-samples // self.ranks)
        return mine // self.batch_size if self.drop_last else -(-mine // self.batch_size)

    def epoch_length(self, samples: int) -> int:
        """Samples that these ranks train in an epoch, with the few that fill the ranks up."""
        if self.drop_last:
            return self.batches(samples) * self.global_batch
        return -(-samples // self.ranks) * self.ranks


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the order of an epoch."""

    length: int
    """Of the epoch, in samples."""
    sample: int = 0
    """The first one that is not trained yet."""

    def after(self, batches: int, batching: Batching) -> Place:
        """The place after further batches of each rank."""
        return Place(self.length, min(self.length, self.sample + batches * batching.global_batch))

    def batches_done(self, batching: Batching) -> int:
        """Batches of a whole epoch with `batching`, less those that are left from here."""
        return batching.batches(self.length) - batching.batches(self.length - self.sample)

    def share(self, order: Sequence[T], rank: int, ranks: int) -> Iterator[T]:
        """What one of `ranks` takes from here on, as many as every other rank.

        Where that takes more than there is, the order begins again, as torch's samplers do it.
        """
        count = -(-(self.length - self.sample) // ranks)
        first = self.sample + rank
        return (order[i % len(order)] for i in range(first, first + count * ranks, ranks))
