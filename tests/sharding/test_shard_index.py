"""The index of shards: what is read is what was written, and each item is in one file."""

from __future__ import annotations

import copy
import itertools
import json

import pytest

from bt_lightning.errors import CheckpointCorruptError, FormatVersionError, UnsupportedStateError
from bt_lightning.sharding import shard_index
from bt_lightning.sharding.boxes import Box, tiles
from bt_lightning.sharding.layouts import REPLICATED, Layout, Placement
from bt_lightning.sharding.shard_index import ShardIndex
from bt_lightning.sharding.structure import HeldTensor, merge
from bt_lightning.sharding.write_plan import WritePlan

ROWS = Placement(0)


def example_plan(tensors: int = 3, replicas: int = 2, shards: int = 2) -> WritePlan:
    ranks = tuple(range(replicas * shards))
    layout = Layout((replicas, shards), ranks, (REPLICATED, ROWS))
    table = {f"w{number:06}": HeldTensor("BF16", (64, 8), layout) for number in range(tensors)}
    table |= {"step": HeldTensor("F32", (), None), "empty": HeldTensor("F32", (0, 3), layout)}
    return WritePlan(merge([table], [0] * len(ranks)))


def example_index() -> ShardIndex:
    return ShardIndex.of_plan(example_plan(), {"head": "w000000"})


def parse(data: bytes) -> ShardIndex:
    return ShardIndex.from_bytes(data, "here")


def test_what_is_read_is_what_was_written() -> None:
    index = example_index()
    data = index.to_bytes()
    again = parse(data)
    assert again == index
    assert again.to_bytes() == data
    assert again.structure.fingerprint == index.structure.fingerprint
    assert data.isascii()
    assert data.endswith(b"\n")


def test_boxes_are_where_the_plan_has_them_written() -> None:
    plan, index = example_plan(), example_index()
    for name in plan.structure.tensors:
        assert index.boxes(name) == [
            (index.files[plan.owner(name, box)], box) for box in plan.structure.holders(name)
        ]
    assert index.boxes("head") == index.boxes("w000000")
    assert index.stored_name("head") == "w000000"
    assert index.boxes("step") == [("shard-00000-of-00004.safetensors", Box((), ()))]
    assert index.boxes("empty") == []
    assert index.facts == {"world_size": 4, "files": 4, "mesh": [2, 2]}
    with pytest.raises(KeyError):
        index.boxes("other")


def test_the_size_goes_with_the_tensors() -> None:
    few = len(ShardIndex.of_plan(example_plan(1000, 2, 2)).to_bytes())
    many = len(ShardIndex.of_plan(example_plan(1000, 2, 60)).to_bytes())
    assert many < few + 120 * 60


