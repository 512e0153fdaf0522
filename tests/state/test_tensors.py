"""Every tensor that torch can save comes back bit by bit, and takes no more room than it must."""

from __future__ import annotations

import contextlib
import errno
import io
import mmap
import os

import pytest
import torch
from state_tools import bits, returns_the_same, round_trip, same, tree_of

from bt_lightning import BTCheckpointIO, UnsupportedStateError
from bt_lightning.path_layout import LEFTOVERS, STATE, WEIGHTS
from bt_lightning.store.transfer.fresh_memory import HUGE_BYTES as HUGE
from bt_lightning.store.transfer.fresh_memory import fresh_memory

DTYPES = sorted({item for item in vars(torch).values() if isinstance(item, torch.dtype)}, key=str)
QUANTIZED = [dtype for dtype in DTYPES if str(dtype).startswith(("torch.qint", "torch.quint"))]
PLAIN = [dtype for dtype in DTYPES if dtype not in QUANTIZED]


def _filled(dtype, *shape):
    """A tensor of that dtype and shape with every byte different from its neighbours."""
    if dtype is torch.bool:
        return (torch.arange(torch.Size(shape).numel()) % 3 == 0).reshape(shape)
    count = torch.Size(shape).numel() * dtype.itemsize
    raw = (torch.arange(count) * 37 % 251).to(torch.uint8)
    if not count:
        return torch.empty(shape, dtype=dtype)
    return raw.view(dtype).reshape(shape)


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", PLAIN, ids=str)
def test_a_tensor_of_any_dtype_comes_back(dtype, place):
    tensors = {
        "vector": _filled(dtype, 7),
        "cube": _filled(dtype, 2, 3, 4),
        "no axes": _filled(dtype, 1).reshape(()),
        "no items": _filled(dtype, 0),
        "no items in the middle": _filled(dtype, 2, 0, 3),
        "column order": _filled(dtype, 3, 4).t(),
        "every other": _filled(dtype, 10)[1::2],
        "one item, many times": _filled(dtype, 1).expand(5),
    }
    if _torch_saves(dtype):
        returns_the_same(tensors, place)
        return
    for name, tensor in tensors.items():  # then they come back, or are refused by name
        with contextlib.suppress(UnsupportedStateError):
            returns_the_same(tensor, place.with_name(name))


def _torch_saves(dtype):
    try:
        torch.save(_filled(dtype, 1), io.BytesIO())
    except KeyError:
        return False
    return True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", [d for d in QUANTIZED if "x" not in str(d)], ids=str)
def test_a_quantized_tensor_is_a_leftover_and_comes_back_on_request(dtype, place):
    tensor = torch.quantize_per_tensor(torch.arange(4.0), 0.5, 1, dtype)
    plugin = BTCheckpointIO()
    plugin.save_checkpoint({"value": tensor}, place)
    back = plugin.load_checkpoint(place, weights_only=False)["value"]
    assert back.dtype is dtype
    assert torch.equal(back.dequantize(), tensor.dequantize())


@pytest.mark.parametrize(
    "values",
    [
        [float("nan"), float("inf"), -float("inf"), -0.0, 1e-45],
        [2.0**-149, 3.4028234663852886e38],
    ],
)
def test_strange_numbers_keep_their_bits(values, place):
    tensor = torch.tensor(values)
    assert bits(round_trip(tensor, place)) == bits(tensor)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_conjugated_and_negated_views_come_back_as_what_they_show(dtype, place):
    tensor = _filled(torch.float32, 6).to(dtype) * (1 + 2j)
    views = [tensor.conj(), tensor.conj().imag, tensor.conj().t(), tensor.imag, tensor.conj()[::2]]
    assert views[0].is_conj()
    assert views[1].is_neg()
    returns_the_same([tensor, *views], place)


@pytest.mark.filterwarnings("ignore:Sparse .* tensor support")
@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize(
    "make",
    {
        "coo": lambda t: t.to_sparse(),
        "coo of one axis": lambda t: t.to_sparse(1),
        "coo with doubles": lambda _: torch.sparse_coo_tensor([[0, 0, 1]], [1.0, 2.0, 3.0], (4,)),
        "coo without items": lambda _: torch.sparse_coo_tensor(size=(3, 4)),
        "coo of integers": lambda t: t.to(torch.int8).to_sparse(),
        "csr": lambda t: t.to_sparse_csr(),
        "csc": lambda t: t.to_sparse_csc(),
        "bsr": lambda t: t.to_sparse_bsr((2, 2)),
        "bsc": lambda t: t.to_sparse_bsc((2, 2)),
    }.values(),
)
def test_a_sparse_tensor_comes_back(make, place):
    dense = torch.zeros(4, 6)
    dense[1, 2], dense[3, 5], dense[0, 0] = 1.5, -2.0, 3.0
    returns_the_same(make(dense), place)


