"""Paths, URLs, stock files, and saving over what is there."""

from __future__ import annotations

import functools
import http.server
import json
import pickle
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import fsspec
import pytest
import torch
from state_tools import Foreign, same

from bt_lightning import (
    BTCheckpointIO,
    CheckpointCorruptError,
    CheckpointError,
    CheckpointNotFoundError,
    InvalidSettingError,
    UnsupportedStateError,
)
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import DOT_DIR, MANIFEST, TREE, WEIGHTS

STATE = {"global_step": 3, "state_dict": {"w": torch.arange(4.0)}, "path": (1, None)}
OTHER = {"global_step": 4, "state_dict": {"w": torch.zeros(9)}, "extra": "new"}


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """An empty store in memory, and a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)
    files = fsspec.filesystem("memory")
    files.store.clear()
    files.pseudo_dirs[:] = [""]
    yield files
    files.store.clear()
    files.pseudo_dirs[:] = [""]


def _generation(place):
    return json.loads((place / MANIFEST).read_bytes())["generation"]


# --- stock files ---


@pytest.mark.parametrize("kind", [str, Path, lambda p: f"file://{p}"])
def test_a_stock_file_is_loaded(kind, tmp_path):
    file = tmp_path / "a.ckpt"
    torch.save(STATE, file)
    same(STATE, BTCheckpointIO().load_checkpoint(kind(file)))


@pytest.mark.parametrize("weights_only", [None, True])
def test_a_stock_file_with_a_class_is_refused_unless_asked_for(weights_only, tmp_path):
    torch.save({"path": Path("/a"), "w": torch.ones(1)}, tmp_path / "a.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        BTCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=weights_only)
    back = BTCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", weights_only=False)
    assert back["path"] == Path("/a")


def test_a_class_that_torch_was_told_of_is_loaded_from_a_stock_file(tmp_path, safe_globals):
    torch.save({"x": Foreign(2)}, tmp_path / "a.ckpt")
    safe_globals([Foreign])
    assert BTCheckpointIO().load_checkpoint(tmp_path / "a.ckpt")["x"] == Foreign(2)


@pytest.mark.parametrize("location", ["meta", torch.device("meta"), {"cpu": "meta"}])
def test_a_stock_file_is_loaded_to_where_it_is_sent(location, tmp_path):
    torch.save(STATE, tmp_path / "a.ckpt")
    back = BTCheckpointIO().load_checkpoint(tmp_path / "a.ckpt", map_location=location)
    assert back["state_dict"]["w"].is_meta


def test_a_stock_file_is_removed(tmp_path):
    torch.save(STATE, tmp_path / "a.ckpt")
    BTCheckpointIO().remove_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_takes_the_place_of_a_stock_file(tmp_path):
    torch.save(OTHER, tmp_path / "a.ckpt")
    BTCheckpointIO().save_checkpoint(STATE, tmp_path / "a.ckpt")
    same(STATE, BTCheckpointIO().load_checkpoint(tmp_path / "a.ckpt"))


# --- local paths ---


@pytest.mark.parametrize(
    "kind", [str, Path, lambda p: f"{p}/", lambda p: f"file://{p}", lambda p: f"local://{p}"]
)
def test_a_local_path_is_written_in_any_form(kind, place):
    io = BTCheckpointIO()
    io.save_checkpoint(STATE, kind(place))
    assert verify(place).step == 3
    same(STATE, io.load_checkpoint(kind(place)))
    io.remove_checkpoint(kind(place))
    assert list(place.parent.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["epoch=0-step=1.ckpt", "a b", "ü", "a@2", "100%", "#1", "[x]", "x" * 200]
)
def test_names_as_lightning_makes_them_can_be_used(name, tmp_path):
    io = BTCheckpointIO()
    for form in (str(tmp_path / name), f"file://{tmp_path / name}"):
        io.save_checkpoint(STATE, form)
        same(STATE, io.load_checkpoint(form))


def test_folders_on_the_way_are_made(tmp_path):
    BTCheckpointIO().save_checkpoint(STATE, tmp_path / "a" / "b" / "c")
    same(STATE, BTCheckpointIO().load_checkpoint(tmp_path / "a" / "b" / "c"))


def test_a_relative_path_is_one_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    BTCheckpointIO().save_checkpoint(STATE, "run/one")
    assert verify(tmp_path / "run" / "one")


def test_storage_options_of_a_local_path_are_refused(place):
    with pytest.raises(TypeError, match="storage_options"):
        BTCheckpointIO().save_checkpoint(STATE, place, storage_options={"a": 1})
    assert not place.exists()


def test_a_hidden_name_is_refused(tmp_path):
    with pytest.raises(InvalidSettingError, match="hidden"):
        BTCheckpointIO().save_checkpoint(STATE, tmp_path / ".hidden")


def test_a_link_to_a_checkpoint_is_loaded_and_removed_as_a_link(place, tmp_path):
    """`save_last="link"` of `ModelCheckpoint` makes one."""
    io = BTCheckpointIO()
    io.save_checkpoint(STATE, place)
    link = tmp_path / "last"
    link.symlink_to(place)
    same(STATE, io.load_checkpoint(link))
    io.remove_checkpoint(link)
    assert not link.is_symlink()
    assert verify(place)


def test_removing_what_is_not_there_is_no_error(tmp_path):
    BTCheckpointIO().remove_checkpoint(tmp_path / "nothing")
    assert list(tmp_path.iterdir()) == []


# --- saving in place ---


def test_saving_to_the_same_path_makes_the_next_generation(place):
    io = BTCheckpointIO()
    for count in (1, 2, 3):
        io.save_checkpoint(STATE if count % 2 else OTHER, place)
        assert _generation(place) == count
    same(STATE, io.load_checkpoint(place))
    assert list(place.parent.iterdir()) == [place]


def test_nothing_of_the_old_content_is_left(place):
    io = BTCheckpointIO()
    io.save_checkpoint({"x": torch.ones(3), **STATE}, place)
    io.save_checkpoint({"a": 1}, place)
    assert {path.name for path in place.iterdir()} == {MANIFEST, TREE}


@pytest.mark.parametrize("failing", [WEIGHTS, TREE, MANIFEST])
def test_a_save_that_fails_leaves_the_old_content_whole(failing, place, monkeypatch):
    from bt_lightning.localdir import commit as module

    io = BTCheckpointIO()
    io.save_checkpoint(STATE, place)
    real = module.write_file

    def refuse(file, path, pieces):
        if path == failing:
            raise OSError(28, "No space left on device")
        return real(file, path, pieces)

    monkeypatch.setattr(module, "write_file", refuse)
    with pytest.raises(OSError, match="No space left"):
        io.save_checkpoint(OTHER, place)
    same(STATE, io.load_checkpoint(place))
    assert verify(place).generation == 1
    dot = place.parent / DOT_DIR
    assert not [path for path in dot.rglob("*") if path.is_file()] if dot.exists() else True


def test_a_state_that_is_refused_leaves_the_old_content_whole(place):
    io = BTCheckpointIO()
    io.save_checkpoint(STATE, place)
    with pytest.raises(UnsupportedStateError):
        io.save_checkpoint({"lock": threading.Lock()}, place)
    same(STATE, io.load_checkpoint(place))


@pytest.mark.parametrize("name", ["read_tree", "tensors_of_tree"])
def test_a_load_during_a_save_gets_one_of_the_two_whole_or_none(name, place, monkeypatch):
    """The save happens in the middle of the load: parts of both must never come back as one."""
    from bt_lightning.restore import load_checkpoint as module

    io = BTCheckpointIO()
    io.save_checkpoint(STATE, place)
    real = getattr(module, name)
    saves = iter([OTHER])

    def with_a_save(*args, **kwargs):
        for state in saves:
            io.save_checkpoint(state, place)
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, with_a_save)
    try:
        back = io.load_checkpoint(place)
    except (CheckpointCorruptError, CheckpointNotFoundError):
        back = STATE
    same(OTHER if "extra" in back else STATE, back)
    monkeypatch.undo()
    same(OTHER, io.load_checkpoint(place))


def test_a_save_where_two_names_cannot_be_exchanged_works_as_well(place, monkeypatch):
    """On NFS and old kernels renameat2 has no RENAME_EXCHANGE."""
    from bt_lightning.localdir import rename_noreplace

    monkeypatch.setattr(rename_noreplace, "renameat2", lambda *_: False)
    io = BTCheckpointIO()
    io.save_checkpoint(STATE, place)
    io.save_checkpoint(OTHER, place)
    assert _generation(place) == 2
    same(OTHER, io.load_checkpoint(place))
    assert list(place.parent.iterdir()) == [place]


# --- URLs ---


def test_a_checkpoint_goes_to_a_url_and_comes_back(memory):
    io = BTCheckpointIO()
    url = "memory://bucket/run/one"
    io.save_checkpoint(STATE, url)
    assert "/bucket/run/one/" + MANIFEST in memory.store
    same(STATE, io.load_checkpoint(url))
    same(STATE, io.load_checkpoint(url + "/"))
    io.remove_checkpoint(url)
    assert memory.find("/bucket") == []
    with pytest.raises(CheckpointNotFoundError):
        io.load_checkpoint(url)


def test_saving_to_the_same_url_replaces_what_is_there(memory):
    io = BTCheckpointIO()
    for state in (STATE, OTHER, STATE):
        io.save_checkpoint(state, "memory://bucket/one")
        same(state, io.load_checkpoint("memory://bucket/one"))
    assert len([path for path in memory.find("/bucket") if path.endswith(MANIFEST)]) == 1
    io.remove_checkpoint("memory://bucket/one")
    assert memory.find("/bucket") == []


def test_names_that_look_like_generations_do_not_replace_each_other(memory):
    """In a store, generation 3 of `model` lies in the folder `model@3`, which is a name as well."""
    io = BTCheckpointIO()
    io.save_checkpoint(STATE, "memory://bucket/model@3")
    io.save_checkpoint(OTHER, "memory://bucket/model")
    same(STATE, io.load_checkpoint("memory://bucket/model@3"))
    same(OTHER, io.load_checkpoint("memory://bucket/model"))
    io.remove_checkpoint("memory://bucket/model")
    same(STATE, io.load_checkpoint("memory://bucket/model@3"))


def test_a_name_is_not_found_by_another_that_looks_like_its_generation(memory):
    BTCheckpointIO().save_checkpoint(STATE, "memory://bucket/model@3")
    with pytest.raises(CheckpointError):
        BTCheckpointIO().load_checkpoint("memory://bucket/model")


@pytest.mark.parametrize("url", ["memory://one", "memory:///one"])
def test_a_url_of_one_part_is_not_taken_for_a_local_path(url, memory, tmp_path):
    """It has no parent: cut at its last slash it would be the relative path `memory:/`."""
    io = BTCheckpointIO()
    try:
        io.save_checkpoint(STATE, url)
        same(STATE, io.load_checkpoint(url))
        io.remove_checkpoint(url)
    except InvalidSettingError:
        pass
    assert list(tmp_path.iterdir()) == [], "it was written to the working directory"


def test_a_stock_file_at_a_url_is_loaded(memory):
    with memory.open("/bucket/a.ckpt", "wb") as file:
        torch.save(STATE, file)
    same(STATE, BTCheckpointIO().load_checkpoint("memory://bucket/a.ckpt"))


def test_a_stock_file_at_a_url_is_removed(memory):
    with memory.open("/bucket/a.ckpt", "wb") as file:
        torch.save(STATE, file)
    BTCheckpointIO().remove_checkpoint("memory://bucket/a.ckpt")
    assert memory.find("/bucket") == []


def test_a_url_with_nothing_there_is_said_to_be_empty(memory):
    with pytest.raises(CheckpointNotFoundError, match="bucket/none"):
        BTCheckpointIO().load_checkpoint("memory://bucket/none")


def test_damage_in_a_store_is_seen_and_the_place_named(memory):
    BTCheckpointIO().save_checkpoint(STATE, "memory://bucket/one")
    path = f"/bucket/one/{WEIGHTS}"
    data = bytearray(memory.cat_file(path))
    data[-1] ^= 1
    memory.pipe_file(path, bytes(data))
    with pytest.raises(CheckpointCorruptError, match=f"bucket/one .*{WEIGHTS}"):
        BTCheckpointIO().load_checkpoint("memory://bucket/one")


def test_an_unknown_scheme_is_refused_as_a_setting(memory):
    with pytest.raises(InvalidSettingError, match="nosuch"):
        BTCheckpointIO().save_checkpoint(STATE, "nosuch://bucket/one")


@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
@pytest.mark.parametrize("listing", [403, 404])
def test_a_stock_file_is_loaded_from_a_web_server_that_lists_nothing(listing, tmp_path):
    """Most web servers refuse to list a folder; the file itself is what was asked for."""
    torch.save(STATE, tmp_path / "a.ckpt")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def list_directory(self, path):
            self.send_error(listing)

        def log_message(self, *args):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}/a.ckpt"
            same(STATE, BTCheckpointIO().load_checkpoint(url))
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.thorough
def test_a_checkpoint_goes_to_s3_and_comes_back():
    """In a process of its own, as the server leaves threads behind."""
    pytest.importorskip("moto.server")
    script = """
        import os, urllib.request
        import torch
        from moto.server import ThreadedMotoServer
        from bt_lightning import BTCheckpointIO, CheckpointError

        server = ThreadedMotoServer(port=0, verbose=False)
        server.start()
        url = "http://{}:{}".format(*server.get_host_and_port())
        os.environ.update(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
        os.environ.update(AWS_ENDPOINT_URL=url, AWS_DEFAULT_REGION="us-east-1")
        urllib.request.urlopen(urllib.request.Request(f"{url}/bucket", method="PUT")).close()
        io = BTCheckpointIO()
        for count in (1, 2):
            io.save_checkpoint({"w": torch.full((3,), count)}, "s3://bucket/run/one")
            assert io.load_checkpoint("s3://bucket/run/one")["w"].tolist() == [count] * 3
        io.remove_checkpoint("s3://bucket/run/one")
        try:
            io.load_checkpoint("s3://bucket/run/one")
        except CheckpointError:
            print("done")
        server.stop()
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, check=False, timeout=100, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr
