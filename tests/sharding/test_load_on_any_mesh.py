"""Checkpoints of one mesh, loaded by each rank of another: its own bytes, each item once."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch

from bt_lightning.errors import CheckpointCorruptError, CheckpointMismatchError
from bt_lightning.path_layout import MANIFEST, SHARDS, shard_file
from bt_lightning.restore.fill_live import fill_module
from bt_lightning.restore.fill_optimizers import fill_optimizers
from bt_lightning.restore.load_checkpoint import load_directory
from bt_lightning.restore.rank_states import rank_state
from bt_lightning.restore.saved_state import open_state
from bt_lightning.session.load_in_place import LoadInPlace
from bt_lightning.store.transfer.files_reader import DirectoryReader
from tests.sharding.rank_tensors import as_rank, empty_parts
from tests.sharding.sharded_checkpoints import (
    by_rows,
    by_rows_and_columns,
    hybrid,
    mesh_layout,
    write_sharded,
)

BLOCK = 4 * 1024 * 1024
ROWS = [(2,), (3,)]


def twice_by_rows(_, tensor):
    """FSDP2 over column-wise tensor parallelism: both cut rows, FSDP behind the other."""
    return mesh_layout((2, 2), (0, True), 0) if tensor.dim() else None


LAYOUTS = {
    "2x2 rows twice": (twice_by_rows, 4),
    "2x2 rows and columns": (by_rows_and_columns(2, 2), 4),
    "2x2 replicas of rows": (hybrid(2, 2), 4),
    "3 rows": (by_rows(3), 3),
}
MESHES = [(1,), (2,), (3,), (4,), (1, 2), (2, 2), (1, 4)]


def weights():
    torch.manual_seed(7)
    return {
        "norm.bias": torch.randn(10),
        "norm.weight": torch.randn(10, dtype=torch.float64),
        "net.0.weight": torch.randn(37, 10),
        "net.2.weight": torch.randn(5, 37).bfloat16(),
        "conv.weight": torch.randn(6, 3, 5, 2),
        "one": torch.randn(1),
        "mask": torch.rand(9) > 0.5,
        "scalar": torch.tensor(4.5),
    }


def cuts(mesh_shape):
    """Rows over the first dimension of the mesh, columns over the second."""

    def of(_, tensor):
        dims = range(len(mesh_shape))
        return [dim if dim < tensor.dim() else None for dim in dims]

    return of


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_each_rank_gets_its_part_bit_equal(layout, mesh_shape, tmp_path):
    layout_of, world_size = LAYOUTS[layout]
    write_sharded(tmp_path, "a", {"state_dict": weights()}, layout_of, world_size=world_size)
    count = torch.Size(mesh_shape).numel()
    for rank in range(count):
        with as_rank(rank, mesh_shape) as mesh, DirectoryReader(tmp_path / "a") as reader:
            live, expected = empty_parts(weights(), mesh, cuts(mesh_shape))
            filled = fill_module(open_state(reader), live)
            for name, part in expected.items():
                assert torch.equal(live[name].to_local(), part), name
            assert filled.own_bytes == sum(part.nbytes for part in expected.values())


def optimizer_state(params):
    """What AdamW has after a step, by names, in two groups; the last parameter has none."""
    names = list(params)
    state = {
        name: {
            "step": torch.tensor(3.0),
            "exp_avg": torch.randn(params[name].shape),
            "exp_avg_sq": torch.rand(params[name].shape),
            "note": name,
        }
        for name in names[:-1]
    }
    groups = [
        {"lr": 0.5, "betas": (0.1, 0.2), "params": names[2:]},
        {"lr": 0.25, "betas": (0.1, 0.2), "sizes": [torch.arange(3)], "params": names[:2]},
    ]
    return {"state": state, "param_groups": groups}


def parameters():
    torch.manual_seed(3)
    return {name: torch.randn(shape) for name, shape in
            {"a": (7, 4), "b": (6,), "c": (3, 5), "d": (4,), "unused": (2,)}.items()}  # fmt: skip


@pytest.mark.parametrize("mesh_shape", [(1,), (3,), (2, 2)], ids=str)
def test_optimizers_get_their_states_without_a_step(mesh_shape, tmp_path):
    params, saved = parameters(), optimizer_state(parameters())
    state = {"state_dict": params, "optimizer_states": [saved], "global_step": 3}
    write_sharded(tmp_path, "a", state, by_rows(4))
    for rank in range(torch.Size(mesh_shape).numel()):
        with as_rank(rank, mesh_shape) as mesh, DirectoryReader(tmp_path / "a") as reader:
            live, _ = empty_parts(params, mesh, cuts(mesh_shape))
            names = {name: torch.nn.Parameter(each) for name, each in live.items()}
            groups = [{"params": [names[n] for n in ("unused", "d", "c")]},
                      {"params": [names[n] for n in ("b", "a")], "lr": 9}]  # fmt: skip
            optimizer = torch.optim.AdamW(groups, lr=1)
            fill_optimizers(open_state(reader), [optimizer], [names])
            assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.25]
            assert optimizer.param_groups[0]["betas"] == (0.1, 0.2)
            assert optimizer.param_groups[1]["sizes"][0].tolist() == [0, 1, 2]
            assert names["unused"] not in optimizer.state
            for name, entries in saved["state"].items():
                found = optimizer.state[names[name]]
                assert found.keys() == entries.keys()
                assert (found["note"], found["step"]) == (name, 3.0)
                for key in ("exp_avg", "exp_avg_sq"):
                    assert found[key].placements == names[name].placements
                    _, part = empty_parts({name: entries[key]}, mesh, cuts(mesh_shape))
                    assert torch.equal(found[key].to_local(), part[name])
            optimizer.step()


def test_one_process_gets_whole_tensors_and_numbered_states(tmp_path):
    params, saved = parameters(), optimizer_state(parameters())
    tied = {**params, "tied": params["a"]}
    state = {"state_dict": tied, "optimizer_states": [saved], "global_step": 3, "loops": {"x": 1}}
    write_sharded(tmp_path, "a", state, by_rows(4))
    found = load_directory(tmp_path / "a")
    assert found["loops"] == {"x": 1}
    assert list(found["state_dict"]) == list(tied)
    assert all(torch.equal(found["state_dict"][name], each) for name, each in tied.items())
    (optimizer,) = found["optimizer_states"]
    assert [group["params"] for group in optimizer["param_groups"]] == [[0, 1, 2], [3, 4]]
    order = ["c", "d", "unused", "a", "b"]
    assert sorted(optimizer["state"]) == [0, 1, 3, 4]
    for number, entries in optimizer["state"].items():
        expected = saved["state"][order[number]]
        assert torch.equal(entries["exp_avg"], expected["exp_avg"])
        assert entries["note"] == order[number]
    live = [torch.nn.Parameter(params[name]) for name in order]
    plain = torch.optim.AdamW([{"params": live[:3]}, {"params": live[3:]}])
    plain.load_state_dict(optimizer)


@pytest.mark.parametrize("mesh_shape", [(1,), (3,), (2, 2)], ids=str)
def test_a_full_checkpoint_loads_onto_a_mesh(mesh_shape, tmp_path):
    from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO

    live = [torch.nn.Parameter(each) for each in parameters().values()]
    plain = torch.optim.AdamW([{"params": live[:2], "lr": 0.5}, {"params": live[2:]}])
    for each in live:
        each.grad = torch.ones_like(each)
    plain.step()
    params = dict(zip(parameters(), (each.detach() for each in live), strict=True))
    state = {"state_dict": {**weights(), **params}, "optimizer_states": [plain.state_dict()],
             "epoch": 0, "global_step": 1}  # fmt: skip
    BTCheckpointIO().save_checkpoint(state, tmp_path / "a")
    for rank in range(torch.Size(mesh_shape).numel()):
        with as_rank(rank, mesh_shape) as mesh, DirectoryReader(tmp_path / "a") as reader:
            opened = open_state(reader)
            module, expected = empty_parts(state["state_dict"], mesh, cuts(mesh_shape))
            fill_module(opened, module)
            for name, part in expected.items():
                assert torch.equal(module[name].to_local(), part), name
            names = {name: torch.nn.Parameter(module[name]) for name in params}
            each = list(names.values())
            optimizer = torch.optim.AdamW([{"params": each[:2]}, {"params": each[2:]}])
            fill_optimizers(opened, [optimizer], [names])
            assert optimizer.param_groups[0]["lr"] == 0.5
            for whole, (name, here) in zip(live, names.items(), strict=True):
                entries = plain.state[whole]
                _, part = empty_parts({name: entries["exp_avg"]}, mesh, cuts(mesh_shape))
                assert torch.equal(optimizer.state[here]["exp_avg"].to_local(), part[name])


def large():
    """Some blocks each: rows and columns of one matrix, and much besides."""
    torch.manual_seed(1)
    return {"w": torch.randn(2048, 3072), "v": torch.randn(1024, 2048), "b": torch.randn(3072)}


@pytest.mark.parametrize("layout", ["2x2 rows and columns", "2x2 replicas of rows"])
def test_a_rank_reads_little_more_than_its_own(layout, tmp_path):
    layout_of, world_size = LAYOUTS[layout]
    write_sharded(tmp_path, "a", {"state_dict": large()}, layout_of, world_size=world_size)
    files = [path.stat().st_size for path in (tmp_path / "a").glob("shard-*")]
    for mesh_shape in [(2,), (4,), (1, 2)]:
        for rank in range(torch.Size(mesh_shape).numel()):
            with as_rank(rank, mesh_shape) as mesh, DirectoryReader(tmp_path / "a") as reader:
                live, expected = empty_parts(large(), mesh, cuts(mesh_shape))
                filled = fill_module(open_state(reader), live)
                for name, part in expected.items():
                    assert torch.equal(live[name].to_local(), part), name
                rounding = 2 * BLOCK * len(files) * len(live)
                assert filled.read_bytes <= 1.1 * filled.own_bytes + rounding
                assert filled.read_bytes <= sum(files)


@pytest.mark.parametrize("damage", ["a byte", "missing", "short"])
def test_damage_of_what_a_rank_needs_is_found(damage, tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": weights()}, by_rows(4))
    file = tmp_path / "a" / shard_file(2, 4)
    data = bytearray(file.read_bytes())
    if damage == "a byte":
        data[-1] ^= 1
    file.unlink()
    if damage != "missing":
        file.write_bytes(data[:-1] if damage == "short" else data)
    for rank, mesh_shape in [(0, (1,)), (2, (4,)), (1, (2,))]:
        with as_rank(rank, mesh_shape) as mesh, DirectoryReader(tmp_path / "a") as reader:
            live, _ = empty_parts(weights(), mesh, cuts(mesh_shape))
            with pytest.raises(CheckpointCorruptError, match="damaged"):
                fill_module(open_state(reader), live)
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        load_directory(tmp_path / "a")


def test_a_rank_does_not_read_files_of_others(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": weights()}, by_rows(4))
    (tmp_path / "a" / shard_file(2, 4)).unlink()
    with as_rank(0, (4,)) as mesh, DirectoryReader(tmp_path / "a") as reader:
        live, expected = empty_parts(weights(), mesh, cuts((4,)))
        live.pop("scalar"), live.pop("mask")
        fill_module(open_state(reader), live, strict=False)
        assert torch.equal(live["net.0.weight"].to_local(), expected["net.0.weight"])


def test_a_header_that_disagrees_with_the_index_is_damage(tmp_path):
    """Its digests are right: a rank wrote other boxes than rank 0's index says."""
    own, other = (
        write_sharded(tmp_path, name, {"state_dict": weights()}, layout_of, world_size=2)
        for name, layout_of in [("b", by_rows_and_columns(1, 2)), ("a", by_rows(2))]
    )
    mixed = tmp_path / "b"
    shutil.copy(tmp_path / "a" / SHARDS, mixed / SHARDS)
    files = [other.entry(SHARDS) if e.path == SHARDS else e for e in own.files]
    (mixed / MANIFEST).write_bytes(replace(own, files=tuple(files)).to_bytes())
    with pytest.raises(CheckpointCorruptError, match="the index says"):
        load_directory(mixed)


