"""Tables of what a rank holds as bytes that ranks send to each other, with a digest."""

from __future__ import annotations

import json
import zlib
from typing import TYPE_CHECKING, Any

import xxhash

from bt_lightning.sharding.layouts import Layout, Placement
from bt_lightning.sharding.structure import HeldTensor

if TYPE_CHECKING:
    from bt_lightning.sharding.structure import Table


def table_to_bytes(table: Table) -> bytes:
    """The table as JSON, equal for equal tables; some 100 bytes for each tensor."""
    numbers: dict[Layout | None, int | None] = {None: None}
    rows = {}
    for name, held in sorted(table.items()):
        number = numbers.setdefault(held.layout, len(numbers) - 1)
        rows[name] = [held.dtype, held.shape, number]
    layouts = [
        [each.mesh_shape, each.ranks, [[one.dim, one.strided] for one in each.placements]]
        for each in numbers
        if each is not None
    ]
    return json.dumps([layouts, rows], separators=(",", ":")).encode()


def table_from_bytes(data: bytes) -> dict[str, HeldTensor]:
    """The table that another rank of this training has written."""
    found, rows = json.loads(data)
    layouts = [
        Layout(tuple(shape), tuple(ranks), tuple(Placement(dim, strided) for dim, strided in cuts))
        for shape, ranks, cuts in found
    ]
    return {
        name: HeldTensor(dtype, tuple(shape), None if number is None else layouts[number])
        for name, (dtype, shape, number) in rows.items()
    }


def digest_of_table(data: bytes) -> str:
    """XXH3-128 of a table's bytes."""
    return xxhash.xxh3_128_hexdigest(data)


def send_parts(store: Any, key: str, data: bytes, part_bytes: int = 4 * 1024**2) -> None:
    """Set `data`, compressed, under keys that begin with `key`; that one last.

    torch's server ends at a value of 8 MiB, and with it every rank.
    """
    packed = zlib.compress(data, 1)
    parts = [packed[at : at + part_bytes] for at in range(0, len(packed), part_bytes)]
    for number, part in enumerate(parts):
        store.set(f"{key}/{number}", part)
    store.set(key, str(len(parts)))


def receive_parts(store: Any, key: str) -> bytes:
    """What `send_parts` has set under `key`, which is there."""
    count = int(store.get(key))
    return zlib.decompress(b"".join(store.get(f"{key}/{number}") for number in range(count)))
