"""Folders that torch.distributed.checkpoint and Lightning's sharded strategies write, loaded."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from hypothesis import given
from hypothesis import strategies as st

import bt_lightning
from bt_lightning.errors import CheckpointCorruptError, CheckpointMismatchError, UnsafeLoadError
from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.localdir.commit import commit
from bt_lightning.manifest import ManifestFacts
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.dcp_metadata import parse_dcp_metadata
from bt_lightning.restore.fill_live import fill_module
from bt_lightning.restore.fill_optimizers import fill_optimizers
from bt_lightning.restore.load_checkpoint import load_directory
from bt_lightning.restore.saved_state import open_state
from bt_lightning.session.fit_selection import process_fits
from tests.sharding.lightning_sharded_save import Net, Resumed, batches, trainer
from tests.sharding.rank_tensors import as_rank, empty_parts
from tests.sharding.test_dcp_reader import same, tensors

pytestmark = [
    pytest.mark.filterwarnings("ignore:torch.distributed is"),  # loads without ranks
    pytest.mark.filterwarnings("ignore:.*TypedStorage"),  # of dcp.save
]
_LIMIT_S = 280


def rows(_name, tensor):
    return [0 if tensor.dim() else None]


def stock():
    moved = {
        **tensors(),
        "transposed": torch.randn(3, 5).T,
        "middle": torch.randn(100)[10:20],
        "none": torch.zeros(0, 3),
        "int": torch.arange(5),
        "f8": torch.randn(4, 2).to(torch.float8_e4m3fn),
        "param": torch.nn.Parameter(torch.randn(2, 2)),
        "large": torch.randn(1500, 1000),
    }
    return {
        "state_dict": moved,
        "epoch": 3,
        "deep": {"list": [{"a": 1}, {"t": torch.ones(2)}], "tuple": (1, 2)},
    }


@pytest.fixture(scope="module")
def stock_folder(tmp_path_factory):
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("stock") / "a"
    with pytest.warns(UserWarning, match="torch.distributed is"):
        dcp.save(stock(), checkpoint_id=folder)
    return folder


@pytest.fixture(scope="module")
def lightning_folder(tmp_path_factory):
    """A folder that holds `stock.ckpt`, which two ranks of Lightning saved, and `full.pt`."""
    folder = tmp_path_factory.mktemp("lightning")
    script = Path(__file__).with_name("lightning_sharded_save.py")
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone",
               "--nproc-per-node=2", str(script), str(folder)]  # fmt: skip
    run = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True
    )
    try:
        assert run.wait(_LIMIT_S) == 0
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()
    return folder


def test_all_of_a_stock_folder(stock_folder):
    torch.manual_seed(2)
    found, wanted = load_directory(stock_folder), stock()
    assert torch.equal(
        found["state_dict"].pop("f8").float(), wanted["state_dict"].pop("f8").float()
    )
    same(found, wanted)
    assert load_directory(stock_folder, map_location="meta")["state_dict"]["large"].is_meta


@pytest.mark.parametrize("mesh_shape", [(1,), (3,)], ids=str)
def test_each_rank_gets_its_part_of_a_stock_folder(mesh_shape, stock_folder):
    torch.manual_seed(2)
    wanted = {n: t.detach() for n, t in stock()["state_dict"].items() if n not in {"c", "f8"}}
    for rank in range(mesh_shape[0]):
        with as_rank(rank, mesh_shape) as mesh, directory_reader(stock_folder) as reader:
            live, expected = empty_parts(wanted, mesh, rows)
            filled = fill_module(open_state(reader), live, strict=False)
            assert set(filled.unexpected) == {"c", "f8"}
            for name, part in expected.items():
                assert torch.equal(live[name].to_local(), part), name


def test_the_reader_for_dcp_reads_stock_folders(stock_folder):
    torch.manual_seed(2)
    wanted = {"state_dict": {n: t for n, t in stock()["state_dict"].items() if n != "f8"}}
    found = {"state_dict": {n: torch.zeros_like(t) for n, t in wanted["state_dict"].items()}}
    dcp.load(found, storage_reader=bt_lightning.DCPReader(stock_folder))
    for name, each in found["state_dict"].items():
        assert torch.equal(each, wanted["state_dict"][name])


def test_a_sharded_checkpoint_of_lightning_in_one_process(lightning_folder):
    expected = torch.load(lightning_folder / "full.pt")
    found = load_directory(lightning_folder / "stock.ckpt", weights_only=False)
    assert found["global_step"] == 2
    assert found["state_dict"].keys() == expected["weights"].keys()
    for name, each in expected["weights"].items():
        assert torch.equal(found["state_dict"][name], each)
    (optimizer,) = found["optimizer_states"]
    assert [group["params"] for group in optimizer["param_groups"]] == [[0, 1], [2, 3]]
    assert [group["lr"] for group in optimizer["param_groups"]] == [0.5, 0.25]
    order = ["net.2.weight", "net.2.bias", "net.0.weight", "net.0.bias"]
    for number, name in enumerate(order):
        assert torch.equal(optimizer["state"][number]["exp_avg"], expected["exp_avg"][name])
        assert optimizer["state"][number]["step"] == 2


@pytest.mark.parametrize("mesh_shape", [(1,), (2,), (3,), (4,)], ids=str)
def test_a_sharded_checkpoint_of_lightning_on_a_mesh(mesh_shape, lightning_folder):
    expected = torch.load(lightning_folder / "full.pt")
    for rank in range(mesh_shape[0]):
        with (
            as_rank(rank, mesh_shape) as mesh,
            directory_reader(lightning_folder / "stock.ckpt") as reader,
        ):
            state = open_state(reader, weights_only=False)
            assert state.rest["global_step"] == 2
            live, parts = empty_parts(expected["weights"], mesh, rows)
            fill_module(state, live)
            assert all(torch.equal(live[name].to_local(), part) for name, part in parts.items())
            names = {n: torch.nn.Parameter(live[n]) for n in expected["exp_avg"]}
            groups = [[each for n, each in names.items() if key in n] for key in ("net.2", "net.0")]
            optimizer = torch.optim.AdamW([{"params": each} for each in groups])
            fill_optimizers(state, [optimizer], [names])
            _, parts = empty_parts(expected["exp_avg"], mesh, rows)
            for name, part in parts.items():
                assert torch.equal(optimizer.state[names[name]]["exp_avg"].to_local(), part)


def test_lightning_goes_on_from_its_sharded_checkpoint_on_one_device(lightning_folder):
    """By `ckpt_path`, which Lightning's own IO refuses for a strategy without shards."""
    expected, module = torch.load(lightning_folder / "full.pt"), Resumed()
    path = str(lightning_folder / "stock.ckpt")
    run = trainer(devices=1, max_steps=3, plugins=[BTCheckpointIO()])
    options = {"weights_only": False} if "weights_only" in run.fit.__annotations__ else {}
    run.fit(module, batches(), ckpt_path=path, **options)
    seen = module.begun
    assert seen.pop("step") == 2
    assert all(torch.equal(seen[name], each) for name, each in expected["weights"].items())
    assert run.global_step == 3


