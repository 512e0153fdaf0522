"""The place of one job that options and the environment name, for commands about its runner."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from bt_lightning.cli.target_options import notice

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.job_record import JobRecord
    from bt_lightning.log_kinds import LogKind
    from bt_lightning.manage.job_logs import JobLog
    from bt_lightning.manage.stop_job import Node
    from bt_lightning.store.interface import Store


class JobPlace:
    """Where a job's logs and record lie: in a store, or with a directory alone, there."""

    def __init__(
        self, job: str | None, store: str | None, project: str | None, directory: str | None
    ) -> None:
        from bt_lightning.errors import InvalidSettingError
        from bt_lightning.manage.find_target import Target, directory_named, project_of
        from bt_lightning.settings import Settings
        from bt_lightning.store.catalog.bt_url_tree import open_bt_store

        self.store: Store | None = None
        self.root: Path | None = None
        settings = Settings.from_environ(os.environ)
        job = job or settings.job
        if job is None or not store:
            if store and not directory:
                msg = "name a job of the store, or a checkpoint directory with --dir"
                raise InvalidSettingError(msg)
            target = Target(directory=directory, job=job)
            self.root = directory_named(target, notice)
            self.job, self.project = job or self.root.name, project or ""
            return
        self.store, self.job = open_bt_store(store, None), job
        self.project = project_of(self.store, project or settings.project, job)

    def log(self, kind: LogKind, node: int | None = None) -> JobLog:
        """One of the job's logs."""
        from bt_lightning.manage.job_logs import directory_log, stored_log

        if self.store is None:
            assert self.root is not None
            return directory_log(self.root, kind)
        return stored_log(self.store, self.project, self.job, kind, node)

    def record(self) -> JobRecord | None:
        """The record of the job's runner, if it has one that can be read."""
        from bt_lightning.errors import CheckpointCorruptError
        from bt_lightning.localdir.job_record_file import read_local
        from bt_lightning.path_layout import job_prefix
        from bt_lightning.store.catalog.job_records import read_record

        if self.store is None:
            return None if self.root is None else read_local(self.root)
        try:
            return read_record(self.store, job_prefix(self.project, self.job, 0))
        except CheckpointCorruptError:
            return None

    def missing(self, kind: str) -> str:
        """The message for a log that is empty."""
        where = self.store.name if self.store is not None else str(self.root)
        return f"{where} has no {kind} of the job {self.job}"

    def nodes(self) -> list[Node]:
        """The nodes of the job whose runners have written a record; none if there is no runner."""
        from bt_lightning.manage.stop_job import node_of_directory, nodes_in_store

        if self.store is None:
            assert self.root is not None
            return node_of_directory(self.root)
        return nodes_in_store(self.store, self.project, self.job)
