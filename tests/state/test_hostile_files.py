"""Files whose digests are right and whose content is not: refused, at no cost, in one way."""

from __future__ import annotations

import base64
import copy
import json
import warnings
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from state_tools import (
    ALLOWED,
    bytes_tensor,
    crafted,
    loads_or_refuses,
    refused,
    seal,
    tensor_file,
)
from test_values import NUMPY, PLAIN

from bt_lightning import (
    BTCheckpointIO,
    CheckpointCorruptError,
    FormatVersionError,
    UnsafeLoadError,
)
from bt_lightning.file_entries import FileEntry
from bt_lightning.localdir.digest import digest_file
from bt_lightning.path_layout import MANIFEST, STATE, TREE
from bt_lightning.restore.decode_tree import Decoder
from bt_lightning.snapshot.dtypes import TORCH
from bt_lightning.snapshot.encode_tree import Encoder
from bt_lightning.snapshot.typed_values import BY_KIND

FUZZ = settings(
    deadline=None, derandomize=True, max_examples=150, suppress_health_check=list(HealthCheck)
)
EDGES = [0, 1, -1, 2, 4, 8, 63, 64, 65, 2**31, 2**32, 2**62, 2**63 - 1, 2**63, 2**64, 2**70, 10**30]
numbers = st.sampled_from(EDGES) | st.integers(-4, 80)
junk = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        [*BY_KIND, *TORCH, "state", "weights", "raw", "|O", "<f4", "C", "builtins:int"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["$", "v", "dtype", "shape", "file", "name", "a"]), inner, max_size=4
        )
    ),
    max_leaves=6,
)


# --- headers ---

slots = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from([*TORCH, "F32", "U8", "F4", "f32", "", "U8 "]) | junk,
        "shape": st.lists(numbers, max_size=4) | junk,
        "data_offsets": st.tuples(numbers, numbers) | st.lists(numbers, max_size=3) | junk,
    }
)
headers = st.dictionaries(st.text(max_size=3), slots | junk, max_size=4) | junk


@FUZZ
@given(header=headers, size=st.integers(0, 70))
def test_no_header_does_more_than_load_or_be_refused(source, header, size):
    loads_or_refuses(crafted(source / "header", 1, state=tensor_file(header, bytes(size))))


@FUZZ
@given(data=st.data())
def test_no_change_of_a_good_header_does_more_than_load_or_be_refused(source, data):
    header = {
        "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
        "b": {"dtype": "U8", "shape": [0], "data_offsets": [24, 24]},
        "c": {"dtype": "I16", "shape": [], "data_offsets": [24, 26]},
    }
    name = data.draw(st.sampled_from("abc"))
    field = data.draw(st.sampled_from(["dtype", "shape", "data_offsets"]))
    if field != "dtype" and data.draw(st.booleans()):
        values = header[name][field]
        values[data.draw(st.integers(0, max(0, len(values) - 1))) : 1] = [data.draw(numbers | junk)]
    else:
        header[name][field] = data.draw(junk)
    loads_or_refuses(crafted(source / "changed", 1, state=tensor_file(header, bytes(26))))


@FUZZ
@given(content=st.binary(max_size=200))
def test_no_bytes_in_place_of_tensors_do_more_than_be_refused(source, content):
    loads_or_refuses(crafted(source / "bytes", 1, state=content))


def _slot(dtype="U8", shape=(4,), begin=0, end=4):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


BAD_HEADERS = {
    "no JSON": b"{",
    "no object": b"[]",
    "a number": b"5",
    "nothing": b"",
    "spaces": b"    ",
    "not UTF-8": b'{"\xff": 1}',
    "nested without end": b'{"a":' * 50_000,
    "a number of many digits": b'{"a":{"dtype":"U8","shape":[' + b"1" * 5000 + b"]}}",
    "one name twice": b'{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},'
    b'"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "one field twice": b'{"a":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}}',
    "unknown dtype": {"a": _slot("F3")},
    "no dtype": {"a": {"shape": [4], "data_offsets": [0, 4]}},
    "no shape": {"a": {"dtype": "U8", "data_offsets": [0, 4]}},
    "no offsets": {"a": {"dtype": "U8", "shape": [4]}},
    "overlap": {"a": _slot(), "b": _slot(shape=[2], begin=2, end=4)},
    "the same bytes twice": {"a": _slot(), "b": _slot()},
    "a hole": {"a": _slot(shape=[1], end=1), "b": _slot(shape=[2], begin=2, end=4)},
    "a hole at the front": {"a": _slot(shape=[3], begin=1, end=4)},
    "bytes left over": {"a": _slot(shape=[3], end=3)},
    "bytes beyond the end": {"a": _slot(shape=[5], end=5)},
    "negative begin": {"a": _slot(shape=[5], begin=-1, end=4)},
    "end before begin": {"a": _slot(shape=[0], begin=4, end=0)},
    "negative shape": {"a": _slot(shape=[-4])},
    "two negative axes": {"a": _slot(shape=[-2, -2])},
    "wrong shape": {"a": _slot(shape=[3])},
    "true for one": {"a": _slot(shape=[True, 4])},
    "true for an offset": {
        "a": _slot(shape=[1], begin=False, end=True),
        "b": _slot(shape=[3], begin=1),
    },
    "a float for an axis": {"a": _slot(shape=[4.0])},
    "text for an axis": {"a": _slot(shape=["4"])},
    "huge": {"a": _slot(shape=[2**60], end=2**60)},
    "beyond 64 bits": {"a": _slot(shape=[2**70], end=2**70)},
    "too many axes": {"a": _slot(shape=[1] * 1000 + [4])},
    "no items along a huge axis": {"a": _slot(), "b": _slot(shape=[0, 2**70], begin=4)},
    "no items along two big axes": {"a": _slot(), "b": _slot(shape=[2**62, 2**62, 0], begin=4)},
}


