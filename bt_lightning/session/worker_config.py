"""What the worker of a session is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bt_lightning.worker_messages import WorkerConfig

if TYPE_CHECKING:
    from bt_lightning.session.session_config import SessionConfig


def worker_config(config: SessionConfig, prefix: str) -> WorkerConfig:
    """The configuration of a rank's worker; `prefix` is that of the job in the store."""
    parts = config.parts
    rank = 0 if parts is None else parts.rank
    return WorkerConfig(
        root=str(config.root),
        store_url=config.store_url,
        storage_options=dict(config.storage_options),
        upload_bytes_s=config.upload_mb_s and config.upload_mb_s * 1e6,
        content_md5=config.content_md5,
        prefix=prefix,
        drain_s=config.drain_s,
        hold_s=config.hold_s,
        budget=config.budget,
        files=config.files if rank == 0 else None,
        rank=rank,
        metrics=config.metrics,
        hosts=() if parts is None else parts.hosts,
        gather="directory" if parts is None else parts.meet,
    )