@pytest.mark.parametrize("kind", [torch.nn.Parameter, lambda t: t.requires_grad_()])
def test_a_sparse_tensor_that_is_trained_comes_back_trainable(kind, place):
    returns_the_same(kind(torch.eye(3).to_sparse()), place)


def test_parameters_and_tensors_with_gradients_come_back_as_such(place):
    state = {
        "trained": torch.nn.Parameter(torch.ones(2)),
        "frozen": torch.nn.Parameter(torch.ones(3), requires_grad=False),
        "whole numbers": torch.nn.Parameter(torch.ones(4, dtype=torch.int8), requires_grad=False),
        "leaf": torch.ones(5, requires_grad=True),
        "buffer": torch.ones(6),
    }
    returns_the_same(state, place)


def test_the_result_of_a_computation_comes_back_without_its_history(place):
    tensor = torch.ones(3, requires_grad=True) * 2
    back = round_trip(tensor, place)
    assert back.is_leaf
    assert back.tolist() == [2, 2, 2]


def test_a_tensor_and_its_trainable_alias_do_not_become_one(place):
    """One memory, two tensors: asking for gradients of one must not ask for those of the other."""
    tensor = torch.ones(3)
    state = {"plain": tensor, "leaf": tensor.detach().requires_grad_(), "again": tensor}
    returns_the_same(state, place)


def test_tied_tensors_are_stored_once_and_tied_again(place):
    weight = torch.arange(12.0).reshape(3, 4)
    state = {"state_dict": {"embed": weight, "head": weight}, "other": [weight.view(3, 4)]}
    plugin = BTCheckpointIO()
    plugin.save_checkpoint(state, place)
    back = plugin.load_checkpoint(place)
    assert back["state_dict"]["embed"] is back["state_dict"]["head"]
    assert back["other"][0].data_ptr() == back["state_dict"]["embed"].data_ptr()
    assert not (place / STATE).exists()
    assert (place / WEIGHTS).stat().st_size == 4096 + weight.numel() * 4


def test_a_parameter_tied_to_a_plain_tensor_shares_its_memory_again(place):
    weight = torch.nn.Parameter(torch.ones(4))
    back = round_trip({"one": weight, "two": weight.detach(), "three": weight}, place)
    assert back["one"] is back["three"]
    assert back["one"].data_ptr() == back["two"].data_ptr()
    same({"one": weight, "two": weight.detach(), "three": weight}, back)


def test_tensors_that_share_memory_in_part_come_back_apart_and_right(place):
    base = torch.arange(10.0)
    returns_the_same([base, base[:5], base[5:], base.view(2, 5), base.view(2, 5).t()], place)


def test_tensors_without_items_are_not_tied_by_chance(place):
    """All of them have the address 0."""
    returns_the_same([torch.empty(0), torch.empty(0, 5), torch.empty(0, dtype=torch.int8)], place)


def test_a_small_view_of_a_big_storage_makes_a_small_file(place):
    big = torch.zeros(50_000_000, dtype=torch.uint8)
    view = big[1000:1010]
    view += 7
    assert round_trip(view, place).tolist() == [7] * 10
    assert (place / STATE).stat().st_size < 8192


