"""`torch.distributed.checkpoint` reads our checkpoints: through `DCPReader`, and by itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.planner import LoadPlan

import bt_lightning
from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.path_layout import shard_file
from tests.fork_server import script_environ
from tests.sharding.sharded_checkpoints import by_rows, by_rows_and_columns, write_sharded

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is")  # loads without ranks


def tensors():
    torch.manual_seed(5)
    return {
        "w": torch.randn(9, 6),
        "half": torch.randn(4, 3).bfloat16(),
        "c": torch.randn(5, dtype=torch.complex128),
        "scalar": torch.tensor(2.5),
        "mask": torch.rand(7) > 0.5,
    }


def state():
    adam = {"w": {"step": torch.tensor(3.0), "exp_avg": torch.randn(9, 6), "note": "n"}}
    groups = [{"lr": 0.25, "betas": (0.1, 0.2), "params": ["w", "half"]}]
    return {
        "state_dict": tensors(),
        "optimizer_states": [{"state": adam, "param_groups": groups}],
        "epoch": 3,
        "loops": {"fit": {"done": [1, 2], "rows": [{"a": torch.ones(2)}]}},
    }


def expected():
    saved = state()
    (optimizer,) = saved.pop("optimizer_states")
    return {**saved, "optimizer_0": optimizer}


def emptied(value):
    if isinstance(value, dict):
        return {key: emptied(each) for key, each in value.items()}
    if isinstance(value, list):
        return [emptied(each) for each in value]
    return torch.zeros_like(value) if isinstance(value, torch.Tensor) else None


def same(found, wanted):
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        return [same(found[key], wanted[key]) for key in wanted]
    if isinstance(wanted, list):
        return [same(*pair) for pair in zip(found, wanted, strict=True)]
    if isinstance(wanted, torch.Tensor):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        return [torch.testing.assert_close(found, wanted, rtol=0, atol=0)]
    assert found == wanted
    return []


def written(path, **more):
    torch.manual_seed(5)
    write_sharded(path, "a", state(), by_rows_and_columns(2, 2), **more)
    return path / "a"


def wanted():
    torch.manual_seed(5)
    return expected()


def load(found, path):
    dcp.load(found, storage_reader=bt_lightning.DCPReader(path))


def test_all_of_a_sharded_checkpoint(tmp_path):
    found = emptied(wanted())
    load(found, written(tmp_path))
    same(found, wanted())


def test_other_dtypes_and_strides_are_filled(tmp_path):
    found = {"state_dict": {"w": torch.zeros(12, 9, dtype=torch.float64)[::2].T}}
    load(found, written(tmp_path))
    assert torch.equal(found["state_dict"]["w"], tensors()["w"].double())


def test_a_full_checkpoint(tmp_path):
    from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO

    saved = {"state_dict": tensors(), "epoch": 3, "global_step": 1, "optimizer_states": []}
    BTCheckpointIO().save_checkpoint(saved, tmp_path / "full")
    found = {"state_dict": emptied(tensors()), "epoch": None}
    load(found, str(tmp_path / "full"))
    same(found, {"state_dict": tensors(), "epoch": 3})


def test_from_a_url(tmp_path):
    files = fsspec.filesystem("memory")
    files.put(str(written(tmp_path)), "/dcp-reader/run/a", recursive=True)
    found = {"state_dict": emptied(tensors())}
    load(found, "memory://dcp-reader/run/a")
    same(found, {"state_dict": tensors()})


def test_by_its_name_in_a_store(tmp_path):
    written(tmp_path / "store" / "training_projects" / "p" / "jobs" / "j" / "rank-0")
    found = {"state_dict": emptied(tensors())}
    reader = bt_lightning.DCPReader("bt://p@j/a", store=(tmp_path / "store").as_uri())
    dcp.load(found, storage_reader=reader)
    same(found, {"state_dict": tensors()})


@pytest.mark.parametrize("damage", ["a byte", "missing"])
def test_holes_and_damage_are_errors(damage, tmp_path):
    path = written(tmp_path)
    file = path / shard_file(1, 4)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data) if damage == "a byte" else file.unlink()
    with pytest.raises(BaseException) as caught:  # DCP's is no Exception
        load({"state_dict": emptied(tensors())}, path)
    failures = getattr(caught.value, "failures", {0: (caught.value, None)})
    assert isinstance(failures[0][0], CheckpointCorruptError)


def test_nothing_there(tmp_path):
    with pytest.raises(BaseException) as caught:  # DCP's is no Exception
        load({"state_dict": emptied(tensors())}, tmp_path)
    failures = getattr(caught.value, "failures", {0: (caught.value, None)})
    assert "no committed checkpoint" in str(failures[0][0])


def _rank(rank, path):
    from torch.distributed import tensor

    if not hasattr(tensor, "distribute_tensor"):  # before torch 2.5
        from torch.distributed import _tensor as tensor
    distribute_tensor, Shard = tensor.distribute_tensor, tensor.Shard  # noqa: N806
    torch.set_num_threads(1)
    rendezvous = f"file://{path.parent}/rendezvous"
    torch.distributed.init_process_group("gloo", rendezvous, rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    found = {
        "state_dict": {
            name: distribute_tensor(torch.zeros_like(each), mesh, [Shard(0)])
            for name, each in tensors().items()
            if each.dim() and not each.is_complex()
        },
        "epoch": None,
    }
    load(found, path)
    for name, each in found["state_dict"].items():
        part = distribute_tensor(tensors()[name], mesh, [Shard(0)]).to_local()
        assert torch.equal(each.to_local(), part)
    assert found["epoch"] == 3
    torch.distributed.destroy_process_group()


def test_two_ranks(tmp_path):
    path = written(tmp_path)
    env = script_environ({}, (Path(__file__).parents[2],))
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(path)], env=env)
        for rank in range(2)
    ]
    try:
        assert [each.wait(110) for each in ranks] == [0, 0]
    finally:
        for each in ranks:
            each.kill()


def test_a_tuple_is_given_with_its_tensors(tmp_path):
    adam = {"w": {"pair": (torch.ones(3), 4)}}
    groups = [{"lr": 0.25, "params": ["w"]}]
    write_nested(tmp_path, [{"state": adam, "param_groups": groups}])
    found = {"optimizer_0": {"state": {"w": {"pair": None}}}}
    load(found, tmp_path / "a")
    one, other = found["optimizer_0"]["state"]["w"]["pair"]
    assert torch.equal(one, torch.ones(3))
    assert other == 4


def write_nested(path, optimizers):
    from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO

    saved = {"state_dict": tensors(), "global_step": 1, "optimizer_states": optimizers}
    BTCheckpointIO().save_checkpoint(saved, path / "a")


def failure(caught):
    """What failed on rank 0: DCP's exception is no Exception."""
    return getattr(caught.value, "failures", {0: (caught.value, None)})[0][0]


