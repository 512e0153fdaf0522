"""Files as `torch.save` writes them: the same records, and equal when torch reads them back."""

from __future__ import annotations

import gc
import io
import pickle
import shutil
import subprocess
import weakref
import zipfile
from collections import OrderedDict, namedtuple
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from bt_lightning.errors import UnsupportedStateError
from bt_lightning.snapshot import state_pickle
from bt_lightning.snapshot.folder_files import (
    SafetensorsFile,
    TorchFile,
    encode_folder_early,
    lay_out_folder,
)
from bt_lightning.snapshot.host_copies import CopyPlanner, HostCopier
from bt_lightning.snapshot.safetensors_layout import host_tensor, tensor_bytes
from bt_lightning.snapshot.state_files import EncodingCache
from bt_lightning.zip_layout import fill_checksums


@pytest.fixture(autouse=True)
def groups_of_any_size(monkeypatch):
    """So that small states are divided as large ones are."""
    monkeypatch.setattr(state_pickle, "LEAST_TENSORS", 0)


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024 - as scripts have them


def written(state, path="optimizer.pt", cache=None):
    """The bytes of the file: those that this process writes, which the worker's must equal."""
    snapshot = lay_out_folder({path: TorchFile(state)}, cache)
    direct = b"".join(bytes(piece) for piece in snapshot.files[path]())
    if path in snapshot.tensor_files:
        assert direct == as_in_arena(snapshot.tensor_files[path])
    return direct


def as_in_arena(file):
    """What stands in an arena, after the worker filled in the CRCs."""
    image = bytearray(file.plan.size)
    pieces = [*file.changing, *file.plan.gaps]
    hosts = {name: host_tensor(tensor) for name, tensor in file.tensors.items()}
    pieces += [(place, tensor_bytes(hosts[name])) for name, place in file.plan.offsets.items()]
    covered = 0
    for offset, content in pieces:
        image[offset : offset + len(content)] = content
        covered += len(content)
    assert covered == file.plan.size, "no byte of an arena is left as it was"
    view = memoryview(image)

    def write(offset, content):
        view[offset : offset + len(content)] = content

    fill_checksums(view, write)
    return bytes(image)


def records(content):
    """Every record but the one that only identifies a file."""
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist() if "serialization_id" not in name}


def by_torch(state, tmp_path, path="optimizer.pt"):
    torch.save(state, tmp_path / path)
    return (tmp_path / path).read_bytes()


