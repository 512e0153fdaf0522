"""The newest checkpoint is in the page cache when a run wants it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir import read_ahead as module
from bt_lightning.localdir.held_images import HeldImage, offer_image, started_at
from bt_lightning.localdir.read_ahead import begin_read_ahead, read_ahead
from bt_lightning.path_layout import WEIGHTS
from bt_lightning.store.transfer.direct_reads import is_cached
from tests.sharding.sharded_checkpoints import by_rows, write_sharded

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 8 * 1024 * 1024


def save(place: Path, step: int) -> None:
    weights = {"w": torch.rand(SIZE // 4)}
    BTCheckpointIO().save_checkpoint({"state_dict": weights, "global_step": step}, place)
    descriptor = os.open(place / WEIGHTS, os.O_RDONLY)
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def is_there(place: Path) -> bool:
    with (place / WEIGHTS).open("rb+") as file:
        return is_cached(file.fileno(), 0, SIZE)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for step in (1, 2):
        save(tmp_path / f"checkpoint-{step}", step)
    if is_there(tmp_path / "checkpoint-1"):
        pytest.skip("this file system has no page cache that lets files go")
    return tmp_path


def test_the_newest_is_read_and_no_other(root: Path) -> None:
    begin_read_ahead(root, shards=True).join()
    until_read(root / "checkpoint-2")
    assert not is_there(root / "checkpoint-1")


def until_read(place: Path) -> None:
    """The kernel may go on when the call has returned."""
    until = time.monotonic() + 60
    while not is_there(place):
        assert time.monotonic() < until


def test_what_does_not_fit_in_memory_is_left(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_available", lambda: SIZE)
    assert read_ahead(root, shards=True) == 0
    assert not is_there(root / "checkpoint-2")
    monkeypatch.setattr(module, "memory_available", lambda: 3 * SIZE)
    assert read_ahead(root, shards=True) > SIZE


def test_nothing_is_read_that_a_worker_holds(root: Path) -> None:
    image = HeldImage(
        pid=os.getpid(),
        started=started_at(os.getpid()),
        descriptor=0,
        checkpoint_id="checkpoint-2",
        until=1e12,
        files={"0" * 32: (0, 1)},
    )
    offer_image(root, image)
    assert read_ahead(root, shards=True) == 0
    assert not is_there(root / "checkpoint-2")


def test_the_parts_of_other_nodes_are_left(tmp_path: Path) -> None:
    state = {"state_dict": {"w": torch.arange(64.0).reshape(8, 8)}, "global_step": 1}
    write_sharded(tmp_path, "c", state, layout_of=by_rows(4), world_size=4)
    assert read_ahead(tmp_path, shards=False) == 0
    assert read_ahead(tmp_path, shards=True) > 0


@pytest.mark.parametrize("odd", ["absent", "empty", "file", "damaged", "lost"])
def test_it_is_a_hint_and_fails_for_nothing(tmp_path: Path, odd: str) -> None:
    root: Any = tmp_path / "root"
    if odd == "file":
        root.write_text("")
    elif odd != "absent":
        root.mkdir()
    if odd in {"damaged", "lost"}:
        save(root / "checkpoint-1", 1)
        (root / "checkpoint-1" / WEIGHTS).unlink()
    if odd == "damaged":
        (root / "checkpoint-1" / WEIGHTS).mkdir()
    assert read_ahead(root, shards=True) == 0
