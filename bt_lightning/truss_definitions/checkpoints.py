"""Where a job saves checkpoints, and which checkpoints it loads at its start."""

from __future__ import annotations

from dataclasses import field
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from typing_extensions import override

from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions.definition import Definition
from bt_lightning.truss_definitions.validators import CheckpointName, FilePath, Id, Name, at_least

if TYPE_CHECKING:
    from collections.abc import Mapping

LOADED_CHECKPOINTS: Final = "/tmp/loaded_checkpoints"  # noqa: S108 - Baseten's own default
"""Folder of loaded checkpoints, unless `download_folder` names another."""


class CheckpointingConfig(Definition):
    """Whether, where and on how large a volume a job saves checkpoints."""

    enabled: bool = False
    """Whether there is a `$BT_CHECKPOINT_DIR`, which is uploaded."""
    checkpoint_path: FilePath | None = None
    """The folder that `$BT_CHECKPOINT_DIR` names; None leaves it to the platform."""
    volume_size_gib: (
        Annotated[int, at_least(1, "leave it out for the size that the platform chooses")] | None
    ) = None
    """GiB that checkpoints may take on the local disk; None leaves it to the platform."""


class CheckpointRef(Definition):
    """A reference to a checkpoint of another job: one of the three classes below.

    `BasetenCheckpoint` and `LoopsCheckpoint` make them.
    """

    _truss_name = "_CheckpointBase"

    @classmethod
    @override
    def _kind(cls, values: Mapping[Any, object], at: str) -> type[Definition]:
        return _kind_of(values, at) if cls is CheckpointRef else cls

    @override
    def _check(self) -> None:
        if type(self) is CheckpointRef:
            msg = "a CheckpointRef says nothing by itself, expected one made by BasetenCheckpoint"
            raise InvalidSettingError(msg)


class LatestCheckpoint(CheckpointRef):
    """The latest checkpoint of a job, or of the most recent job of a project.

    With neither, the default of `LoadCheckpointConfig`, it is of the project that loads it.
    """

    _truss_name = "_BasetenLatestCheckpoint"

    typ: Literal["baseten_latest_checkpoint"] = "baseten_latest_checkpoint"
    job_id: Id | None = None
    project_name: Name | None = None


class NamedCheckpoint(CheckpointRef):
    """One checkpoint of a job, by the name of its folder."""

    _truss_name = "_BasetenNamedCheckpoint"

    typ: Literal["baseten_named_checkpoint"] = "baseten_named_checkpoint"
    checkpoint_name: CheckpointName
    job_id: Id


class LoopsCheckpointRef(CheckpointRef):
    """A checkpoint of Baseten's Loops service; only that service can load it (`on_a_store`)."""

    _truss_name = "_LoopsCheckpoint"

    typ: Literal["loops_checkpoint"] = "loops_checkpoint"
    run_id: Id
    checkpoint_name: CheckpointName
    target: Literal["trainer", "sampler"] = "trainer"
    """All that training needs, or the weights that inference needs."""


class LoadCheckpointConfig(Definition):
    """Which checkpoints are downloaded to the local disk before the start commands run."""

    enabled: bool = False
    checkpoints: list[CheckpointRef] = field(default_factory=lambda: [LatestCheckpoint()])
    download_folder: FilePath = LOADED_CHECKPOINTS
    """The folder that `$BT_LOAD_CHECKPOINT_DIR` names."""

    @override
    def _check(self) -> None:
        if self.enabled and not self.checkpoints:
            msg = (
                "LoadCheckpointConfig.checkpoints is empty, expected at least one reference where"
                " enabled is True: add BasetenCheckpoint.from_latest_checkpoint(project_name=...),"
                " or leave the field out for the latest checkpoint of the project"
            )
            raise InvalidSettingError(msg)


class BasetenCheckpoint:
    """Makes references to checkpoints of training jobs."""

    @staticmethod
    def from_latest_checkpoint(
        project_name: str | None = None, job_id: str | None = None
    ) -> LatestCheckpoint:
        """Refer to the latest checkpoint of a job, or of the most recent job of a project.

        Raises:
            InvalidSettingError: neither is given, or one is invalid.
        """
        if not job_id and not project_name:
            msg = (
                "from_latest_checkpoint() was given no project_name and no job_id, expected one at"
                " least: name the project whose most recent job is meant"
            )
            raise InvalidSettingError(msg)
        return LatestCheckpoint(project_name=project_name, job_id=job_id)

    @staticmethod
    def from_named_checkpoint(checkpoint_name: str, job_id: str) -> NamedCheckpoint:
        """Refer to the checkpoint of a job whose folder has this name.

        Raises:
            InvalidSettingError: an argument is invalid.
        """
        return NamedCheckpoint(checkpoint_name=checkpoint_name, job_id=job_id)


class LoopsCheckpoint:
    """Makes references to checkpoints of Baseten's Loops service."""

    @staticmethod
    def from_checkpoint(
        run_id: str, checkpoint_name: str, target: Literal["trainer", "sampler"] = "trainer"
    ) -> LoopsCheckpointRef:
        """Refer to a checkpoint of a Loops run.

        Raises:
            InvalidSettingError: one of the arguments cannot be used.
        """
        return LoopsCheckpointRef(run_id=run_id, checkpoint_name=checkpoint_name, target=target)


def on_a_store(ref: CheckpointRef) -> LatestCheckpoint | NamedCheckpoint:
    """Return `ref` if a store can hold what it refers to.

    Raises:
        InvalidSettingError: it is a checkpoint of Baseten's Loops service.
    """
    if isinstance(ref, LatestCheckpoint | NamedCheckpoint):
        return ref
    assert isinstance(ref, LoopsCheckpointRef)
    msg = (
        f"the checkpoint {ref.checkpoint_name!r} of the Loops run {ref.run_id!r} cannot be loaded"
        " here, expected one of a training job: Loops is a service of Baseten, and only a job that"
        " runs there gets its checkpoints"
    )
    raise InvalidSettingError(msg)


def _kind_of(values: Mapping[Any, object], at: str) -> type[CheckpointRef]:
    """The class of reference that a mapping is: by its `typ`, else by its field names."""
    kinds = (LatestCheckpoint, NamedCheckpoint, LoopsCheckpointRef)
    if "typ" in values:
        for kind in kinds:
            if kind.typ == values["typ"]:
                return kind
        msg = f"{at}.typ is {values['typ']!r}, expected {' or '.join(repr(k.typ) for k in kinds)}"
        raise InvalidSettingError(msg)
    for kind in kinds:
        if kind.takes(values):
            return kind
    forms = ", ".join(f"{kind.__name__}({', '.join(kind.names())})" for kind in kinds)
    msg = f"{at} has the fields {', '.join(map(repr, values))}, expected those of one of {forms}"
    raise InvalidSettingError(msg)
