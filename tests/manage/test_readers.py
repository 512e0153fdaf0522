"""A command opens a checkpoint once, however many ranks wrote it."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from bt_lightning.errors import CheckpointNotFoundError
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint, read_manifest
from bt_lightning.manage.compare_tensors import compare_items
from bt_lightning.manage.directory_checkpoints import DirectoryCheckpoints
from bt_lightning.manage.job_checkpoints import StoreCheckpoints
from bt_lightning.manage.verified_reads import open_reader
from bt_lightning.manage.verify import DEEP, verify_items
from bt_lightning.path_layout import MANIFEST, job_prefix
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.transfer.publish import publish
from tests.sharding.sharded_checkpoints import by_rows, write_sharded


class CountingStore(LocalStore):
    """Counts listings, and reads of manifests."""

    def __init__(self, path):
        super().__init__(path)
        self.calls = Counter()

    def read(self, key, *args, **more):
        self.calls["manifest"] += key.endswith(MANIFEST)
        return super().read(key, *args, **more)

    def list(self, prefix):
        self.calls["list"] += 1
        return super().list(prefix)


@pytest.mark.parametrize("ranks", [2, 12])
def test_the_manifest_is_read_once(tmp_path, ranks):
    """Of a thousand ranks it has 50 MB, and there are as many headers."""
    root, store = tmp_path / "run", CountingStore(tmp_path / "store")
    own = [{"rank": {"seed": torch.ones(1)}}] * ranks
    state = {"state_dict": {"w": torch.randn(24, 2)}}
    write_sharded(root, "c", state, by_rows(ranks), world_size=ranks, own=own)
    publish(store, job_prefix("p", "j", 0), LocalCheckpoint(root / "c", read_manifest(root / "c")))
    source = StoreCheckpoints(store, "p", "j")
    (item,) = source.items()
    store.calls.clear()
    (verdict,) = verify_items([(source, item)], DEEP, lambda _: None)
    assert verdict.whole, verdict.says
    assert store.calls == {"manifest": 1, "list": 1}
    store.calls.clear()
    assert compare_items(source, item, source, item) == []
    assert store.calls == {"manifest": 2, "list": 2}


def test_what_was_replaced_is_not_taken_for_damaged(tmp_path):
    write_sharded(tmp_path, "c", {"state_dict": {"w": torch.ones(8)}})
    source = DirectoryCheckpoints(tmp_path)
    (item,) = source.items()
    write_sharded(tmp_path, "c", {"state_dict": {"w": torch.zeros(8)}})
    with pytest.raises(CheckpointNotFoundError, match="was replaced"), open_reader(source, item):
        pass