@pytest.mark.parametrize("name", BAD_HEADERS)
def test_a_bad_header_is_refused_and_the_file_named(name, place):
    error = refused(crafted(place, 1, state=tensor_file(BAD_HEADERS[name], bytes(4))))
    assert STATE in str(error)


@pytest.mark.parametrize("length", [9, 2**31, 2**62, 2**64 - 1])
def test_a_header_that_claims_more_bytes_than_the_file_has_is_refused(length, place):
    content = length.to_bytes(8, "little") + b"{}      "
    assert STATE in str(refused(crafted(place, 1, state=content)))


@pytest.mark.parametrize("content", [b"", b"\x00", bytes(7)])
def test_a_file_too_short_for_a_header_is_refused(content, place):
    assert STATE in str(refused(crafted(place, 1, state=content)))


def test_a_manifest_that_claims_bytes_that_are_not_there_costs_no_memory(place):
    """Header and manifest agree on 2**58 bytes: what counts is what lies on the disk."""
    size = 2**58
    header = tensor_file({"a": _slot(shape=[size], end=size)})
    crafted(place, 1, state=header)
    blocks = ("0" * 32,) * 3
    claim = FileEntry(path=STATE, size=3 * 2**26, xxh3_128="0" * 32, blocks=blocks)
    seal(place, files=(digest_file(place / TREE, TREE), claim))
    assert STATE in str(refused(place))
    size = 2**40
    (place / STATE).write_bytes(tensor_file({"a": _slot(shape=[size], end=size)}))
    total = size + len(tensor_file({"a": _slot(shape=[size], end=size)}))
    claim = FileEntry(
        path=STATE, size=total, xxh3_128="0" * 32, blocks=("0" * 32,) * (-(-total // 2**26))
    )
    seal(place, files=(digest_file(place / TREE, TREE), claim))
    assert STATE in str(refused(place))


def test_no_tensor_is_allocated_for_a_file_that_is_shorter_than_its_manifest_says(
    place, monkeypatch
):
    BTCheckpointIO().save_checkpoint({"value": torch.zeros(1000)}, place)
    content = (place / STATE).read_bytes()
    (place / STATE).write_bytes(content[:-4])

    def forbidden(*_, **__):
        pytest.fail("memory was allocated")

    monkeypatch.setattr(torch, "empty", forbidden)
    assert STATE in str(refused(place))


# --- trees ---


def _nodes():
    """A good node of every kind, as the encoder writes them."""
    encoder = Encoder()
    more = [2**15000, "\ud83d\ude00"]
    state = {
        "plain": [PLAIN, more],
        "numpy": NUMPY,
        "tensors": _tensors(),
        "omega": _configs(),
        "code": [torch.nn.functional.relu, partial(torch.optim.SGD, lr=1), torch.nn.MSELoss()],
    }
    tree = encoder.encode(state)
    found: dict[str, list] = {}

    def walk(node):
        if isinstance(node, dict):
            if "$" in node and isinstance(node["$"], str) and len(json.dumps(node)) < 5000:
                found.setdefault(node["$"], []).append(node)
            for item in node.values():
                walk(item)
        elif isinstance(node, list):
            for item in node:
                walk(item)

    walk(tree)
    return found


def _tensors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch: its sparse tensors are new
        sparse = torch.eye(2).to_sparse_csr()
    return [
        sparse,
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.complex128),
        torch.nn.Parameter(torch.ones(2)),
    ]


def _configs():
    from omegaconf import OmegaConf

    return [OmegaConf.create({"a": [1, "${a}"]}), OmegaConf.structured(ALLOWED[10])]


NODES = _nodes()
KINDS = sorted({*BY_KIND, *Decoder({}, None, None)._kinds} - {"windowspath"})  # type: ignore[arg-type]
RAW = bytes_tensor(bytes(range(64)))


def _places(node, at=()):
    yield at
    items = (
        node.items()
        if isinstance(node, dict)
        else enumerate(node)
        if isinstance(node, list)
        else ()
    )
    for key, item in items:
        yield from _places(item, (*at, key))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_no_change_of_a_good_node_does_more_than_load_or_be_refused(source, data):
    kind = data.draw(st.sampled_from(sorted(NODES)))
    node = copy.deepcopy(data.draw(st.sampled_from(NODES[kind])))
    *way, last = data.draw(st.sampled_from(list(_places(node))[1:]))
    inner = node
    for key in way:
        inner = inner[key]
    change = data.draw(st.sampled_from(["replace", "delete", "wrap"]))
    if change == "delete":
        del inner[last]
    else:
        inner[last] = [inner[last]] if change == "wrap" else data.draw(junk)
    loads_or_refuses(crafted(source / "node", node, state=RAW))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@settings(FUZZ, max_examples=400)
@given(data=st.data())
def test_no_node_of_any_kind_does_more_than_load_or_be_refused(source, data):
    kind = data.draw(st.sampled_from(KINDS))
    names = [
        "v",
        "class",
        "name",
        "value",
        "factory",
        "dtype",
        "shape",
        "order",
        "file",
        "size",
        "indices",
        "values",
        "coalesced",
        "layout",
        "compressed",
        "plain",
        "type",
        "flags",
        "maxlen",
        "fold",
        "tz",
        "attrs",
        "parameter",
        "requires_grad",
    ]
    node = {"$": kind, **data.draw(st.dictionaries(st.sampled_from(names), junk, max_size=8))}
    loads_or_refuses(crafted(source / "kind", node, state=RAW))


def test_the_fuzzed_nodes_are_of_every_kind():
    assert {*KINDS} - {*NODES} <= {"leftover", "attributedict", "deep"}


def _array(dtype="<f4", shape=(16,), order="C", name="raw", file="state"):
    return {
        "$": "numpy.ndarray",
        "dtype": dtype,
        "shape": list(shape),
        "order": order,
        "v": {"file": file, "name": name},
    }


def _scalar(dtype="<f4", data=bytes(4)):
    return {"$": "numpy.scalar", "dtype": dtype, "v": base64.b64encode(data).decode()}


BAD_NODES = {
    "unknown kind": {"$": "what"},
    "no kind": {"$": None},
    "a list for a kind": {"$": ["dict"]},
    "array of objects": _array("|O", [8]),
    "array of records with objects": _array([["a", "|O"]], [8]),
    "array of another size": _array(shape=[17]),
    "array with an axis to be guessed": _array(shape=[-1]),
    "array of items that do not fit": _array("<V7", [9]),
    "array with a huge axis": _array(shape=[2**70]),
    "array with no such tensor": _array(name="nothing"),
    "array with no such file": _array(file="nothing"),
    "array in no order": _array(order="Q"),
    "array of an unknown dtype": _array("what"),
    "scalar of an object": _scalar("|O", bytes(8)),
    "scalar with too few bytes": _scalar(data=bytes(3)),
    "scalar with too many bytes": _scalar(data=bytes(8)),
    "scalar with no bytes": _scalar(data=b""),
    "scalar with bytes that are no base64": {"$": "numpy.scalar", "dtype": "<f4", "v": "*"},
    "dtype of objects": {"$": "numpy.dtype", "v": "|O"},
    "fraction with a huge exponent": {"$": "fraction", "v": "1e1000"},
    "fraction with a point": {"$": "fraction", "v": "1.5"},
    "config made of text": {
        "$": "omegaconf",
        "class": "DictConfig",
        "v": "a: 1",
        "type": None,
        "flags": {},
    },
    "config with a broken reference": {
        "$": "omegaconf",
        "class": "DictConfig",
        "v": {"a": "${"},
        "type": None,
        "flags": {},
    },
    "tensor without a name": {"$": "tensor", "file": "state"},
    "tensor of no such file": {"$": "tensor", "file": "weights", "name": "raw"},
    "tensor of an unknown dtype": {"$": "tensor", "file": "state", "name": "raw", "dtype": "what"},
    "tensor of a dtype that is none": {
        "$": "tensor",
        "file": "state",
        "name": "raw",
        "dtype": "nn",
    },
    "tensor of a quantized dtype": {
        "$": "tensor",
        "file": "state",
        "name": "raw",
        "dtype": "qint8",
    },
    "sparse with indices that are a range": {
        "$": "sparse_coo",
        "indices": [{"$": "range", "v": [0, 3, 1]}],
        "values": {"$": "range", "v": [0, 3, 1]},
        "size": [4],
        "coalesced": True,
    },
    "sparse with indices outside": {
        "$": "sparse_coo",
        "indices": [[100]],
        "values": [1.0],
        "size": [4],
        "coalesced": True,
    },
    "named tuple of a range": {
        "$": "namedtuple",
        "class": "state_tools:Point",
        "v": {"$": "range", "v": [0, 2, 1]},
    },
    "set of lists": {"$": "set", "v": [[1]]},
    "dict with a list for a key": {"$": "dict", "v": [[[1], 2]]},
    "dict with triples": {"$": "dict", "v": [[1, 2, 3]]},
    "zone that is a folder": {"$": "zoneinfo", "v": "America"},
    "zone outside": {"$": "zoneinfo", "v": "../../etc/passwd"},
    "zone with a long name": {"$": "zoneinfo", "v": "a" * 5000},
    "moment of month 13": {"$": "datetime", "v": [2026, 13, 1, 0, 0, 0, 0], "fold": 0, "tz": None},
    "duration beyond all bounds": {"$": "timedelta", "v": [10**30, 0, 0]},
    "range without steps": {"$": "range", "v": [0, 1, 0]},
    "leftover without a path": {"$": "leftover"},
}


@pytest.mark.parametrize("name", BAD_NODES)
def test_a_bad_node_is_refused(name, place, safe_globals):
    from state_tools import Point

    safe_globals([Point])
    crafted(place, BAD_NODES[name], state=RAW)
    with pytest.raises((CheckpointCorruptError, UnsafeLoadError)):
        BTCheckpointIO().load_checkpoint(place)


def test_the_place_of_the_damage_is_named(place):
    crafted(place, {"a": [{"b": {"$": "uuid", "v": 5}}]})
    assert "value.a.b" in str(refused(place))


def test_a_range_stays_a_range_however_long(place):
    assert BTCheckpointIO().load_checkpoint(crafted(place, {"$": "range", "v": [0, 10**15, 1]}))[
        "value"
    ] == range(10**15)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff",
        b'{"tree":' + b"[" * 50_000,
        b'{"tree":' + b"1" * 5000 + b"}",
    ],
    ids=range(8),
)
def test_a_tree_that_is_none_is_refused_and_named(content, place):
    crafted(place)
    (place / TREE).write_bytes(content)
    seal(place)
    assert TREE in str(refused(place))


