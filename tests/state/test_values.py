"""Every value of a checkpoint that is no tensor comes back as it was."""

from __future__ import annotations

import datetime as dt
import enum
import os
import uuid
from argparse import Namespace
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import SimpleNamespace
from zoneinfo import ZoneInfo

import numpy as np
import pytest
import torch
from state_tools import (
    ALLOWED,
    Bits,
    Child,
    Color,
    Conf,
    Custom,
    DictWithFields,
    Foreign,
    Frozen,
    Level,
    Pair,
    Plain,
    Point,
    Slotted,
    Word,
    returns_the_same,
    round_trip,
    same,
    tree_of,
)

from bt_lightning import BTCheckpointIO

INF = float("inf")
NAN = float("nan")


def _nested(depth, wrap):
    value = 0
    for _ in range(depth):
        value = wrap(value)
    return value


def _metadata():
    value = OrderedDict(a=1)
    value._metadata = OrderedDict({"": {"version": 1}, "layer": {"version": 2}})
    return value


def _attribute_dict(*args, **kwargs):
    from lightning.fabric.utilities.data import AttributeDict

    return AttributeDict(*args, **kwargs)


PLAIN = {
    "none": None,
    "true and false": [True, False],
    "integers": [0, 1, -1, 2**31, 2**63, -(2**63) - 1, 2**64, 10**300],
    "floats": [0.0, -0.0, 0.1, 1e-320, 1.7976931348623157e308, 5e-324],
    "inf and nan": [INF, -INF, NAN],
    "text": ["", "a", "é", "日本", "😀", "\x00", '"\\\n', "\u2028", "$"],
    "lone surrogates": ["\ud800", "a\udfff", "\udcff\ud800"],
    "bytes": [b"", b"\x00\xff", bytes(range(256)), bytearray(b""), bytearray(b"\x01\x02")],
    "complex numbers": [0j, 1 + 2j, complex(-0.0, NAN), complex(INF, -INF)],
    "tuples": [(), (1,), (1, (2, (3,)))],
    "sets": [set(), {1, "a", 2.5, (1, 2)}, frozenset(), frozenset({frozenset({1})}), {NAN}],
    "ranges and slices": [range(3), range(10, -5, -3), slice(None), slice(1, None, 2), slice("a")],
    "dicts": [{}, {"a": {}}, {1: 2, 1.5: 3, None: 4, (1, 2): 5, b"k": 6, True + 1: 7}],
    "integer keys": {0: {"step": 1}, 1: {"step": 2}, -5: None},
    "boolean keys": {True: 1, False: 0},
    "keys that are infinite": {INF: 1, -INF: 2, NAN: 3},
    "ordered dicts": [OrderedDict(), OrderedDict([(2, "b"), (1, "a")])],
    "the order of keys": {"z": 1, "a": 2, "m": 3},
    "defaultdicts": [defaultdict(None, a=1), defaultdict(int, {1: 2}), defaultdict(list)],
    "nested defaultdicts": defaultdict(dict, {"a": defaultdict(set, {1: {2}})}),
    "counters": [Counter(), Counter("hello"), Counter({"a": -1, "b": 0}), Counter({"a": 1.5})],
    "deques": [deque(), deque([1, 2], maxlen=5), deque([deque(maxlen=0)], 1)],
    "paths": [Path(), Path("/a/b"), Path("a b/ü"), Path(os.fsdecode(b"\xff"))],
    "pure paths": [PurePosixPath("a"), PureWindowsPath("C:\\a\\b")],
    "decimals": [Decimal("1.10"), Decimal("-0"), Decimal("NaN"), Decimal("sNaN1"), Decimal("Inf")],
    "fractions": [Fraction(1, 3), Fraction(-5), Fraction(0)],
    "ids": uuid.UUID(int=5),
    "dates": [dt.date(1, 1, 1), dt.date.max],
    "times of day": [dt.time(), dt.time(23, 59, 59, 999999, fold=1), dt.time(1, tzinfo=dt.UTC)]
    if hasattr(dt, "UTC")
    else [dt.time()],
    "moments": [dt.datetime(2026, 1, 2, 3, 4, 5, 6), dt.datetime.max],  # noqa: DTZ001, DTZ901
    "moments in zones": [
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone.utc),
        dt.datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin")),
        dt.datetime(2026, 1, 2, tzinfo=dt.timezone(dt.timedelta(hours=-3, seconds=7))),
    ],
    "durations": [
        dt.timedelta(),
        dt.timedelta.max,
        dt.timedelta.min,
        dt.timedelta(microseconds=-1),
    ],
    "named zones": [dt.timezone(dt.timedelta(hours=1), "CET"), ZoneInfo("UTC")],
    "zones without a name": [dt.timezone.utc, dt.timezone(dt.timedelta(hours=1))],
    "enums": [Color.RED, Color.GREEN, Level.HIGH, Word.YES, {Color.RED: Level.LOW}],
    "flags": [Bits.A, Bits.A | Bits.B, Bits(0)],
    "named tuples": [Point(1, 2), Pair(1), Pair(2, Point(3, [4])), {Point(1, 2): 3}],
    "dataclasses": [
        Plain(),
        Plain(2, [Plain()]),
        Frozen(1, Plain()),
        Slotted(1, {2}),
        Child(c=(1,)),
    ],
    "classes": [int, dict, type(None), OrderedDict, Counter, torch.nn.Linear, torch.optim.Adam],
    "namespaces": [Namespace(a=1, b=Namespace(c=[])), SimpleNamespace(), SimpleNamespace(x=(1,))],
    "torch's own names": [
        torch.float32,
        torch.bfloat16,
        torch.bool,
        torch.strided,
        torch.sparse_csr,
        torch.channels_last,
        torch.contiguous_format,
        torch.Size([]),
        torch.Size([2, 3]),
        torch.device("cpu"),
        torch.device("cuda", 3),
        torch.device("meta"),
    ],
    "a key that is the mark": {"$": "float", "v": "nan"},
    "a mark inside a mark": {"$": {"$": {"$": "dict", "v": []}}},
    "odd keys": {"": 1, "__metadata__": 2, "a.b": 3, "a": {"b": 4}, "\n": 5, ".": 6, "'": 7},
    "long names": {"x" * 100_000: {"y" * 5_000: 1}},
    "an empty name below an empty name": {"": {"": {"": [{}]}}},
    "metadata of a state dict": _metadata(),
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_value_comes_back_as_it_was(name, place):
    returns_the_same(PLAIN[name], place)


