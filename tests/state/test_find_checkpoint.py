"""Which checkpoint a run goes on from, and what is said about the others."""

from __future__ import annotations

import errno
import json
import os
import shutil

import pytest
import torch

from bt_lightning import BTCheckpointIO, CheckpointCorruptError
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, read_manifest
from bt_lightning.path_layout import MANIFEST, TREE, WEIGHTS
from bt_lightning.restore.find_checkpoint import Search, Stored, find_loaded, find_own
from bt_lightning.store.transfer.files_reader import FilesReader


def _save(path, step, **more):
    state = {
        "global_step": step,
        "optimizer_states": [],
        "state_dict": {"w": torch.ones(step + 1)},
    }
    BTCheckpointIO().save_checkpoint({**state, **more}, path)
    return path


def _own(root, stored=(), fetch=None, **options):
    found = Search()
    chosen = find_own(list_committed(root), stored, fetch, found, **options)
    assert chosen is (found.path is not None)
    return found


def _loaded(folder, node_rank=0, weights_only=None, **options):
    found = Search()
    chosen = find_loaded(folder, node_rank, found, weights_only=weights_only, **options)
    assert chosen is (found.path is not None)
    return found


def _damage(path, name=WEIGHTS):
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)


def _line(found, path):
    (line,) = [line for line in found.considered if line.startswith(f"{path}:")]
    return line


def test_nothing_is_found_where_nothing_is(tmp_path):
    found = _own(tmp_path)
    assert (found.path, found.step, found.digest, found.considered) == (None, None, None, [])
    assert "(none)" in found.describe()


def test_the_greatest_step_is_chosen_by_number_and_not_by_text(tmp_path):
    for step in (9, 100, 20):
        _save(tmp_path / f"checkpoint-{step}", step)
    found = _own(tmp_path)
    assert found.path == str(tmp_path / "checkpoint-100")
    assert found.step == 100
    assert found.own
    assert found.digest == read_manifest(tmp_path / "checkpoint-100").digest
    assert found.considered == [f"{tmp_path / 'checkpoint-100'}: step 100, chosen"]


def test_of_two_with_one_step_the_later_generation_is_chosen(tmp_path):
    _save(tmp_path / "a", 5)
    _save(tmp_path / "a", 5)
    _save(tmp_path / "b", 5)
    assert _own(tmp_path).path == str(tmp_path / "a")


def test_of_two_with_one_step_and_generation_the_later_one_is_chosen(tmp_path):
    _save(tmp_path / "z", 5)
    _save(tmp_path / "a", 5)
    assert _own(tmp_path).path == str(tmp_path / "a")


@pytest.mark.parametrize("name", [WEIGHTS, TREE])
def test_a_damaged_checkpoint_gives_way_to_the_next_older_one(name, tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path / f"c{step}", step)
    _damage(tmp_path / "c3", name)
    found = _own(tmp_path)
    assert found.path == str(tmp_path / "c2")
    assert name in _line(found, tmp_path / "c3")
    assert "refused" in _line(found, tmp_path / "c3")
    assert (tmp_path / "c3" / name).exists(), "what was refused is left where it is"


def test_a_file_that_is_gone_or_cut_gives_way_to_the_next_older_one(tmp_path):
    for step in (1, 2, 3):
        _save(tmp_path / f"c{step}", step)
    (tmp_path / "c3" / WEIGHTS).unlink()
    (tmp_path / "c2" / WEIGHTS).write_bytes(b"")
    found = _own(tmp_path)
    assert found.path == str(tmp_path / "c1")
    assert "is missing" in _line(found, tmp_path / "c3")
    assert "but of 0" in _line(found, tmp_path / "c2")


def test_a_manifest_that_cannot_be_read_is_named_and_passed_over(tmp_path):
    _save(tmp_path / "good", 1)
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / MANIFEST).write_text("{")
    _save(tmp_path / "new", 9)
    payload = json.loads((tmp_path / "new" / MANIFEST).read_bytes())
    (tmp_path / "new" / MANIFEST).write_text(json.dumps({**payload, "format_version": 99}))
    found = _own(tmp_path)
    assert found.path == str(tmp_path / "good")
    assert "refused" in _line(found, tmp_path / "bad")
    assert "upgrade bt_lightning" in _line(found, tmp_path / "new")


@pytest.mark.parametrize("search", [_own, _loaded])
def test_a_file_that_cannot_be_opened_gives_way_to_the_next_older_one(search, tmp_path):
    """A link that leads to itself cannot be opened, and not because it is missing."""
    for step in (1, 2):
        _save(tmp_path / f"c{step}", step)
    (tmp_path / "c2" / WEIGHTS).unlink()
    (tmp_path / "c2" / WEIGHTS).symlink_to(WEIGHTS)
    found = search(tmp_path)
    assert found.path == str(tmp_path / "c1")
    assert "refused" in _line(found, tmp_path / "c2")


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
@pytest.mark.parametrize("search", [_own, _loaded])
def test_an_error_of_the_disk_itself_gives_way_to_the_next_older_one(
    search, number, tmp_path, monkeypatch
):
    """The older one is whole: a run that cannot start at all helps nobody."""
    for step in (1, 2):
        _save(tmp_path / f"c{step}", step)
    real = FilesReader.read_into

    def dying(reader, entry, *more):
        if reader.name == str(tmp_path / "c2"):
            raise OSError(number, os.strerror(number), entry.path)
        real(reader, entry, *more)

    monkeypatch.setattr(FilesReader, "read_into", dying)
    found = search(tmp_path)
    assert found.path == str(tmp_path / "c1")
    assert os.strerror(number) in _line(found, tmp_path / "c2")


