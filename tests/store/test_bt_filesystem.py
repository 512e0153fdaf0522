"""bt:// over a folder and over S3: what is seen, what is read, and what is never given."""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import threading

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning.errors import (
    CheckpointCorruptError,
    CheckpointNotFoundError,
    InvalidSettingError,
    ReadOnlyError,
    StorePermanentError,
    StoreTransientError,
)
from bt_lightning.file_entries import BLOCK_BYTES
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.store.catalog.bt_filesystem import BTFileSystem
from bt_lightning.store.catalog.projects import list_jobs, list_projects, view_job
from bt_lightning.store.open_store import open_store
from bt_lightning.store.transfer.unpublish import unpublish

pytestmark = pytest.mark.usefixtures("bt_known")
JOB1 = job_prefix("demo", "job1", 0)


@pytest.fixture(params=["folder", "s3"])
def place(request, tmp_path):
    """URL and options of an empty store."""
    if request.param == "folder":
        return str(tmp_path / "store"), {}
    s3 = request.getfixturevalue("s3")
    return request.getfixturevalue("s3_url"), s3.options


@pytest.fixture
def store(place):
    return open_store(*place)


@pytest.fixture
def look(place):
    """A function that gives a new filesystem, which looks at the store anew."""
    return lambda: BTFileSystem(store=place[0], storage_options=place[1])


