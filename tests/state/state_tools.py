"""Strict equality of states, and checkpoints that were tampered with by someone who can sign."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import shutil
import struct
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from datetime import datetime, time, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import omegaconf
import pytest
import torch

from bt_lightning import BTCheckpointIO, CheckpointCorruptError, UnsafeLoadError
from bt_lightning.localdir.digest import digest_file
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import LEFTOVERS, MANIFEST, STATE, TREE

if TYPE_CHECKING:
    from pathlib import Path

# --- values with classes of their own ---


class Color(enum.Enum):
    RED = 1
    GREEN = "green"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Word(str, enum.Enum):
    YES = "yes"


class Bits(enum.Flag):
    A = enum.auto()
    B = enum.auto()


Point = namedtuple("Point", ["x", "y"])  # noqa: PYI024 - the plain kind is what is tested


class Pair(NamedTuple):
    left: int
    right: object = None


@dataclass
class Plain:
    a: int = 1
    b: Any = None
    hidden: int = field(default=0, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Frozen:
    a: int
    inner: Plain


@dataclass(slots=True)
class Slotted:
    a: int
    b: Any = None


@dataclass
class Child(Plain):
    c: tuple[int, ...] = ()


@dataclass
class Conf:
    lr: float = 0.1
    name: str = "x"


@dataclass
class DictWithFields(dict):
    """A dict that is a dataclass as well: its fields are not all of it."""

    a: int = 1


@dataclass
class Custom:
    """Pickles itself in its own way: the handle is not part of it."""

    a: int
    handle: Any = None

    def __getstate__(self):
        return {"a": self.a}

    def __setstate__(self, state):
        self.a = state["a"]
        self.handle = "opened again"


class Foreign:
    """A class that no form of the tree can hold."""

    def __init__(self, value: object = None) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Foreign) and other.value == self.value

    def __hash__(self) -> int:
        return hash(self.value)


ALLOWED = (
    Color,
    Level,
    Word,
    Bits,
    Point,
    Pair,
    Plain,
    Frozen,
    Slotted,
    Child,
    Conf,
    DictWithFields,
    Custom,
)

# --- equality ---


def bits(tensor: torch.Tensor) -> bytes:
    """The content of a dense tensor, whatever its dtype."""
    plain = tensor.detach().resolve_conj().resolve_neg()
    if not plain.numel():
        return b""
    return plain.unsqueeze(-1).view(torch.uint8).contiguous().numpy().tobytes()


def same(one: Any, other: Any, at: str = "value") -> None:  # noqa: C901, PLR0912, PLR0915
    """Assert that two states are equal in type, value and, for tensors, in every bit."""
    assert type(one) is type(other), f"{at}: {type(one)} is no {type(other)}"
    if isinstance(one, torch.Tensor):
        _same_tensor(one, other, at)
    elif isinstance(one, np.ndarray):
        assert one.dtype == other.dtype, at
        assert one.shape == other.shape, at
        assert one.flags.f_contiguous == other.flags.f_contiguous or not (
            one.flags.f_contiguous or one.flags.c_contiguous
        ), at
        assert one.tobytes() == other.tobytes(), at
    elif isinstance(one, np.generic):
        assert one.dtype == other.dtype, at
        assert one.tobytes() == other.tobytes(), at
    elif isinstance(one, enum.Enum | type):
        assert one is other, at
    elif isinstance(one, omegaconf.Container):
        _same_config(one, other, at)
    elif isinstance(one, float):
        assert struct.pack("<d", one) == struct.pack("<d", other) or (
            math.isnan(one) and math.isnan(other)
        ), f"{at}: {one!r} is not {other!r}"
    elif isinstance(one, complex):
        same(one.real, other.real, f"{at}.real")
        same(one.imag, other.imag, f"{at}.imag")
    elif isinstance(one, dict):
        assert len(one) == len(other), at
        for (key, item), (other_key, other_item) in zip(one.items(), other.items(), strict=True):
            same(key, other_key, f"{at} key {key!a}")
            same(item, other_item, f"{at}[{key!a}]")
        if isinstance(one, defaultdict):
            assert one.default_factory is other.default_factory, at
        if isinstance(one, OrderedDict):
            same(vars(one), vars(other), f"{at}.__dict__")
    elif isinstance(one, set | frozenset):
        same(sorted(one, key=repr), sorted(other, key=repr), at)
    elif isinstance(one, list | tuple | deque):
        assert len(one) == len(other), at
        for index, (item, other_item) in enumerate(zip(one, other, strict=True)):
            same(item, other_item, f"{at}[{index}]")
        if isinstance(one, deque):
            assert one.maxlen == other.maxlen, at
    elif isinstance(one, Namespace | SimpleNamespace):
        same(vars(one), vars(other), at)
    elif dataclasses.is_dataclass(one):
        for item in dataclasses.fields(one):
            same(getattr(one, item.name), getattr(other, item.name), f"{at}.{item.name}")
    elif isinstance(one, datetime | time):
        assert one.replace(tzinfo=None) == other.replace(tzinfo=None), at
        assert one.fold == other.fold, at
        same(one.tzinfo, other.tzinfo, f"{at}.tzinfo")
    elif isinstance(one, Decimal | timezone):
        assert repr(one) == repr(other), at
    elif isinstance(one, str):
        assert ascii(one) == ascii(other), at  # xdist cannot carry a message with a surrogate
    elif type(one) is int:
        assert (one == other) is True, f"{at}: the numbers differ"  # may be too long to print
    else:
        assert one == other, at


def _same_tensor(one: torch.Tensor, other: torch.Tensor, at: str) -> None:
    assert one.dtype is other.dtype, at
    assert one.shape == other.shape, at
    assert one.layout is other.layout, at
    assert one.requires_grad == other.requires_grad, f"{at}: requires_grad"
    assert other.is_leaf, f"{at}: it has a history"
    assert not other.is_conj(), at
    assert not other.is_neg(), at
    assert other.device.type == "cpu", at
    if one.layout is torch.strided:
        assert bits(one) == bits(other), f"{at}: the bits differ"
        return
    if one.layout is torch.sparse_coo:
        assert one.is_coalesced() == other.is_coalesced(), at
        names = ["_indices", "_values"]
    elif one.layout in {torch.sparse_csr, torch.sparse_bsr}:
        names = ["crow_indices", "col_indices", "values"]
    else:
        names = ["ccol_indices", "row_indices", "values"]
    for name in names:
        parts = [getattr(tensor.detach(), name)() for tensor in (one, other)]
        _same_tensor(parts[0], parts[1], f"{at}.{name}")


def _same_config(one: Any, other: Any, at: str) -> None:
    conf = omegaconf.OmegaConf
    assert conf.get_type(one) is conf.get_type(other), at
    for flag in ("readonly", "struct", "allow_objects"):
        assert one._get_node_flag(flag) == other._get_node_flag(flag), f"{at}: {flag}"
    plain = [conf.to_container(item, resolve=False) for item in (one, other)]
    same(plain[0], plain[1], at)


# --- round trips ---


def round_trip(value: Any, place: Path, allowed: Any = ALLOWED, **load: Any) -> Any:
    """`value` through a checkpoint on disk that holds no pickle."""
    io = BTCheckpointIO(allowed)
    io.save_checkpoint({"value": value}, place)
    assert not (place / LEFTOVERS).exists(), "it went to the leftovers"
    return io.load_checkpoint(place, **load)["value"]


def returns_the_same(value: Any, place: Path, allowed: Any = ALLOWED) -> None:
    """Assert that `value` comes back equal in every respect."""
    same(value, round_trip(value, place, allowed))


# --- tampering ---


def seal(place: Path, **facts: Any) -> None:
    """Write a manifest that is true of the files at `place`, as an attacker would."""
    names = sorted(p.name for p in place.iterdir() if p.name != MANIFEST)
    defaults: dict[str, Any] = {
        "checkpoint_id": place.name,
        "generation": 1,
        "step": 1,
        "epoch": 0,
        "created_at": "2026-01-01T00:00:00+00:00",
        "files": tuple(digest_file(place / name, name) for name in names),
    }
    manifest = Manifest(**{**defaults, **facts})
    (place / MANIFEST).write_bytes(manifest.to_bytes())


def crafted(place: Path, node: Any = None, **files: bytes) -> Path:
    """A sealed checkpoint whose tree is `{"value": node}`; `state` is `optimizer.safetensors`."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    tree = {"tree": {"value": node}, "dropped": []}
    (place / TREE).write_text(json.dumps(tree))
    for label, content in files.items():
        (place / {"state": STATE, "leftovers": LEFTOVERS}.get(label, label)).write_bytes(content)
    seal(place)
    return place


def tensor_file(header: Any, data: bytes = b"") -> bytes:
    """A safetensors file with any header, given as bytes or as what JSON can hold."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def bytes_tensor(data: bytes, name: str = "raw") -> bytes:
    """A safetensors file with one tensor of bytes."""
    slot = {"dtype": "U8", "shape": [len(data)], "data_offsets": [0, len(data)]}
    return tensor_file({name: slot}, data)


def refused(place: Path) -> CheckpointCorruptError:
    """The error that loading `place` ends with: it is damaged, and nothing else is wrong."""
    with pytest.raises(CheckpointCorruptError) as caught:
        BTCheckpointIO().load_checkpoint(place)
    return caught.value


def loads_or_refuses(place: Path) -> None:
    """Assert that a load ends well or with one of the two errors that a bad file may cause."""
    try:
        BTCheckpointIO().load_checkpoint(place)
    except (CheckpointCorruptError, UnsafeLoadError):
        return


def tree_of(place: Path) -> Any:
    """The tree that lies on disk."""
    return json.loads((place / TREE).read_text())["tree"]