@pytest.mark.parametrize("dropped", [5, None, "value", [[]], {}])
def test_a_strange_list_of_what_was_dropped_is_refused_or_harmless(dropped, place):
    crafted(place)
    text = json.dumps({"tree": {"value": {"$": "leftover", "v": "value"}}, "dropped": dropped})
    (place / TREE).write_text(text)
    seal(place)
    loads_or_refuses(place)


def test_a_checkpoint_without_a_tree_is_refused(place):
    crafted(place)
    (place / TREE).unlink()
    seal(place)
    assert TREE in str(refused(place))


# --- manifests ---


def _signed(payload):
    import xxhash

    text = json.dumps(payload, sort_keys=True, separators=(",", ":")).encode("ascii")
    return json.dumps({**payload, "digest": xxhash.xxh3_128_hexdigest(text)}).encode()


def _payload(place):
    payload = json.loads((place / MANIFEST).read_bytes())
    del payload["digest"]
    return payload


@FUZZ
@given(data=st.data())
def test_no_change_of_a_signed_manifest_does_more_than_load_or_be_refused(source, data):
    place = crafted(source / "manifest", 1, state=RAW)
    payload = _payload(place)
    *way, last = data.draw(st.sampled_from(list(_places(payload))[1:]))
    inner = payload
    for key in way:
        inner = inner[key]
    inner[last] = data.draw(junk)
    (place / MANIFEST).write_bytes(_signed(payload))
    loads_or_refuses(place)


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "",
        ".",
        "a//b",
        "a\\b",
        "\x00",
        MANIFEST,
        5,
        None,
        "\ud800",
    ],
)
def test_a_manifest_that_names_a_file_elsewhere_is_refused(path, place):
    crafted(place, 1)
    payload = _payload(place)
    payload["files"][0]["path"] = path
    (place / MANIFEST).write_bytes(_signed(payload))
    refused(place)


def test_a_manifest_with_a_number_too_large_for_a_metric_is_refused(place):
    crafted(place, 1)
    payload = _payload(place)
    payload["metrics"] = {"loss": 10**400}
    (place / MANIFEST).write_bytes(_signed(payload))
    refused(place)


def test_a_newer_format_is_refused_as_such(place):
    crafted(place, 1)
    payload = _payload(place)
    payload["format_version"] = 4
    for content in (_signed(payload), json.dumps({**payload, "new": {}}).encode()):
        (place / MANIFEST).write_bytes(content)
        with pytest.raises(FormatVersionError, match="upgrade bt_lightning"):
            BTCheckpointIO().load_checkpoint(place)
