"""The CheckpointIO that a Trainer gets: our directory goes our way, everything else Lightning's."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from bt_lightning.errors import (
    CheckpointNotFoundError,
    InvalidSettingError,
)
from bt_lightning.lightning_plugin.checkpoint_io import BTCheckpointIO
from bt_lightning.lightning_plugin.compat import takes_weights_only
from bt_lightning.lightning_plugin.lightning_or_pytorch_lightning import (
    CheckpointIO,
    accept_in_both,
)
from bt_lightning.lightning_plugin.trainer_ranks import ranks_of
from bt_lightning.localdir.list_and_verify_checkpoints import read_manifest
from bt_lightning.path_layout import check_checkpoint_id
from bt_lightning.restore.live_objects import LiveObjects
from bt_lightning.session.bt_and_evicted_paths import register_store_paths
from bt_lightning.session.checkpoint_paths import (
    is_committed,
    is_url,
    local_path,
    reader_of_url,
)
from bt_lightning.session.shared_directory_check import ResumedFrom
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.restore.load_checkpoint import MapLocation
    from bt_lightning.session.bt_and_evicted_paths import Pin, StorePaths
    from bt_lightning.session.rank_session import RankSession

_OWN = frozenset({"inner", "away", "ours", "root", "weights_only", "session"})
_FOREIGN = re.compile(r"hpc_ckpt_\d+\.ckpt")
"""SLURM requeue files: Lightning finds them by this name, as files."""


class RoutedCheckpointIO(CheckpointIO):
    """Sends paths under `root` to `ours`, and the rest to `inner`, untouched and synchronously.

    The rest are Lightning's own temporaries (Tuner, ddp_spawn), SLURM's files, and checkpoints
    that a user wants elsewhere. What is committed is loaded our way wherever it lies.
    """

    def __init__(
        self,
        inner: CheckpointIO,
        ours: BTCheckpointIO,
        root: Path,
        session: RankSession,
        away: StorePaths,
    ) -> None:
        """`away` is where checkpoints of `root` are whose copies there made room for others."""
        self.inner = inner
        self.away = away
        self.ours = ours
        self.root = root
        self.weights_only: bool | None = None
        """Used where Lightning passes none on."""
        self.own_weights_only: bool | None = None
        """The same for checkpoints of `root`."""
        self.session = session
        accept_in_both(type(self))

    def __getattr__(self, name: str) -> Any:
        """Whatever else the user's own plugin has: scripts reach it through the strategy."""
        if name in _OWN or name.startswith("__"):  # pickle asks, before there is anything
            raise AttributeError(name)
        return getattr(self.inner, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        """What the user's own plugin has is set there."""
        inner = vars(self).get("inner")
        own = name in _OWN or inner is None or not hasattr(inner, name)
        object.__setattr__(self if own else inner, name, value)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Commit under `root`, by a snapshot during a fit; elsewhere, what the inner IO does."""
        if not self.is_ours(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        self.session.save(self.ours.writer, checkpoint, self._place(path), self.root)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load what is committed, and `bt://` paths, our way, anything else by the inner IO."""
        if weights_only is None:
            weights_only = self.own_weights_only if self.is_ours(path) else self.weights_only
        saves = self.session.saves
        if saves is not None and self.is_ours(path):
            saves.wait_for(self._id(self._place(path)))
        if is_bt(path):
            return self.ours.load_checkpoint(path, map_location, weights_only)
        if str(path) not in self.away.pins and is_committed(path):
            with contextlib.suppress(CheckpointNotFoundError):  # it made room just now
                return self.ours.load_checkpoint(path, map_location, weights_only)
        if str(path) in self.away.pins or (self.is_ours(path) and not local_path(path).is_file()):
            place = self.away.reader(str(path))
            return self.ours.load_place(place, map_location=map_location, weights_only=weights_only)
        if (url := reader_of_url(path)) is not None:
            return self.ours.load_place(url, map_location=map_location, weights_only=weights_only)
        more: dict[str, Any] = {} if map_location is None else {"map_location": map_location}
        if takes_weights_only(self.inner.load_checkpoint):
            more["weights_only"] = weights_only
        return self.inner.load_checkpoint(path, **more)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Ask for the removal of a committed checkpoint; it goes when a newer one is safe."""
        if not self.is_ours(path):
            self.inner.remove_checkpoint(path)
            return
        place = self._place(path)
        if place.is_symlink() or place.is_file():
            place.unlink()
            return
        self.session.remove(place, self.root)

    @override
    def teardown(self) -> None:
        """Tear down the inner IO."""
        self.inner.teardown()

    def trust(self, weights_only: bool | None, *, own: bool | None) -> None:  # noqa: FBT001
        """What loads do where Lightning passes no `weights_only` on; `own`: those of `root`."""
        self.weights_only, self.own_weights_only = weights_only, own
        self.ours.writer.trusted = own is False

    def is_ours(self, path: str | Path) -> bool:
        """Whether `path` names a checkpoint of the checkpoint directory."""
        if is_url(path):
            return False
        try:
            check_checkpoint_id(self._place(path).relative_to(self.root).as_posix())
        except (ValueError, InvalidSettingError):
            return False
        return _FOREIGN.fullmatch(local_path(path).name) is None

    def pending(self, path: str | Path) -> bool:
        """Whether a save to `path` is under way, or done; its directory need not be there."""
        saves = self.session.saves
        if saves is None or not self.is_ours(path):
            return False
        checkpoint_id = self._id(self._place(path))
        return bool(saves.saver.pending(checkpoint_id)) or self.session.knows(checkpoint_id)

    def settle(self, trainer: Trainer, path: str | None) -> ResumedFrom:
        """Every rank: agree on what the `path` that the run resumes from means to rank 0.

        A checkpoint that rank 0 found in the store is read there by all. Raises on every rank what
        `StorePaths.look` raised on rank 0.
        """
        chosen, pin = ranks_of(trainer).from_zero(lambda: self._mean(path))
        if path is not None and pin is not None:
            source = self.ours.bt if is_bt(path) else self.away
            source.pins[path] = pin
        return chosen

    def _mean(self, path: str | None) -> tuple[ResumedFrom, Pin | None]:
        """Rank 0: what a path is, and where in the store each rank is to read it."""
        if path is None:
            return ResumedFrom(), None
        pin = self.ours.bt.find(path) if is_bt(path) else self.away.pins.get(path)
        if pin is None and self.is_ours(path):
            pin = self.away.find_if_not_local(path)
        if pin is not None:
            return ResumedFrom(pin.digest, stored=True), pin
        if (place := reader_of_url(path)) is not None:
            return ResumedFrom(place.manifest.digest), None
        return ResumedFrom(
            read_manifest(local_path(path)).digest if is_committed(path) else None
        ), None

    def _id(self, place: Path) -> str:
        return place.relative_to(self.root).as_posix()

    def _place(self, path: str | Path) -> Path:
        """The path with its folder resolved as `root` is, its last part left as it is."""
        place = local_path(path)
        return place.parent.resolve() / place.name


def install_io(
    trainer: Trainer, root: Path, session: RankSession, source: StorePaths
) -> RoutedCheckpointIO:
    """Make the Trainer's checkpoints go through a `RoutedCheckpointIO`; idempotent.

    `source` is where `bt://` paths lead, unless the user's own `BTCheckpointIO` knows a store.
    """
    inner = trainer.strategy.checkpoint_io
    inner = inner.inner if isinstance(inner, RoutedCheckpointIO) else inner
    ours = inner if isinstance(inner, BTCheckpointIO) else BTCheckpointIO()
    if ours.bt.store is None:
        ours.bt = source
    ours.writer.origin = {
        "world_size": trainer.world_size,
        "strategy": type(trainer.strategy).__name__,
    }
    trainer.strategy.checkpoint_io = routed = RoutedCheckpointIO(inner, ours, root, session, source)
    ours.writer.live_objects = LiveObjects(
        (trainer.lightning_module, getattr(trainer, "datamodule", None))
    )
    register_store_paths(source)
    return routed