def same(one, other):
    """Equal to the last bit, of the same types, with the same strides."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape, one.layout) == (other.dtype, other.shape, other.layout)
        assert one.requires_grad == other.requires_grad
        if one.layout is torch.strided:
            assert (one.stride(), one.storage_offset()) == (other.stride(), other.storage_offset())
            assert (one.is_conj(), one.is_neg()) == (other.is_conj(), other.is_neg())
            one, other = bits(one), bits(other)
        assert torch.equal(one.to_dense(), other.to_dense())
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key, value in one.items():
            same(value, other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other


def bits(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8) if plain.numel() else plain.reshape(-1)


def optimizer_of(make, steps=2, **shapes):
    torch.manual_seed(7)
    sizes = shapes or {"a": (30, 20), "b": (20,), "c": (), "d": (3, 0)}
    weights = [torch.nn.Parameter(torch.randn(size)) for size in sizes.values()]
    optimizer = make(weights)
    for _ in range(steps):
        for weight in weights:
            weight.grad = torch.randn_like(weight)
        optimizer.step()
    return optimizer


OPTIMIZERS = {
    "adam": lambda w: torch.optim.Adam(w, amsgrad=True),
    "adamw fused": lambda w: torch.optim.AdamW(w, fused=True),
    "adamw tensor lr": lambda w: torch.optim.AdamW(w, lr=torch.tensor(0.1), foreach=False),
    "sgd": lambda w: torch.optim.SGD(w, lr=0.1),
    "sgd momentum": lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.9),
    "adafactor": torch.optim.Adafactor,
    "rmsprop": lambda w: torch.optim.RMSprop(w, centered=True, momentum=0.1),
    "lbfgs": lambda w: torch.optim.LBFGS(w[:1]),
}


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_the_state_of_an_optimizer_comes_back_equal(kind, tmp_path):
    if kind == "lbfgs":
        weight = torch.nn.Parameter(torch.randn(5))
        optimizer = torch.optim.LBFGS([weight])
        optimizer.step(lambda: weight.square().sum().backward() or weight.square().sum())
    else:
        optimizer = optimizer_of(OPTIMIZERS[kind], a=(30, 20), b=(20,), c=(5, 1))
    state = optimizer.state_dict()
    content = written(state)
    (tmp_path / "ours.pt").write_bytes(content)
    for mapped in (False, True):
        same(torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mapped), state)
    theirs, ours = records(by_torch(state, tmp_path)), records(content)
    assert list(ours) == list(theirs)
    assert {n: c for n, c in ours.items() if "pkl" not in n} == {
        n: c for n, c in theirs.items() if "pkl" not in n
    }


def odd_tensors():
    torch.manual_seed(1)
    wide = torch.randn(6, 7)
    complex_ = torch.randn(4, dtype=torch.complex64)
    found = {
        f"{dtype}": torch.zeros(5, dtype=torch.uint8).repeat(16).view(dtype)
        for dtype in (
            torch.bool, torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32,
            torch.uint32, torch.int64, torch.uint64, torch.float16, torch.bfloat16, torch.float32,
            torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn,
            torch.float8_e5m2, torch.complex32,
        )
    }  # fmt: skip
    return {
        **found,
        "number": torch.tensor(3.5),
        "empty": torch.empty(0, 4),
        "another empty": torch.empty(0),
        "whole": wide,
        "row": wide[2],
        "column": wide[:, 3],
        "transposed": wide.t(),
        "expanded": torch.randn(1, 5).expand(4, 5),
        "part": torch.randn(100)[10:20:3],
        "conjugate": complex_.conj(),
        "imaginary": torch.randn(3, dtype=torch.complex128).conj().imag,
        "channels last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "trained": torch.randn(2, requires_grad=True),
    }


@pytest.mark.filterwarnings("ignore:ComplexHalf", "ignore:TypedStorage")
def test_any_tensor_comes_back_with_its_strides_and_all_bytes_of_its_storage(tmp_path):
    state = {"list": [1, odd_tensors()], "ordered": OrderedDict(b=1, a=(2.5, None, "x", b"y"))}
    content = written(state)
    (tmp_path / "ours.pt").write_bytes(content)
    assert records(content) == records(by_torch(state, tmp_path))
    for mapped in (False, True):
        same(torch.load(tmp_path / "ours.pt", weights_only=True, mmap=mapped), state)


FORMS = {
    "nothing": dict,
    "a list": list,
    "None": lambda: None,
    "a number": lambda: 3.5,
    "a tensor": lambda: torch.ones(3),
    "flat": lambda: {"a": torch.ones(2)},
    "ordered": lambda: OrderedDict(a=torch.ones(2)),
    "an empty entry": lambda: {"a": {}},
    "complex": lambda: {"a": {"b": torch.ones(3, dtype=torch.complex64)}, "c": 1},
    "lists": lambda: [torch.ones(2), (torch.zeros(1), {"x": torch.ones(0)})],
    "odd keys": lambda: {1: torch.ones(1), "x": {2: torch.ones(1)}},
    "a namedtuple": lambda: Point(torch.ones(2), 1),
    "deep": lambda: {"state": {0: {"inner": {0: torch.ones(3)}}}, "param_groups": []},
    "sparse": lambda: torch.sparse_coo_tensor([[0, 2]], [1.0, 2.0], (3,)),
    "a storage": lambda: {"storage": torch.ones(3).untyped_storage()},
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
}


@pytest.mark.parametrize("form", list(FORMS))
@pytest.mark.filterwarnings(
    "ignore:TypedStorage is deprecated", "ignore:Sparse invariant", "ignore:torch.quant"
)
def test_a_state_of_any_form_has_the_records_that_torch_writes(form, tmp_path):
    state = FORMS[form]()
    content, wanted = written(state), by_torch(state, tmp_path)
    ours, theirs = records(content), records(wanted)
    assert list(ours) == list(theirs)
    for name, record in theirs.items():
        if not name.endswith("data.pkl"):
            assert ours[name] == record, name
    back = torch.load(io.BytesIO(content), weights_only=False)
    if isinstance(state, dict) and "storage" in state:
        assert bytes(back["storage"]) == bytes(state["storage"])
    elif isinstance(state, torch.Tensor) and state.is_quantized:
        assert torch.equal(back, state)
    else:
        same(back, state)


def test_without_a_group_even_the_pickle_is_that_of_torch(tmp_path):
    state = {"list": [odd_tensors(), odd_tensors()], "state": {0: torch.ones(1)}}
    assert records(written(state)) == records(by_torch(state, tmp_path))


def test_what_shares_memory_shares_it_again():
    base = torch.arange(12.0)
    state = {
        "state": {0: {"whole": base, "half": base[6:]}},
        "more": {"again": base, "matrix": base.view(3, 4).t()},
    }
    content = written(state)
    assert sum(name.partition("/")[2].startswith("data/") for name in records(content)) == 1
    back = torch.load(io.BytesIO(content), weights_only=True)
    back["state"][0]["whole"].fill_(7)
    assert all(
        (tensor == 7).all()
        for tensor in (back["state"][0]["half"], back["more"]["again"], back["more"]["matrix"])
    )


def test_objects_that_are_one_are_one_again():
    inner, tensor = {"x": torch.ones(1)}, torch.ones(2)
    for state in (
        {"state": {"a": inner, "t": tensor}, "same": inner},
        {"state": {"a": inner, "t": tensor}, "other": [tensor]},
        {"other": inner, "state": {"a": inner}},
    ):
        back = torch.load(io.BytesIO(written(state)), weights_only=True)
        assert (back.get("same", back.get("other")) is back["state"]["a"]) == (
            state.get("same", state.get("other")) is inner
        )
        if isinstance(state.get("other"), list):
            assert back["other"][0] is back["state"]["t"]


def test_a_state_that_holds_itself_comes_back():
    state = {"first": {"t": torch.ones(1)}}
    state["first"]["self"] = state["first"]
    state["all"] = state
    back = torch.load(io.BytesIO(written(state)), weights_only=True)
    assert back["first"]["self"] is back["first"]
    assert back["all"] is back


def test_a_later_save_has_the_bytes_of_one_without_a_memory(tmp_path):
    """Over steps, another learning rate, another optimizer, and a state that grows."""
    cache = EncodingCache()
    optimizer = optimizer_of(lambda w: torch.optim.AdamW(w, lr=0.25))
    for round_ in range(12):
        if round_ == 5:
            optimizer = optimizer_of(lambda w: torch.optim.SGD(w, lr=0.1, momentum=0.5))
        if round_ == 8:
            optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(9))], "name": "x"})
        optimizer.param_groups[0]["lr"] = 1 / (round_ + 1)
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.randn_like(weight)
        optimizer.step()
        state = optimizer.state_dict()
        content = written(state, cache=cache)
        same(torch.load(io.BytesIO(content), weights_only=True), state)
        assert records(content) == records(written(state))


def test_what_does_not_change_is_not_pickled_again_and_stays_where_it_is(monkeypatch):
    cache = EncodingCache()
    optimizer = optimizer_of(torch.optim.AdamW)
    plans, bodies = [], []
    flat = state_pickle._flat
    monkeypatch.setattr(state_pickle, "_flat", lambda *args: bodies.append(1) or flat(*args))
    for lr in (0.1, 0.5, 7):
        optimizer.param_groups[0]["lr"] = lr
        snapshot = lay_out_folder({"optimizer.pt": TorchFile(optimizer.state_dict())}, cache)
        plans.append(snapshot.tensor_files["optimizer.pt"].plan)
    assert len(bodies) == 3 * 4
    assert plans[0] is plans[1] is plans[2]
    optimizer.param_groups[0]["note"] = "x" * 100_000
    snapshot = lay_out_folder({"optimizer.pt": TorchFile(optimizer.state_dict())}, cache)
    assert snapshot.tensor_files["optimizer.pt"].plan is not plans[0]


def test_what_was_encoded_early_is_used_by_the_first_save(monkeypatch):
    optimizer = optimizer_of(torch.optim.AdamW)
    model = {f"w{i}": torch.ones(i) for i in range(9)}

    def files():
        return {
            "optimizer.pt": TorchFile(optimizer.state_dict()),
            "model.safetensors": SafetensorsFile(dict(model)),
        }

    cache = EncodingCache(early=Future())
    encode = encode_folder_early(files())
    optimizer.param_groups[0]["lr"] = 0.125
    cache.early.set_running_or_notify_cancel()
    cache.early.set_result(encode())
    bodies = []
    monkeypatch.setattr(state_pickle, "_flat", lambda *_: bodies.append(1))
    early = cache.early.result()
    snapshot = lay_out_folder(files(), cache)
    assert bodies == []
    for path, file in snapshot.tensor_files.items():
        assert file.fixed == (early.fragments[path,],)
        assert not file.others
    content = b"".join(bytes(piece) for piece in snapshot.files["optimizer.pt"]())
    same(torch.load(io.BytesIO(content), weights_only=True), optimizer.state_dict())


def test_tensors_that_are_new_at_each_save_are_not_held():
    """They would take as much memory as the state once more."""
    cache = EncodingCache()
    for _ in range(6):
        arrays = [np.ones(1000), np.ones(10)]
        state = {"state": dict(enumerate(map(torch.from_numpy, arrays)))}
        model = {f"w{i}": torch.ones(3) for i in range(9)}
        files = {"o.pt": TorchFile(state), "m.safetensors": SafetensorsFile(model)}
        lay_out_folder(files, cache)
    memory = [weakref.ref(array) for array in arrays]
    del arrays, state, files
    gc.collect()
    assert [there() for there in memory] == [None, None]
    assert cache.pickled == {}
    assert cache.fragments == {}


def test_a_state_that_is_another_each_time_is_not_compared_for_ever(monkeypatch):
    """Numbers of steps between the tensors, as the Adafactor of `transformers` has them."""
    cache, seen = EncodingCache(), []
    compare = state_pickle.comparison_with
    monkeypatch.setattr(state_pickle, "comparison_with", lambda v: seen.append(1) or compare(v))
    moments = [torch.ones(3), torch.ones(4)]
    for step in range(9):
        state = {"state": {i: {"step": step, "m": m} for i, m in enumerate(moments)}, "rest": []}
        content = written(state, cache=cache)
        same(torch.load(io.BytesIO(content), weights_only=True), state)
        if step == 5:
            seen.clear()
    assert seen == []


def test_torch_finds_the_storages_where_it_computes_them(tmp_path, monkeypatch):
    """It compares both ways to find one, if told to."""
    monkeypatch.setenv("TORCH_SERIALIZATION_DEBUG", "1")
    optimizer = optimizer_of(torch.optim.AdamW, a=(30, 20), b=(20,), c=(3, 0), d=(7,))
    (tmp_path / "x.pt").write_bytes(written(optimizer.state_dict()))
    for mapped in (False, True):
        same(torch.load(tmp_path / "x.pt", weights_only=True, mmap=mapped), optimizer.state_dict())


@pytest.mark.skipif(shutil.which("unzip") is None, reason="there is no unzip")
def test_unzip_finds_no_fault(tmp_path):
    (tmp_path / "x.pt").write_bytes(written(optimizer_of(torch.optim.AdamW).state_dict()))
    unzip = subprocess.run(
        ["unzip", "-t", tmp_path / "x.pt"], check=True, capture_output=True, text=True
    )
    assert "No errors" in unzip.stdout


@pytest.mark.parametrize("name", ["rng_state_0.pth", "a.b.pt", "plain", "é.pt", ".pt", "x y.bin"])
def test_the_folder_inside_is_named_as_torch_names_it(name, tmp_path):
    theirs = next(
        iter(records(by_torch({"a": torch.ones(1)}, tmp_path, "x.pt" if name == ".pt" else name)))
    )
    ours = next(iter(records(written({"a": torch.ones(1)}, f"sub/{name}"))))
    assert ours == ("archive/data.pkl" if name == ".pt" else theirs)


class DTensor(torch.Tensor):
    """One rank's part."""


