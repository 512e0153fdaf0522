"""How far tensors are apart: as torch says, in whatever parts their bytes come."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from bt_lightning.manage import difference_norms as module
from bt_lightning.manage.difference_norms import can_measure, difference_norms
from bt_lightning.tensor_files.tensor_headers import BITS, LENGTH_BYTES

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def data(tensor):
    stored = save({"t": tensor})
    return stored[LENGTH_BYTES + int.from_bytes(stored[:LENGTH_BYTES], "little") :]


def parts(stored, size):
    return (memoryview(stored[at : at + size]) for at in range(0, len(stored), size))


@pytest.mark.parametrize("dtype", TYPES)
@given(seed=st.integers(0, 99), count=st.integers(0, 70), one=st.integers(1, 40))
def test_norms_are_those_of_torch(dtype, seed, count, one):
    generator = torch.Generator().manual_seed(seed)
    pair = [(torch.randn(count, generator=generator) * 9).abs().to(TYPES[dtype]) for _ in "ab"]
    wide = torch.complex128 if dtype == "C64" else torch.float64
    before, after = (tensor.to(wide) for tensor in pair)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_PIECE_BYTES", 16)
        found = difference_norms(
            dtype, parts(data(pair[0]), one), parts(data(pair[1]), 3), seen.append
        )
    assert found.difference == pytest.approx(torch.linalg.vector_norm(after - before).item())
    assert found.before == pytest.approx(torch.linalg.vector_norm(before).item())
    largest = (after - before).abs().max().item() if count else 0.0
    assert found.largest == pytest.approx(largest)
    assert sum(seen) == len(data(pair[0]))


def test_what_is_no_number_is_seen_first_and_equal_infinities_are_equal():
    infinite = data(torch.tensor([math.inf, 1.0]))
    same = difference_norms("F32", parts(infinite, 8), parts(infinite, 8))
    assert (same.difference, same.largest) == (0.0, 0.0)
    broken = difference_norms("F32", parts(infinite, 8), parts(data(torch.full((2,), math.nan)), 8))
    assert math.isnan(broken.difference)
    assert math.isnan(broken.largest)
    assert broken.sortable == math.inf
    zero = data(torch.zeros(2))
    assert difference_norms("F32", parts(zero, 8), parts(infinite, 8)).relative is None


def test_small_floats_have_no_norms_and_are_not_refused():
    assert not any(can_measure(dtype) for dtype in BITS if dtype.startswith(("F8_", "F6_", "F4")))