def test_a_sharded_strategy_goes_on_from_a_checkpoint_of_lightning(lightning_folder):
    expected = torch.load(lightning_folder / "full.pt")["weights"]
    begun = torch.load(lightning_folder / "begun.pt")
    assert begun.pop("step") == 2
    assert begun.keys() == expected.keys()
    assert all(torch.equal(begun[name], each) for name, each in expected.items())


@pytest.mark.parametrize("whole", [True, False])
def test_a_job_begins_with_a_sharded_checkpoint_of_lightning(whole, lightning_folder, tmp_path):
    shutil.copytree(lightning_folder / "stock.ckpt", tmp_path / "loaded" / "stock.ckpt")
    if not whole:
        next((tmp_path / "loaded").rglob("__1_*")).unlink()
    expected, module = torch.load(lightning_folder / "full.pt")["weights"], Resumed()
    process_fits.clear()
    callback = bt_lightning.BTLightning(
        dir=tmp_path / "run", load_dir=tmp_path / "loaded", save_at_end=False
    )
    trainer(devices=1, max_steps=3, callbacks=[callback]).fit(module, batches())
    begun = module.begun
    if whole:
        assert begun.pop("step") == 2
        assert all(torch.equal(begun[name], each) for name, each in expected.items())
    else:
        assert begun["step"] == 0


def test_a_module_loads_from_a_sharded_checkpoint_of_lightning(lightning_folder):
    expected = torch.load(lightning_folder / "full.pt")["weights"]
    module = Net.load_from_checkpoint(lightning_folder / "stock.ckpt")
    assert all(torch.equal(module.state_dict()[name], each) for name, each in expected.items())


def test_digests_of_a_manifest_are_verified(stock_folder, tmp_path):
    files = {path.name: lambda path=path: [path.read_bytes()] for path in stock_folder.iterdir()}
    facts = ManifestFacts(step=1, epoch=0, created_at="2030-01-02T03:04:05+00:00",
                          origin={"format": "dcp"})  # fmt: skip
    commit(tmp_path / "a", tmp_path, files, lambda entries: facts.manifest("a", 1, entries))
    found = load_directory(tmp_path / "a")
    torch.manual_seed(2)
    assert torch.equal(found["state_dict"]["large"], stock()["state_dict"]["large"])
    (shard,) = (tmp_path / "a").glob("*.distcp")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CheckpointCorruptError, match="damaged"):
        load_directory(tmp_path / "a")


