"""Memory of its own lies where it was asked for, and gets its pages whole, by what they cost."""

from __future__ import annotations

import mmap
import sys

import pytest

from bt_lightning.store.transfer import fresh_memory as module
from bt_lightning.store.transfer.fresh_memory import (
    HUGE_BYTES,
    PageCosts,
    address_of,
    fresh_memory,
    give_pages,
)

MB = 1024 * 1024


@pytest.mark.parametrize("phase", [0, 8, 64, 4096, HUGE_BYTES - 8, 5 * HUGE_BYTES + 128])
def test_the_address_is_congruent_to_the_phase(phase):
    memory = fresh_memory(3 * MB + 1, phase)
    assert len(memory) == 3 * MB + 1
    assert (address_of(memory) - phase) % HUGE_BYTES == 0
    memory[-1] = memory[0] = 1


def test_memory_that_nobody_has_is_a_memory_error():
    with pytest.raises(MemoryError, match="no memory for"):
        fresh_memory(1 << 60)


def test_each_kind_is_tried_and_the_cheaper_one_taken():
    costs = PageCosts()
    assert costs.untried is True
    costs.note(2 * MB, 0.004, huge=True)
    assert costs.untried is False
    costs.note(2 * MB, 0.001, huge=False)
    assert (costs.untried, costs.huge) == (None, False)


def test_the_other_kind_is_tried_again_less_and_less_often():
    costs = PageCosts()
    costs.note(2 * MB, 0.004, huge=True)
    costs.note(2 * MB, 0.001, huge=False)
    between, taken = [], 0
    while len(between) < 4:
        if costs.untried is None:
            costs.note(4 * MB, 0.002, huge=False)
            taken += 4
        else:
            assert costs.untried is True
            costs.note(2 * MB, 0.004, huge=True)
            between.append(taken)
            taken = 0
    assert between == [64, 128, 256, 512]


def test_the_kind_changes_when_its_cost_does():
    costs = PageCosts()
    costs.note(2 * MB, 0.0003, huge=True)
    costs.note(2 * MB, 0.001, huge=False)
    assert costs.huge
    costs.note(4 * MB, 0.008, huge=True)  # the host had taken these back
    assert not costs.huge


@pytest.mark.skipif(sys.platform != "linux", reason="mincore(2) of Linux")
def test_memory_in_use_is_left_alone_and_tells_no_cost(monkeypatch):
    costs, advised = PageCosts(), []
    monkeypatch.setattr(module, "_costs", costs)
    memory = fresh_memory(8 * MB)
    memory[:] = b"x" * len(memory)
    monkeypatch.setattr(module, "_advise", lambda *each: advised.append(each))
    give_pages([memory, memory[3 * MB :]])
    assert advised == []
    assert costs.untried is True
    give_pages([fresh_memory(8 * MB)])
    assert advised


def _present(memory):
    """Pages of the memory that exist, by the kernel's own count."""
    address, size, found = address_of(memory), len(memory), 0
    with open("/proc/self/pagemap", "rb", buffering=0) as pages:  # noqa: PTH123
        pages.seek(address // mmap.PAGESIZE * 8)
        for _ in range(size // mmap.PAGESIZE):
            found += int.from_bytes(pages.read(8), "little") >> 63
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="madvise(2) of Linux")
@pytest.mark.parametrize("huge", [True, False])
def test_memory_has_its_pages_before_it_is_written(huge, monkeypatch):
    costs = PageCosts()
    costs.note(1, 0.0 if huge else 1.0, huge=True)
    costs.note(1, 0.5, huge=False)
    monkeypatch.setattr(module, "_costs", costs)
    memory = fresh_memory(9 * MB, 12345)
    give_pages([memory[: 4 * MB]])
    other = fresh_memory(2 * mmap.PAGESIZE)
    if not module._advise(address_of(other), mmap.PAGESIZE, module._POPULATE_WRITE):
        pytest.skip("a kernel before 5.14")
    assert _present(memory[: 4 * MB]) >= 4 * MB // mmap.PAGESIZE - 1
    assert _present(memory[7 * MB :]) == 0
    memory[: 4 * MB] = b"x" * (4 * MB)
    give_pages([memory])
    assert bytes(memory) == b"x" * (4 * MB) + bytes(5 * MB)