def test_everything_comes_back_from_one_checkpoint(place):
    returns_the_same(PLAIN, place)


NUMPY = {
    "scalars": [
        np.float32(1.5),
        np.int8(-1),
        np.bool_(True),
        np.uint64(2**64 - 1),
        np.float16("nan"),
    ],
    "wide scalars": [np.longdouble(1) / 3, np.complex64(1j), np.clongdouble(2j)],
    "texts": [np.str_("ü"), np.bytes_(b"ab")],
    "dates": [np.datetime64("2026-01-01"), np.datetime64("NaT"), np.timedelta64(5, "ms")],
    "arrays": [np.arange(6).reshape(2, 3), np.array([1.5, np.nan]), np.array([True, False])],
    "strange numbers": [
        np.arange(3, dtype=">f8"),
        np.zeros(2, np.float16),
        np.ones(2, np.complex64),
    ],
    "no axes": [np.array(5), np.array("abc"), np.array(np.datetime64("2026", "Y"))],
    "no items": [np.empty(0), np.empty((0, 3)), np.empty((2, 0, 4), "<M8[s]"), np.array([], "<U4")],
    "column order": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "texts in arrays": [np.array(["a", "bcd", ""]), np.array([b"x", b"yz"])],
    "dates in arrays": np.array(["2026-01-01", "NaT"], "datetime64[ns]"),
    "records": np.array([(1, 2.5, b"x")], dtype=[("a", "<i4"), ("b", ">f8"), ("c", "S3")]),
    "records in records": np.zeros(2, [("a", [("b", "<i4"), ("c", "<f4", (2, 2))])]),
    "one record": np.array([(1, 2.5)], dtype=[("a", "<i4"), ("b", "<f8")])[0],
    "aligned records": np.zeros(2, np.dtype([("a", "i1"), ("b", "<i8")], align=True)),
    "raw bytes": np.array([b"ab"]).view("V2"),
    "dtypes": [np.dtype("float32"), np.dtype("<M8[ns]"), np.dtype([("a", "<i4")]), np.dtype("U7")],
}


@pytest.mark.parametrize("name", NUMPY)
def test_a_value_of_numpy_comes_back_as_it_was(name, place):
    returns_the_same(NUMPY[name], place)


@pytest.mark.parametrize(
    "view",
    [
        np.arange(24).reshape(4, 6)[::2, 1::2],
        np.arange(5)[::-1],
        np.broadcast_to(np.float32(2), (3, 4)),
        np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    ],
)
def test_a_view_of_an_array_comes_back_with_its_own_items(view, place):
    back = round_trip(view, place)
    assert back.dtype == view.dtype
    assert np.array_equal(back, view)


