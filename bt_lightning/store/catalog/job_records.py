"""Read and write the records of jobs in a store: one small object per node, by its runner."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.job_record import RECORD, STOP_REQUEST, JobRecord, StopRequest
from bt_lightning.path_layout import job_prefix, under
from bt_lightning.store.interface import read_any
from bt_lightning.store.transfer.parallel_reads import in_parallel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.store.interface import Store

log = logging.getLogger(__name__)

_READERS = 16


def write_record(store: Store, prefix: str, record: JobRecord) -> None:
    """Replace the record of the job and node at `prefix`; called by the job's runner only.

    Raises:
        StoreError: the store refused.
    """
    store.put(under(prefix, RECORD), record.to_bytes())


def read_record(store: Store, prefix: str) -> JobRecord | None:
    """The record of the job and node at `prefix`; None if no runner wrote one.

    Raises:
        CheckpointCorruptError: the record is damaged.
        StoreError: the store refused.
    """
    key = under(prefix, RECORD)
    data = store.read(key)
    return None if data is None else JobRecord.from_bytes(data, f"{store.name}/{key}")


def write_stop_request(store: Store, prefix: str, request: StopRequest) -> None:
    """Ask the runner of the job and node at `prefix` to stop; anybody may call it.

    Raises:
        StoreError: the store refused.
    """
    store.put(under(prefix, STOP_REQUEST), request.to_bytes())


def read_stop_request(store: Store, prefix: str) -> StopRequest | None:
    """The request for the job and node at `prefix`; None if there is none that can be read.

    Raises:
        StoreError: the store refused.
    """
    data = read_any(store, under(prefix, STOP_REQUEST))
    return None if data is None else StopRequest.from_bytes(data)


def delete_stop_request(store: Store, prefix: str) -> None:
    """Delete the request that the runner at `prefix` has honoured.

    Raises:
        StoreError: the store refused.
    """
    store.delete([under(prefix, STOP_REQUEST)])


def read_records(store: Store, jobs: Sequence[tuple[str, str]]) -> dict[tuple[str, str], JobRecord]:
    """The record of node 0 of each (project, job) that has one; read in parallel.

    A damaged record is logged and left out.
    """

    def read(job: tuple[str, str]) -> JobRecord | None:
        try:
            return read_record(store, job_prefix(*job, 0))
        except CheckpointCorruptError as error:
            log.warning("left out: %s", error)
            return None

    found = zip(jobs, in_parallel(read, jobs, _READERS), strict=True)
    return {job: record for job, record in found if record is not None}
