"""Values that lie deeper than Python's stack would go at once."""

from __future__ import annotations

import io
import json
from collections import OrderedDict

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.errors import UnsafeLoadError
from bt_lightning.restore.decode_tree import Decoder
from bt_lightning.restore.unpickle_leftovers import Leftovers
from bt_lightning.snapshot.class_allowlist import ClassTable
from bt_lightning.snapshot.state_files import lay_out_files

WRAPS = {
    "list": (lambda inner: [inner], lambda outer: outer[0]),
    "tuple": (lambda inner: (1, inner), lambda outer: outer[1]),
    "dict": (lambda inner: {"a": inner}, lambda outer: outer["a"]),
    "numbered": (lambda inner: {1: inner}, lambda outer: outer[1]),
    "ordered": (lambda inner: OrderedDict(a=inner), lambda outer: outer["a"]),
}


def deep(wrap, depth, leaf):
    for _ in range(depth):
        leaf = wrap(leaf)
    return leaf


def round_trip(tmp_path, state, **options):
    BTCheckpointIO().save_checkpoint(state, tmp_path / "c")
    return BTCheckpointIO().load_checkpoint(tmp_path / "c", **options)


@pytest.mark.parametrize("depth", [98, 99, 100, 101, 102, 199, 200, 201, 202, 300, 2000])
@pytest.mark.parametrize("kind", WRAPS)
def test_every_depth_comes_back_and_needs_no_pickle(tmp_path, kind, depth):
    """torch.save itself ends at some 900."""
    wrap, unwrap = WRAPS[kind]
    weight = torch.arange(3.0)
    back = round_trip(tmp_path, {"x": deep(wrap, depth, weight), "y": weight})
    at = back["x"]
    for _ in range(depth):
        assert type(at) is type(wrap(0))
        at = unwrap(at)
    assert at is back["y"], "one tensor became two"
    assert torch.equal(at, weight)
    assert not (tmp_path / "c" / "leftovers.pt").exists()


def test_wide_and_deep_are_told_apart(tmp_path):
    wide = [deep(lambda inner: [inner], 250, number) for number in range(50)]
    assert round_trip(tmp_path, {"x": wide})["x"] == wide


def test_stock_loads_no_more(tmp_path):
    """Whatever `torch.load` gives back by itself, so do we."""
    state = {"x": deep(lambda inner: [inner], 300, 1)}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    assert round_trip(tmp_path, state) == torch.load(buffer, weights_only=True)


class Odd:
    def __eq__(self, other):
        return isinstance(other, Odd)

    __hash__ = None


@pytest.mark.filterwarnings("ignore:saved with pickle", "ignore:.*leftovers")
def test_what_lies_deep_and_has_no_form_is_a_leftover_of_its_own(tmp_path):
    state = {"x": deep(lambda inner: [inner], 250, Odd())}
    ring: list = []
    ring.append(deep(lambda inner: [inner], 150, ring))
    state["ring"] = ring
    back = round_trip(tmp_path, state, weights_only=False)
    assert back["x"] == state["x"]
    with pytest.raises(UnsafeLoadError, match=r"x\.0\.0"):
        BTCheckpointIO().load_checkpoint(tmp_path / "c")


@pytest.mark.filterwarnings("ignore:left out of")
@pytest.mark.filterwarnings("ignore:saved with pickle", "ignore:.*leftovers")
def test_a_deep_hyperparameter_that_nobody_allowed_is_a_hole(tmp_path):
    state = {"hyper_parameters": {"a": deep(lambda inner: [inner], 150, Odd())}, "step": 3}
    assert round_trip(tmp_path, state)["step"] == 3


@pytest.mark.parametrize(
    "document",
    [
        {"tree": {"$": "deep", "v": 1}},
        {"tree": {"$": "deep", "v": 1}, "deep": [{"at": [], "v": {"$": "deep", "v": 1}}]},
        {"tree": 1, "deep": [{"at": [], "v": {"$": "deep", "v": 0}}]},
        {"tree": 1, "deep": 3},
        {"tree": 1, "deep": [3]},
        {"tree": 1, "deep": [{"at": 3, "v": 1}]},
        {"tree": {"$": "deep", "v": []}, "deep": [{"at": [], "v": 1}]},
    ],
)
def test_a_damaged_one_is_told_of(document):
    decoder = Decoder({}, Leftovers(document, None, None), ClassTable(()))
    with pytest.raises(ValueError, match="damaged at"):
        decoder.decode(document["tree"], "here", document.get("deep", ()))


def test_the_document_holds_no_deeper_nesting_than_its_reader_takes():
    text = lay_out_files({"x": deep(lambda inner: (inner,), 2000, 1)}).small_files["trainer.json"]
    depth = most = 0
    for char in json.dumps(json.loads(text)):
        depth += (char in "[{") - (char in "]}")
        most = max(most, depth)
    assert most < 400