def test_an_array_that_came_back_can_be_written_to(place):
    back = round_trip(np.arange(3), place)
    back += 1
    assert back.tolist() == [1, 2, 3]


@pytest.mark.parametrize("scalar", [np.str_(""), np.bytes_(b"")])
def test_an_empty_text_of_numpy_comes_back(scalar, place):
    """numpy says that such an item has 0 bytes; `frombuffer` refuses those."""
    returns_the_same(scalar, place)


def test_a_numpy_dtype_with_titles_comes_back(place):
    returns_the_same(np.zeros(1, [(("a title", "name"), "<f4")]), place)


def test_an_integer_of_thousands_of_digits_comes_back(place):
    """Python refuses to turn integers of over 4300 digits into text unless told otherwise."""
    returns_the_same({"seed": 10**5000, "fraction": Fraction(10**5000 + 1, 3)}, place)


def test_two_lone_surrogates_stay_two(place):
    """As JSON escapes they would read as one character beyond the basic plane."""
    returns_the_same("\ud83d\ude00", place)


def test_keys_that_differ_in_surrogates_only_stay_two_keys(place):
    returns_the_same({"\ud83d\ude00": 1, "😀": 2}, place)


WRAPS = {
    "list": lambda v: [v],
    "tuple": lambda v: (v,),
    "dict": lambda v: {"k": v},
    "dict with numbers": lambda v: {1: v},
    "ordered dict": lambda v: OrderedDict(k=v),
    "dataclass": lambda v: Plain(1, v),
    "named tuple": lambda v: Pair(1, v),
}


@pytest.mark.parametrize("name", WRAPS)
def test_a_deeply_nested_value_comes_back(name, place):
    returns_the_same(_nested(90, WRAPS[name]), place)


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize("name", WRAPS)
@pytest.mark.parametrize("depth", [150, 199, 205])
def test_a_value_nested_deeper_comes_back_at_least_with_pickle(name, depth, place):
    """However deep: a save must not end with RecursionError."""
    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": _nested(depth, WRAPS[name])}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    for _ in range(depth):
        back = (
            back.b
            if isinstance(back, Plain)
            else list(getattr(back, "values", back.__iter__)())[-1]
        )
    assert back == 0


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_cycle_goes_to_the_leftovers_and_comes_back_as_one(place):
    value = {"name": "loop", "list": []}
    value["list"].append(value)
    io = BTCheckpointIO()
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    inner = back["list"][0]
    assert inner["name"] == "loop"
    assert inner["list"][0] is inner


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_cycle_survives_a_load_with_a_device(place):
    value = {"tensor": torch.ones(2)}
    value["self"] = value
    io = BTCheckpointIO()
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, map_location="cpu", weights_only=False)["value"]
    assert torch.equal(back["self"]["tensor"], torch.ones(2))


def test_a_value_that_stands_in_two_places_stands_in_both(place):
    shared = [1, {"a": (2,)}]
    returns_the_same({"one": shared, "two": shared, "three": [shared, shared]}, place)


def test_attribute_dicts_of_lightning_come_back(place):
    value = _attribute_dict(a=1, b=_attribute_dict(c=[2]))
    back = round_trip(value, place)
    same(value, back)
    assert back.b.c == [2]


@pytest.mark.parametrize(
    "make",
    [
        lambda oc: oc.create({"a": 1, "b": {"c": [1, 2.5, None]}, "d": "${a}", "e": "???"}),
        lambda oc: oc.create([1, {"a": "b"}, []]),
        lambda oc: oc.create({1: 2, 2.5: "x", Color.RED: 3}),
        lambda oc: oc.create({"path": Path("/a"), "raw": b"\x00", "color": Color.RED}),
        lambda oc: oc.create({"a": 1}, flags={"readonly": True, "struct": True}),
        lambda oc: oc.create({}),
        lambda oc: oc.create([]),
        lambda oc: oc.structured(Conf(lr=0.5)),
        lambda oc: oc.structured(Conf, flags={"readonly": True}),
    ],
)
def test_a_config_of_omegaconf_comes_back(make, place):
    from omegaconf import OmegaConf

    returns_the_same(make(OmegaConf), place)


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize("content", [torch.ones(2), 5])
def test_a_config_that_holds_objects_comes_back_at_least_with_pickle(content, place):
    """OmegaConf's flag `allow_objects` lets a config hold any value: it must survive as well."""
    from omegaconf import OmegaConf

    value = OmegaConf.create({"a": content}, flags={"allow_objects": True})
    io = BTCheckpointIO()
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    same(content, back.a)
    assert back._get_node_flag("allow_objects")


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.parametrize("kind", ["DictConfig", "ListConfig"])
@pytest.mark.parametrize("content", [None, "???", "${a}"])
def test_a_config_without_content_comes_back(kind, content, place):
    import omegaconf

    value = getattr(omegaconf, kind)(content)
    io = BTCheckpointIO()
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    assert type(back) is type(value)
    assert back._content == value._content


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_structured_config_inside_a_plain_one_keeps_its_type(place):
    """Its type is what refuses a wrong value later: a plain dict in its place would not."""
    from omegaconf import OmegaConf

    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": OmegaConf.create({"inner": Conf(lr=0.5)})}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    assert back.inner.lr == 0.5
    assert OmegaConf.get_type(back.inner) is Conf