def test_what_cannot_be_written_is_named():
    with pytest.raises(UnsupportedStateError, match=r"optimizer\.pt.*cannot be pickled"):
        written({"f": lambda: None})
    with pytest.raises(UnsupportedStateError, match="one rank's part"):
        written({"t": torch.ones(2).as_subclass(DTensor)})
    both = torch.zeros(8, dtype=torch.uint8)
    with pytest.raises(UnsupportedStateError, match="different dtypes"):
        written({"a": both, "b": both.view(torch.float32)})


def test_attributes_of_a_tensor_come_along():
    weight = torch.nn.Parameter(torch.ones(2))
    weight.note = "mine"
    state = {"state": {"w": weight}}
    back = torch.load(io.BytesIO(written(state)), weights_only=False)
    assert back["state"]["w"].note == "mine"


def test_attributes_that_a_tensor_gets_later_come_along():
    cache, moment = EncodingCache(), torch.ones(2)
    for note in (None, None, "mine", "another"):
        if note is not None:
            moment.note = note
        content = written({"state": {0: {"m": moment}}, "param_groups": []}, cache=cache)
        back = torch.load(io.BytesIO(content), weights_only=False)
        assert getattr(back["state"][0]["m"], "note", None) == note


def test_an_arena_gets_every_byte_also_in_few_calls(saving):
    """Constant bytes and small storages are adjacent: they go in by a call for a thousand."""
    weights = [torch.nn.Parameter(torch.full((3,), float(i))) for i in range(700)]
    optimizer = torch.optim.SGD(weights, lr=1.0, momentum=0.5)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    saver = saving([optimizer])
    cache = EncodingCache()
    snapshot = lay_out_folder({"optimizer.pt": TorchFile(optimizer.state_dict())}, cache)
    from bt_lightning.snapshot.arena import Arena
    from bt_lightning.snapshot.arena_layout import place_files, write_small

    placement = place_files(snapshot)
    arena = Arena(0, placement.end)
    copies = CopyPlanner().plan(snapshot, placement, arena, [optimizer])
    write_small(snapshot, placement, arena)
    HostCopier().run([part for each in copies for part in (each.lazy, each.eager)])
    assert not copies[1].eager.small
    assert len(copies[0].lazy._small_copies._runs) == 3
    image = bytearray(arena.read(0, placement.sizes["optimizer.pt"]))
    fill_checksums(memoryview(image), lambda at, data: image.__setitem__(slice(at, at + 4), data))
    same(torch.load(io.BytesIO(image), weights_only=True), optimizer.state_dict())
    arena.close()
    saver.outcomes()


def test_safetensors_of_any_kind_read_back_equal():
    import safetensors.torch

    from bt_lightning.snapshot.dtypes import SAFETENSORS

    tensors = {name: t for name, t in odd_tensors().items() if t.dtype in SAFETENSORS}
    snapshot = lay_out_folder({"m.safetensors": SafetensorsFile(tensors)}, EncodingCache())
    back = safetensors.torch.load(b"".join(bytes(p) for p in snapshot.files["m.safetensors"]()))
    plain = {
        name: tensor.detach().resolve_conj().resolve_neg().contiguous()
        for name, tensor in tensors.items()
    }
    wanted = safetensors.torch.load(
        safetensors.torch.save({name: tensor.clone() for name, tensor in plain.items()})
    )
    assert back.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert back[name].dtype is tensor.dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(bits(back[name]), bits(tensor))


def test_what_pickle_itself_raises_is_told(monkeypatch):
    class Refusing:
        def __reduce__(self):
            msg = "no"
            raise pickle.PicklingError(msg)

    with pytest.raises(UnsupportedStateError, match="PicklingError: no"):
        written({"r": Refusing()})
