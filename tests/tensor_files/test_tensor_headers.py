"""Headers of tensor files: what torch and safetensors write is read, rubbish is refused."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import pickle
import pickletools
import struct
import zipfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save
from torch.distributed import checkpoint as dcp

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.tensor_files.pickle_interpreter import PickledValue
from bt_lightning.tensor_files.pickled_tensors import parse_pickle, parse_zip
from bt_lightning.tensor_files.safe_unpickle import unpickle
from bt_lightning.tensor_files.tensor_headers import (
    LENGTH_BYTES,
    Tensor,
    by_module,
    compare,
    header_bytes,
    parse_header,
)

STATE = {
    "layer.0.weight": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "layer.0.bias": torch.zeros(3, dtype=torch.bfloat16),
    "layer.1.mask": torch.ones(4, dtype=torch.bool),
    "scalar": torch.tensor(3),
    "empty": torch.zeros(0, 5),
}
EXPECTED = {
    "layer.0.weight": ("F32", (2, 3), 24),
    "layer.0.bias": ("BF16", (3,), 6),
    "layer.1.mask": ("BOOL", (4,), 4),
    "scalar": ("I64", (), 8),
    "empty": ("F32", (0, 5), 0),
}


def parse(data):
    length = header_bytes(data[:LENGTH_BYTES], len(data), "f")
    return parse_header(data[LENGTH_BYTES : LENGTH_BYTES + length], len(data), "f")


def facts(header):
    return {tensor.name: (tensor.dtype, tensor.shape, tensor.size) for tensor in header.tensors}


def test_what_safetensors_writes_is_read_with_the_place_of_each_tensor():
    data = save(STATE, metadata={"format": "pt"})
    header = parse(data)
    assert facts(header) == EXPECTED
    assert header.metadata == {"format": "pt"}
    weight = next(tensor for tensor in header.tensors if tensor.name == "layer.0.weight")
    raw = data[weight.offset : weight.offset + weight.size]
    assert raw == STATE["layer.0.weight"].numpy().tobytes()


def test_every_width_of_float_that_safetensors_writes_is_known():
    state = {
        str(dtype): torch.zeros(3, dtype=dtype)
        for dtype in (torch.float8_e4m3fn, torch.float8_e5m2, torch.float16, torch.float64)
    }
    assert all(
        tensor.size == torch.zeros(3, dtype=getattr(torch, tensor.name[6:])).nbytes
        for tensor in parse(save(state)).tensors
    )


def test_what_torch_writes_is_read_without_its_code():
    model = torch.nn.Linear(3, 2)
    kept = {"state_dict": {**STATE, "p": model.weight}, "epoch": 3, "opt": [{"m": STATE["scalar"]}]}
    file = io.BytesIO()
    torch.save(kept, file)
    found = facts(parse_zip(file, "f"))
    assert found.pop("state_dict.p") == ("F32", (2, 3), 24)
    assert found.pop("opt.0.m") == ("I64", (), 8)
    assert found == {f"state_dict.{name}": fact for name, fact in EXPECTED.items()}


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_what_dcp_writes_is_read_without_its_code(tmp_path):
    dcp.save({"model": STATE}, checkpoint_id=tmp_path, no_dist=True)
    found = facts(parse_pickle((tmp_path / ".metadata").read_bytes(), "f"))
    assert found == {f"model.{name}": fact for name, fact in EXPECTED.items()}


class Harmful:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "harm",
    [
        (os.system, ("touch harmed",)),
        (exec, ("open('harmed', 'w')",)),
        (open, ("harmed", "w")),
    ],
    ids=str,
)
def test_no_code_of_a_pickle_runs(harm, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = pickle.dumps({"weights": STATE, "x": Harmful(*harm), "y": {Harmful(*harm): 1}})
    parse_pickle(data, "f")
    assert not list(tmp_path.iterdir())


def test_a_pickle_that_holds_itself_or_one_list_very_often_ends():
    loop: list = []
    loop.append(loop)
    assert parse_pickle(pickle.dumps(loop), "f").tensors == ()
    laughs: list = []
    for _ in range(60):
        laughs = [laughs, laughs]
    with pytest.raises(CheckpointCorruptError, match="too large to look into"):
        parse_pickle(pickle.dumps(laughs), "f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"cos\nsystem\n(S'ls'\ntR",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**62),
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"I" + b"9" * 10_000 + b"\n.",
    ],
    ids=repr,
)
def test_a_pickle_that_is_cut_or_lies_about_sizes_is_refused_at_once(data):
    try:
        assert parse_pickle(data, "f").tensors == ()
    except CheckpointCorruptError as error:
        assert "f holds no pickle" in str(error)  # noqa: PT017 - the last one is harmless


@given(st.binary(max_size=300))
def test_rubbish_for_a_pickle_or_a_zip_is_refused_or_empty(data):
    for read in (lambda: parse_pickle(data, "f"), lambda: parse_zip(io.BytesIO(data), "f")):
        with contextlib.suppress(CheckpointCorruptError):
            read()


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**100), 2**100)
    | st.floats(allow_nan=False)
    | st.text(),
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text() | st.integers(-(2**40), 2**40), inner)
    ),
)


def made(value):
    """What the machine made, as Python has it."""
    if isinstance(value, list):
        return [made(inner) for inner in value]
    if isinstance(value, tuple):
        return tuple(made(inner) for inner in value)
    if not isinstance(value, PickledValue):
        return value
    flat = [made(inner) for inner in value.pairs or []]
    return dict(zip(flat[::2], flat[1::2], strict=True))


@given(plain, st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_values_that_need_no_code_are_what_pickle_makes_of_them(value, protocol):
    assert made(unpickle(pickle.dumps(value, protocol=protocol))) == value


CODES = [op.code.encode("latin-1") for op in pickletools.opcodes]
operand = st.sampled_from([b"", b"\0", b"\1", b"\0\0\0\0", b"\xff" * 4, b"a\n", b"1\n", b"a\nb\n"])
programs = st.lists(st.tuples(st.sampled_from(CODES), operand | st.binary(max_size=9)), max_size=40)


@given(programs)
@settings(max_examples=2000)
def test_any_program_ends_and_is_a_list_of_tensors_or_refused(program):
    data = b"".join(code + rest for code, rest in program) + b"."
    with contextlib.suppress(CheckpointCorruptError):
        for tensor in parse_pickle(data, "f").tensors:
            assert tensor.size >= 0
            assert len(tensor.name) <= 4096


def test_a_zip_that_swells_is_refused(monkeypatch):
    monkeypatch.setattr("bt_lightning.tensor_files.pickled_tensors.MOST_BYTES", 1000)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\0" * 100_000)
    with pytest.raises(CheckpointCorruptError, match="at most 1000"):
        parse_zip(file, "f")


def headed(said, payload=b""):
    data = said if isinstance(said, bytes) else json.dumps(said).encode()
    return len(data).to_bytes(8, "little") + data + payload


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x01",
        (2**63).to_bytes(8, "little") + b"{}",
        headed(b"{"),
        headed(b"\xff\xfe"),
        headed([]),
        headed({"a": 3}),
        headed({"a": {}}),
        headed({"a": F32}),
        headed({"a": {**F32, "shape": [-2]}}, b"x" * 8),
        headed({"a": {**F32, "shape": [True, 2]}}, b"x" * 8),
        headed({"a": {**F32, "shape": [2**70]}}, b"x" * 8),
        headed({"a": {**F32, "data_offsets": [8, 0]}}, b"x" * 8),
        headed({"a": {**F32, "data_offsets": [-8, 0]}}, b"x" * 8),
        headed({"a": {**F32, "data_offsets": [0, 8, 16]}}, b"x" * 16),
        headed({"a": {**F32, "dtype": 5}}, b"x" * 8),
        headed({"a": F32, "b": {**F32, "data_offsets": [4, 12]}}, b"x" * 12),
        headed(b'{"a": 1, "a": 2}'),
        headed({"__metadata__": {"a": 1}}),
        headed({"__metadata__": 7}),
        headed(b'{"a":' * 100_000),
    ],
    ids=range(21),
)
def test_headers_that_contradict_themselves_are_refused(data):
    with pytest.raises(CheckpointCorruptError):
        parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
near = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from(["F32", "U8", "F4", "X", ""]) | json_values,
        "shape": st.lists(st.integers(-2, 2**65), max_size=3) | json_values,
        "data_offsets": st.lists(st.integers(-2, 40), min_size=2, max_size=2) | json_values,
    },
)


@given(st.dictionaries(st.text(max_size=5), near | json_values, max_size=4) | json_values)
def test_any_header_is_parsed_or_refused_and_what_is_parsed_lies_in_the_file(said):
    data = headed(said, b"x" * 40)
    try:
        header = parse(data)
    except CheckpointCorruptError:
        return
    ends = sorted((t.offset, t.offset + t.size) for t in header.tensors)
    assert all(0 <= start <= end <= len(data) for start, end in ends)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ends))


def test_a_comparison_names_each_kind_of_difference():
    def tensor(name, shape=(2,), offset=0):
        return Tensor(name, "F32", shape, 8, offset)

    before = {name: tensor(name) for name in ("same", "gone", "form", "bytes")}
    after = {
        "same": tensor("same"),
        "new": tensor("new"),
        "form": tensor("form", (1, 2)),
        "bytes": tensor("bytes", offset=9),
    }
    found = compare(before, after, lambda old, new: old.offset == new.offset)
    kinds = {difference.name: difference.kind for difference in found}
    assert kinds == {"bytes": "changed", "form": "reshaped", "gone": "removed", "new": "added"}


def test_totals_are_of_modules():
    totals = by_module(parse(save(STATE)).tensors)
    assert totals == {"empty": (1, 0, 0), "layer": (3, 13, 34), "scalar": (1, 1, 8)}
    assert list(by_module(parse(save(STATE)).tensors, 2)) == [
        "empty",
        "layer.0",
        "layer.1",
        "scalar",
    ]
