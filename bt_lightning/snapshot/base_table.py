"""`base.json`: which tensors of the weights a checkpoint leaves out, and what they held."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import xxhash

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import BASE, parse_json
from bt_lightning.snapshot.device_streams import enqueued
from bt_lightning.snapshot.dtypes import plain_dtype
from bt_lightning.snapshot.tensor_digests import tensor_digests

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from bt_lightning.snapshot.device_streams import Event

_DIGEST: Final = re.compile(r"[0-9a-f]{32}")
_VERSION: Final = 1


@dataclass(frozen=True, slots=True)
class BaseTensor:
    """One tensor of the base."""

    dtype: str
    """As `torch.<dtype>`."""
    shape: tuple[int, ...]
    xxh3_128: str

    @classmethod
    def of(cls, tensor: torch.Tensor, digest: str) -> BaseTensor:
        """A tensor with the digest of its values."""
        return cls(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest)

    def is_like(self, tensor: torch.Tensor) -> bool:
        """Whether `tensor` has this shape and dtype."""
        return tuple(tensor.shape) == self.shape and str(tensor.dtype) == f"torch.{self.dtype}"

    @property
    def size(self) -> int:
        """Bytes."""
        dtype = plain_dtype(self.dtype)
        return math.prod(self.shape) * (dtype.itemsize if dtype is not None else 0)


@dataclass(frozen=True)
class BaseTable:
    """The tensors of a base by their name in the state dictionary."""

    tensors: Mapping[str, BaseTensor]
    name: str | None = None
    """What the base is called, such as `namespace/model`; None where nothing says so."""

    @cached_property
    def content(self) -> bytes:
        """The content of `base.json`."""
        rows = {n: [t.dtype, list(t.shape), t.xxh3_128] for n, t in sorted(self.tensors.items())}
        document = {"version": _VERSION, "name": self.name, "tensors": rows}
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """What the manifest says of the base: digest, number of tensors, bytes."""
        return {
            "digest": xxhash.xxh3_128_hexdigest(self.content),
            "tensors": len(self.tensors),
            "size": sum(tensor.size for tensor in self.tensors.values()),
        }

    @classmethod
    def parse(cls, content: bytes) -> BaseTable:
        """The table of a file that anybody may have written.

        Raises:
            CheckpointCorruptError: it is no such table, or too large.
        """
        document = parse_json(content, BASE)
        rows = document.get("tensors") if isinstance(document, dict) else None
        if not isinstance(rows, dict) or document.get("version") != _VERSION:
            msg = "it is no table of a base"
            raise CheckpointCorruptError(msg)
        name = document.get("name")
        tensors = {key: _row(key, row) for key, row in rows.items()}
        return cls(tensors, name if isinstance(name, str) else None)


def _row(name: str, row: object) -> BaseTensor:
    if isinstance(row, list) and len(row) == 3:  # noqa: PLR2004 - as `content` writes it
        dtype, shape, digest = row
        lengths: list[Any] = shape if isinstance(shape, list) else [None]
        if (
            isinstance(dtype, str)
            and plain_dtype(dtype) is not None
            and all(type(length) is int and length >= 0 for length in lengths)
            and isinstance(digest, str)
            and _DIGEST.fullmatch(digest)
        ):
            return BaseTensor(dtype, tuple(lengths), digest)
    msg = f"the entry of {name!r} is none of a tensor"
    raise CheckpointCorruptError(msg)


class BaseChangedError(Exception):
    """A save left out tensors that are not those of the base; it is given up."""

    def __init__(self, names: list[str]) -> None:
        super().__init__(names)
        self.names = names


@dataclass
class LeftOut:
    """What one save leaves out; made on the training thread."""

    table: BaseTable
    tensors: Mapping[str, torch.Tensor]
    """The same names; aliases of what training has, which keep its memory."""
    parameters: Sequence[torch.nn.Parameter] = ()
    """Those that they belong to."""
    changed: set[str] = field(default_factory=set)
    """Gets the names of those that differ from the base."""
    verified: bool = False
    written: Mapping[torch.device, Event] = field(init=False)
    """What must be done on CUDA devices before the tensors are read; of the training thread."""

    def __post_init__(self) -> None:
        self.written = enqueued(self.tensors.values())

    @property
    def trains(self) -> bool:
        """Whether one of them trains by now: the next step changes it, as it may."""
        return any(parameter.requires_grad for parameter in self.parameters)

    def verify(self) -> None:
        """Hash what was left out, once; called on any thread, before the save is committed.

        Raises:
            BaseChangedError: it is not what the table says.
        """
        if self.verified:
            return
        found = tensor_digests(self.tensors, written=self.written)
        known = self.table.tensors
        names = sorted(name for name, digest in found.items() if digest != known[name].xxh3_128)
        if names:
            self.changed.update(names)
            raise BaseChangedError(names)
        self.verified = True
