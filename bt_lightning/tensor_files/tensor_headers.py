"""The tensors of a safetensors file by its header, and the differences of two sets. Pure."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointCorruptError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LENGTH_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class HeaderLimits:
    """What a header may have at most before it is parsed."""

    size: int
    """Bytes."""
    lists: int
    """Lists and objects."""
    commas: int


OF_ANYBODY: Final = HeaderLimits(12_000_000, 300_000, 600_000)
"""Of a file that anybody may have written: enough for a hundred thousand tensors."""
OF_SHARDS: Final = HeaderLimits(256 * 1024 * 1024, 6_000_000, 18_000_000)
"""Of a rank's file, whose bytes were compared with digests, as loads take it: twice as many tensors
as an index of shards can have, each of which it names twice."""
MOST_SIDES: Final = 64
"""Dimensions of a shape, as in torch."""
BITS: Final = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 8),
    **dict.fromkeys(("F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""Bits of an item, by dtype."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor, as a header describes it."""

    name: str
    dtype: str
    """In safetensors' names: `F32`, `BF16`, `F8_E4M3`."""
    shape: tuple[int, ...]
    size: int
    """Bytes."""
    offset: int | None = None
    """Offset of its first byte in the file; None if the format does not tell."""

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """The header of a file of tensors."""

    tensors: tuple[Tensor, ...]
    """In order of name."""
    metadata: Mapping[str, str]


def header_bytes(
    start: bytes, file_size: int, where: str, limits: HeaderLimits = OF_ANYBODY
) -> int:
    """Length of the header of a safetensors file that begins with the 8 bytes `start`.

    Raises:
        CheckpointCorruptError: it is longer than the file, or than `limits` allow.
    """
    length = int.from_bytes(start[:LENGTH_BYTES], "little")
    if len(start) < LENGTH_BYTES or length > file_size - LENGTH_BYTES:
        msg = (
            f"{where} is no safetensors file: its header would be longer than its {file_size} bytes"
        )
        raise CheckpointCorruptError(msg)
    if length > limits.size:
        msg = (
            f"{where} is too large to look into: it has a header of {length} bytes, and at most"
            f" {limits.size} are read"
        )
        raise CheckpointCorruptError(msg)
    return length


def parse_header(
    data: bytes, file_size: int, where: str, limits: HeaderLimits = OF_ANYBODY
) -> Header:
    """Parse the JSON of a safetensors header; tensors must lie in the file and not overlap.

    Raises:
        CheckpointCorruptError: it is invalid, contradicts itself, or is too large.
    """
    if data.count(b"[") + data.count(b"{") > limits.lists or data.count(b",") > limits.commas:
        msg = f"{where} is too large to look into: its header has too many entries"
        raise CheckpointCorruptError(msg)
    try:
        header = json.loads(data.decode(), object_pairs_hook=_object_of_unique_names)
        if not isinstance(header, dict):
            _fail("it is no object")
        metadata = header.pop("__metadata__", {})
        begin = LENGTH_BYTES + len(data)
        tensors = [_tensor(name, facts, begin) for name, facts in header.items()]
        if not all(isinstance(v, str) for v in metadata.values()):
            _fail("its metadata are not text")
        _check_offsets(tensors, file_size)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        msg = f"{where} has a damaged safetensors header: {_reason(error)}"
        raise CheckpointCorruptError(msg) from error
    return Header(tuple(sorted(tensors, key=lambda t: t.name)), metadata)


def _object_of_unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    header = dict(pairs)
    if len(header) != len(pairs):
        _fail("it has a name twice")
    return header


def _tensor(name: str, facts: dict[str, Any], begin: int) -> Tensor:
    dtype, shape, (first, last) = facts["dtype"], facts["shape"], facts["data_offsets"]
    numbers = [*shape, first, last]
    if len(shape) > MOST_SIDES:
        _fail(f"{name!r} has {len(shape)} dimensions")
    if any(type(n) is not int or not 0 <= n < 2**64 for n in numbers) or last < first:
        _fail(f"{name!r} has the shape {shape} and lies from {first} to {last}")
    if not isinstance(dtype, str):
        _fail(f"{name!r} has the dtype {dtype!r}")
    bits = BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (last - first) * 8:
        _fail(f"{name!r}, {dtype} {shape}, has {last - first} bytes")
    return Tensor(name, dtype, tuple(shape), last - first, begin + first)


def _check_offsets(tensors: Iterable[Tensor], file_size: int) -> None:
    end = 0
    for tensor in sorted(tensors, key=lambda t: (t.offset or 0, t.size)):
        offset = tensor.offset or 0
        if offset < end:
            _fail(f"{tensor.name!r} lies over another tensor")
        end = offset + tensor.size
    if end > file_size:
        _fail(f"its tensors end at {end}, the file at {file_size}")


def _fail(reason: str) -> None:
    raise ValueError(reason)


def _reason(error: Exception) -> str:
    return f"no {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__


@dataclass(frozen=True, slots=True)
class DifferenceNorms:
    """How far two tensors of equal shape and dtype are apart."""

    difference: float
    """Euclidean norm of the difference of all items."""
    before: float
    """Euclidean norm of the first tensor."""
    largest: float
    """Largest difference of one item."""

    @property
    def relative(self) -> float | None:
        """The difference as a part of the first tensor; None if that is zero."""
        return self.difference / self.before if self.before else None

    @property
    def sortable(self) -> float:
        """The norm; infinite where it is no number, which is to be seen first."""
        return math.inf if math.isnan(self.difference) else self.difference


@dataclass(frozen=True, slots=True)
class Difference:
    """A tensor that differs between two checkpoints."""

    name: str
    kind: str
    """`added`, `removed`, `reshaped` (shape or dtype) or `changed` (its bytes)."""
    before: Tensor | None
    after: Tensor | None
    norms: DifferenceNorms | None = None
    """Of a changed tensor, if they were asked for and its dtype has numbers."""


def compare(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    equal: Callable[[Tensor, Tensor], bool],
) -> list[Difference]:
    """Differences of `after` from `before`, by name.

    `equal` compares the bytes of two tensors of equal dtype and shape.
    """
    found = []
    for name in sorted({*before, *after}):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            found.append(Difference(name, "added" if old is None else "removed", old, new))
        elif (old.dtype, old.shape) != (new.dtype, new.shape):
            found.append(Difference(name, "reshaped", old, new))
        elif not equal(old, new):
            found.append(Difference(name, "changed", old, new))
    return found


def by_module(tensors: Iterable[Tensor], depth: int = 1) -> dict[str, tuple[int, int, int]]:
    """Tensors, elements and bytes by the first parts of their names, in order."""
    totals: dict[str, tuple[int, int, int]] = {}
    for tensor in tensors:
        parts = tensor.name.split(".")
        module = ".".join(parts[: max(1, min(depth, len(parts) - 1))])
        number, count, size = totals.get(module, (0, 0, 0))
        totals[module] = (number + 1, count + tensor.count, size + tensor.size)
    return dict(sorted(totals.items()))