def test_a_state_that_no_manifest_can_name_is_refused_before_it_is_written() -> None:
    """At the commit it would be too late: all ranks would have written their terabytes."""
    layout = Layout((4,), (0, 1, 2, 3), (ROWS,))
    for size, fits in ((10**13, True), (10**13 + 8 * 10**12, False)):
        table = {"w": HeldTensor("U8", (size // 10**6, 10**6), layout)}
        plan = WritePlan(merge([table], [0] * 4))
        if fits:
            assert len(ShardIndex.of_plan(plan).files) == 4
            continue
        with pytest.raises(UnsupportedStateError, match=r"the state has 18\.0 TB"):
            ShardIndex.of_plan(plan)


def test_a_newer_version_says_what_to_do() -> None:
    with pytest.raises(FormatVersionError, match="here cannot be read: it has version 2"):
        parse(edited(version=2))


def edited(**changes: object) -> bytes:
    return json.dumps({**json.loads(example_index().to_bytes()), **changes}).encode()


LAYOUT = [[2, 2], [0, 1, 2, 3], [[None, False], [0, False]]]
BAD = {
    "format": ["x", None],
    "version": [0, None, True, "1"],
    "world_size": [0, 10**9, 3, "4", True],
    "files": [
        {},
        [],
        {"0": "a"},
        {"0": "../a", "1": "b", "2": "c", "3": "d"},
        {"0": "bt_manifest.json", "1": "b", "2": "c", "3": "d"},
        {"0": "a", "1": "a", "2": "c", "3": "d"},
        {"00": "a", "1": "b", "2": "c", "3": "d"},
        {"9": "a"},
        {"²": "a"},
        {"-1": "a"},
    ],
    "layouts": [
        [],
        [LAYOUT] * 2,
        [[[2, 2], [0, 1, 2, 2], LAYOUT[2]], [[4], [0, 1, 2, 3], [[None, False]]]],
        [[[2, 2], [0, 1, 2, 4], LAYOUT[2]], [[4], [0, 1, 2, 3], [[None, False]]]],
        [[[2, 3], [0, 1, 2, 3], LAYOUT[2]], [[4], [0, 1, 2, 3], [[None, False]]]],
        [[[2, 2], [0, 1, 2, 3], [[0, False]]], [[4], [0, 1, 2, 3], [[None, False]]]],
        [[[2, 2], [0, 1, 2, 3], [[0, 1], [0, False]]], [[4], [0, 1, 2, 3], [[None, False]]]],
        [[[2, 2], [0, 1, 2, 3], [[-1, False], [0, False]]], [[4], [0, 1, 2, 3], [[0, False]]]],
        [[[0], [], [[None, False]]], LAYOUT],
        [LAYOUT, [[4], [0, 1, 2, 3], [[0, False]]]],
    ],
    "groups": [[], [[], [1]], [[0], [0, 0]], [[7], [1]], [[-1], [0]], "01"],
    "tensors": [
        [],
        {"b": ["F32", [4], 0, 0], "a": ["F32", [4], 0, 0], "w000000": ["F32", [4], 0, 0]},
        *(
            {"w000000": row}
            for row in (
                ["F32", [4], 0],
                ["X9", [4], 0, 0],
                [["F32"], [4], 0, 0],
                ["F32", [-4], 0, 0],
                ["F32", [True], 0, 0],
                ["F32", [2**63] * 2, 0, 0],
                ["F32", [1] * 65, 0, 0],
                ["F32", [], 0, 0],
                ["F32", "44", 0, 0],
                ["F32", [4], 2, 0],
                ["F32", [4], -1, 0],
                ["F32", [4], 0, -1],
                ["F32", [4], 0, 4],
                ["F32", [4], 0, None],
            )
        ),
    ],
    "tied": [[], {"head": "gone"}, {"step": "w000000"}, {"head": ["w000000"]}, {"head": None}],
}


@pytest.mark.parametrize("change", [{key: bad} for key in BAD for bad in BAD[key]], ids=repr)
def test_an_index_that_contradicts_itself_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(CheckpointCorruptError, match="the index of shards here cannot be read: "):
        parse(edited(**change))


@pytest.mark.parametrize("key", json.loads(example_index().to_bytes()))
def test_an_index_that_lacks_something_is_refused(key: str) -> None:
    document = json.loads(example_index().to_bytes())
    del document[key]
    with pytest.raises(CheckpointCorruptError):
        parse(json.dumps(document).encode())


def test_boxes_that_leave_holes_or_overlap_are_refused() -> None:
    """Two meshes of a tensor: half of it on ranks 0 and 1 as rows, and as columns on 2 and 3."""
    document = json.loads(example_index().to_bytes())
    rows, columns = [[2], [0, 1], [[0, False]]], [[2], [2, 3], [[1, False]]]
    document |= {
        "layouts": [rows, columns],
        "groups": [[0, 1]],
        "tensors": {"w000000": ["F32", [4, 4], 0, 0]},
    }
    with pytest.raises(CheckpointCorruptError, match="'w000000' overlap"):
        parse(json.dumps(document).encode())


def test_a_small_file_cannot_make_much_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shapes on a large mesh: each would be cut for every rank."""
    ranks = list(range(50_000))
    document = json.loads(example_index().to_bytes())
    document |= {
        "world_size": 50_000,
        "files": {str(rank): f"{rank}" for rank in ranks},
        "layouts": [[[50_000], ranks, [[0, False]]]],
        "groups": [[0]],
        "tensors": {f"{size:09}": ["F32", [size], 0, 0] for size in range(2000)},
        "tied": {},
    }
    with pytest.raises(CheckpointCorruptError, match="corners"):
        parse(json.dumps(document).encode())
    monkeypatch.setattr(shard_index, "MOST_CORNERS", 3)
    with pytest.raises(UnsupportedStateError, match="cannot be saved"):
        example_index().to_bytes()


def test_a_small_file_cannot_name_many_meshes_for_each_of_many_tensors() -> None:
    document = json.loads(example_index().to_bytes())
    document |= {
        "world_size": 20_000,
        "layouts": [[[1], [rank], [[None, False]]] for rank in range(20_000)],
        "groups": [list(range(20_000))],
        "tensors": {f"{number:09}": ["F32", [1], 0, 0] for number in range(20_000)},
        "tied": {},
    }
    with pytest.raises(CheckpointCorruptError, match="meshes"):
        parse(json.dumps(document).encode())


def test_any_changed_byte_is_read_or_refused() -> None:
    """No other error, and nothing that the next reader would refuse."""
    good = example_index().to_bytes()
    for place, bit in itertools.product(range(len(good)), range(8)):
        bad = bytearray(good)
        bad[place] ^= 1 << bit
        try:
            index = parse(bytes(bad))
        except CheckpointCorruptError:
            continue
        assert parse(index.to_bytes()) == index
        for name in (*index.structure.tensors, *index.tied):
            assert tiles(index.tensor(name).shape, [box for _, box in index.boxes(name)])


@pytest.mark.parametrize("length", [0, 1, 100, -2])
def test_a_file_that_is_cut_off_is_refused(length: int) -> None:
    with pytest.raises(CheckpointCorruptError):
        parse(example_index().to_bytes()[:length])


def test_layouts_are_equal_in_every_process() -> None:
    layout = Layout((2,), (0, 1), (ROWS,))
    assert hash(layout)
    assert copy.deepcopy(layout) == layout
    assert vars(copy.copy(layout)) == {
        "mesh_shape": (2,), "ranks": (0, 1), "placements": (ROWS,)
    }  # fmt: skip