@pytest.mark.parametrize("search", [_own, _loaded])
def test_a_name_that_no_disk_can_hold_gives_way_to_the_next_older_one(search, tmp_path):
    from test_hostile_files import _signed

    for step in (1, 2):
        _save(tmp_path / f"c{step}", step)
    payload = json.loads((tmp_path / "c2" / MANIFEST).read_bytes())
    del payload["digest"]
    payload["files"][0]["path"] = "\ud800"
    (tmp_path / "c2" / MANIFEST).write_bytes(_signed(payload))
    assert search(tmp_path).path == str(tmp_path / "c1")


def test_folders_without_a_manifest_and_hidden_ones_are_no_checkpoints(tmp_path):
    _save(tmp_path / "good", 1)
    shutil.copytree(tmp_path / "good", tmp_path / ".bt_lightning" / "tmp" / "x")
    _save(tmp_path / "torn", 9)
    (tmp_path / "torn" / MANIFEST).unlink()
    found = _own(tmp_path)
    assert found.path == str(tmp_path / "good")
    assert len(found.considered) == 1


def test_checkpoints_in_folders_are_found(tmp_path):
    _save(tmp_path / "epoch-1" / "checkpoint-5", 5)
    _save(tmp_path / "checkpoint-3", 3)
    assert _own(tmp_path).path == str(tmp_path / "epoch-1" / "checkpoint-5")


@pytest.mark.parametrize("search", [_own, _loaded])
def test_links_to_folders_are_not_followed(search, tmp_path):
    """`save_last="link"` makes one; what it names counts once, under its own name."""
    root, elsewhere = tmp_path / "root", tmp_path / "elsewhere"
    _save(root / "own", 1)
    _save(elsewhere / "other", 9)
    (root / "last").symlink_to(root / "own")
    (root / "out").symlink_to(elsewhere)
    (root / "loop").symlink_to(root)
    found = search(root)
    assert found.path == str(root / "own")
    assert len(found.considered) == 1


# --- the store ---


def _stored(path):
    return Stored(path.name, read_manifest(path))


def test_a_newer_one_in_the_store_is_fetched(tmp_path):
    _save(tmp_path / "local" / "a", 3)
    other = _save(tmp_path / "store" / "b", 7)
    found = _own(tmp_path / "local", [_stored(other)], lambda stored: f"fetched {stored.folder}")
    assert (found.path, found.step, found.own) == ("fetched b", 7, True)
    assert found.considered == ["store b: step 7, chosen"]


def test_one_on_the_disk_is_preferred_to_the_same_in_the_store(tmp_path):
    path = _save(tmp_path / "a", 3)

    def forbidden(stored):
        pytest.fail("it was fetched")

    assert _own(tmp_path, [_stored(path)], forbidden).path == str(path)


def test_a_damaged_one_on_the_disk_is_fetched_from_the_store(tmp_path):
    _save(tmp_path / "a", 2)
    path = _save(tmp_path / "b", 3)
    stored = _stored(path)
    _damage(path)
    found = _own(tmp_path, [stored], lambda _: "fetched")
    assert found.path == "fetched"
    assert [line.split(": ")[1] for line in found.considered] == [
        "refused, the checkpoint " + str(path) + " is damaged",
        "step 3, chosen",
    ]


def test_a_damaged_one_in_the_store_gives_way_to_the_next_older_one(tmp_path):
    path = _save(tmp_path / "root" / "a", 2)
    other = _save(tmp_path / "store" / "b", 3)

    def fetch(stored):
        msg = "the bytes differ"
        raise CheckpointCorruptError(msg)

    found = _own(tmp_path / "root", [_stored(other)], fetch)
    assert found.path == str(path)
    assert found.considered[0] == "store b: refused, the bytes differ"


# --- the load directory ---


@pytest.mark.parametrize("layout", ["job-abc/rank-0/{}", "rank-0/{}", "{}", "some/where/{}"])
def test_a_load_directory_may_have_any_of_the_layouts(layout, tmp_path):
    for step in (2, 10):
        _save(tmp_path / layout.format(f"checkpoint-{step}"), step)
    found = _loaded(tmp_path)
    assert found.path == str(tmp_path / layout.format("checkpoint-10"))
    assert (found.step, found.own) == (10, False)
    assert found.digest == read_manifest(tmp_path / layout.format("checkpoint-10")).digest


