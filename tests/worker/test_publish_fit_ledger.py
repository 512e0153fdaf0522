"""The ledger of fits in the store: whole, whatever its size, and sent once."""

from __future__ import annotations

import pytest

from bt_lightning.file_limits import LINE, LINES_BYTES, RECORD
from bt_lightning.fit_identity import FitIdentity
from bt_lightning.fit_ledger import PARTS, FitRecord, in_parts, ledger_part, read_ledger
from bt_lightning.job_choice import made_name, name_of_path
from bt_lightning.localdir.fit_ledger_file import note_fits, read_fits
from bt_lightning.path_layout import job_prefix, under
from bt_lightning.store.backends.local_folder import LocalStore
from bt_lightning.store.catalog.jobs_of_path import find_jobs_of_path, read_fit_ledger
from bt_lightning.store.lease import Lease
from bt_lightning.worker.publish_fit_ledger import FitLedgerPublisher

PATH = name_of_path(b"/data/ck")
JOB = made_name(PATH, "20300102-030405", "0a1b2c3d")
PREFIX = job_prefix("p", JOB, 0)
IDENTITY = FitIdentity(
    model="net " + "1" * 16, hyperparameters={f"h{n}": "2" * 16 for n in range(12)}
)


class CountingStore(LocalStore):
    """Notes what is put."""

    def __init__(self, root):
        super().__init__(root)
        self.names = []

    def put(self, key, data):
        self.names.append(key.rpartition("/")[2])
        super().put(key, data)


@pytest.fixture
def store(tmp_path):
    return CountingStore(tmp_path / "store")


@pytest.fixture
def lease(store):
    lease = Lease(store, PREFIX, "d")
    lease.take()
    yield lease
    lease.release()


def lines(first, last):
    for number in range(first, last):
        record = FitRecord(id=f"fit-{number}", folder=f"fit-{number}", identity=IDENTITY)
        yield from (record.began(), record.at_end(number), record.at_close())


def stored(store):
    return read_ledger((read_fit_ledger(store, PREFIX) or b"").splitlines())


def test_a_ledger_of_many_fits_is_sent_in_parts_of_which_only_the_last_one_changes(
    store, lease, tmp_path
):
    root = tmp_path / "ck"
    note_fits(root, *lines(1, 5000))
    publisher = FitLedgerPublisher(root, PREFIX)
    publisher.send(store, lease)
    parts = [name for name in store.names if name.startswith(ledger_part(1))]
    assert len(parts) > 2
    assert all(store.size(under(PREFIX, part)) <= RECORD.size for part in parts)
    assert stored(store) == read_fits(root)
    assert len(stored(store)) == 4999
    assert find_jobs_of_path(store, PREFIX, PATH, "older").keys() == {JOB}
    store.names.clear()
    publisher.send(store, lease)
    assert store.names == [], "nothing changed"
    note_fits(root, *lines(5000, 5001))
    publisher.send(store, lease)
    assert store.names == parts[-1:]
    assert stored(store) == read_fits(root)
    FitLedgerPublisher(root, PREFIX).send(store, lease)
    assert stored(store) == read_fits(root), "another worker finds them, and deletes none"


def test_a_ledger_that_is_written_anew_leaves_no_part_of_the_other(store, lease, tmp_path):
    note_fits(tmp_path / "lost", *lines(1, 5000))
    FitLedgerPublisher(tmp_path / "lost", PREFIX).send(store, lease)
    note_fits(tmp_path / "new", *lines(1, 3))
    FitLedgerPublisher(tmp_path / "new", PREFIX).send(store, lease)
    assert len(stored(store)) == 2


@pytest.mark.parametrize("size", [100, LINE.size - 2])
def test_whatever_a_disk_reads_a_store_takes(size):
    line = b"x" * size + b"\n"
    ledger = [line] * (LINES_BYTES // len(line))
    parts = in_parts(ledger)
    assert b"".join(parts) == b"".join(ledger)
    assert len(parts) <= PARTS
    assert all(RECORD.size - LINE.size < len(part) <= RECORD.size for part in parts[:-1])


def test_a_line_that_a_kill_cut_short_spoils_no_other():
    assert in_parts([b"a\n", b"b"]) == [b"a\nb\n"]
    assert in_parts([]) == []
