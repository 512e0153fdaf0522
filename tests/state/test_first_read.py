"""What a run starts from is verified by the read that restores it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from bt_lightning import BTCheckpointIO, CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.digest import digest_file
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.path_layout import MANIFEST, STATE, TREE, WEIGHTS
from bt_lightning.restore.first_read import FirstRead
from bt_lightning.restore.load_checkpoint import load_directory
from bt_lightning.store.transfer.direct_reads import is_cached
from tests.sharding.sharded_checkpoints import by_rows, write_sharded

ITEMS = 4 * 1024 * 1024


@pytest.fixture
def saved(place: Path) -> dict[str, Any]:
    state = {
        "state_dict": {"w": torch.arange(float(ITEMS)), "tied": torch.ones(3)},
        "optimizer_states": [{"state": {0: {"m": torch.full((ITEMS,), 2.0)}}}],
        "note": "here",
    }
    BTCheckpointIO().save_checkpoint(state, place)
    return state


def read_bytes() -> int:
    """What this process has read by system calls."""
    lines = Path("/proc/self/io").read_text("ascii").splitlines()
    return int(dict(line.split(": ") for line in lines)["rchar"])


def keeping() -> FirstRead:
    first = FirstRead()
    first.keeps = True
    return first


def load(place: Path, first: FirstRead | None) -> dict[str, Any]:
    io = BTCheckpointIO()
    io.first_read = first
    return io.load_checkpoint(place)


def equal(found: dict[str, Any], state: dict[str, Any]) -> bool:
    one, other = found["optimizer_states"][0]["state"], state["optimizer_states"][0]["state"]
    weights = zip(found["state_dict"].values(), state["state_dict"].values(), strict=True)
    return (
        all(torch.equal(*pair) for pair in weights)
        and torch.equal(one[0]["m"], other[0]["m"])
        and found["note"] == state["note"]
    )


def test_the_load_behind_it_reads_no_tensor(place: Path, saved: Any) -> None:
    size, first = read_manifest(place).size, keeping()
    before = read_bytes()
    first.verify(place)
    verified = read_bytes() - before
    found = load(place, first)
    assert equal(found, saved)
    assert read_bytes() - before - verified < size // 10
    assert size <= verified < 1.1 * size


def test_what_is_kept_is_taken_once_and_by_its_digest(place: Path, saved: Any) -> None:
    first, manifest = keeping(), read_manifest(place)
    first.verify(place)
    other = place.with_name("other")
    BTCheckpointIO().save_checkpoint({**saved, "state_dict": {"w": torch.zeros(2)}}, other)
    assert first.take(read_manifest(other)) is None
    tensors = first.take(manifest)
    assert tensors is not None
    assert first.take(manifest) is None
    assert equal(load(place, first), saved), "it is read again"


def test_what_was_replaced_behind_it_is_read_as_it_is(place: Path, saved: Any) -> None:
    first = keeping()
    first.verify(place)
    other = {**saved, "state_dict": {"w": torch.zeros(ITEMS), "tied": torch.zeros(3)}}
    BTCheckpointIO().save_checkpoint(other, place)
    assert equal(load(place, first), other)


def test_nothing_is_kept_unless_it_is_asked_for_nor_after_the_end(place: Path, saved: Any) -> None:
    first, manifest = FirstRead(), read_manifest(place)
    first.verify(place)
    assert first.take(manifest) is None
    first.keeps = True
    first.verify(place)
    first.clear()
    assert first.take(manifest) is None


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize("name", [WEIGHTS, STATE, TREE])
def test_damage_is_found_wherever_it_is(place: Path, saved: Any, name: str, keeps: bool) -> None:
    if not (place / name).exists():
        pytest.skip("no such file")
    data = bytearray((place / name).read_bytes())
    data[len(data) // 2] ^= 1
    (place / name).write_bytes(data)
    first = FirstRead()
    first.keeps = keeps
    with pytest.raises(CheckpointCorruptError, match=name):
        first.verify(place)
    assert first.take(read_manifest(place)) is None
    (place / name).unlink()
    with pytest.raises(CheckpointCorruptError, match="missing"):
        first.verify(place)


def test_a_header_that_no_load_could_read_is_damage(place: Path, saved: Any) -> None:
    (place / WEIGHTS).write_bytes((9).to_bytes(8, "little") + b"no header")
    manifest = read_manifest(place)
    files = tuple(digest_file(place / one.path, one.path) for one in manifest.files)
    (place / MANIFEST).write_bytes(replace(manifest, files=files).to_bytes())
    with pytest.raises(CheckpointCorruptError, match=WEIGHTS):
        keeping().verify(place)


def test_nothing_there_is_no_damage(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        keeping().verify(tmp_path / "none")


def test_a_folder_that_nothing_verifies_is_no_start_point(tmp_path: Path, saved: Any) -> None:
    with pytest.warns(UserWarning, match="torch.distributed is"):
        dcp.save(saved["state_dict"], checkpoint_id=tmp_path / "stock")
    with pytest.raises(CheckpointNotFoundError):
        keeping().verify(tmp_path / "stock")


def test_shards_are_verified_and_not_kept(tmp_path: Path) -> None:
    state = {"state_dict": {"w": torch.arange(64.0).reshape(8, 8)}, "global_step": 1}
    write_sharded(tmp_path, "c", state, layout_of=by_rows(4), world_size=4)
    first = keeping()
    first.verify(tmp_path / "c")
    assert first.take(read_manifest(tmp_path / "c")) is None
    (file, *_) = sorted(tmp_path.glob("c/*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"\xff")
    with pytest.raises(CheckpointCorruptError, match=file.name):
        first.verify(tmp_path / "c")


def test_without_memory_for_the_tensors_it_verifies_all_the_same(
    place: Path, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise MemoryError

    first = keeping()
    with monkeypatch.context() as patched:
        patched.setattr("bt_lightning.restore.first_read.tensors_of_tree", refuse)
        first.verify(place)
        assert first.take(read_manifest(place)) is None
        data = bytearray((place / WEIGHTS).read_bytes())
        data[-1] ^= 1
        (place / WEIGHTS).write_bytes(data)
        with pytest.raises(CheckpointCorruptError, match=WEIGHTS):
            first.verify(place)


def test_a_public_load_is_as_before(place: Path, saved: Any) -> None:
    assert equal(load_directory(place), saved)


def is_in_cache(place: Path) -> bool:
    with (place / WEIGHTS).open("rb+") as file:
        return is_cached(file.fileno(), 0, ITEMS)


def forget(place: Path) -> None:
    """Let the page cache go."""
    for file in place.iterdir():
        with file.open("rb+") as stream:
            os.fdatasync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def test_what_others_read_next_is_left_in_the_page_cache(
    place: Path, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each of eight ranks on a machine would read the disk."""
    forget(place)
    keeping().verify(place)
    if is_in_cache(place):
        pytest.skip("this file system is read through the page cache")
    FirstRead().verify(place)
    assert is_in_cache(place)
    forget(place)
    assert not is_in_cache(place)
    monkeypatch.setattr("bt_lightning.restore.first_read.others_read_too", lambda: True)
    keeping().verify(place)
    assert is_in_cache(place)


def test_ranks_that_load_the_same_files_share_the_page_cache(
    place: Path, saved: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(place)
    load(place, None)
    if is_in_cache(place):
        pytest.skip("this file system is read through the page cache")
    monkeypatch.setattr("bt_lightning.lightning_plugin.checkpoint_io.others_read_too", lambda: True)
    load(place, None)
    assert is_in_cache(place)


def test_shards_that_were_verified_are_left_for_the_load(tmp_path: Path) -> None:
    """Nothing of them is kept, so they are read again."""
    state = {"state_dict": {"w": torch.rand(4096, 1024)}, "global_step": 1}
    write_sharded(tmp_path, "c", state, layout_of=by_rows(2), world_size=2)
    shard = min(tmp_path.glob("c/*.safetensors"))
    forget(tmp_path / "c")
    keeping().verify(tmp_path / "c")
    with shard.open("rb+") as file:
        assert is_cached(file.fileno(), 0, 4 * 1024 * 1024)
