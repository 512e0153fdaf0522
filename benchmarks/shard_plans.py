"""What sharded checkpoints cost as ranks and tensors grow: plans, records, index, manifest, loads.

No tensor is made and nothing is sent: what one rank, rank 0's worker and the store would do is
computed for a model of 60 layers of 128 experts, sharded in the ways that are in use. Rows are
appended to benchmarks/results/shard_plans.jsonl: seconds of CPU, bytes of what a step makes.

    python benchmarks/shard_plans.py --ranks 1000 --tensors 100000
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
import xxhash
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore

from bt_lightning.block_digests import BlockDigests
from bt_lightning.file_entries import BLOCK_BYTES, FileEntry
from bt_lightning.manifest import Manifest, ManifestFacts
from bt_lightning.path_layout import SHARDS, TREE, rank_file, shard_file
from bt_lightning.session.shard_tables import table_from_bytes, table_to_bytes
from bt_lightning.sharding.layouts import REPLICATED, Layout, Placement
from bt_lightning.sharding.read_plan import SavedBox, plan_reads
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import HeldTensor, merge, writer_of
from bt_lightning.sharding.write_plan import WritePlan
from bt_lightning.snapshot.safetensors_layout import plan_rows
from bt_lightning.snapshot.shard_files import PlannedPart, encode_part, lay_out_part
from bt_lightning.snapshot.state_files import EncodingCache
from bt_lightning.tensor_files.tensor_headers import BITS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from bt_lightning.sharding.boxes import Box

RESULTS = Path(__file__).with_name("results") / "shard_plans.jsonl"
WIDTH, EXPERT_WIDTH = 7168, 4608
EXPERTS = 128
NODE_RANKS = 8
THREAD = "training thread"
MATRICES = {"q_proj": 2 * WIDTH, "k_proj": 1024, "v_proj": 1024, "o_proj": WIDTH}


def parameters(count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of so many parameters, layer by layer."""

    def layers() -> Iterator[tuple[str, tuple[int, ...]]]:
        for layer in itertools.count():
            at = f"model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                yield f"{at}.{norm}.weight", (WIDTH,)
            for name, rows in MATRICES.items():
                yield f"{at}.self_attn.{name}.weight", (rows, WIDTH)
            yield f"{at}.mlp.gate.weight", (EXPERTS, WIDTH)
            for expert in range(EXPERTS):
                for name in ("gate_proj", "up_proj"):
                    yield f"{at}.mlp.experts.{expert}.{name}.weight", (EXPERT_WIDTH, WIDTH)
                yield f"{at}.mlp.experts.{expert}.down_proj.weight", (WIDTH, EXPERT_WIDTH)

    return itertools.islice(layers(), count)


Layouts = "Callable[[tuple[int, ...]], Layout]"


def fsdp(ranks: int) -> Layouts:
    """Rows over all ranks."""
    rows = Layout((ranks,), tuple(range(ranks)), (Placement(0),))
    return lambda _: rows


