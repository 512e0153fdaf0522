"""Every number of ranks trains the same samples in the same step, from every place on."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from bt_lightning.session.sample_position import Batching, Place

counts = st.integers(1, 8)


def batches(batching: Batching, place: Place, order: list[int]) -> list[list[int]]:
    """What all ranks train together, batch by batch, as a dataloader of each makes them."""
    found: list[list[int]] = []
    for rank in range(batching.ranks):
        mine = place.share(order, rank, batching.ranks)
        number = 0
        while batch := list(islice(mine, batching.batch_size)):
            if batching.drop_last and len(batch) < batching.batch_size:
                break
            if number == len(found):
                found.append([])
            found[number] += batch
            number += 1
    return found


@given(samples=st.integers(1, 200), ranks=counts, size=counts, drop_last=st.booleans())
def test_an_epoch_is_that_of_torchs_sampler(
    samples: int, ranks: int, size: int, drop_last: bool
) -> None:
    data: Any = pytest.importorskip("torch.utils.data")
    batching = Batching(ranks, size, drop_last)
    place = Place(batching.epoch_length(samples))
    wanted: list[list[int]] = [[] for _ in range(batching.batches(samples))]
    for rank in range(ranks):
        sampler: Any = data.DistributedSampler(range(samples), ranks, rank, shuffle=False)
        for number, batch in enumerate(data.BatchSampler(sampler, size, drop_last)):
            wanted[number] += batch
    assert batches(batching, place, list(range(samples))) == wanted


@given(data=st.data(), samples=st.integers(1, 300), drop_last=st.booleans())
def test_a_constant_global_batch_goes_on_with_the_same_samples(
    data: st.DataObject, samples: int, drop_last: bool
) -> None:
    whole = data.draw(st.sampled_from([4, 8, 12, 24]))
    divisors = st.sampled_from([n for n in range(1, whole + 1) if whole % n == 0])
    ranks, others = data.draw(divisors), data.draw(divisors)
    before = Batching(ranks, whole // ranks, drop_last)
    after = Batching(others, whole // others, drop_last)
    order = data.draw(st.permutations(range(samples)))
    start = Place(before.epoch_length(samples))
    wanted = batches(before, start, order)
    done = data.draw(st.integers(0, len(wanted)))
    place = start.after(done, before)
    assert place.batches_done(after) == done
    found = batches(after, place, order)
    assert len(found) == len(wanted) - done
    for number, (one, other) in enumerate(zip(found, wanted[done:], strict=True)):
        if number < len(found) - 1:
            assert Counter(one) == Counter(other)
        else:  # the last may be filled up with the first samples of the epoch
            fill = set(islice(order * 2, ranks + others))
            assert set(one) - fill == set(other) - fill


@given(data=st.data(), samples=st.integers(1, 300))
def test_another_global_batch_trains_what_is_left_once(data: st.DataObject, samples: int) -> None:
    drawn = st.builds(Batching, counts, counts)
    before, after = data.draw(drawn), data.draw(drawn)
    order = list(range(samples))
    start = Place(before.epoch_length(samples))
    place = start.after(data.draw(st.integers(0, before.batches(samples))), before)
    found = batches(after, place, order)
    assert place.batches_done(after) + len(found) == after.batches(start.length)
    trained = Counter(sample for batch in found for sample in batch)
    left = Counter(order[i % samples] for i in range(place.sample, start.length))
    assert not left - trained
    assert sum((trained - left).values()) < after.ranks


@given(samples=st.integers(0, 300), ranks=counts, size=counts)
def test_places_never_lie_behind_the_end(samples: int, ranks: int, size: int) -> None:
    assume(samples)
    batching = Batching(ranks, size)
    place = Place(batching.epoch_length(samples)).after(10_000, batching)
    assert place.sample == place.length
    assert place.batches_done(batching) == batching.batches(samples)