def test_the_load_directory_may_be_a_checkpoint_itself(tmp_path):
    assert _loaded(_save(tmp_path / "c", 4)).path == str(tmp_path / "c")


@pytest.mark.parametrize("layout", ["job/rank-{}/c{}", "rank-{}/c{}"])
def test_folders_of_other_nodes_are_refused(layout, tmp_path):
    _save(tmp_path / layout.format(0, 3), 3)
    _save(tmp_path / layout.format(1, 9), 9)
    found = _loaded(tmp_path)
    assert found.path == str(tmp_path / layout.format(0, 3))
    assert "belongs to rank-1" in _line(found, tmp_path / layout.format(1, 9))
    assert _loaded(tmp_path, node_rank=1).path == str(tmp_path / layout.format(1, 9))


def test_ten_is_another_node_than_one(tmp_path):
    _save(tmp_path / "rank-10" / "c", 3)
    assert _loaded(tmp_path, node_rank=1).path is None


def test_a_name_that_holds_a_rank_is_no_folder_of_a_node(tmp_path):
    _save(tmp_path / "my-rank-7-run" / "c", 3)
    assert _loaded(tmp_path).path == str(tmp_path / "my-rank-7-run" / "c")


def test_a_load_directory_that_is_not_there_is_named(tmp_path):
    found = _loaded(tmp_path / "none")
    assert found.path is None
    assert "no such directory" in found.considered[0]


def test_a_damaged_one_in_the_load_directory_gives_way_to_the_next_older_one(tmp_path):
    for step in (1, 2):
        _save(tmp_path / "rank-0" / f"c{step}", step)
    _damage(tmp_path / "rank-0" / "c2")
    found = _loaded(tmp_path)
    assert found.path == str(tmp_path / "rank-0" / "c1")
    assert "damaged" in _line(found, tmp_path / "rank-0" / "c2")


def test_stock_files_in_the_load_directory_count_by_their_step(tmp_path):
    _save(tmp_path / "c5", 5)
    torch.save({"global_step": 7, "optimizer_states": [], "state_dict": {}}, tmp_path / "a.ckpt")
    (tmp_path / "sub").mkdir()
    torch.save(
        {"global_step": 6, "optimizer_states": [], "state_dict": {}}, tmp_path / "sub" / "b.ckpt"
    )
    found = _loaded(tmp_path)
    assert (found.path, found.step, found.digest) == (str(tmp_path / "a.ckpt"), 7, None)


def test_stock_files_that_cannot_be_used_are_named_with_the_reason(tmp_path):
    _save(tmp_path / "c5", 5)
    (tmp_path / "junk.ckpt").write_bytes(b"junk")
    (tmp_path / "empty.ckpt").write_bytes(b"")
    torch.save({"global_step": 99, "optimizer_states": [], "x": tmp_path}, tmp_path / "unsafe.ckpt")
    torch.save({"state_dict": {}}, tmp_path / "no-step.ckpt")
    torch.save([1], tmp_path / "list.ckpt")
    torch.save({"global_step": "7"}, tmp_path / "text.ckpt")
    found = _loaded(tmp_path)
    assert found.path == str(tmp_path / "c5")
    for name in ("junk", "empty", "unsafe", "no-step", "list", "text"):
        assert "refused" in _line(found, tmp_path / f"{name}.ckpt")


def test_an_unsafe_stock_file_is_used_on_request(tmp_path):
    torch.save({"global_step": 99, "optimizer_states": [], "x": tmp_path}, tmp_path / "unsafe.ckpt")
    assert _loaded(tmp_path, weights_only=False).step == 99


def test_a_stock_file_of_another_node_is_refused(tmp_path):
    (tmp_path / "rank-1").mkdir()
    torch.save({"global_step": 9, "optimizer_states": []}, tmp_path / "rank-1" / "a.ckpt")
    found = _loaded(tmp_path)
    assert found.path is None
    assert "belongs to rank-1" in _line(found, tmp_path / "rank-1" / "a.ckpt")


def test_a_file_inside_a_checkpoint_is_no_stock_file(tmp_path):
    _save(tmp_path / "c1", 1)
    torch.save({"global_step": 50, "optimizer_states": []}, tmp_path / "c1" / "extra.ckpt")
    assert _loaded(tmp_path).path == str(tmp_path / "c1")


def test_a_checkpoint_directory_with_the_suffix_of_stock_files_is_a_directory(tmp_path):
    _save(tmp_path / "epoch=0-step=4.ckpt", 4)
    assert _loaded(tmp_path).digest is not None


def test_weights_without_an_optimizer_are_no_place_to_go_on_from(tmp_path):
    BTCheckpointIO().save_checkpoint({"global_step": 9, "state_dict": {}}, tmp_path / "w")
    _save(tmp_path / "c1", 1)
    assert _loaded(tmp_path).path == str(tmp_path / "c1")
    assert _loaded(tmp_path, warm=True).path == str(tmp_path / "w")
