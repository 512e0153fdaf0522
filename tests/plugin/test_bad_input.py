"""Settings and surroundings that cannot work: each fails at the start, and says what to do."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import subprocess
from datetime import timedelta
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import pytest

from bt_lightning import (
    BTLightning,
    CheckpointNotFoundError,
    DirectoryUnusableError,
    FormatVersionError,
    InvalidSettingError,
    StoreError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import ModuleType

EVERY_3 = {"every_n_train_steps": 3, "save_top_k": -1}


@lru_cache
def can_mount() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


needs_mount = pytest.mark.skipif(not can_mount(), reason="this user may not mount a tmpfs")


# the checkpoint directory


def test_a_file_where_the_directory_should_be_is_named(
    runs: ModuleType, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "file"))
    with pytest.raises(DirectoryUnusableError) as caught:
        runs.fit(tmp_path, callbacks=[BTLightning()])
    message = str(caught.value)
    assert f"the checkpoint directory {tmp_path / 'file'} cannot be used" in message
    assert "a file stands where a directory should be, so move it away" in message
    assert "or set BT_CHECKPOINT_DIR to another directory" in message
    assert (tmp_path / "file").read_text() == "mine"


def test_a_url_as_the_directory_says_where_it_belongs(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError, match=r"a URL: .* Give dir .* and the URL as store"):
        runs.fit(tmp_path, callbacks=[BTLightning(dir="s3://bucket/run")])


REPORT = """
import errno, json, resource, sys
from pathlib import Path
import plugin_runs as runs
from bt_lightning.localdir.list_and_verify_checkpoints import list_committed, verify

EVERY = {"every_n_train_steps": 1, "save_top_k": -1}


def report(root):
    try:
        runs.fit(root, save=EVERY)
    except OSError as error:
        found, refused, _ = list_committed(root)
        for checkpoint in found:
            verify(checkpoint.path)
        tmp = root / ".bt_lightning" / "tmp"
        return {
            "kind": type(error).__name__,
            "code": errno.errorcode.get(error.errno),
            "text": str(error),
            "steps": sorted(c.manifest.step for c in found),
            "refused": len(refused),
            "left": [p.name for p in tmp.iterdir()] if tmp.exists() else [],
        }


reports = {}
for name in ("read_only", "full"):
    if Path(name).is_mount():
        reports[name] = report(Path(name).absolute())
runs.fit(Path("limited").absolute(), make=lambda: runs.Net(5), save=EVERY)
resource.setrlimit(resource.RLIMIT_FSIZE, (2048, resource.RLIM_INFINITY))  # bytes a file
reports["limited"] = report(Path("limited").absolute())
print(json.dumps(reports))
"""
MOUNT = """
mkdir read_only full && mount -t tmpfs -o ro tmpfs read_only \
    && mount -t tmpfs -o size=256k tmpfs full && exec "$@"