@pytest.mark.parametrize("damage", ["short", "gone", "garbage", "other shapes"])
def test_damage_is_found(damage, stock_folder, tmp_path):
    for path in stock_folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (shard,) = tmp_path.glob("*.distcp")
    data = shard.read_bytes()
    if damage == "short":
        shard.write_bytes(data[:-1000])
    elif damage == "gone":
        shard.unlink()
    elif damage == "garbage":
        shard.write_bytes(bytes(len(data)))
    else:
        with pytest.warns(UserWarning, match="torch.distributed is"):
            dcp.save({"state_dict": {"w": torch.zeros(9, 7)}}, checkpoint_id=tmp_path / "b")
        (tmp_path / ".metadata").write_bytes(
            (tmp_path / "b" / ".metadata").read_bytes().replace(b"K\x09K\x07", b"K\x07K\x09")
        )
        (other,) = (tmp_path / "b").glob("*.distcp")
        shard.write_bytes(other.read_bytes())
    with pytest.raises(CheckpointCorruptError):
        load_directory(tmp_path)


def test_weights_that_do_not_fit(stock_folder):
    with directory_reader(stock_folder) as reader:
        state = open_state(reader)
    with pytest.raises(CheckpointMismatchError, match="not in the checkpoint"):
        fill_module(state, {"nowhere": torch.zeros(1)})


class Run:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps(Run()),
        pickle.dumps({"state_dict_metadata": {"w": Run()}, "storage_data": {}}),
        pickle.dumps(None),
        b"",
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.",
        b"\x80\x04" + b"]" * 2_000_000 + b".",
    ],
    ids=["call", "call inside", "none", "empty", "claimed size", "many values"],
)
def test_hostile_metadata_run_nothing(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointCorruptError):
        parse_dcp_metadata(data, "x")
    assert not list(tmp_path.iterdir())


@given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_metadata_are_read_or_refused(stock_folder, changes):
    data = bytearray((stock_folder / ".metadata").read_bytes())
    for at, value in changes:
        data[at % len(data)] = value
    with contextlib.suppress(CheckpointCorruptError):
        parse_dcp_metadata(bytes(data), "x")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd"])
def test_a_file_elsewhere_is_refused(name, stock_folder):
    data = (stock_folder / ".metadata").read_bytes()
    old = b"\x8c\x0c__0_0.distcp"
    assert old in data
    with pytest.raises(CheckpointCorruptError, match="no file beside it"):
        parse_dcp_metadata(data.replace(old, b"\x8c" + bytes([len(name)]) + name.encode()), "x")


@pytest.mark.filterwarnings("ignore:Detected an existing checkpoint")
def test_a_folder_that_is_saved_to_while_it_is_loaded_is_an_error(tmp_path):
    """Without digests, parts of two saves would meet."""
    dcp.save({"state_dict": {"w": torch.zeros(1500, 1000)}}, checkpoint_id=tmp_path)
    with directory_reader(tmp_path) as reader:
        state = open_state(reader)
        dcp.save({"state_dict": {"w": torch.ones(1500, 1000)}}, checkpoint_id=tmp_path)
        with pytest.raises(CheckpointCorruptError, match="written while it was loaded"):
            fill_module(state, {"w": torch.zeros(1500, 1000)})


def test_conjugated_views_are_an_error_not_other_numbers(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j]).conj()
    dcp.save({"state_dict": {"z": z}}, checkpoint_id=tmp_path)
    try:
        found = load_directory(tmp_path)["state_dict"]["z"]
    except CheckpointCorruptError as error:
        assert "conjugated" in str(error)  # noqa: PT017 - torch may store the numbers themselves
    else:
        assert torch.equal(found, z)


class Chosen:
    """What only pickle can load."""


def folder_with_meta(path):
    dcp.save({"state_dict": {"w": torch.ones(3)}}, checkpoint_id=path)
    torch.save({"global_step": 2, "hyper_parameters": {"chosen": Chosen()}}, path / "meta.pt")
    return path


def test_what_needs_pickle_beside_the_tensors_is_said_and_left_out_for_dcp(tmp_path):
    folder, found = folder_with_meta(tmp_path), {"state_dict": {"w": torch.zeros(3)}}
    dcp.load(found, storage_reader=bt_lightning.DCPReader(folder))
    assert torch.equal(found["state_dict"]["w"], torch.ones(3))
    with (
        directory_reader(folder) as reader,
        pytest.raises(UnsafeLoadError, match=r"meta\.pt holds what only weights_only=False"),
    ):
        open_state(reader)
