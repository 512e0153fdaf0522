"""Deploy checkpoints: protect them, and write a Truss that serves them.

Nothing here talks to Baseten: what is written is pushed by Baseten's own tools. Whoever deploys
protects first, so that no config names a checkpoint that retention may delete.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.errors import CheckpointExistsError, CheckpointNotFoundError
from bt_lightning.localdir.atomic_directory import tidy
from bt_lightning.localdir.directory_writable_check import check_root
from bt_lightning.localdir.disk_errors import directory_errors
from bt_lightning.localdir.small_files import replace_small
from bt_lightning.protection_record import ModelDeployment, Protection

if TYPE_CHECKING:
    from pathlib import Path

    from bt_lightning.manage.checkpoint_items import CheckpointItem, JobCheckpoints

CONFIG: Final = "config.yaml"
_HEADER: Final = "# Written by `bt-lightning checkpoints deploy`. `truss push` deploys it.\n"
_WEIGHTS: Final = (
    "# `bt-lightning weights pull config.yaml --root .` brings its weights to this machine.\n"
)


def truss_text(config: dict[str, Any]) -> str:
    """The text of a `config.yaml`."""
    import yaml

    text = yaml.safe_dump(config, sort_keys=False, default_flow_style=False, width=4096)
    return f"{_HEADER}{_WEIGHTS if 'weights' in config else ''}{text}"


def write_truss(folder: Path, text: str) -> Path:
    """Write `config.yaml` into a folder, which is created; return its path.

    Raises:
        CheckpointExistsError: another one is there.
        DirectoryFullError, DirectoryUnusableError: it cannot be written.
    """
    path = check_config_free(folder, text)
    check_root(folder)
    tidy(folder)
    with directory_errors(folder):
        replace_small(path, text.encode(), part=f".{os.urandom(8).hex()}.part")
    return path


def check_config_free(folder: Path, text: str) -> Path:
    """The path of the folder's `config.yaml`, if there is none but this very `text`.

    Raises:
        CheckpointExistsError: there is one.
    """
    path = folder / CONFIG
    if os.path.lexists(path) and not _says(path, text):
        msg = f"{path} is there already: move it away, or name another folder with --output"
        raise CheckpointExistsError(msg)
    return path


def protect_deployed(
    source: JobCheckpoints, item: CheckpointItem, deployment: ModelDeployment
) -> Protection:
    """Protect a checkpoint since it is deployed; a person's protection stays as it is.

    Raises:
        CheckpointNotFoundError: it is being deleted.
        StoreError, OSError: the store, or the disk, refused.
    """
    before = source.protection(item)
    new = (before or Protection(deployments=(deployment,))).deployed(deployment)
    source.protect(item, new)
    return new


def lift_deployment(
    source: JobCheckpoints, item: CheckpointItem, model: str | None
) -> Protection | None:
    """End the protection by the deployment as `model`, or by all; return what protection is left.

    Raises:
        CheckpointNotFoundError: it is not deployed as that.
        StoreError, OSError: the store, or the disk, refused.
    """
    before = source.protection(item)
    models = [one.model for one in before.deployments] if before is not None else []
    if before is None or not models or (model is not None and model not in models):
        has = f", only as {', '.join(models)}" if models else ""
        what = f"as {model}" if model is not None and models else "by this command"
        msg = f"{item.name} is not deployed {what}{has}"
        raise CheckpointNotFoundError(msg)
    return _set(source, item, before.undeployed(model))


def protect_for_person(
    source: JobCheckpoints, item: CheckpointItem, *, by: str, why: str, at: str
) -> None:
    """Protect a checkpoint for a reason of a person's; what it is deployed as stays noted."""
    before = source.protection(item)
    kept = before.deployments if before is not None else ()
    source.protect(item, Protection(by=by, why=why, at=at, deployments=kept))


def unprotect_for_person(source: JobCheckpoints, item: CheckpointItem) -> Protection | None:
    """Remove a person's protection; return what is left of it, since the checkpoint is deployed."""
    before = source.protection(item)
    left = before.deployments if before is not None else ()
    return _set(source, item, Protection(deployments=left) if left else None)


def _set(
    source: JobCheckpoints, item: CheckpointItem, protection: Protection | None
) -> Protection | None:
    if protection is None:
        source.unprotect(item)
    else:
        source.protect(item, protection)
    return protection


def _says(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False