def test_names_and_shapes_that_differ(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": weights()}, by_rows(4))
    with DirectoryReader(tmp_path / "a") as reader:
        state = open_state(reader)
        with pytest.raises(CheckpointMismatchError, match=r"one \[1\] in the checkpoint, \[2\]"):
            fill_module(state, {"one": torch.zeros(2)}, strict=False)
        with pytest.raises(CheckpointMismatchError, match=r"not in the checkpoint.*: more"):
            fill_module(state, {**weights(), "more": torch.zeros(2)})
        some = {"one": torch.zeros(1), "more": torch.zeros(2)}
        with pytest.raises(CheckpointMismatchError, match="only in the checkpoint"):
            fill_module(state, some)
        filled = fill_module(state, some, strict=False)
        assert filled.missing == ("more",)
        assert set(filled.unexpected) == weights().keys() - {"one"}
        assert torch.equal(some["one"], weights()["one"])
        assert torch.equal(some["more"], torch.zeros(2))


def test_other_dtypes_and_strides_are_converted(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": weights()}, by_rows_and_columns(2, 2))
    whole = weights()
    live = {
        "net.0.weight": torch.zeros(37, 10, dtype=torch.float64),
        "conv.weight": torch.zeros(6, 3, 5, 2).to(memory_format=torch.channels_last),
        "norm.bias": torch.zeros(20)[::2],
    }
    with DirectoryReader(tmp_path / "a") as reader:
        fill_module(open_state(reader), live, strict=False)
    for name, each in live.items():
        assert torch.equal(each, whole[name].to(each.dtype))


def test_tensors_of_dtypes_that_safetensors_lacks(tmp_path):
    state = {
        "c": torch.randn(5, 3, dtype=torch.complex128),
        "s": torch.tensor(1j).to(torch.complex128),
    }
    write_sharded(tmp_path, "a", {"state_dict": state}, by_rows(2), world_size=2)
    live = {
        "c": torch.zeros(5, 3, dtype=torch.complex128),
        "s": torch.zeros((), dtype=torch.complex128),
    }
    with DirectoryReader(tmp_path / "a") as reader:
        fill_module(open_state(reader), live)
    assert all(torch.equal(live[name], each) for name, each in state.items())
    assert torch.equal(load_directory(tmp_path / "a")["state_dict"]["c"], state["c"])


def test_values_that_are_no_tensors_are_given(tmp_path):
    state = {"w": torch.ones(4), "head._extra_state": {"seen": 3}}
    write_sharded(tmp_path, "a", {"state_dict": state, "loops": {"deep": [torch.ones(2)]}})
    with DirectoryReader(tmp_path / "a") as reader:
        opened = open_state(reader)
    assert opened.weights["head._extra_state"] == {"seen": 3}
    assert torch.equal(opened.rest["loops"]["deep"][0], torch.ones(2))


def test_what_is_a_ranks_own_is_a_list(tmp_path):
    own = [{"rank": {"drawn": rank}} for rank in range(3)]
    write_sharded(tmp_path, "a", {"state_dict": weights()}, by_rows(3), world_size=3, own=own)
    loaded = load_directory(tmp_path / "a")
    assert loaded["bt_lightning"]["ranks"] == [{"drawn": 0}, {"drawn": 1}, {"drawn": 2}]
    with DirectoryReader(tmp_path / "a") as reader:
        assert rank_state(reader, 2) == {"drawn": 2}


class Head(torch.nn.Linear):
    seen: object = None

    def get_extra_state(self):
        return self.seen

    def set_extra_state(self, state):
        self.seen = state


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # of torch.compile
def test_extra_states_go_back_to_their_modules(tmp_path):
    saved = torch.nn.ModuleDict({"head": Head(3, 2), "other": Head(3, 2)})
    saved["head"].seen, saved["other"].seen = {"n": 3, "t": [torch.ones(4)]}, torch.arange(3)
    write_sharded(tmp_path, "a", {"state_dict": saved.state_dict()})
    module = torch.nn.ModuleDict({"head": Head(3, 2), "other": Head(3, 2)})
    with DirectoryReader(tmp_path / "a") as reader:
        LoadInPlace(reader).fill(torch.compile(module))
    assert torch.equal(module["head"].weight, saved["head"].weight)
    assert module["head"].seen["n"] == 3
    assert torch.equal(module["head"].seen["t"][0], torch.ones(4))
    assert torch.equal(module["other"].seen, torch.arange(3))