"""


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory, make_scripts: Any) -> dict[str, Any]:
    """What a training said about three disks that cannot take it, all in one process."""
    folder = tmp_path_factory.mktemp("disks")
    before = ("unshare", "-m", "bash", "-c", MOUNT, "bash") if can_mount() else ()
    done = make_scripts(folder).run(REPORT, before=before)
    return json.loads(done.out.splitlines()[-1])


@needs_mount
def test_a_read_only_volume_is_refused_at_the_start(disks: dict[str, Any]) -> None:
    report = disks["read_only"]
    assert report["kind"] == "DirectoryUnusableError"
    assert "the volume is mounted read-only, so mount it for writing" in report["text"]
    assert "or set BT_CHECKPOINT_DIR to another directory" in report["text"]


@needs_mount
def test_a_full_volume_fails_that_save_and_leaves_the_ones_before_whole(
    disks: dict[str, Any],
) -> None:
    report = disks["full"]
    assert report["code"] == "ENOSPC"
    assert "of 262,144 bytes are free on the volume" in report["text"]
    assert report["steps"] == list(range(1, len(report["steps"]) + 1))
    assert report["steps"], "not even the first one fit"
    assert report["refused"] == 0
    assert report["left"] == [], "the failed try took up room"


def test_a_file_that_may_not_grow_fails_that_save_and_leaves_the_ones_before_whole(
    disks: dict[str, Any],
) -> None:
    report = disks["limited"]
    assert report["code"] == "EFBIG"
    assert "File too large" in report["text"]
    assert report["steps"] == [1, 2, 3, 4, 5]
    assert report["left"] == []


# the store


def test_an_unknown_scheme_is_named_with_those_that_work(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        runs.fit(tmp_path, bt={"store": "nope://bucket/run"})
    message = str(caught.value)
    assert "the scheme 'nope', which no fsspec filesystem serves" in message
    assert "s3://, gs://, az://, file://" in message


@pytest.fixture(scope="module")
def working_s3() -> None:
    """Skips where s3fs is installed beside a botocore that its client does not work with."""
    session = pytest.importorskip("aiobotocore.session").get_session()

    async def connect() -> None:
        keys = {"aws_access_key_id": "a", "aws_secret_access_key": "b"}
        async with session.create_client("s3", region_name="us-east-1", **keys):
            pass

    try:
        asyncio.run(connect())
    except TypeError as error:
        pytest.skip(f"aiobotocore and botocore do not fit together: {error}")


@pytest.fixture
def endpoint(working_s3: None) -> Iterator[str]:
    """An S3 that knows no bucket."""
    pytest.importorskip("moto")
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def storage_options(endpoint: str) -> dict[str, Any]:
    return {
        "key": "somebody",
        "secret": "SECRET-that-nobody-may-see",
        "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
    }


@pytest.mark.timeout(40)
def test_a_missing_bucket_is_an_error_at_the_start(
    runs: ModuleType, tmp_path: Path, endpoint: str
) -> None:
    bt = {"store": "s3://nobody/run", "storage_options": storage_options(endpoint)}
    with pytest.raises(StoreError) as caught:
        runs.fit(tmp_path, bt=bt)
    message = str(caught.value)
    assert "s3://nobody/run/training_projects" in message
    assert "bucket does not exist" in message
    assert "SECRET" not in message


@pytest.mark.timeout(40)
def test_an_endpoint_that_nobody_listens_at_is_an_error_at_the_start(
    runs: ModuleType, tmp_path: Path, working_s3: None
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # bound and not listening: a connection is refused
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        bt = {"store": "s3://bucket/run", "storage_options": storage_options(address)}
        with pytest.raises(StoreError) as caught:
            runs.fit(tmp_path, bt=bt)
    message = str(caught.value)
    assert address in message
    assert "s3://bucket/run" in message
    assert "SECRET" not in message


def test_with_checkpoints_on_disk_a_dead_store_is_a_warning_at_the_start(
    runs: ModuleType, tmp_path: Path, working_s3: None
) -> None:
    """A job whose store is down goes on from its disk; what it commits waits there."""
    runs.fit(tmp_path, make=partial(runs.Net, 7), save=EVERY_3)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        bt = {
            "store": "s3://bucket/run",
            "storage_options": storage_options(address),
            "drain_timeout": timedelta(seconds=0.2),
        }
        with pytest.warns(UserWarning) as caught:  # noqa: PT030 - all of them are looked at
            run = runs.fit(tmp_path, make=partial(runs.Net, 8), save=EVERY_3, bt=bt)
    assert run.first_step == 6
    messages = [str(warning.message) for warning in caught]
    assert any("the store does not answer, going on from disk" in text for text in messages)
    assert any("while ending the run: not everything reached the store" in t for t in messages)
    assert not any("SECRET" in text for text in messages)


# arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"resume": "yes"},
            "resume is 'yes', expected one of 'auto', 'require', 'never', 'weights'",
        ),
        ({"on_error": "ignore"}, "on_error is 'ignore', expected one of 'raise', 'warn'"),
        ({"drain_timeout": timedelta(0)}, "drain_timeout is 0:00:00, expected seconds as a"),
    ],
)
def test_an_argument_that_cannot_be_used_fails_at_once(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidSettingError) as caught:
        BTLightning(**arguments)
    assert message in str(caught.value)


def test_a_node_rank_that_is_no_number_fails_at_once(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("BT_NODE_RANK", "first")
    with pytest.raises(InvalidSettingError, match="BT_NODE_RANK is 'first', expected a whole"):
        BTLightning()


# checkpoints from the future


@pytest.fixture
def from_the_future(runs: ModuleType, tmp_path: Path) -> Path:
    """A directory whose newest checkpoint is of a later format."""
    root = tmp_path / "root"
    runs.fit(root, make=partial(runs.Net, 7), save=EVERY_3)
    manifest = root / "checkpoint-6" / "bt_manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    return root


def test_a_newer_format_is_passed_over_and_named(
    runs: ModuleType, from_the_future: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = runs.fit(from_the_future, save=EVERY_3)
    assert run.first_step == 3
    assert "checkpoint-6 has format version 99, this bt_lightning reads up to" in caplog.text
    assert (from_the_future / "checkpoint-6").exists()


def test_a_newer_format_that_was_asked_for_says_to_upgrade(
    runs: ModuleType, from_the_future: Path
) -> None:
    with pytest.raises(FormatVersionError, match="upgrade bt_lightning to load it"):
        runs.fit(from_the_future, ckpt_path=str(from_the_future / "checkpoint-6"))


def test_a_path_without_a_checkpoint_says_so(runs: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError, match=f"not found: {tmp_path}/none"):
        runs.fit(tmp_path, ckpt_path=str(tmp_path / "none"))