def hybrid(replicas: int) -> Callable[[int], Layouts]:
    """HSDP with so many replicas."""

    def layouts(ranks: int) -> Layouts:
        mesh = (replicas, ranks // replicas)
        layout = Layout(mesh, tuple(range(math.prod(mesh))), (REPLICATED, Placement(0)))
        return lambda _: layout

    return layouts


def nested(ranks: int) -> Layouts:
    """FSDP2 over tensor parallel on the 8 ranks of a node, norms sharded by FSDP2 alone."""
    mesh = (ranks // NODE_RANKS, NODE_RANKS)
    each = tuple(range(math.prod(mesh)))
    both = Layout(mesh, each, (Placement(0), Placement(1)))
    data = Layout(mesh, each, (Placement(0), REPLICATED))
    return lambda shape: both if len(shape) > 1 else data


def apart(ranks: int, rank: int) -> Layouts:
    """The same, where a rank's norms lie on the mesh of FSDP2 alone, one of 8."""
    data = tuple(range(rank % NODE_RANKS, ranks, NODE_RANKS))
    rows = Layout((len(data),), data, (Placement(0),))
    both = nested(ranks)
    return lambda shape: both(shape) if len(shape) > 1 else rows


MESHES = {
    "fsdp": fsdp,
    "hsdp 8": hybrid(8),
    "hsdp 2": hybrid(2),
    "fsdp x tp": nested,
    "fsdp x tp, norms apart": None,
}


def table_of(tensors: int, layout_of: Layouts) -> dict[str, HeldTensor]:
    """What a rank holds: a weight, two moments and a step of each parameter."""
    table = {}
    for name, shape in parameters(tensors // 4):
        held = HeldTensor("F32", shape, layout_of(shape))
        table[f"state_dict.{name}"] = held
        table[f"optimizer_0.state.{name}.exp_avg"] = held
        table[f"optimizer_0.state.{name}.exp_avg_sq"] = held
        table[f"optimizer_0.state.{name}.step"] = HeldTensor("F32", (), None)
    return table


def header_of(plan: WritePlan, boxes: Mapping[str, Box]) -> bytes:
    """The header of a rank's file."""
    info = {name: {"saved_offsets": list(box.offsets)} for name, box in boxes.items()}
    metadata = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(info, separators=(",", ":"))}
    rows = []
    for name, box in boxes.items():
        dtype = plan.structure.tensors[name].dtype
        item = BITS[dtype] // 8
        shape = ",".join(map(str, box.sizes))
        entry = f'{json.dumps(name)}:{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":['
        rows.append((-item, -box.items, name, item * box.items, entry))
    return plan_rows(rows, metadata).header


def entry_of(path: str, size: int) -> FileEntry:
    """A file whose blocks all have other digests."""
    count = -(-size // BLOCK_BYTES)
    blocks = BlockDigests(random.Random(path).randbytes(16 * count))
    whole = xxhash.xxh3_128_hexdigest(path.encode())
    return FileEntry(path=path, size=size, xxh3_128=whole, blocks=blocks)


def record_of(plan: WritePlan, rank: int, index_bytes: int) -> PartRecord:
    """What rank `rank` says of its part."""
    ranks = plan.structure.world_size
    files = [entry_of(rank_file(rank), 20_000)]
    if plan.sizes[rank]:
        files.append(entry_of(shard_file(rank, ranks), plan.sizes[rank]))
    head = None
    if rank == 0:
        files += [entry_of(TREE, 10_000_000), entry_of(SHARDS, index_bytes)]
        origin = {"shards": {"world_size": ranks, "files": len(plan.writers)}}
        facts = ManifestFacts(
            step=1, epoch=0, created_at="2030-01-02T03:04:05+00:00", origin=origin
        )
        head = SaveHead(checkpoint_id="checkpoint-1", after=0, facts=facts)
    part = SavePart(
        key=SaveKey("ab" * 16, 1),
        rank=rank,
        world_size=ranks,
        fingerprint=plan.structure.fingerprint,
    )
    return PartRecord(part=part, host=f"node-{rank // NODE_RANKS}", files=tuple(files), head=head)


def load_plan(
    index: ShardIndex, rank: int, layout_of: Layouts, names: Iterable[str]
) -> tuple[int, int]:
    """Plan what a rank of another mesh reads; the number of files and of copies."""
    shared: dict[object, list[tuple[Box, tuple[int, ...]]]] = {}
    files, copies = set(), 0
    for name in names:
        tensor = index.structure.tensors[name]
        if not tensor.shape:
            continue
        wanted = layout_of(tensor.shape).box(tensor.shape, rank)
        if not wanted.items:
            continue
        key = (tensor.form, wanted)
        if key not in shared:
            holders = index.structure.holders(name).items()
            shared[key] = [each for each in holders if each[0].intersection(wanted)]
        saved = [
            SavedBox(box, index.files[writer_of(ranks, index.replicas[name])], 0)
            for box, ranks in shared[key]
        ]
        planned = plan_reads(name, wanted, saved, BITS[tensor.dtype] // 8)
        files |= {path for path, _ in planned}
        copies += len(planned)
    return len(files), copies


class Measured:
    """Rows of one mesh."""

    def __init__(self, facts: dict[str, object]) -> None:
        self._facts = facts

    def step(self, name: str, function: Callable[[], object], size: object = None) -> object:
        """Run one step, and note its seconds of CPU, and the bytes of what it makes."""
        began = time.process_time()
        result = function()
        seconds = time.process_time() - began
        given = size(result) if callable(size) else size
        self.note(name, seconds=round(seconds, 3), bytes=given)
        return result

    def note(self, name: str, **figures: object) -> None:
        """Append a row."""
        row = {**self._facts, "step": name}
        row |= {key: value for key, value in figures.items() if value is not None}
        print(json.dumps(row), flush=True)
        with RESULTS.open("a") as stream:
            stream.write(json.dumps(row) + "\n")


def measure(mesh: str, ranks: int, tensors: int, commit: str) -> None:
    """All steps of a save and of two loads."""
    found = Measured({"case": mesh, "ranks": ranks, "tensors": tensors, "commit": commit})
    make = MESHES[mesh]
    layouts = [make(ranks)] if make else [apart(ranks, rank) for rank in range(NODE_RANKS)]
    layout_of = layouts[1 % len(layouts)]
    tables = [table_of(tensors, each) for each in layouts]
    sent = found.step("write a rank's table", lambda: table_to_bytes(tables[0]), len)
    packed = found.step("compress it", lambda: zlib.compress(sent, 1), len)
    received = found.step(
        "read the tables of others",
        lambda: [table_from_bytes(zlib.decompress(packed)) for _ in tables[1:]],
        len(packed) * (len(tables) - 1),
    )
    del received
    structure = found.step(
        "merge the tables", lambda: merge(tables, [rank % len(tables) for rank in range(ranks)])
    )
    found.step("fingerprint", lambda: structure.fingerprint)
    plan = WritePlan(structure)
    found.step("plan", lambda: plan.sizes)
    total, most = sum(plan.sizes), max(plan.sizes)
    found.note(
        "bytes of the ranks",
        total=total,
        most=most,
        least=min(plan.sizes),
        of_mean=most * ranks / total,
    )
    boxes = found.step("boxes of a rank", lambda: plan.boxes_of(0))
    header = found.step("header of a rank's file", lambda: header_of(plan, boxes), len)
    index = ShardIndex.of_plan(plan)
    data = found.step("write the index", index.to_bytes, len)
    index = found.step("read the index", lambda: ShardIndex.from_bytes(data, "index"))
    records = [record_of(plan, rank, len(data)) for rank in range(ranks)]
    packed = found.step("write a part's record", records[1].to_bytes, len)
    each = [record.to_bytes() for record in records]
    found.step(
        "read all records",
        lambda: [PartRecord.from_bytes(one, "part") for one in each],
        sum(map(len, each)),
    )
    entries = tuple(entry for record in records for entry in record.files)
    manifest = records[0].head.facts.manifest("checkpoint-1", 1, entries)
    try:
        text = found.step("write the manifest", manifest.to_bytes, len)
        found.step("read the manifest", lambda: Manifest.from_bytes(text, "manifest"))
    except ValueError as error:
        found.note("write the manifest", error=str(error))
    found.note(
        "the store",
        objects=len(entries) + len(records) + 1,
        bytes=total,
        header=len(header),
        record=len(packed),
    )
    for title, other, count in (
        ("plan a load on the same mesh", layout_of, tensors),
        ("plan a load on half the ranks", fsdp(ranks // 2), tensors),
        ("plan a load by fsdp x tp", nested(ranks), tensors),
        ("plan a load of a hundredth on 8 ranks, by columns", _columns(NODE_RANKS), tensors // 100),
    ):
        began = time.process_time()
        files, copies = load_plan(index, 1, other, itertools.islice(tables[0], count))
        seconds = round(time.process_time() - began, 3)
        found.note(title, seconds=seconds, files=files, copies=copies)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    found.note("memory of this process", mib=memory)


def measure_thread(ranks: int, tensors: int, commit: str) -> None:
    """What the training thread of one rank does in a save, but for the copies: tiny DTensors."""
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=1, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    shape, strides = torch.Size((ranks, 4)), (4, 1)

    def part() -> DTensor:
        local = torch.zeros(1, 4)
        return DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=shape, stride=strides
        )

    names = [name for name, _ in parameters(tensors // 4)]
    weights = {name: part() for name in names}
    moments = {
        name: {"step": torch.tensor(1.0), "exp_avg": part(), "exp_avg_sq": part()} for name in names
    }
    found = Measured({"case": THREAD, "ranks": ranks, "tensors": tensors, "commit": commit})
    cache, planned = EncodingCache(), None
    for save in range(3):
        groups = [{"lr": 0.1 / (save + 1), "params": names}]
        optimizer = {"state": {name: dict(moments[name]) for name in names}, "param_groups": groups}
        state = {"state_dict": dict(weights), "optimizer_states": [optimizer], "global_step": save}
        encoded = found.step(f"encode save {save}", lambda: encode_part(state, cache))  # noqa: B023
        if planned is None:
            plan = WritePlan(merge([encoded.held.table], [0] * ranks))
            planned = PlannedPart(plan, 1)
        found.step(f"lay out save {save}", lambda: lay_out_part(encoded, planned, cache))  # noqa: B023
    dist.destroy_process_group()


def _columns(ranks: int) -> Layouts:
    matrices = Layout((ranks,), tuple(range(ranks)), (Placement(1),))
    rows = Layout((ranks,), tuple(range(ranks)), (Placement(0),))
    return lambda shape: matrices if len(shape) > 1 else rows


def main() -> None:
    """Measure each mesh in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=1000)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--mesh", choices=[*MESHES, THREAD])
    given = parser.parse_args()
    if given.mesh is None:
        for mesh in (*MESHES, THREAD):
            subprocess.run([sys.executable, __file__, *sys.argv[1:], "--mesh", mesh], check=True)
        return
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if given.mesh == THREAD:
        measure_thread(given.ranks, given.tensors, commit)
    else:
        measure(given.mesh, given.ranks, given.tensors, commit)


if __name__ == "__main__":
    main()