@pytest.fixture
def folder(tmp_path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def fresh(tmp_path):
    return lambda: BTFileSystem(store=str(tmp_path / "store"))


def spoil(root, key, at=None):
    """Change one byte of an object of a folder store."""
    path = root / "store" / key
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.unlink()
    path.write_bytes(data)


# what is there


def test_the_tree_is_jobs_then_checkpoints_then_files(store, look, published):
    published(store, "job1", "checkpoint-9", 9)
    published(store, "job1", "checkpoint-10", 10)
    published(store, "job2", "a/checkpoint-7", 7, project="my team/qwen 0.6b")
    fs = look()
    assert fs.ls("", detail=False) == ["demo@job1", "my-team-qwen-0.6b@job2"]
    assert fs.ls("bt://demo@job1", detail=False) == [
        "demo@job1/checkpoint-10",
        "demo@job1/checkpoint-9",
    ]
    assert fs.ls("my-team-qwen-0.6b", detail=False) == ["my-team-qwen-0.6b/a"]
    assert fs.ls("my-team-qwen-0.6b@job2/a", detail=False) == [
        "my-team-qwen-0.6b@job2/a/checkpoint-7"
    ]
    files = fs.ls("demo@job1/checkpoint-9")
    assert [(item["name"], item["type"], item["size"]) for item in files[:1] + files[2:]] == [
        ("demo@job1/checkpoint-9/sub", "directory", 0),
        ("demo@job1/checkpoint-9/model.safetensors", "file", 300),
    ]
    assert fs.ls("demo@job1/checkpoint-9/sub", detail=False) == [
        "demo@job1/checkpoint-9/sub/state.bin"
    ]
    assert fs.ls("demo@job1/checkpoint-9/sub/state.bin")[0]["size"] == 1
    assert fs.cat("bt://demo@job1/checkpoint-9/sub/state.bin") == b"s"


def test_projects_jobs_and_checkpoints_are_listed_by_what_is_committed(store, published):
    published(store, "job1", "checkpoint-1", 1)
    published(store, "job2", "checkpoint-2", 2)
    published(store, "job3", project="other")
    store.put(f"{job_prefix('empty', 'job9', 0)}/checkpoint-1/model.safetensors", b"half")
    assert list_projects(store) == ["demo", "other"]
    assert list_jobs(store, "demo") == ["job1", "job2"]
    assert [c.checkpoint_id for c in view_job(store, "demo", "job1").checkpoints()] == [
        "checkpoint-1"
    ]


def test_a_name_before_a_prefix_of_another_is_not_taken_for_it(store, look, published):
    published(store, "job1", "checkpoint-1")
    published(store, "job10", "checkpoint-10", project="demo2")
    fs = look()
    assert not fs.exists("dem")
    assert not fs.exists("demo@job")
    assert not fs.exists("demo@job1/checkpoint")
    assert not fs.exists("demo@job10")
    assert not fs.exists("demo@job1/checkpoint-10")


def test_find_glob_walk_and_du_see_the_same(store, look, published):
    published(store, "job1", "checkpoint-1")
    published(store, "job1", "checkpoint-2", 2)
    fs = look()
    files = fs.find("bt://demo@job1")
    assert len(files) == 6
    assert fs.glob("bt://demo@job1/checkpoint-*/model.safetensors") == [
        "demo@job1/checkpoint-1/model.safetensors",
        "demo@job1/checkpoint-2/model.safetensors",
    ]
    assert fs.glob("bt://*@job1/*/sub/*.bin") == [
        "demo@job1/checkpoint-1/sub/state.bin",
        "demo@job1/checkpoint-2/sub/state.bin",
    ]
    walked = [f"{at}/{name}" for at, _, names in fs.walk("demo@job1") for name in names]
    assert sorted(walked) == files
    assert fs.du("demo@job1/checkpoint-1/sub") == 1


def test_a_folder_without_a_manifest_is_nowhere(store, look, published):
    published(store, "job1", "checkpoint-1")
    store.put(f"{JOB1}/checkpoint-2/model.safetensors", b"w" * 300)
    store.put(f"{JOB1}/checkpoint-2/bt_publishing.json", b"{}\n")
    store.put(f"{JOB1}/checkpoint-2/.{MANIFEST}.part", b"{}\n")
    fs = look()
    assert fs.ls("demo@job1", detail=False) == ["demo@job1/checkpoint-1"]
    assert not fs.exists("demo@job1/checkpoint-2")
    assert not fs.exists("demo@job1/checkpoint-2/model.safetensors")
    assert not [name for name in fs.find("") if "checkpoint-2" in name]
    with pytest.raises(CheckpointNotFoundError, match=r"it has checkpoint-1"):
        fs.info("demo@job1/checkpoint-2/model.safetensors")


def test_what_a_manifest_does_not_name_is_not_offered(folder, fresh, published):
    published(folder)
    folder.put(f"{JOB1}/checkpoint-1/extra.bin", b"x")
    assert not fresh().exists("demo@job1/checkpoint-1/extra.bin")


# latest


def test_latest_goes_by_number_not_by_text_or_order_of_arrival(folder, fresh, published):
    published(folder, "job1", "checkpoint-100", 100, files={"f": b"hundred"})
    published(folder, "job1", "checkpoint-20", 20, files={"f": b"twenty"})
    published(folder, "job1", "checkpoint-9", 9, files={"f": b"nine"})
    assert fresh().cat("bt://demo@job1/f") == b"hundred"


def test_of_equal_steps_the_later_generation_is_latest(folder, fresh, published):
    published(folder, "job1", "z-first", 5, files={"f": b"first"})
    published(folder, "job1", "a-second", 5, generation=2, files={"f": b"second"})
    assert fresh().cat("bt://demo/f") == b"second"


def test_latest_job_is_the_one_that_began_last_whatever_its_step(folder, fresh, published):
    published(folder, "zz-old", "checkpoint-900", 900, created="2030-01-01", files={"f": b"old"})
    published(folder, "new", "checkpoint-3", 3, created="2030-01-05", files={"f": b"new"})
    published(folder, "zz-old", "checkpoint-950", 950, created="2030-01-09", files={"f": b"old"})
    fs = fresh()
    assert fs.cat("bt://demo/f") == b"new"
    assert fs.cat("bt://demo@latest/f") == b"new"
    assert fs.cat("bt://demo@zz-old/f") == b"old"
    assert fs.ls("bt://demo", detail=False) == ["demo/checkpoint-3"]


def test_a_damaged_manifest_is_not_latest_and_is_named(folder, fresh, published, tmp_path, caplog):
    published(folder, "job1", "checkpoint-1", 1, files={"f": b"whole"})
    published(folder, "job1", "checkpoint-2", 2, files={"f": b"spoilt"})
    spoil(tmp_path, f"{JOB1}/checkpoint-2/{MANIFEST}")
    fs = fresh()
    assert fs.cat("bt://demo/f") == b"whole"
    assert "left out: the manifest" in caplog.text
    with pytest.raises(CheckpointCorruptError, match="checkpoint-2"):
        fs.cat("bt://demo/checkpoint-2/f")
    with pytest.raises(CheckpointCorruptError):
        fs.find("bt://demo")


def test_a_checkpoint_is_meant_before_a_file_of_the_latest(folder, fresh, published):
    published(folder, "job1", "sub", 1, files={"state.bin": b"of the checkpoint sub"})
    published(folder, "job1", "checkpoint-2", 2, files={"sub/state.bin": b"of 2", "sub/x": b"x"})
    fs = fresh()
    assert fs.cat("demo@job1/sub/state.bin") == b"of the checkpoint sub"
    assert fs.cat("demo@job1/checkpoint-2/sub/state.bin") == b"of 2"


def test_ids_may_lie_in_each_other(folder, fresh, published):
    published(folder, "job1", "a", 1, files={"f": b"a", "d/f": b"a d"})
    published(folder, "job1", "a/b", 2, files={"f": b"a b"})
    fs = fresh()
    assert fs.ls("demo@job1/a", detail=False) == [
        "demo@job1/a/b",
        "demo@job1/a/d",
        f"demo@job1/a/{MANIFEST}",
        "demo@job1/a/f",
    ]
    assert fs.cat("demo@job1/a/b/f") == b"a b"
    assert fs.cat("demo@job1/a/d/f") == b"a d"


# generations and nodes


def test_a_generation_is_the_newest_of_its_id_by_either_name(store, look, published):
    assert published(store, files={"f": b"one"}) == "checkpoint-1"
    assert published(store, generation=2, files={"f": b"two"}) == "checkpoint-1@2"
    assert published(store, generation=3, files={"f": b"three"}) == "checkpoint-1@3"
    fs = look()
    assert fs.ls("demo@job1", detail=False) == ["demo@job1/checkpoint-1"]
    for name in ("checkpoint-1", "checkpoint-1@2", "checkpoint-1@3", "checkpoint-1@1"):
        assert fs.cat(f"demo@job1/{name}/f") == b"three"
    assert not fs.exists("demo@job1/checkpoint-1@4")


def test_an_id_that_looks_like_a_generation_is_its_own(folder, fresh, published):
    published(folder, name="model", step=1, files={"f": b"model"})
    published(folder, name="model@3", step=2, files={"f": b"model@3"})
    fs = fresh()
    assert fs.ls("demo@job1", detail=False) == ["demo@job1/model", "demo@job1/model@3"]
    assert fs.cat("demo@job1/model@3/f") == b"model@3"
    assert fs.cat("demo@job1/model/f") == b"model"


def test_a_folder_that_was_copied_by_hand_is_found_by_its_name(folder, fresh, published):
    published(folder, files={"f": b"x"})
    for name in ("f", MANIFEST):
        folder.put(f"{JOB1}/best/{name}", folder.read(f"{JOB1}/checkpoint-1/{name}"))
    assert fresh().ls("demo@job1", detail=False) == ["demo@job1/best", "demo@job1/checkpoint-1"]
    assert fresh().cat("demo@job1/best/f") == b"x"


def test_every_node_is_listed_and_the_first_one_has_the_plain_name(folder, fresh, published):
    published(folder, name="checkpoint-5", step=5, rank=0, files={"f": b"node 0"})
    published(folder, name="checkpoint-5", step=5, rank=1, files={"f": b"node 1"})
    published(folder, name="only-1", step=4, rank=1, files={"f": b"only 1"})
    fs = fresh()
    assert fs.ls("demo@job1", detail=False) == [
        "demo@job1/checkpoint-5",
        "demo@job1/only-1",
        "demo@job1/rank-1",
    ]
    assert fs.ls("demo@job1/rank-1", detail=False) == ["demo@job1/rank-1/checkpoint-5"]
    assert fs.cat("demo@job1/checkpoint-5/f") == b"node 0"
    assert fs.cat("demo@job1/rank-1/checkpoint-5/f") == b"node 1"
    assert fs.cat("demo@job1/rank-0/checkpoint-5/f") == b"node 0"
    assert fs.cat("demo@job1/f") == b"node 0"
    assert fs.cat("demo@job1/only-1/f") == b"only 1"


# one object, one moment


def test_what_was_listed_is_what_is_read_when_a_newer_one_comes(store, look, published):
    published(store, "job1", "checkpoint-1", 1, files={"f": b"old" * 100})
    fs = look()
    listed = fs.find("bt://demo")
    with fs.open("bt://demo/f") as file:
        assert file.read(3) == b"old"
        published(store, "job1", "checkpoint-2", 2, files={"f": b"new" * 100})
        published(store, "job1", "checkpoint-1", 1, generation=2, files={"f": b"newer"})
        published(store, "job2", "checkpoint-1", 1, created="2031-01-01", files={"f": b"newest"})
        assert file.read() == b"old" * 99
    assert fs.find("bt://demo") == listed
    assert fs.cat("bt://demo/f") == b"old" * 100
    assert fs.cat("bt://demo/checkpoint-1/f") == b"old" * 100
    assert look().cat("bt://demo/f") == b"newest"
    assert look().cat("bt://demo@job1/checkpoint-1/f") == b"newer"
    assert len(fs.ls("bt://demo@job1", refresh=True)) == 2
    assert fs.cat("bt://demo/f") == b"newest"


def test_a_checkpoint_that_is_deleted_while_it_is_open_is_missed_not_mixed(
    folder, fresh, published
):
    data = random.Random(1).randbytes(3 * BLOCK_BYTES)
    published(folder, files={"f": data})
    with fresh().open("bt://demo/checkpoint-1/f", block_size=BLOCK_BYTES) as file:
        assert file.read(10) == data[:10]
        unpublish(folder, JOB1, "checkpoint-1")
        published(folder, files={"f": b"x" * len(data)})
        with pytest.raises(CheckpointCorruptError):
            file.read()
        unpublish(folder, JOB1, "checkpoint-1")
        with pytest.raises(CheckpointNotFoundError):
            file.read()


def test_each_fsspec_open_looks_anew(place, store, published):
    options = {"store": place[0], "storage_options": place[1]}
    published(store, "job1", "checkpoint-1", 1, files={"f": b"one"})
    for number in (2, 3):
        published(store, "job1", f"checkpoint-{number}", number, files={"f": str(number).encode()})
        with fsspec.open("bt://demo/f", **options) as file:
            assert file.read() == str(number).encode()


# reading


@pytest.fixture(scope="module")
def blocks():
    return random.Random(7).randbytes(2 * BLOCK_BYTES + 12345)


@pytest.fixture
def wide(store, published, blocks, look):
    published(store, files={"f": blocks, "empty": b"", "g": b"g"})
    return look()


RANGES = [
    (None, None),
    (0, 0),
    (0, 8),
    (5, 5),
    (9, 5),
    (BLOCK_BYTES - 1, BLOCK_BYTES + 1),
    (BLOCK_BYTES, 2 * BLOCK_BYTES),
    (2 * BLOCK_BYTES, None),
    (-1, None),
    (-12345 - 7, -3),
    (None, -1),
    (-(10**9), 4),
    (10**9, None),
    (3, 10**9),
    (None, -(10**9)),
]


@pytest.mark.parametrize(("start", "end"), RANGES)
def test_a_range_is_the_slice(wide, blocks, start, end):
    assert wide.cat_file("bt://demo@job1/checkpoint-1/f", start, end) == blocks[start:end]


def test_many_ranges_and_whole_files_at_once(wide, blocks):
    path = "demo/checkpoint-1/f"
    assert wide.cat_ranges([path] * 3, [0, 7, -5], [3, 9, None]) == [
        blocks[:3],
        blocks[7:9],
        blocks[-5:],
    ]
    assert wide.cat([path, "demo/checkpoint-1/empty"]) == {
        path: blocks,
        "demo/checkpoint-1/empty": b"",
    }
    assert wide.head(path, 5) == blocks[:5]
    assert wide.tail(path, 5) == blocks[-5:]


@pytest.mark.parametrize("cache", ["blockcache", "readahead", "bytes", "all", "none", "background"])
def test_an_open_file_reads_as_any_file_with_each_of_fsspecs_caches(
    folder, published, fresh, blocks, cache
):
    published(folder, files={"f": blocks})
    with fresh().open("demo/checkpoint-1/f", cache_type=cache, block_size=1_000_000) as file:
        assert file.size == len(blocks)
        assert (file.readable(), file.seekable(), file.writable()) == (True, True, False)
        for at, count in [
            (0, 10),
            (BLOCK_BYTES - 3, 6),
            (len(blocks) - 5, 100),
            (100, 3_000_000),
            (7, 0),
        ]:
            file.seek(at)
            assert file.read(count) == blocks[at : at + count]
        file.seek(-4, os.SEEK_END)
        assert file.read() == blocks[-4:]
        assert file.read() == b""


@settings(deadline=None, database=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(0, 2 * BLOCK_BYTES + 20000), st.integers(0, BLOCK_BYTES * 2)),
        max_size=6,
    )
)
def test_any_seeks_and_reads_give_the_bytes(opened, blocks, moves):
    for at, count in moves:
        opened.seek(at)
        assert opened.read(count) == blocks[at : at + count]


