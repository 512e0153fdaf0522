"""How copies from devices are cut, which needs no device."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.snapshot import cuda_copies
from bt_lightning.snapshot.arena import Arena
from bt_lightning.snapshot.host_copies import CopySource

_STEP = cuda_copies._PIN_STEP


@given(st.integers(0, 5 * _STEP), st.integers(0, 5 * _STEP))
def test_cuts_cover_everything_once_and_stay_within_a_step(offset, size):
    cuts = list(cuda_copies._cuts(offset, size))
    assert sum(end - start for start, end in cuts) == size
    assert [start for start, _ in cuts] == [0, *(end for _, end in cuts)][: len(cuts)]
    assert all((offset + start) // _STEP == (offset + end - 1) // _STEP for start, end in cuts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.complex64])
def test_tensors_arrive_whole_across_steps(monkeypatch, dtype):
    monkeypatch.setattr(cuda_copies, "_PIN_STEP", 64)
    tensors = [torch.randn(shape).to(dtype) for shape in ((), (7, 11), (3,), (200,))]
    arena = Arena(0, 4096)
    offset, sources = 8, []
    for tensor in tensors:
        sources.append(CopySource(offset, tensor, owned=True))
        offset += tensor.nbytes
    for run in cuda_copies._runs(sources):
        cuda_copies._copy(run, arena)
    wanted = b"".join(bytes(tensor.reshape(-1).view(torch.uint8).tolist()) for tensor in tensors)
    assert arena.read(0, 8) == bytes(8)
    assert arena.read(8, len(wanted)) == wanted
    assert arena.read(8 + len(wanted), 64) == bytes(64)
    arena.close()
