"""The digests of a file's blocks: millions of them for terabytes, so they are kept as bytes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, cast, overload

if TYPE_CHECKING:
    from collections.abc import Iterable

DIGEST_BYTES: Final = 16
_HEX: Final = frozenset("0123456789abcdef")


def size_of_blocks(block_bytes: int) -> str:
    """The size of a block as text for people."""
    kib = block_bytes // 1024
    return f"{kib} KiB" if kib < 1024 else f"{kib // 1024} MiB"  # noqa: PLR2004 - of a MiB


def hex_digest(value: object) -> str:
    """Return `value` if it is a digest as text.

    Raises:
        ValueError: it is none.
    """
    if not isinstance(value, str) or len(value) != 2 * DIGEST_BYTES or not _HEX.issuperset(value):
        msg = f"expected 32 hex characters, found {value!r}"
        raise ValueError(msg)
    return value


def hex_digests(values: Sequence[object]) -> tuple[str, ...]:
    """Return `values` if they are digests as texts; all at once, since there may be millions.

    Raises:
        ValueError: one of them is none.
    """
    found = tuple(values)
    if set(map(type, found)) <= {str} and set(map(len, found)) <= {2 * DIGEST_BYTES}:  # type: ignore[arg-type]
        texts = cast("tuple[str, ...]", found)
        if _HEX.issuperset("".join(texts)):
            return texts
    return tuple(hex_digest(value) for value in found)  # says which


class BlockDigests(Sequence[str]):
    """Digests of 16 bytes, as texts of 32 hex characters; equal to a tuple of the same texts.

    Args:
        data: the digests, one behind the other.

    Raises:
        ValueError: the last one is cut off.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        if len(data) % DIGEST_BYTES:
            msg = f"expected digests of {DIGEST_BYTES} bytes, found {len(data)} bytes in all"
            raise ValueError(msg)
        self._data = data

    @classmethod
    def of(cls, digests: Iterable[str]) -> BlockDigests:
        """Those of texts.

        Raises:
            ValueError: a text is not hexadecimal.
        """
        return digests if isinstance(digests, cls) else cls(bytes.fromhex("".join(digests)))

    @classmethod
    def unpack(cls, text: str) -> BlockDigests:
        """What `packed` returned.

        Raises:
            ValueError: it is no such text.
        """
        try:
            data = base64.b64decode(text, validate=True)
        except ValueError as error:
            msg = f"expected digests in base64, found {text[:50]!r}"
            raise ValueError(msg) from error
        found = cls(data)
        if found.packed != text:
            msg = f"expected digests in base64, found bits behind the last one in {text[-50:]!r}"
            raise ValueError(msg)
        return found

    def part(self, first: int, last: int) -> bytes:
        """The digests `first` to `last`, one behind the other, of 16 bytes each."""
        return self._data[first * DIGEST_BYTES : last * DIGEST_BYTES]

    @property
    def packed(self) -> str:
        """All of them as base64, 21 characters each."""
        return base64.b64encode(self._data).decode("ascii")

    def __len__(self) -> int:
        return len(self._data) // DIGEST_BYTES

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...

    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return tuple(self[place] for place in range(len(self))[index])
        if not 0 <= index * DIGEST_BYTES < len(self._data):
            index = range(len(self))[index]  # from the end, or the error of a sequence
        return self._data[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES].hex()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BlockDigests):
            return self._data == other._data
        return tuple(self) == other if isinstance(other, tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))