@pytest.fixture(scope="module")
def opened(tmp_path_factory, blocks):
    from bt_lightning.localdir.commit import commit
    from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
    from bt_lightning.manifest import Manifest
    from bt_lightning.store.transfer.publish import publish

    root = tmp_path_factory.mktemp("opened")

    def describe(entries):
        return Manifest(
            checkpoint_id="c",
            generation=1,
            step=1,
            epoch=0,
            created_at="2030-01-02T03:04:05Z",
            files=entries,
        )

    manifest = commit(root / "c", root, {"f": lambda: [blocks]}, describe)
    publish(open_store(str(root / "store")), JOB1, LocalCheckpoint(root / "c", manifest))
    fs = BTFileSystem(store=str(root / "store"))
    with fs.open("demo/c/f", block_size=BLOCK_BYTES) as file:
        yield file


def test_text_lines_and_compression_are_fsspecs(folder, fresh, published):
    import gzip

    published(folder, files={"t.txt": b"one\ntwo\n", "z.gz": gzip.compress(b"three")})
    fs = fresh()
    with fs.open("demo/checkpoint-1/t.txt", "r") as file:
        assert file.readlines() == ["one\n", "two\n"]
    with fs.open("demo/checkpoint-1/z.gz", compression="infer") as file:
        assert file.read() == b"three"
    assert fs.read_text("demo/checkpoint-1/t.txt") == "one\ntwo\n"


