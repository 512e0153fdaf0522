"""A sharded checkpoint is one checkpoint: whole tensors in every command."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.gather_directory import GatherDirectory
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.manage.saved_tree import NOT_PLAIN, plain_value
from bt_lightning.manifest import ManifestFacts
from bt_lightning.path_layout import SHARDS, TREE, job_prefix
from bt_lightning.sharding.gather_verdict import GatherVerdict
from bt_lightning.sharding.save_part import PartRecord, SaveHead, SaveKey, SavePart
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from tests.sharding.sharded_checkpoints import (
    by_rows,
    by_rows_and_columns,
    hybrid,
    write_sharded,
)

LAYOUTS = [by_rows(4), hybrid(2, 2), by_rows_and_columns(2, 2)]


def state_of(seed=0, *, numbered=False):
    """What a training saves, with an optimizer that names its parameters, or numbers them."""
    torch.manual_seed(seed)
    weights = {
        "net.0.weight": torch.randn(9, 6),
        "net.0.bias": torch.randn(9, dtype=torch.bfloat16),
        "net.1.weight": torch.randn(5, 9),
        "count": torch.tensor(3),
        "none": torch.empty(0, 3),
    }
    weights["head.weight"] = weights["net.0.weight"]
    order = ["net.1.weight", "net.0.weight", "net.0.bias"]
    moments = {
        name: {"step": torch.tensor(4.0), "exp_avg": torch.randn(weights[name].shape)}
        for name in order
    }
    params = [0, 1, 2] if numbered else order
    group = {"lr": 0.1, "betas": (0.9, 0.99), "foreach": None, "params": params}
    states = dict(enumerate(moments.values())) if numbered else moments
    return {
        "global_step": 4,
        "epoch": 1,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": weights,
        "loops": {},
        "optimizer_states": [{"state": states, "param_groups": [group]}],
        "lr_schedulers": [],
    }


@pytest.fixture
def root(tmp_path):
    own = [{"seed": 1}] * 4
    write_sharded(tmp_path / "run", "checkpoint-4", state_of(), by_rows_and_columns(2, 2), own=own)
    return tmp_path / "run"


def tampered(root, change):
    """The checkpoint with some files changed before it was committed."""
    old = root / "checkpoint-4"
    files = {entry.path: (old / entry.path).read_bytes() for entry in read_manifest(old).files}
    change(files)
    facts = ManifestFacts(
        step=4, epoch=1, created_at="2030-01-02T03:04:05Z", origin=read_manifest(old).origin
    )
    streams = {path: (lambda data=data: [data]) for path, data in files.items()}
    commit(root / "damaged", root, streams, lambda entries: facts.manifest("damaged", 1, entries))


def test_show_has_whole_tensors_and_how_they_are_divided(cli, root):
    said = cli("checkpoints", "show", "--dir", root, "--tensors").stdout
    assert "4 shards of 4 ranks, mesh 2 x 2" in said
    assert "Shard(0) x Shard(1) on 2 x 2" in said
    assert "9 x 6" in said
    record = json.loads(cli("checkpoints", "show", "--dir", root, "-o", "json").stdout)
    assert record["shards"] == {"world_size": 4, "files": 4, "mesh": [2, 2]}
    tensors = {one["name"]: one for one in record["tensors"]}
    whole = tensors["state_dict.net.0.weight"]
    assert (whole["shape"], whole["size_bytes"], whole["file"]) == ([9, 6], 216, SHARDS)
    assert [one["offsets"] for one in whole["boxes"]] == [[0, 0], [0, 3], [5, 0], [5, 3]]
    assert tensors["state_dict.none"]["boxes"] == []
    assert "optimizer_0.state.net.0.bias.exp_avg" in tensors
    rows = cli("checkpoints", "show", "--dir", root, "-o", "csv").stdout
    assert "Shard(0) x Replicate on 2 x 2" in rows


def test_list_and_files_have_it_as_one(cli, root):
    (record,) = json.loads(cli("checkpoints", "list", "--dir", root, "-o", "json").stdout)[
        "checkpoints"
    ]
    assert record["shards"]["world_size"] == 4
    files = cli("checkpoints", "files", "--dir", root).stdout
    assert "shard-00003-of-00004.safetensors" in files
    assert "ranks/00003.json" in files


@pytest.mark.parametrize("layout_of", LAYOUTS)
def test_diff_of_two_layouts_and_of_whole_tensors(cli, tmp_path, layout_of):
    root = tmp_path / "run"
    write_sharded(root, "checkpoint-4", state_of(), layout_of)
    write_sharded(root, "other", state_of(), by_rows(3), world_size=3)
    BTCheckpointIO().save_checkpoint(state_of(numbered=True), root / "full")
    for other in ("other", "full"):
        assert "the same" in cli("checkpoints", "diff", "checkpoint-4", other, "--dir", root).stdout
    changed = state_of()
    changed["state_dict"]["net.1.weight"][4, 8] += 1
    changed["optimizer_states"][0]["state"]["net.0.bias"]["exp_avg"][0] = 7
    write_sharded(root, "changed", changed, by_rows(3), world_size=3)
    expected = {
        "checkpoint-4": ["optimizer_0.state.net.0.bias.exp_avg", "state_dict.net.1.weight"],
        "full": ["optimizer_states.0.state.2.exp_avg", "state_dict.net.1.weight"],
    }
    for before, names in expected.items():
        args = ("checkpoints", "diff", before, "changed", "--dir", root, "-o", "json")
        found = json.loads(cli(*args, code=1).stdout)["differences"]
        assert [(one["name"], one["kind"]) for one in found] == [(n, "changed") for n in names]


def test_diff_with_weights_of_another_program(cli, root, tmp_path):
    weights = {k: v.clone() for k, v in state_of()["state_dict"].items()}
    save_file(weights, tmp_path / "model.safetensors")
    args = ("checkpoints", "diff", "checkpoint-4", tmp_path / "model.safetensors", "--dir", root)
    assert "the same" in cli(*args).stdout


def test_diff_with_its_own_export_has_tied_weights_once(cli, root, tmp_path):
    args = ("checkpoints", "export", "checkpoint-4", "--dir", root, "--to", "hf", "--output")
    cli(*args, tmp_path / "hf")
    joined = tmp_path / "hf/model.safetensors"
    for pair in (("checkpoint-4", joined), (joined, "checkpoint-4")):
        assert "the same" in cli("checkpoints", "diff", *pair, "--dir", root).stdout


def test_a_folder_of_shards_without_a_manifest_is_no_checkpoint(cli, root, tmp_path):
    shutil.copytree(root / "checkpoint-4", tmp_path / "copy/checkpoint-4")
    (tmp_path / "copy/checkpoint-4/bt_manifest.json").unlink()
    said = cli("checkpoints", "list", "--dir", tmp_path / "copy")
    assert "No checkpoints" in said.stdout
    assert "bt_manifest.json is missing" in " ".join(said.stderr.split())
    folder = tmp_path / "copy/checkpoint-4"
    out = ("--to", "hf", "--output", tmp_path / "out")
    for command, code in ((("verify", folder), 12), (("export", folder, *out), 10)):
        found = cli("checkpoints", *command, code=code)
        assert "bt_manifest.json" in " ".join(found.output.split())


def test_verify_says_whole_and_counts_ranks(cli, root):
    said = cli("checkpoints", "verify", "--dir", root).stdout
    assert "in shards of 4 ranks" in said


def drop_shard(files):
    del files["shard-00002-of-00004.safetensors"]


def swap_shards(files):
    one, other = "shard-00001-of-00004.safetensors", "shard-00002-of-00004.safetensors"
    files[one], files[other] = files[other], files[one]


def other_tensor_in_tree(files):
    files[TREE] = files[TREE].replace(b'"state_dict.count"', b'"state_dict.gone"')


def in_trainer(content):
    """A change that adds a value to the state, and the parts that are encoded separately."""

    def change(files):
        document = json.loads(files[TREE])
        document["tree"]["more"], document["deep"] = content, [{"at": ["more"], "v": content}]
        files[TREE] = json.dumps(document).encode()

    return change


def deep_part(files):
    document = json.loads(files[TREE])
    files[TREE] = json.dumps(document | {"deep": [{"at": ["more"], "v": [GONE]}]}).encode()


def of_a_rank(files):
    document = json.loads(files["ranks/00002.json"])
    document["tree"]["more"] = GONE
    files["ranks/00002.json"] = json.dumps(document).encode()


GONE = {"$": "tensor", "file": "state", "name": "gone"}
DANGLING = {
    "module": {"$": "module", "class": "m:M", "v": [["_buffers", {"b": GONE}]]},
    "dataclass": {"$": "dataclass", "class": "m:D", "v": [["field", GONE]]},
    "named tuple": {"$": "namedtuple", "class": "m:N", "v": [GONE]},
    "sparse": {"$": "sparse_coo", "size": [4], "indices": GONE, "values": GONE, "coalesced": True},
    "array": {"$": "numpy.ndarray", "dtype": "<f4", "shape": [1], "order": "C", "v": GONE},
    "key that is no text": {"$": "dict", "v": [[{"$": "tuple", "v": [1, 2]}, GONE]]},
}
HOSTILE = {
    "a list for a kind": ({"$": ["x"]}, "for the kind of a value"),
    "an object for a kind": ({"$": {"x": 1}}, "for the kind of a value"),
    "no kind": ({"$": None}, "for the kind of a value"),
    "a list for a key": ({"$": "dict", "v": [[[1], 2]]}, "key of a dictionary"),
    "a list in a key": ({"$": "dict", "v": [[{"$": "tuple", "v": [[]]}, 2]]}, "key of a dict"),
    "a list in a key of a key": (
        {"$": "dict", "v": [[{"$": "dict", "v": [[[1], 2]]}, 2]]},
        "key of a dictionary",
    ),
    "deep lists": (json.loads("[" * 500 + "]" * 500), "too deep"),
}


def grown_tensor(files):
    files[SHARDS] = files[SHARDS].replace(b"[9,6]", b"[9,7]")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (drop_shard, "names the file shard-00002-of-00004.safetensors"),
        (swap_shards, "which shards.json places there"),
        (other_tensor_in_tree, "state_dict.gone"),
        (grown_tensor, "shards.json says"),
        (deep_part, "'gone' of 'state'"),
        (of_a_rank, "'gone' of 'state'"),
        *((in_trainer(node), "'gone' of 'state'") for node in DANGLING.values()),
        *((in_trainer(node), says) for node, says in HOSTILE.values()),
    ],
)
def test_verify_finds_shards_that_do_not_make_the_tensors(cli, root, change, says):
    """Every byte is what the manifest says, and yet it is no whole checkpoint."""
    tampered(root, change)
    found = cli("checkpoints", "verify", "damaged", "--dir", root, code=12).output
    assert says in " ".join(found.split())
    every = cli("checkpoints", "verify", "--dir", root, code=12).output
    assert "in shards of 4 ranks" in every, "the other one is verified all the same"


@pytest.mark.parametrize("name", ["$", "v", "tensor"])
def test_verify_takes_keys_of_a_state_for_no_kinds(cli, tmp_path, name):
    state = state_of() | {name: {"$": ["x"], "name": torch.ones(2)}}
    write_sharded(tmp_path / "run", "checkpoint-4", state)
    cli("checkpoints", "verify", "--dir", tmp_path / "run")


def test_a_number_that_is_none_is_no_plain_value():
    for content in (["nan"], {"nan": 1}, "what", None):
        assert plain_value({"$": "float", "v": content}) is NOT_PLAIN


def test_show_says_which_shard_is_gone_from_a_store(cli, root, tmp_path):
    store, final = LocalStore(tmp_path / "store"), root / "checkpoint-4"
    prefix = job_prefix("p", "j", 0)
    publish(store, prefix, LocalCheckpoint(final, read_manifest(final)))
    gone = "shard-00002-of-00004.safetensors"
    store.delete([f"{prefix}/checkpoint-4/{gone}"])
    shown = cli("checkpoints", "show", "bt://p@j/checkpoint-4", "--store", store.name)
    assert gone in " ".join(shown.stderr.split())
    assert "4 shards of 4 ranks" in shown.stdout


def test_download_of_what_one_rank_needs(cli, tmp_path):
    root = tmp_path / "run"
    write_sharded(root, "checkpoint-4", state_of(), by_rows(4), own=[{"seed": 1}] * 4)
    args = ("checkpoints", "download", "checkpoint-4", "--dir", root, "--target-directory")
    cli(*args, tmp_path / "to", "--rank", "2")
    final = tmp_path / "to/checkpoint-4"
    found = {path.relative_to(final).as_posix() for path in files_in(final)}
    assert {"trainer.json", "shards.json", "ranks/00002.json"} <= found
    shards = {path for path in found if path.startswith("shard-")}
    # rank 0 writes what is small and not divided
    assert shards == {f"shard-0000{rank}-of-00004.safetensors" for rank in (0, 2)}
    assert "ranks/00001.json" not in found
    assert "bt_manifest.json" not in found
    none = cli(*args, tmp_path / "y", "--rank", "2", "--include", "ranks/00003.json", code=10)
    assert "rank 2" in none.stderr
    assert not (tmp_path / "y/checkpoint-4").exists()
    assert "0 to 3" in cli(*args, tmp_path / "x", "--rank", "4", code=2).stderr
    BTCheckpointIO().save_checkpoint(state_of(numbered=True), root / "full")
    args = ("checkpoints", "download", "full", "--dir", root, "--rank", "0")
    assert "not sharded" in cli(*args, "--target-directory", tmp_path / "x", code=2).stderr


def files_in(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_status_says_which_parts_are_missing_and_why_a_save_was_given_up(cli, tmp_path):
    place = GatherDirectory(tmp_path, rank=0)
    head = SaveHead(
        checkpoint_id="checkpoint-8",
        after=0,
        facts=ManifestFacts(step=8, epoch=0, created_at="2030-01-02T03:04:05Z"),
    )
    for rank in (0, 2):
        part = SavePart(key=SaveKey("a" * 32, 3), rank=rank, world_size=4, fingerprint="b" * 32)
        place.begin(part)
        place.put(PartRecord(part=part, host="one", head=head if rank == 0 else None))
    said = cli("status", "--dir", tmp_path).stdout
    assert "checkpoint-8: 2 of 4 parts; missing ranks 1, 3" in said
    place.give_up(
        SaveKey("a" * 32, 3), GatherVerdict(why="rank 1 on two has no part", cause="late")
    )
    said = cli("status", "--dir", tmp_path).stdout
    assert "rank 1 on two has no part" in said
    assert "Gathering" not in said
    record = json.loads(cli("status", "--dir", tmp_path, "-o", "json").stdout)
    assert record["given_up"] == "rank 1 on two has no part"
