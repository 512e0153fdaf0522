"""Where parts of sharded saves can meet: one directory, the store, or nowhere."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LOOK = """
import os, sys, time
from datetime import timedelta
from pathlib import Path
import torch.distributed as dist
from bt_lightning.errors import InvalidSettingError
from bt_lightning.session.ranks import Ranks
from bt_lightning.session.shared_directory_check import where_parts_meet

rank = int(os.environ["NODE_RANK"])
dist.init_process_group(
    "gloo", rank=rank, world_size=int(os.environ["RANKS"]), timeout=timedelta(seconds=100)
)
ranks = Ranks.of_process_group()
ranks.begin_meetings()
started = time.monotonic()
try:
    print(where_parts_meet(ranks, Path(os.environ["HERE"]), stored=sys.argv[1] == "stored"))
except Exception as error:
    print(f"{type(error).__name__}: {error}")
print("quick" if time.monotonic() - started < 4 else "slow")
dist.barrier()
dist.destroy_process_group()
"""


def _asked(scripts: Any, where: Path, *folders: Path, stored: bool = False) -> list[list[str]]:
    for folder in (where, *folders):
        folder.mkdir(exist_ok=True)
    done = scripts.ranks(
        LOOK,
        "stored" if stored else "no",
        envs=[{"HERE": str(where)} for _ in folders],
        disks=(where, list(folders)),
    )
    assert [each.code for each in done] == [0] * len(folders), "\n".join(map(str, done))
    for folder in folders:  # nothing is left
        assert not list(folder.glob(".bt_lightning/*"))
    return [each.out.splitlines() for each in done]


@pytest.mark.parametrize("stored", [False, True])
def test_one_directory_that_all_nodes_have_is_where_they_meet_at_once(
    scripts: Any, tmp_path: Path, stored: bool
) -> None:
    shared = tmp_path / "shared"
    said = _asked(scripts, tmp_path / "disk", shared, shared, stored=stored)
    assert said == [["directory", "quick"]] * 2


def test_nodes_with_disks_of_their_own_meet_in_the_store(scripts: Any, tmp_path: Path) -> None:
    """Two nodes share a disk here, and the third does not: none may count on it."""
    shared, other = tmp_path / "shared", tmp_path / "other"
    said = _asked(scripts, tmp_path / "disk", shared, shared, other, stored=True)
    assert [where for where, _ in said] == ["store"] * 3


def test_without_a_store_they_cannot_meet_and_every_rank_says_what_to_do(
    scripts: Any, tmp_path: Path
) -> None:
    said = _asked(scripts, tmp_path / "disk", tmp_path / "one", tmp_path / "two")
    host = socket.gethostname()
    for text, _ in said:
        assert text.startswith(
            f"InvalidSettingError: rank 1 (host {host}) does not see {tmp_path}/disk of rank 0"
        )
        assert "BT_CHECKPOINT_DIR" in text
        assert "BT_STORE_URL" in text


def test_a_directory_that_rank_0_cannot_use_is_an_error_on_every_rank(
    scripts: Any, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / ".bt_lightning").write_text("a file")
    (tmp_path / "disk").mkdir()
    done = scripts.ranks(
        LOOK,
        "stored",
        envs=[{"HERE": str(tmp_path / "disk")}] * 2,
        disks=(tmp_path / "disk", [shared, shared]),
    )
    for each in done:
        assert "DirectoryUnusableError" in each.out, str(each)
