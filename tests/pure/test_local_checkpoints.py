"""What is committed is found, verified to the last bit, and deleted in one step."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError, FormatVersionError
from bt_lightning.localdir import list_and_verify_checkpoints
from bt_lightning.localdir.commit import commit, write_hint
from bt_lightning.localdir.list_and_verify_checkpoints import (
    check_sizes,
    list_committed,
    manifest_directories,
    read_manifest,
    verify,
)
from bt_lightning.localdir.removal_requests import (
    forget_removal,
    request_local_removal,
    requested_local_removals,
)
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import DOT_DIR, MANIFEST
from bt_lightning.removal_requester import Requester

relaxed = settings(deadline=None, database=None, max_examples=60)
FILES = {"model.safetensors": bytes(range(200)), "sub/state.bin": b"s" * 70, "empty": b""}


def make(root, name="checkpoint-1", step=1, generation=1, files=None):
    files = FILES if files is None else files

    def describe(entries):
        return Manifest(
            checkpoint_id=name,
            generation=generation,
            step=step,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    pieces = {path: (lambda data=data: [data]) for path, data in files.items()}
    return commit(root / name, root, pieces, describe)


# commit and verify


def test_a_committed_checkpoint_holds_the_bytes_and_verifies(tmp_path):
    manifest = make(tmp_path)
    final = tmp_path / "checkpoint-1"
    assert {path: (final / path).read_bytes() for path in FILES} == FILES
    assert verify(final) == read_manifest(final) == manifest
    assert (final / MANIFEST).read_bytes() == manifest.to_bytes()


def test_a_commit_leaves_no_temporary(tmp_path):
    make(tmp_path)
    assert [path.name for path in (tmp_path / DOT_DIR).rglob("*")] == ["tmp"]


@relaxed
@given(st.sampled_from(["model.safetensors", "sub/state.bin"]), st.data())
@example("model.safetensors", None)
def test_a_flipped_bit_anywhere_is_found_and_its_file_and_block_are_named(
    tmp_path_factory, path, data
):
    """The promise of the format: no bit of a checkpoint changes without being noticed."""
    root = tmp_path_factory.mktemp("flip")
    make(root)
    victim = root / "checkpoint-1" / path
    content = bytearray(victim.read_bytes())
    bit = data.draw(st.integers(0, 8 * len(content) - 1)) if data else 8 * len(content) - 1
    content[bit // 8] ^= 1 << bit % 8
    victim.write_bytes(content)
    with pytest.raises(CheckpointCorruptError) as caught:
        verify(root / "checkpoint-1")
    assert path in str(caught.value)
    assert "4 MiB blocks [0]" in str(caught.value)
    shutil.rmtree(root)


@relaxed
@given(st.integers(0, 400), st.sampled_from(["model.safetensors", "sub/state.bin", "empty"]))
@example(199, "model.safetensors")
@example(128, "model.safetensors")
def test_a_file_cut_or_grown_is_found_without_reading_and_named_with_its_sizes(
    tmp_path_factory, size, path
):
    root = tmp_path_factory.mktemp("cut")
    manifest = make(root)
    victim = root / "checkpoint-1" / path
    before = len(FILES[path])
    os.truncate(victim, size)
    if size == before:
        check_sizes(root / "checkpoint-1", manifest)
    else:
        for check in (verify, lambda place: check_sizes(place, manifest)):
            with pytest.raises(CheckpointCorruptError) as caught:
                check(root / "checkpoint-1")
            assert f"{path} has {size} bytes" in str(caught.value)
            assert str(before) in str(caught.value)
    shutil.rmtree(root)


@pytest.mark.parametrize("path", FILES)
def test_a_missing_file_is_named(tmp_path, path):
    make(tmp_path)
    (tmp_path / "checkpoint-1" / path).unlink()
    with pytest.raises(CheckpointCorruptError, match=f"{path} is missing"):
        verify(tmp_path / "checkpoint-1")


def test_a_folder_that_became_a_file_is_named_as_missing_content(tmp_path):
    make(tmp_path)
    shutil.rmtree(tmp_path / "checkpoint-1" / "sub")
    (tmp_path / "checkpoint-1" / "sub").write_text("x")
    with pytest.raises(CheckpointCorruptError, match=r"sub/state\.bin"):
        verify(tmp_path / "checkpoint-1")


def test_two_files_that_changed_places_are_found(tmp_path):
    make(tmp_path, files={"a": b"1" * 80, "b": b"2" * 80})
    final = tmp_path / "checkpoint-1"
    (final / "a").rename(final / "x")
    (final / "b").rename(final / "a")
    (final / "x").rename(final / "b")
    with pytest.raises(CheckpointCorruptError, match=r"bytes of a .*blocks \[0\]"):
        verify(final)


def test_a_file_that_the_manifest_does_not_name_is_no_damage(tmp_path):
    """People put notes beside weights."""
    make(tmp_path)
    (tmp_path / "checkpoint-1" / "notes.txt").write_text("good one")
    verify(tmp_path / "checkpoint-1")


def test_a_directory_without_a_manifest_is_not_a_checkpoint(tmp_path):
    make(tmp_path)
    (tmp_path / "checkpoint-1" / MANIFEST).unlink()
    for place in (tmp_path / "checkpoint-1", tmp_path / "nowhere", tmp_path / "file/x"):
        (tmp_path / "file").touch()
        with pytest.raises(CheckpointNotFoundError, match="no committed checkpoint"):
            verify(place)


def test_a_manifest_of_a_newer_format_is_not_called_missing(tmp_path):
    make(tmp_path)
    path = tmp_path / "checkpoint-1" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 4'))
    with pytest.raises(FormatVersionError):
        read_manifest(tmp_path / "checkpoint-1")


# list


def test_the_list_is_newest_first_by_number(tmp_path):
    for step in (9, 100, 20):
        make(tmp_path, f"run/checkpoint-{step}", step)
    found, refused, _ = list_committed(tmp_path)
    assert [one.manifest.step for one in found] == [100, 20, 9]
    assert found[0].path == tmp_path / "run/checkpoint-100"
    assert refused == []


def test_what_cannot_be_read_is_listed_apart_with_its_reason_and_hides_nothing(tmp_path):
    make(tmp_path, "good", 1)
    make(tmp_path, "bad", 2)
    (tmp_path / "bad" / MANIFEST).write_bytes(b"{")
    make(tmp_path, "newer", 3)
    path = tmp_path / "newer" / MANIFEST
    path.write_bytes(path.read_bytes().replace(b'"format_version": 1', b'"format_version": 9'))
    found, refused, _ = list_committed(tmp_path)
    assert [one.manifest.checkpoint_id for one in found] == ["good"]
    assert {(Path(one.place).name, "damaged" in one.reason) for one in refused} == {
        ("bad", True),
        ("newer", False),
    }


def test_a_manifest_that_is_a_directory_hides_nothing(tmp_path):
    make(tmp_path, "good", 1)
    (tmp_path / "odd" / MANIFEST).mkdir(parents=True)
    found, _, _ = list_committed(tmp_path)
    assert [one.manifest.checkpoint_id for one in found] == ["good"]


def test_temporaries_and_dot_folders_are_not_listed(tmp_path):
    make(tmp_path, "good", 1)
    for hidden in (".cache", f"{DOT_DIR}/tmp/x", "sub/.y"):
        shutil.copytree(tmp_path / "good", tmp_path / hidden)
    assert manifest_directories(tmp_path) == [tmp_path / "good"]


def test_a_link_to_a_checkpoint_is_not_listed_twice(tmp_path):
    make(tmp_path, "good", 1)
    (tmp_path / "last").symlink_to("good")
    assert manifest_directories(tmp_path) == [tmp_path / "good"]


def test_a_link_to_the_root_does_not_make_the_walk_endless(tmp_path):
    make(tmp_path, "good", 1)
    (tmp_path / "loop").symlink_to(tmp_path)
    assert manifest_directories(tmp_path) == [tmp_path / "good"]


def test_the_root_itself_may_be_the_checkpoint(tmp_path):
    make(tmp_path, "good", 1)
    assert manifest_directories(tmp_path / "good") == [tmp_path / "good"]


def test_a_root_that_does_not_exist_holds_nothing(tmp_path):
    assert list_committed(tmp_path / "nowhere") == ([], [], [])


# requests


def test_a_removal_request_outlives_its_process_and_goes_when_it_is_done(tmp_path):
    assert requested_local_removals(tmp_path).keys() == frozenset()
    one, other = uuid.uuid4().hex, uuid.uuid4().hex
    for digest_ in (one, other, one):
        request_local_removal(tmp_path, digest_)
    assert requested_local_removals(tmp_path).keys() == {one, other}
    forget_removal(tmp_path, one)
    forget_removal(tmp_path, one)
    assert requested_local_removals(tmp_path).keys() == {other}


def test_a_request_says_who_asked_and_a_persons_stays_a_persons(tmp_path):
    """A request of the training is empty, as all of them were: it needs no room on a full disk."""
    training, person, both = (f"{number:032}" for number in range(3))
    folder = tmp_path / DOT_DIR / "remove"
    request_local_removal(tmp_path, training)
    request_local_removal(tmp_path, person, Requester.PERSON)
    request_local_removal(tmp_path, both)
    request_local_removal(tmp_path, both, Requester.PERSON)
    request_local_removal(tmp_path, both)
    assert (folder / training).read_bytes() == b""
    assert (folder / person).read_bytes() == b'{"by": "person"}\n'
    (folder / ("3" * 32)).write_bytes(b'{"by": "a later version"}\n')
    (folder / ("4" * 32)).write_bytes(b"\x00" * 10)
    (folder / ("5" * 32)).mkdir()
    os.mkfifo(folder / ("6" * 32))
    (folder / ("7" * 32)).symlink_to(folder / person)
    found = requested_local_removals(tmp_path)
    assert {one for one, by in found.items() if by is Requester.PERSON} >= {person, both}
    assert len(found) == 8
    assert all(found[number * 32] is Requester.TRAINING for number in "3456")


def test_the_hint_names_the_newest_and_is_replaced_whole(tmp_path):
    make(tmp_path, 'odd "name"\n'.strip(), 1)
    for step in (1, 2):
        write_hint(tmp_path, f'checkpoint "{step}"', step)
    import json

    hint = json.loads((tmp_path / DOT_DIR / "latest.json").read_text())
    assert hint == {"checkpoint": 'checkpoint "2"', "step": 2}
    assert [p.name for p in (tmp_path / DOT_DIR).iterdir() if p.is_file()] == ["latest.json"]


def test_a_checkpoint_deleted_during_the_walk_is_left_out(tmp_path, monkeypatch):
    """Another process may delete between the walk and the read: no reason to fail a listing."""
    for step in (1, 2):
        make(tmp_path, f"checkpoint-{step}", step)
    find = list_and_verify_checkpoints.manifest_directories

    def find_and_delete(*args):
        found = find(*args)
        shutil.rmtree(tmp_path / "checkpoint-1")
        return found

    monkeypatch.setattr(list_and_verify_checkpoints, "manifest_directories", find_and_delete)
    found, refused, _ = list_committed(tmp_path)
    assert [one.manifest.step for one in found] == [2]
    assert refused == []


def test_a_checkpoint_that_is_deleted_while_it_is_verified_is_not_there(tmp_path, monkeypatch):
    """Retention of a live run may take it: that is no damage, and no bare FileNotFoundError."""
    make(tmp_path)
    path = tmp_path / "checkpoint-1"
    digest_file = list_and_verify_checkpoints.digest_file

    def deleted_before(file, name, block_bytes):
        shutil.rmtree(path)
        return digest_file(file, name, block_bytes)

    monkeypatch.setattr(list_and_verify_checkpoints, "digest_file", deleted_before)
    with pytest.raises(CheckpointNotFoundError, match="deleted while it was read"):
        verify(path)
