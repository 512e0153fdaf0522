"""What a load cannot fill is an error, never a tensor or a state as it was."""

from __future__ import annotations

import copy
from collections import OrderedDict
from types import SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from bt_lightning.errors import CheckpointMismatchError
from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.fill_live import fill_module
from bt_lightning.restore.fill_optimizers import fill_optimizers
from bt_lightning.restore.load_checkpoint import load_directory
from bt_lightning.restore.saved_state import open_state
from bt_lightning.session.load_in_place import LoadInPlace
from bt_lightning.store.transfer.files_reader import DirectoryReader
from tests.sharding.fake_ranks import rank_of
from tests.sharding.sharded_checkpoints import write_sharded

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is"),  # loads without ranks
    pytest.mark.filterwarnings("ignore:.*TypedStorage"),  # of dcp.save
]


def trained():
    torch.manual_seed(4)
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(
        [{"params": [module.bias], "lr": 0.5}, {"params": [module.weight], "lr": 0.25}]
    )
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return module, optimizer


def untrained():
    module = torch.nn.Linear(3, 2)
    return module, torch.optim.AdamW([{"params": [module.bias]}, {"params": [module.weight]}])


@pytest.mark.parametrize("key", ["optimizer", "optim", "optimizer_0"])
def test_the_state_of_an_optimizer_in_a_stock_folder_is_loaded(key, tmp_path):
    module, optimizer = trained()
    dcp.save({"model": module.state_dict(), key: optimizer.state_dict()}, checkpoint_id=tmp_path)
    fresh, filled = untrained()
    with directory_reader(tmp_path) as reader:
        LoadInPlace(reader).fill(fresh, [filled])
    assert torch.equal(fresh.weight, module.weight)
    assert [group["lr"] for group in filled.param_groups] == [0.5, 0.25]
    for one, other in [(module.bias, fresh.bias), (module.weight, fresh.weight)]:
        assert filled.state[other].keys() == optimizer.state[one].keys()
        for name, value in optimizer.state[one].items():
            assert torch.equal(filled.state[other][name], value)


@pytest.mark.parametrize("key", ["optimizer", "optim"])
def test_a_stock_folder_in_one_process_has_the_state_that_was_saved(key, tmp_path):
    module, optimizer = trained()
    dcp.save({"model": module.state_dict(), key: optimizer.state_dict(),
              "more": [{"inner": optimizer.state_dict()}]}, checkpoint_id=tmp_path)  # fmt: skip
    loaded = load_directory(tmp_path)
    fresh, filled = untrained()
    for found in (loaded[key], loaded["more"][0]["inner"]):
        filled.load_state_dict(copy.deepcopy(found))
        for one, other in [(module.bias, fresh.bias), (module.weight, fresh.weight)]:
            assert torch.equal(filled.state[other]["exp_avg"], optimizer.state[one]["exp_avg"])


@pytest.mark.parametrize("extra", ["text", 7])
def test_a_state_that_no_group_names_is_an_error(extra, tmp_path):
    module, optimizer = trained()
    state = optimizer.state_dict()
    state["state"][extra] = state["state"][0]
    saved = {"state_dict": module.state_dict(), "optimizer_states": [state], "global_step": 1}
    BTCheckpointIO().save_checkpoint(saved, tmp_path / "a")
    fresh, filled = untrained()
    names = {"bias": fresh.bias, "weight": fresh.weight}
    with DirectoryReader(tmp_path / "a") as reader:
        state = open_state(reader)
        with pytest.raises(CheckpointMismatchError, match=f"states of .*{extra}.* none of its"):
            fill_optimizers(state, [filled], [names])


def sparse():
    return torch.sparse_coo_tensor([[0, 2], [1, 0]], [3.0, 4.0], (3, 3), check_invariants=True)


