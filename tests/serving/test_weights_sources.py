"""`weights pull` from folders, checkpoints and a hub; what listings and folders may not do."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest
from weights_servers import FileServer, Hub, HubHandler, serving

from bt_lightning.errors import CheckpointCorruptError, CheckpointNotFoundError
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, verify
from bt_lightning.manifest import Manifest
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from bt_lightning.weights.weight_source import WeightFile, checked_files

KIB = 1024


@pytest.fixture
def folder(tmp_path):
    """A folder of weights, and its source."""
    place = tmp_path / "weights"
    (place / "sub").mkdir(parents=True)
    (place / "model.safetensors").write_bytes(b"w" * 5000)
    (place / "config.json").write_text("{}")
    (place / "sub" / "more.safetensors").write_bytes(b"m")
    return place


@pytest.fixture
def store(tmp_path):
    """A store with one checkpoint of the project `demo`."""
    store = LocalStore(tmp_path / "store")
    files = {"model.safetensors": b"w" * 9000, "sub/adapter.bin": b"a", "trainer.json": b"{}"}

    def describe(entries):
        return Manifest(
            checkpoint_id="checkpoint-1",
            generation=1,
            step=1,
            epoch=0,
            created_at="2030-01-01T00:00:00+00:00",
            files=entries,
        )

    root = tmp_path / "disk"
    pieces = {path: (lambda data=data: [data]) for path, data in files.items()}
    manifest = commit(root / "checkpoint-1", root, pieces, describe)
    publish(store, job_prefix("demo", "j", 0), LocalCheckpoint(root / "checkpoint-1", manifest))
    return store


def test_patterns_select_files_as_truss_documents_it(folder, config, pull):
    source = {"source": folder.as_uri(), "allow_patterns": ["*.safetensors", "*.json"]}
    deep = {"source": folder.as_uri(), "allow_patterns": ["**/*.safetensors"]}
    rest = {"source": folder.as_uri(), "ignore_patterns": ["*.safetensors"]}
    pull.inside(config(source, deep, rest))
    assert set(pull.files("0")) == {"model.safetensors", "config.json"}
    assert set(pull.files("1")) == {"model.safetensors", "sub/more.safetensors"}
    assert set(pull.files("2")) == {"config.json", "sub/more.safetensors"}
    blobs = [p for p in (pull.cache / "blobs").rglob("*") if p.is_file() and not p.suffix]
    assert len(blobs) == 3  # equal bytes are kept once
    same = {(pull.root / f"models/{n}/model.safetensors").stat().st_ino for n in (0, 1)}
    assert len(same) == 1
    none = {"source": folder.as_uri(), "allow_patterns": ["*.gguf"]}
    assert "named by these patterns" in pull.inside(config(none), code=10)


def test_links_to_files_are_read_and_links_to_folders_are_an_error(folder, config, pull):
    """The cache of huggingface_hub is made of links to files; a missed folder would be silent."""
    (folder / "linked.bin").symlink_to(folder / "config.json")
    pull.inside(config({"source": folder.as_uri()}))
    assert pull.files()["linked.bin"] == b"{}"
    assert not (pull.root / "models/0/linked.bin").is_symlink()
    (folder / "other").symlink_to(folder / "sub")
    assert "links to a folder" in pull.inside(config({"source": folder.as_uri()}), code=22)
    (folder / "other").unlink()
    os.mkfifo(folder / "pipe")
    assert "is no file" in pull.inside(config({"source": folder.as_uri()}), code=22)


def test_what_somebody_else_wrote_is_never_replaced_without_a_word(folder, config, pull):
    path = config({"source": folder.as_uri()})
    mount = pull.root / "models" / "0"
    mount.mkdir(parents=True)
    (mount / "mine").write_text("work")
    assert "--replace" in pull.inside(path, code=11)
    assert (mount / "mine").read_text() == "work"
    assert not list(pull.cache.rglob("known/*"))  # nothing was downloaded
    pull.inside(path, "--replace")
    assert set(pull.files()) == {"model.safetensors", "config.json", "sub/more.safetensors"}
    (mount / "mine").write_text("more work")
    (folder / "config.json").write_text('{"new": 1}')
    pull.inside(path, code=11)
    (mount / "mine").unlink()
    pull.inside(path)
    assert pull.files()["config.json"] == b'{"new": 1}'
    assert pull.leftovers() == []


def test_a_mounted_file_that_was_written_to_does_not_spoil_the_cache(folder, config, pull):
    path = config({"source": folder.as_uri()})
    pull.inside(path)
    mounted = pull.root / "models/0/model.safetensors"
    mounted.chmod(0o644)
    with mounted.open("r+b") as stream:
        stream.write(b"X")
    os.utime(mounted, ns=(1, 1))
    other = config({"source": folder.as_uri(), "mount_location": "/models/other"})
    pull.inside(other)
    assert pull.files("other")["model.safetensors"] == b"w" * 5000
    pull.inside(config({"source": folder.as_uri()}), code=11)
    pull.inside(config({"source": folder.as_uri()}), "--replace")
    assert pull.files()["model.safetensors"] == b"w" * 5000


def test_a_cache_on_another_volume_gives_copies(folder, config, pull, small_disk):
    pull.cache = small_disk(4 * KIB * KIB)
    pull.inside(config({"source": folder.as_uri()}))
    assert pull.files()["model.safetensors"] == b"w" * 5000
    assert (pull.root / "models/0/model.safetensors").stat().st_nlink == 1
    assert "there already" in pull.inside(config({"source": folder.as_uri()}))


def test_a_full_disk_is_an_error_that_says_so(folder, config, pull, small_disk):
    (folder / "model.safetensors").write_bytes(random.Random(1).randbytes(900 * KIB))
    path = config({"source": folder.as_uri()})
    own = pull.cache
    pull.cache = small_disk(600 * KIB)
    assert "do not fit" in pull.inside(path, code=27)
    pull.cache, pull.root = own, small_disk(600 * KIB)
    assert "do not fit" in pull.inside(path, code=27)
    assert [p for p in pull.root.rglob("*") if p.is_file()] == []


def test_all_files_of_a_checkpoint_are_one_again_and_some_are_not(store, config, pull):
    whole = {"source": "bt://demo@j/checkpoint-1"}
    some = {"source": "bt://demo", "ignore_patterns": ["trainer.json", MANIFEST]}
    said = pull.inside(config(whole, some), "--store", store.name)
    assert "bt://demo@j/checkpoint-1\n" in said
    assert "verified by xxh3_128 (4)" in said
    verify(pull.root / "models" / "0")
    assert set(pull.files("1")) == {"model.safetensors", "sub/adapter.bin"}


def test_a_damaged_checkpoint_is_not_mounted(store, config, pull):
    (damaged,) = Path(store.name.removeprefix("file://")).rglob("model.safetensors")
    data = bytearray(damaged.read_bytes())
    data[100] ^= 1
    damaged.write_bytes(data)
    path = config({"source": "bt://demo"})
    assert "model.safetensors" in pull.inside(path, "--store", store.name, code=12)
    assert not pull.root.exists()
    said = pull.inside(config({"source": "bt://demo@k"}), "--store", store.name, code=10)
    assert "of the job k of the project demo" in said


@pytest.fixture
def hub():
    with serving(Hub("owner/tiny", {"model.safetensors"}), HubHandler) as hub:
        hub.files = {
            "model.safetensors": random.Random(7).randbytes(300 * KIB),
            "config.json": b"{}",
            "sub/tokenizer.json": b'{"a": 1}',
        }
        yield hub


def hub_environment(hub):
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_OFFLINE": "0",  # other tests' processes may be
        "no_proxy": "*",
    }


def test_a_repository_comes_at_one_commit_compared_with_its_digests(hub, config, pull):
    pytest.importorskip("huggingface_hub")
    path = config({"source": "hf://owner/tiny@main", "ignore_patterns": ["config.json"]})
    said = pull(path, "-ojson", **hub_environment(hub))
    (told,) = json.loads(said)["weights"]
    assert told["source"] == f"hf://owner/tiny@{hub.commit}"
    assert told["verified"] == {"sha256": 1, "git": 1}
    assert pull.files() == {
        "model.safetensors": hub.files["model.safetensors"],
        "sub/tokenizer.json": b'{"a": 1}',
    }
    hub.seen.clear()
    hub.listed = dict(hub.files)
    hub.files["sub/tokenizer.json"] = b'{"a": 2}'
    other = config({"source": "hf://owner/tiny", "mount_location": "/models/other"})
    pull(other, **hub_environment(hub))
    assert [at for at, _ in hub.seen if at.endswith("model.safetensors")] == []
    assert pull.files("other")["sub/tokenizer.json"] == b'{"a": 1}'  # of the commit, from the cache


def test_a_file_of_a_repository_that_is_not_what_the_tree_says_is_refused(hub, config, pull):
    pytest.importorskip("huggingface_hub")
    hub.listed = dict(hub.files)
    hub.files["model.safetensors"] = hub.files["model.safetensors"][::-1]
    said = pull(config({"source": "hf://owner/tiny"}), code=12, **hub_environment(hub))
    assert "sha256" in said
    assert not pull.root.exists()


def test_a_gated_repository_needs_the_token_of_its_secret(hub, config, pull):
    pytest.importorskip("huggingface_hub")
    hub.token = "hf_s3cretOfTheTests"
    pull.secrets.mkdir()
    (pull.secrets / "hf_access_token").write_text(f"{hub.token}\n")
    auth = {"auth_method": "CUSTOM_SECRET", "auth_secret_name": "hf_access_token"}
    pull(config({"source": "hf://owner/tiny", "auth": auth}), **hub_environment(hub))
    assert pull.files()["config.json"] == b"{}"
    (pull.secrets / "hf_access_token").write_text("hf_wrongOfTheTests")
    path = config({"source": "hf://owner/tiny", "auth": auth})
    said = pull(path, code=22, **hub_environment(hub))
    assert "auth_secret_name" in said
    assert "OfTheTests" not in said


def test_the_token_of_a_hub_does_not_go_where_the_hub_redirects_to(hub, config, pull):
    pytest.importorskip("huggingface_hub")
    hub.token = "hf_s3cretOfTheTests"
    with serving(FileServer("http")) as other:
        other.files = {"/model.safetensors": hub.files["model.safetensors"]}
        hub.elsewhere = other.url
        source = {"source": "hf://owner/tiny", "auth_secret_name": "t"}
        pull(config(source), TRUSS_SECRET_t=hub.token, **hub_environment(hub))
        assert pull.files()["model.safetensors"] == hub.files["model.safetensors"]
        assert other.seen
        assert not any("authorization" in headers for _, headers in other.seen)


@pytest.mark.parametrize(
    "paths",
    [["../x"], ["/etc/x"], ["a/../../x"], ["a\0b"], ["a//b"], ["."], ["a", "a/b"], ["a", "a"]],
)
def test_a_listing_that_leaves_the_mount_or_names_a_place_twice_is_refused(paths):
    files = [WeightFile(path, 1, "") for path in [*paths, "good"]]
    with pytest.raises(CheckpointCorruptError):
        checked_files("hf://x", files, (), ())


def test_a_listing_has_bounds():
    files = [WeightFile(str(number), 1, "") for number in range(100_001)]
    with pytest.raises(CheckpointCorruptError, match="100,000"):
        checked_files("hf://x", files, (), ())
    with pytest.raises(CheckpointNotFoundError):
        checked_files("hf://x", files[:3], ("*.bin",), ())


def test_a_pull_that_is_killed_at_any_moment_leaves_the_old_mount_or_the_new(folder, config, pull):
    for number in range(60):
        (folder / f"{number}.json").write_text(str(number))
    path = config({"source": folder.as_uri()})
    pull.inside(path)
    states = [pull.files()]
    chance = random.Random(3)
    for _ in range(8):
        (folder / "version.json").write_text(str(chance.random()))
        with subprocess.Popen(
            pull.words(path), start_new_session=True, stdout=subprocess.DEVNULL
        ) as process:
            until = time.monotonic() + chance.random() * 0.8
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.001)
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        new = {**states[0], "version.json": (folder / "version.json").read_bytes()}
        assert pull.files() in (states[-1], new)
        pull.inside(path)
        assert pull.files() == new
        states.append(new)
    assert pull.leftovers() == []
