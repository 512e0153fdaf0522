"""How copies from devices are cut, which needs no device."""

from __future__ import annotations

import io
import zipfile

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bt_lightning.snapshot import cuda_copies
from bt_lightning.snapshot.arena import Arena
from bt_lightning.snapshot.arena_layout import place_files, write_small
from bt_lightning.snapshot.device_sources import CopySource, split_gaps
from bt_lightning.snapshot.folder_files import TorchFile, lay_out_folder
from bt_lightning.snapshot.state_files import EncodingCache
from bt_lightning.zip_layout import fill_checksums

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


def test_constant_bytes_go_with_the_tensors_on_both_sides_of_them():
    cpu, meta = torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8, device="meta")
    nothing = torch.zeros(0, dtype=torch.uint8)
    places = [(110, cpu), (120, cpu), (130, nothing), (135, cpu), (150, meta), (160, cpu)]
    sources = [CopySource(place, tensor, owned=True) for place, tensor in places]
    gaps = [(0, 10), (14, 6), (24, 6), (30, 5), (39, 6), (54, 6), (64, 9)]
    between, others = split_gaps(sources, 100, [(place, bytes(size)) for place, size in gaps])
    assert {device: [place for place, _ in found] for device, found in between.items()} == {
        torch.device("cpu"): [14, 24, 30]
    }
    assert [place for place, _ in others] == [0, 39, 54, 64]


def test_a_file_of_torch_save_comes_down_in_few_copies():
    """Its storages and the constant bytes between them are adjacent; nothing else is needed."""
    weights = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(300)]
    optimizer = torch.optim.SGD(weights, lr=1.0, momentum=0.5)
    for weight in weights:
        weight.grad = torch.full_like(weight, 2.0)
    optimizer.step()
    snapshot = lay_out_folder({"o.pt": TorchFile(optimizer.state_dict())}, EncodingCache())
    placement, file = place_files(snapshot), snapshot.tensor_files["o.pt"]
    arena = Arena(0, placement.end)
    sources = [
        CopySource(place, file.tensors[name], owned=True)
        for name, place in file.plan.offsets.items()
    ]
    sources += [
        CopySource(place, torch.frombuffer(bytearray(content), dtype=torch.uint8), True, True)
        for place, content in file.plan.gaps
    ]
    runs = cuda_copies._runs(sources)
    assert len(runs) == 2  # the directory's first entries change
    for run in runs:
        cuda_copies._copy(run, arena)
    write_small(snapshot, placement, arena)
    image = bytearray(arena.read(0, file.plan.size))
    arena.close()
    fill_checksums(memoryview(image), lambda at, data: image.__setitem__(slice(at, at + 4), data))
    with zipfile.ZipFile(io.BytesIO(image)) as archive:
        assert archive.testzip() is None
    back = torch.load(io.BytesIO(image), weights_only=True)
    assert all(
        torch.equal(back["state"][i]["momentum_buffer"], weights[i].grad) for i in range(300)
    )