def test_a_checkpoint_that_is_replaced_between_metadata_and_data_is_an_error(tmp_path):
    """What was read of the old one has no meaning in the new one."""
    path = written(tmp_path)

    class Slow(bt_lightning.DCPReader):
        def read_data(self, plan, planner):
            written(tmp_path, facts={"step": 9})
            return super().read_data(plan, planner)

    with pytest.raises(BaseException) as caught:
        dcp.load({"state_dict": emptied(tensors())}, storage_reader=Slow(path))
    assert isinstance(failure(caught), CheckpointNotFoundError)
    assert "replaced or deleted" in str(failure(caught))


def test_ranks_that_open_different_checkpoints_of_one_name_are_an_error(tmp_path):
    path = written(tmp_path)
    readers = [bt_lightning.DCPReader(path) for _ in range(2)]
    plans = []
    for number, reader in enumerate(readers):
        reader.read_metadata()
        plans.append(reader.prepare_local_plan(LoadPlan([])))
        reader.reset()
        if not number:
            assert reader.prepare_global_plan([plans[0], plans[0]])
            written(tmp_path, facts={"step": 9})
    with pytest.raises(CheckpointNotFoundError, match="ranks 0 and 1 have different"):
        readers[0].prepare_global_plan(plans)


@pytest.mark.skipif(
    not hasattr(dcp, "HuggingFaceStorageReader"), reason="needs torch with HuggingFaceStorageReader"
)
def test_the_reader_of_torch_itself(tmp_path):
    saved = {name: each for name, each in tensors().items() if not each.is_complex()}
    write_sharded(tmp_path, "a", {"state_dict": saved}, by_rows(4))
    found = {"state_dict": emptied(saved)}
    dcp.load(found, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path / "a")))
    same(found, {"state_dict": saved})


if __name__ == "__main__":
    _rank(int(sys.argv[1]), Path(sys.argv[2]))