def test_every_tensor_owns_its_memory_after_a_load(place):
    back = round_trip({"one": torch.ones(3), "two": torch.ones(3)}, place)
    back["one"].add_(1)
    assert back["two"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("size", [HUGE, 2 * HUGE - 2, 2 * HUGE, 5 * HUGE // 2 - 2, 7 * HUGE // 2])
def test_a_large_tensor_comes_back_in_memory_of_its_own(size, place):
    tensors = [_filled(torch.bfloat16, size // 2), _filled(torch.uint8, 2, size // 2)]
    loaded = round_trip(tensors, place)
    for tensor, saved in zip(loaded, tensors, strict=True):
        assert bits(tensor) == bits(saved)
        assert tensor.untyped_storage().nbytes() == size
        assert tensor.storage_offset() == 0
    loaded[0].zero_()
    assert bits(loaded[1]) == bits(tensors[1])
    kept = loaded.pop()[1]
    assert bits(kept) == bits(tensors[1][1])


def test_many_large_tensors_do_not_use_up_the_mappings_of_a_process(place, monkeypatch):
    mapped = []

    def noted(size, phase=0):
        mapped.append(size)
        return fresh_memory(size, phase)

    monkeypatch.setattr("bt_lightning.restore.load_to_device.fresh_memory", noted)
    monkeypatch.setattr("bt_lightning.restore.read_tensors._MOST_HUGE", 2)
    sizes = [2 * HUGE, 3 * HUGE, 2 * HUGE, 4 * HUGE, 2 * HUGE]
    tensors = [_filled(torch.uint8, size) for size in sizes]
    loaded = round_trip(tensors, place)
    assert [bits(tensor) for tensor in loaded] == [bits(tensor) for tensor in tensors]
    assert sorted(mapped) == [3 * HUGE, 4 * HUGE]


@pytest.mark.parametrize("size", [8, 2 * HUGE])
def test_memory_that_is_not_there_is_no_damage(size, place, monkeypatch):
    BTCheckpointIO().save_checkpoint({"a": torch.zeros(size, dtype=torch.uint8)}, place)

    def refuse(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")  # noqa: TRY003, EM101

    real = mmap.mmap

    class Full(mmap.mmap):
        def __new__(cls, descriptor, length, **words):
            if length > 2 * HUGE:  # of the tensor; what is read at a time is less
                raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
            return real.__new__(cls, descriptor, length, **words)

    monkeypatch.setattr("bt_lightning.restore.load_to_device.torch.empty", refuse)
    monkeypatch.setattr("bt_lightning.store.transfer.fresh_memory.mmap.mmap", Full)
    with pytest.raises(MemoryError, match=f"no memory for .*{size:,} bytes"):
        BTCheckpointIO().load_checkpoint(place)


def test_saving_leaves_the_state_as_it_is(place):
    weight = torch.nn.Parameter(torch.ones(4, 4).t())
    state = {"weight": weight, "list": [1, (2,)]}
    before = (weight.data_ptr(), weight.stride(), weight.requires_grad)
    BTCheckpointIO().save_checkpoint({"value": state}, place)
    assert state["weight"] is weight
    assert (weight.data_ptr(), weight.stride(), weight.requires_grad) == before


def test_tensors_are_found_wherever_they_are_nested(place):
    from collections import OrderedDict, deque

    from state_tools import Frozen, Pair, Plain

    one = torch.ones(2)
    value = {
        "deque": deque([one]),
        "tuple": ((one + 1,),),
        "named": Pair(1, one + 2),
        "dataclass": Frozen(1, Plain(2, one + 3)),
        "ordered": OrderedDict({5: one + 4}),
        "keys": {(1, "a"): one + 5},
    }
    returns_the_same(value, place)


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize(
    "make",
    [
        torch.nn.UninitializedParameter,
        lambda: torch.empty(3, device="meta"),
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
        lambda: torch.ones(3).as_subclass(_Labelled),
    ],
)
@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_a_tensor_that_is_more_than_its_bytes_is_a_leftover(make, place):
    plugin = BTCheckpointIO()
    plugin.save_checkpoint({"value": make()}, place)
    assert (place / LEFTOVERS).exists()
    back = plugin.load_checkpoint(place, weights_only=False)["value"]
    assert type(back) is type(make())
    assert back.is_meta == make().is_meta


class _Labelled(torch.Tensor):
    pass


def test_one_part_of_a_sharded_tensor_is_refused_by_name(place):
    """Saved by rank 0 alone, the other ranks' parts would be lost."""
    kind = type("DTensor", (torch.Tensor,), {})
    state = {"state_dict": {"layer.weight": torch.ones(2).as_subclass(kind)}}
    with pytest.raises(UnsupportedStateError, match=r"state_dict\.layer\.weight is a DTensor"):
        BTCheckpointIO().save_checkpoint(state, place)
    assert not place.exists()


def test_the_tree_names_the_file_and_the_name_of_each_tensor(place):
    BTCheckpointIO().save_checkpoint(
        {"state_dict": {"w": torch.ones(1)}, "x": torch.ones(2)}, place
    )
    tree = tree_of(place)
    assert tree["state_dict"]["w"] == {"$": "tensor", "file": "weights", "name": "w"}
    assert tree["x"] == {"$": "tensor", "file": "state", "name": "x"}
