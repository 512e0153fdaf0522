"""A save on every rank: no collective, each byte once, and files that torch reads."""

from __future__ import annotations

import json

import pytest
import sharded_acts
import sharded_ranks

from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.write_plan import WritePlan

pytestmark = pytest.mark.matrix


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Kind of model -> what each rank saw; and the folder of the whole."""
    root = tmp_path_factory.mktemp("kinds")
    found = {}
    for ranks in (2, 4):
        kinds = [kind for kind, needed in sharded_ranks.KINDS.items() if needed == ranks]
        seen = sharded_ranks.run(ranks, sharded_acts.save_kinds, kinds, root)
        found.update({kind: [rank[kind] for rank in seen] for kind in kinds})
    return found, root


kinds = pytest.mark.parametrize("kind", list(sharded_ranks.KINDS))


@kinds
def test_a_save_runs_no_collective(saved, kind):
    """Neither does the first one, for which the ranks agree."""
    for rank in saved[0][kind]:
        assert rank["collectives"] == []


@kinds
def test_no_save_encodes_what_was_encoded_beside_training(saved, kind):
    """So the first one is as quick as the others."""
    for rank in saved[0][kind]:
        assert rank["encoded in saves"] == []


@kinds
def test_each_byte_is_written_once_and_the_ranks_write_alike_much(saved, kind):
    ranks = saved[0][kind]
    assert len({rank["fingerprint"] for rank in ranks}) == 1
    assert len({rank["sizes"] for rank in ranks}) == 1
    sizes = ranks[0]["sizes"]
    assert sum(sizes) == ranks[0]["unique"]
    if kind != "tp":  # small plain tensors are of one rank, so that statistics go together
        assert max(sizes) <= 1.05 * min(sizes)
    assert [rank["planned"] for rank in ranks] == list(sizes)


@kinds
def test_the_same_state_gives_the_same_bytes(saved, kind):
    """Encoded beside training or not, from a cache or not, of another save."""
    assert all(rank["same"] for rank in saved[0][kind])


@kinds
def test_each_rank_has_its_files(saved, kind):
    ranks = saved[0][kind]
    for number, rank in enumerate(ranks):
        own = {f"ranks/{number:05d}.json", f"ranks/{number:05d}.safetensors"}
        shard = {f"shard-{number:05d}-of-{len(ranks):05d}.safetensors"}
        more = {"trainer.json", "shards.json", "optimizer.safetensors"} if number == 0 else set()
        assert set(rank["files"]) == own | shard | more
    folder = saved[1] / kind / "whole"
    for number in range(len(ranks)):
        tree = json.loads((folder / f"ranks/{number:05d}.json").read_text())["tree"]
        assert tree["rank"]["rank"] == number
        assert tree["rank"]["rng"]["file"] == "state"
    text = (folder / "trainer.json").read_text()
    assert '"file":"shards","name":"optimizer_0.state.up.weight.exp_avg"' in text
    assert '"rng"' not in text
    assert '"params":["scale","embed.weight"' in text


@kinds
def test_the_index_has_every_tensor_and_other_names_of_tied_ones(saved, kind):
    folder = saved[1] / kind / "whole"
    index = ShardIndex.from_bytes((folder / "shards.json").read_bytes(), "shards.json")
    assert WritePlan(index.structure).fingerprint == saved[0][kind][0]["fingerprint"]
    assert index.tied == {"state_dict.head.weight": "state_dict.embed.weight"}
    assert "state_dict.norm.running_mean" in index.structure.tensors
    assert "state_dict.mask" not in index.structure.tensors
    assert saved[0][kind][0]["origin"] == index.facts


@kinds
def test_torch_reads_the_folder(saved, kind):
    """By `dcp.load` with its own reader of safetensors, each rank its part."""
    for rank in saved[0][kind]:
        if rank["stock"] is None:
            pytest.skip("this torch has no HuggingFaceStorageReader")
        assert rank["stock"] == []
