"""Writes the files of a framework's own checkpoint folder, with facts for its manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from bt_lightning.manifest import ManifestFacts
from bt_lightning.session.manifest_facts import package_versions, process_facts
from bt_lightning.session.snapshot_writer import SnapshotWriter
from bt_lightning.snapshot.folder_files import encode_folder_early, lay_out_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from bt_lightning.snapshot.folder_files import Content
    from bt_lightning.snapshot.state_files import EncodingCache, Snapshot


@dataclass(frozen=True, kw_only=True)
class Folder:
    """One checkpoint folder: its files, and what its manifest says of it."""

    files: Mapping[str, Content]
    """Posix path inside the folder -> content."""
    step: int
    """Number of optimizer steps behind it."""
    epoch: int = 0
    """Number of whole epochs behind it."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    """Facts for the manifest; `format` names the layout, as `hf-trainer`."""
    resumable: bool = True
    """Whether it holds all that a training resumes from."""


class FolderWriter(SnapshotWriter[Folder]):
    """Writes folders of given files; used on the training thread of the rank that writes.

    Keep one for a fit, and name the files alike at each save: what does not change is laid out
    once.
    """

    def __init__(self) -> None:
        self.origin: dict[str, Any] = {}
        """Facts for each manifest; those of a folder go before them."""

    def encode_early(self, files: Mapping[str, Content]) -> Callable[[], EncodingCache]:
        """What to give to `Saver.encode_early`, so that the first save of a fit is quick as well.

        Called on the training thread once the optimizers have made their state; `files` are those
        that the first save will have, as far as they are known.
        """
        encode = encode_folder_early(files)

        def encode_and_look_up() -> EncodingCache:
            package_versions()  # it keeps them
            return encode()

        return encode_and_look_up

    def take(self, state: Folder, cache: EncodingCache | None = None) -> Snapshot:
        """Lay out the files; copies no tensor."""
        return lay_out_folder(state.files, cache)

    def facts(self, state: Folder, snapshot: Snapshot) -> ManifestFacts:  # noqa: ARG002 - of its base
        """The manifest's facts about the folder, without files and generation."""
        return ManifestFacts(
            step=state.step,
            epoch=state.epoch,
            created_at=datetime.now(timezone.utc).isoformat(),
            metrics={name: float(value) for name, value in state.metrics.items()},
            origin={**process_facts(), **self.origin, **state.origin},
            resumable=state.resumable,
        )

    def step(self, state: Folder) -> int:
        """The optimizer step of the folder."""
        return state.step

    def resumable(self, state: Folder) -> bool:
        """Whether training can resume from the folder."""
        return state.resumable