def test_a_sparse_buffer_is_filled(tmp_path):
    saved = {"state_dict": {"s": sparse(), "w": torch.ones(3)}, "global_step": 1}
    BTCheckpointIO().save_checkpoint(saved, tmp_path / "a")
    live = {
        "s": torch.sparse_coo_tensor([[1], [1]], [9.0], (3, 3), check_invariants=True),
        "w": torch.zeros(3),
    }
    with DirectoryReader(tmp_path / "a") as reader:
        fill_module(open_state(reader), live)
    assert torch.equal(live["s"].to_dense(), sparse().to_dense())
    assert torch.equal(live["w"], torch.ones(3))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (sparse(), torch.zeros(3, 3)),
        (torch.ones(3, 3), sparse()),
        (sparse(), torch.sparse_coo_tensor([[1], [1]], [9.0], (3, 4), check_invariants=True)),
        (3, torch.zeros(())),
        (None, torch.zeros(1)),
        ([1.0, 2.0], torch.zeros(2)),
        (torch.zeros(1), 1.0),
    ],
    ids=["sparse", "dense", "shape", "number", "none", "list", "live number"],
)
def test_what_does_not_fill_a_tensor_is_an_error(saved, live, strict, tmp_path):
    BTCheckpointIO().save_checkpoint({"state_dict": {"v": saved}, "global_step": 1}, tmp_path / "a")
    with DirectoryReader(tmp_path / "a") as reader:
        state = open_state(reader)
        with pytest.raises(CheckpointMismatchError, match=r"kind \(1\): v .*in the checkpoint"):
            fill_module(state, {"v": live}, strict=strict)


@pytest.mark.parametrize("rows", [0, 2, 4])
def test_a_part_of_another_size_than_its_box_is_an_error(rows, tmp_path):
    """As torch cuts by an uneven strided placement."""
    write_sharded(tmp_path, "a", {"state_dict": {"w": torch.ones(5, 2)}})
    with rank_of(2, 0), DirectoryReader(tmp_path / "a") as reader:
        mesh = init_device_mesh("cpu", (2,))
        local = torch.zeros(rows, 2)
        live = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=(5, 2), stride=(2, 1)
        )
        with pytest.raises(
            CheckpointMismatchError, match=rf"w \[5, 2\] has \[{rows}, 2\] .*expected \[3, 2\]"
        ):
            fill_module(open_state(reader), {"w": live})


