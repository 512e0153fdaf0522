"""`docs/format.md` says enough to read a sharded checkpoint: this reader knows nothing else."""

from __future__ import annotations

import base64
import itertools
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import xxhash

from tests.sharding.sharded_checkpoints import (
    by_rows,
    by_rows_and_columns,
    hybrid,
    mesh_layout,
    write_sharded,
)

if TYPE_CHECKING:
    from pathlib import Path


def parts_of(length, parts):
    size = -(-length // parts)
    begins = [min(length, size * n) for n in range(parts + 1)]
    return [(a, b - a) for a, b in itertools.pairwise(begins)]


def boxes_of(layout, shape):
    """Rank -> offsets and lengths."""
    mesh, ranks, placements = layout
    found = {}
    for coordinate, rank in zip(np.ndindex(*mesh), ranks, strict=True):
        offsets, lengths = [0] * len(shape), list(shape)
        order = sorted(range(len(mesh)), key=lambda d: placements[d][1])
        for d in order:
            dim = placements[d][0]
            if dim is not None:
                begin, length = parts_of(lengths[dim], mesh[d])[coordinate[d]]
                offsets[dim] += begin
                lengths[dim] = length
        found[rank] = tuple(offsets), tuple(lengths)
    return found


def read_manifest_page(folder):
    manifest = json.loads((folder / "bt_manifest.json").read_bytes())
    plain = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()
    assert xxhash.xxh3_128_hexdigest(canonical) == manifest["digest"]
    assert (manifest["format_version"], manifest["block_bytes"]) == (3, 16384)
    for file in manifest["files"]:
        data = (folder / file["path"]).read_bytes()
        assert len(data) == file["size"]
        assert xxhash.xxh3_128_hexdigest(data) == file["xxh3_128"]
        digests = base64.b64decode(file["blocks"])
        blocks = (data[at : at + 16384] for at in range(0, len(data), 16384))
        assert digests == b"".join(map(xxhash.xxh3_128_digest, blocks))
    return manifest


def read_header(file):
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, data[end:]


def read_tensors(folder):
    """Name -> bytes of the whole tensor, row-major, and its shape."""
    index = json.loads((folder / "shards.json").read_bytes())
    assert (index["format"], index["version"]) == ("bt_lightning.shards", 1)
    files = {int(rank): read_header(folder / path) for rank, path in index["files"].items()}
    found = {}
    for name, (dtype, shape, group, replica) in index["tensors"].items():
        holders = {}
        for layout in index["groups"][group]:
            for rank, box in boxes_of(index["layouts"][layout], shape).items():
                if 0 not in box[1]:
                    holders.setdefault(box, set()).add(rank)
        item = {"F32": 4, "BF16": 2, "I64": 8, "U8": 1}[dtype]
        whole = np.zeros((*shape, item), np.uint8)
        times = np.zeros(shape, int)
        for (offsets, lengths), ranks in holders.items():
            header, data = files[sorted(ranks)[replica % len(ranks)]]
            entry = header[name]
            info = json.loads(header["__metadata__"]["DCP_SHARDING_INFO"])
            assert (entry["dtype"], tuple(entry["shape"])) == (dtype, lengths)
            assert tuple(info[name]["saved_offsets"]) == offsets
            first, last = entry["data_offsets"]
            part = np.frombuffer(data[first:last], np.uint8).reshape(*lengths, item)
            place = tuple(slice(a, a + n) for a, n in zip(offsets, lengths, strict=True))
            whole[place] = part
            times[place] += 1
        assert (times == 1).all()
        found[name] = whole.tobytes(), tuple(shape)
    return index, found


@pytest.mark.parametrize(
    "layout_of",
    [
        by_rows(4),
        hybrid(2, 2),
        by_rows_and_columns(2, 2),
        lambda name, tensor: mesh_layout((2, 2), (0, True), 0) if tensor.dim() else None,
    ],
)
def test_the_page_is_enough(tmp_path: Path, layout_of) -> None:
    torch.manual_seed(0)
    weight = torch.randn(11, 6)
    weights = {
        "net.weight": weight,
        "net.bias": torch.randn(7, dtype=torch.bfloat16),
        "head.weight": weight,
        "count": torch.tensor(3),
        "none": torch.empty(0, 3),
    }
    moments = {"step": torch.tensor(4.0), "exp_avg": torch.randn(11, 6)}
    optimizer = {"state": {"net.weight": moments}, "param_groups": [{"params": ["net.weight"]}]}
    state = {"state_dict": weights, "optimizer_states": [optimizer]}
    write_sharded(tmp_path, "c", state, layout_of)
    manifest = read_manifest_page(tmp_path / "c")
    index, found = read_tensors(tmp_path / "c")
    shards = manifest["origin"]["shards"]
    assert (shards["world_size"], shards["files"]) == (4, len(index["files"]))
    assert index["tied"] == {"state_dict.head.weight": "state_dict.net.weight"}
    expected = {f"state_dict.{name}": one for name, one in weights.items()}
    expected |= {f"optimizer_0.state.net.weight.{key}": one for key, one in moments.items()}
    for name, tensor in expected.items():
        stored = index["tied"].get(name, name)
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert found[stored] == (raw, tuple(tensor.shape))
    tree = json.loads((tmp_path / "c/trainer.json").read_bytes())["tree"]
    (saved,) = tree["optimizer_states"]
    name = "optimizer_0.state.net.weight.exp_avg"
    node = {"$": "tensor", "file": "shards", "name": name}
    assert saved["state"]["net.weight"]["exp_avg"] == node
    assert saved["param_groups"] == [{"params": ["net.weight"]}]
