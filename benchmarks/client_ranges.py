"""The tensors of a safetensors file in a store, by ranges into their memory; not verified."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

from client_tools import PART

if TYPE_CHECKING:
    import torch


class Reader(Protocol):
    """A client that reads ranges; several threads call it."""

    connections: int

    def read_range(self, key: str, offset: int, target: memoryview) -> None: ...


def load_ranges(client: Reader, key: str) -> dict[str, torch.Tensor]:
    """Float32 tensors by name."""
    import torch

    length = memoryview(bytearray(8))
    client.read_range(key, 0, length)
    header = memoryview(bytearray(int.from_bytes(length, "little")))
    client.read_range(key, len(length), header)
    tensors, pieces = {}, []
    for name, facts in json.loads(bytes(header)).items():
        if name != "__metadata__":
            tensors[name] = torch.empty(facts["shape"])
            memory = memoryview(tensors[name].numpy()).cast("B")
            at = len(length) + len(header) + facts["data_offsets"][0]
            pieces += [
                (at + start, memory[start : start + PART]) for start in range(0, len(memory), PART)
            ]
    with ThreadPoolExecutor(client.connections) as pool:
        list(pool.map(lambda piece: client.read_range(key, *piece), pieces))
    return tensors