def test_a_rank_outside_of_the_mesh_fills_nothing(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": {"w": torch.ones(5, 2)}})
    with rank_of(3, 2), DirectoryReader(tmp_path / "a") as reader:
        mesh = torch.distributed.device_mesh.DeviceMesh("cpu", [0, 1])
        live = DTensor.from_local(
            torch.zeros(0), mesh, [Shard(0)], run_check=False, shape=(5, 2), stride=(2, 1)
        )
        assert fill_module(open_state(reader), {"w": live}).own_bytes == 0


def test_a_weight_whose_name_ends_as_that_of_an_extra_state_is_filled(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": {"n.my_extra_state": torch.ones(5, 2)}})
    live = {"n.my_extra_state": torch.zeros(5, 2)}
    with DirectoryReader(tmp_path / "a") as reader:
        fill_module(open_state(reader), live)
    assert torch.equal(live["n.my_extra_state"], torch.ones(5, 2))


def test_what_is_filled_counts_as_written(tmp_path):
    """A snapshot that is being taken would be torn, and not know of it."""
    write_sharded(tmp_path, "a", {"state_dict": {"w": torch.ones(5, 2)}})
    with rank_of(2, 0), DirectoryReader(tmp_path / "a") as reader:
        mesh = init_device_mesh("cpu", (2,))
        local = torch.zeros(3, 2)
        live = DTensor.from_local(
            local, mesh, [Shard(0)], run_check=False, shape=(5, 2), stride=(2, 1)
        )
        plain = torch.nn.Parameter(torch.zeros(5, 2))
        before = [each._version for each in (live, live.to_local(), plain)]
        for one in (live, plain):
            fill_module(open_state(reader), {"w": one})
        after = [each._version for each in (live, live.to_local(), plain)]
    assert all(one > other for one, other in zip(after, before, strict=True))
    assert torch.equal(plain, torch.ones(5, 2))


def test_weights_on_the_meta_device_are_an_error(tmp_path):
    write_sharded(tmp_path, "a", {"state_dict": {"w": torch.ones(5, 2)}})
    with DirectoryReader(tmp_path / "a") as reader:
        state = open_state(reader)
        with pytest.raises(CheckpointMismatchError, match=r"w is on the meta device.*to_empty"):
            fill_module(state, {"w": torch.zeros(5, 2, device="meta")})


class Counted(torch.nn.Linear):
    def get_extra_state(self):
        return {"seen": 3}

    def set_extra_state(self, state):
        del state


def test_an_extra_state_that_a_module_does_not_take_is_left_out_unless_strict(tmp_path):
    saved = torch.nn.ModuleDict({"head": Counted(3, 2)})
    write_sharded(tmp_path, "a", {"state_dict": saved.state_dict()})
    module = torch.nn.ModuleDict({"head": torch.nn.Linear(3, 2)})
    with DirectoryReader(tmp_path / "a") as reader:
        with pytest.raises(CheckpointMismatchError, match=r"only in the checkpoint.*_extra_state"):
            LoadInPlace(reader).fill(module)
        LoadInPlace(reader).fill(module, strict=False)
    assert torch.equal(module["head"].weight, saved["head"].weight)


def test_a_weight_of_two_names_gets_what_the_last_has(tmp_path):
    state = {"one": torch.full((1500, 1000), 1.0), "two": torch.full((1500, 1000), 2.0)}
    write_sharded(tmp_path, "a", {"state_dict": state})
    tied = torch.zeros(1500, 1000)
    with DirectoryReader(tmp_path / "a") as reader:
        filled = fill_module(open_state(reader), {"one": tied, "two": tied})
    assert torch.equal(tied, state["two"])
    assert filled.own_bytes == tied.nbytes


def nested(weight):
    """States of an optimizer in containers of all kinds."""
    return {
        "step": torch.tensor(2.0),
        "list": [torch.ones(2), [torch.zeros_like(weight), {"a": torch.ones(1)}]],
        "tuple": (torch.ones(3), ({"b": torch.ones(4)}, 5)),
        "ordered": OrderedDict(z=torch.ones(2), a=OrderedDict(y=1)),
        "names": SimpleNamespace(t=torch.ones(2), inner=[torch.ones(1)]),
        "numbers": {3: torch.ones(2), "$": 4},
        "empty": [{}, [], ()],
    }


def equal(one, other):
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, SimpleNamespace):
        return equal(vars(one), vars(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return all(equal(*pair) for pair in zip(one, other, strict=True))
    return one == other


def with_nested_states():
    module = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for weight in module.parameters():
        optimizer.state[weight] = nested(weight.detach())
    return module, optimizer


def test_tensors_in_any_container_of_an_optimizers_state_are_loaded(tmp_path):
    module, optimizer = with_nested_states()
    saved = {
        "state_dict": module.state_dict(),
        "optimizer_states": [optimizer.state_dict()],
        "global_step": 1,
    }
    BTCheckpointIO().save_checkpoint(saved, tmp_path / "a")
    fresh = torch.nn.Linear(3, 2)
    filled = torch.optim.SGD(fresh.parameters(), lr=0.1)
    with DirectoryReader(tmp_path / "a") as reader:
        LoadInPlace(reader).fill(fresh, [filled])
    for one, other in zip(module.parameters(), fresh.parameters(), strict=True):
        assert equal(optimizer.state[one], filled.state[other])


def test_extra_states_may_be_objects(tmp_path):
    class Head(torch.nn.Linear):
        seen = None

        def get_extra_state(self):
            return self.seen

        def set_extra_state(self, state):
            self.seen = state

    saved, fresh = Head(3, 2), Head(3, 2)
    saved.seen = nested(saved.weight.detach())
    BTCheckpointIO().save_checkpoint(
        {"state_dict": saved.state_dict(), "global_step": 1}, tmp_path / "a"
    )
    with DirectoryReader(tmp_path / "a") as reader:
        LoadInPlace(reader).fill(fresh)
    assert equal(fresh.seen, saved.seen)


def test_what_lies_beside_the_weights_of_a_stock_folder_is_loaded(tmp_path):
    ema = {"w": torch.randn(3, 2), "list": [{"t": torch.ones(2)}], "n": 4}
    saved = {"model": {"w": torch.ones(2)}, "ema": ema, "epoch": 3}
    dcp.save(saved, checkpoint_id=tmp_path)
    with directory_reader(tmp_path) as reader:
        rest = LoadInPlace(reader).rest
    assert rest["epoch"] == 3
    assert equal(rest["ema"], ema)