def test_a_file_in_many_threads(wide, blocks):
    found = []

    def read(start):
        found.append((start, wide.cat_file("demo/checkpoint-1/f", start, start + 1000)))

    threads = [
        threading.Thread(target=read, args=(start,)) for start in range(0, 8_000_000, 1_000_000)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert all(data == blocks[start : start + 1000] for start, data in found)


def test_a_copy_of_a_whole_checkpoint_is_a_checkpoint(wide, blocks, tmp_path):
    wide.get("bt://demo@job1/checkpoint-1", str(tmp_path / "copy"), recursive=True)
    assert (tmp_path / "copy" / "f").read_bytes() == blocks
    assert verify(tmp_path / "copy").checkpoint_id == "checkpoint-1"
    assert not [path for path in (tmp_path / "copy").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("name", ["demo", "demo@job1", "demo@latest"])
def test_a_copy_of_no_named_checkpoint_is_of_the_latest(folder, fresh, published, tmp_path, name):
    published(folder, name="checkpoint-1", step=1)
    published(folder, name="checkpoint-2", step=2)
    fresh().get(f"bt://{name}", str(tmp_path / "copy"), recursive=True)
    assert verify(tmp_path / "copy").checkpoint_id == "checkpoint-2"


def test_a_handle_and_its_filesystem_travel_to_other_processes(folder, fresh, published):
    published(folder, files={"f": b"bytes"})
    again = pickle.loads(pickle.dumps(fresh()))
    assert again.cat("demo/checkpoint-1/f") == b"bytes"
    with pickle.loads(pickle.dumps(fsspec.open("bt://demo/f", store=str(folder.name)))) as file:
        assert file.read() == b"bytes"


# damage


@pytest.mark.parametrize("at", [0, BLOCK_BYTES - 1, BLOCK_BYTES + 5, 2 * BLOCK_BYTES + 12344])
def test_a_changed_byte_is_never_given(folder, fresh, published, tmp_path, blocks, at):
    published(folder, files={"f": blocks})
    spoil(tmp_path, f"{JOB1}/checkpoint-1/f", at)
    fs, path = fresh(), "demo/checkpoint-1/f"
    block = at // BLOCK_BYTES
    reads = [
        lambda: fs.cat(path),
        lambda: fs.cat_file(path, at, at + 1),
        lambda: fs.cat_file(path, block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES),
        lambda: fs.open(path).read(),
        lambda: fs.open(path, cache_type="none", block_size=100).read(),
        lambda: fs.get(path, str(tmp_path / "copy" / "f")),
        lambda: fs.get_file(path, str(tmp_path / "copy" / "g")),
    ]
    for read in reads:
        with pytest.raises(
            CheckpointCorruptError, match=rf"checkpoint-1 is damaged.* block {block}\)"
        ):
            read()
    assert list((tmp_path / "copy").iterdir()) == []
    good = (at // BLOCK_BYTES + 1) % 3 * BLOCK_BYTES
    assert fs.cat_file(path, good, good + 5) == blocks[good : good + 5]


def test_a_copy_that_fails_leaves_what_was_there(folder, fresh, published, tmp_path):
    published(folder, files={"f": b"new"})
    spoil(tmp_path, f"{JOB1}/checkpoint-1/f")
    (tmp_path / "f").write_bytes(b"mine")
    with pytest.raises(CheckpointCorruptError):
        fresh().get_file("demo/f", str(tmp_path / "f"))
    assert (tmp_path / "f").read_bytes() == b"mine"


def test_a_file_that_was_cut_short_is_damage(store, place, published, monkeypatch):
    monkeypatch.setattr("bt_lightning.store.retry.FIRST_WAIT_S", 0.0)
    published(store, files={"f": b"w" * 300})
    store.put(f"{JOB1}/checkpoint-1/f", b"w" * 100)
    fs = BTFileSystem(store=place[0], storage_options=place[1])
    with pytest.raises(CheckpointCorruptError, match="f has 100 bytes, its manifest says 300"):
        fs.cat("demo/checkpoint-1/f")


def test_a_byte_that_changed_on_the_way_is_asked_for_again(folder, fresh, published, monkeypatch):
    published(folder, files={"f": b"whole"})
    fs, real, calls = fresh(), type(folder).read_into, []

    def read_into(self, key, offset, target, **words):
        real(self, key, offset, target, **words)
        calls.append(key)
        if len(calls) == 1:
            target[0] ^= 1

    monkeypatch.setattr(type(folder), "read_into", read_into)
    assert fs.cat("demo/f") == b"whole"
    assert len(calls) == 2


def test_a_store_that_fails_is_no_absence(folder, fresh, published, monkeypatch):
    """An empty listing of a store that is down would be taken for that nothing was saved."""
    published(folder)
    fs = fresh()

    def down(*_):
        msg = "down"
        raise StorePermanentError(msg)

    monkeypatch.setattr(type(folder), "list", down)
    for ask in (fs.exists, fs.isdir, fs.isfile, fs.ls, fs.find, fs.info, fs.glob):
        with pytest.raises(StorePermanentError):
            ask("bt://demo@job1/checkpoint-1")


# hostile


def test_a_manifest_that_names_a_place_outside_is_refused(folder, fresh, published, tmp_path):
    published(folder, files={"f": b"x"})
    key = f"{JOB1}/checkpoint-1/{MANIFEST}"
    payload = json.loads(folder.read(key))
    payload["files"][0]["path"] = "../../secret"
    folder.put(key, json.dumps(payload).encode())
    with pytest.raises(CheckpointCorruptError):
        fresh().ls("demo@job1/checkpoint-1")


@pytest.mark.parametrize(
    "path",
    [
        "demo@job1/../job2",
        "demo@job1/checkpoint-1/../../x",
        "..",
        "demo@",
        "@",
        "a@b@c",
        "demo//x",
        "demo@job1/%2e%2e/x",
        "demo@job1/a\x00",
    ],
)
def test_a_path_that_leads_out_leads_nowhere(folder, fresh, published, path):
    published(folder)
    fs = fresh()
    assert not fs.exists(f"bt://{path}")
    with pytest.raises((InvalidSettingError, CheckpointNotFoundError)):
        fs.cat_file(f"bt://{path}")


# nothing is written


WRITES = {
    "open wb": lambda fs, path: fs.open(path, "wb"),
    "open ab": lambda fs, path: fs.open(path, "ab"),
    "open xb": lambda fs, path: fs.open(path, "xb"),
    "open w": lambda fs, path: fs.open(path, "w"),
    "open r+b": lambda fs, path: fs.open(path, "r+b"),
    "pipe": lambda fs, path: fs.pipe(path, b"x"),
    "pipe_file": lambda fs, path: fs.pipe_file(path, b"x"),
    "write_text": lambda fs, path: fs.write_text(path, "x"),
    "put": lambda fs, path: fs.put(__file__, path),
    "put_file": lambda fs, path: fs.put_file(__file__, path),
    "touch": lambda fs, path: fs.touch(path),
    "mkdir": lambda fs, path: fs.mkdir(path),
    "makedirs": lambda fs, path: fs.makedirs(path, exist_ok=True),
    "mkdirs": lambda fs, path: fs.mkdirs(path),
    "rm": lambda fs, path: fs.rm(path, recursive=True),
    "rm_file": lambda fs, path: fs.rm_file(path),
    "rmdir": lambda fs, path: fs.rmdir(path),
    "delete": lambda fs, path: fs.delete(path),
    "mv": lambda fs, path: fs.mv(path, "demo/b"),
    "move": lambda fs, path: fs.move(path, "demo/b"),
    "rename": lambda fs, path: fs.rename(path, "demo/b"),
    "copy": lambda fs, path: fs.copy(path, "demo/b"),
    "cp": lambda fs, path: fs.cp(path, "demo/b"),
    "cp_file": lambda fs, path: fs.cp_file(path, "demo/b"),
    "transaction": lambda fs, path: fs.start_transaction(),
}


@pytest.mark.parametrize("write", WRITES)
def test_nothing_is_written_moved_or_deleted(folder, fresh, published, write):
    published(folder)
    before = {info.key: folder.read(info.key) for info in folder.list("")}
    with pytest.raises(ReadOnlyError, match="bt:// is for reading") as caught:
        WRITES[write](fresh(), "bt://demo@job1/checkpoint-1/model.safetensors")
    assert isinstance(caught.value, PermissionError)
    assert caught.value.errno == errno.EROFS
    assert {info.key: folder.read(info.key) for info in folder.list("")} == before


# opening


def test_without_a_store_the_error_says_how_to_name_one():
    with pytest.raises(InvalidSettingError, match="set BT_STORE_URL, or pass store="):
        fsspec.filesystem("bt")
    with pytest.raises(InvalidSettingError, match="give its own URL"):
        fsspec.filesystem("bt", store="bt://demo")


def test_the_variable_names_the_store(folder, published, tmp_path, monkeypatch):
    published(folder, files={"f": b"x"})
    monkeypatch.setenv("BT_STORE_URL", str(tmp_path / "store"))
    with fsspec.open("bt://demo/checkpoint-1/f") as file:
        assert file.read() == b"x"


def test_a_folder_that_is_opened_says_how_a_checkpoint_is_loaded(folder, fresh, published):
    published(folder)
    for path in ("demo", "demo@job1/checkpoint-1", "demo@job1/checkpoint-1/sub"):
        with pytest.raises(
            CheckpointNotFoundError, match=r"is a folder, not a file.*BTCheckpointIO"
        ):
            fresh().open(path)


def test_a_missing_job_says_where_it_was_looked_for(folder, fresh, published):
    published(folder)
    with pytest.raises(
        CheckpointNotFoundError,
        match=r"nothing .* the job nope of the project demo: .*/training_projects/demo/jobs/nope",
    ):
        fresh().ls("demo@nope")


def test_no_error_shows_a_secret_of_the_store(s3, s3_url, published):
    fs = BTFileSystem(store=s3_url, storage_options=s3.options)
    published(open_store(s3_url, s3.options))
    with (
        s3.refusing_everybody(),
        pytest.raises((StorePermanentError, StoreTransientError)) as caught,
    ):
        fs.ls("demo@job1")
    assert s3.options["secret"] not in str(caught.value)
    assert s3.options["secret"] not in repr(fs)


def test_a_small_read_of_a_named_checkpoint_costs_one_listing_and_few_reads(
    folder, fresh, published, monkeypatch
):
    for number in range(20):
        published(folder, name=f"checkpoint-{number}", step=number)
    calls = []
    for name in ("list", "read", "read_into", "size"):
        real = getattr(type(folder), name)
        monkeypatch.setattr(
            type(folder),
            name,
            lambda self, *a, _n=name, _r=real, **words: (calls.append(_n), _r(self, *a, **words))[
                1
            ],
        )
    assert fresh().cat("demo@job1/checkpoint-7/sub/state.bin") == b"s"
    assert sorted(calls) == ["list", "read", "read_into"]