# --- what looks like a form and is none: it must be whole, or go to the leftovers ---


class _IntWithName(int):
    name = "x"


class _NamedList(list):
    pass


@pytest.mark.filterwarnings("ignore:saved with pickle")
@pytest.mark.filterwarnings("ignore:loading .* needs")
@pytest.mark.parametrize(
    "value",
    [
        _IntWithName(5),
        _NamedList([1, 2]),
        type("Sub", (dict,), {"__module__": __name__}),
        Foreign(3),
        np.array([1, "a"], dtype=object),
        np.array([{}], dtype=[("a", "O")]),
        np.ma.masked_array([1, 2], [True, False]),
        np.random.default_rng(1),
        Custom(3, "a handle"),
        DictWithFields(5),
        defaultdict(Foreign, a=Foreign(1)),
    ],
    ids=lambda v: type(v).__name__,
)
def test_a_value_beyond_the_forms_is_saved_whole_and_loaded_on_request(value, place, monkeypatch):
    """A form that fits in part only would lose the rest without a word."""
    if isinstance(value, type):
        monkeypatch.setitem(globals(), "Sub", value)
    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    assert type(back) is type(value)
    if isinstance(value, np.random.Generator):
        assert back.bit_generator.state == value.bit_generator.state
    elif isinstance(value, np.ndarray):
        assert back.tolist() == value.tolist()
    else:
        assert back == value or isinstance(value, Custom)


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_dataclass_that_is_also_a_dict_keeps_its_items(place):
    """Its fields are not all of it: written as fields only, its items would be gone."""
    value = DictWithFields(5)
    value["item"] = 6
    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": value}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    assert back.a == 5
    assert dict(back) == {"item": 6}


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_dataclass_that_says_what_its_state_is_has_the_last_word(place):
    import threading

    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": Custom(3, threading.Lock())}, place)
    back = io.load_checkpoint(place, weights_only=False)["value"]
    assert (back.a, back.handle) == (3, "opened again")


@pytest.mark.filterwarnings("ignore:saved with pickle")
def test_a_dataclass_with_more_than_its_fields_goes_to_the_leftovers(place):
    value = Plain()
    value.extra = 5
    io = BTCheckpointIO(ALLOWED)
    io.save_checkpoint({"value": value}, place)
    assert tree_of(place)["value"]["$"] == "leftover"
    assert io.load_checkpoint(place, weights_only=False)["value"].extra == 5


def test_classes_made_inside_a_function_are_refused_by_name(place):
    """No name leads to such a class, so neither the tree nor pickle can hold its instances."""
    from bt_lightning import UnsupportedStateError

    @dataclass
    class Local:
        a: int = 1

    class LocalEnum(enum.Enum):
        A = 1

    for value in (Local(), LocalEnum.A, namedtuple("Inner", "a")(1), Local):  # noqa: PYI024
        with pytest.raises(UnsupportedStateError, match="value"):
            BTCheckpointIO().save_checkpoint({"value": value}, place)


def test_a_tensor_in_an_object_without_a_form_is_written_once(place):
    """What goes to the leftovers as a whole must leave nothing behind in the other files."""
    from bt_lightning.snapshot.state_files import lay_out_files

    @dataclass
    class Local:
        weight: object = None

        def __reduce_ex__(self, protocol):
            return (list, ())

    pair = type("Odd", (tuple,), {"_fields": ("a",), "__module__": __name__})
    snapshot = lay_out_files(
        {"hyper_parameters": {"x": pair([torch.ones(1000)]), "y": Local(torch.ones(9))}}
    )
    assert "optimizer.safetensors" not in snapshot.files


def test_equal_sets_make_equal_files(tmp_path):
    one, other = {f"k{i}" for i in range(50)}, {f"k{i}" for i in reversed(range(50))}
    for name, value in (("one", one), ("other", other)):
        BTCheckpointIO().save_checkpoint({"value": value}, tmp_path / name)
    assert tree_of(tmp_path / "one") == tree_of(tmp_path / "other")
