"""The CheckpointIO of a Trainer with `BTLightning`: routes paths to our IO or the Trainer's own."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any, TypeVar

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
from bt_lightning.restore.dcp_folder import directory_reader
from bt_lightning.restore.live_objects import LiveObjects
from bt_lightning.session.bt_and_evicted_paths import register_store_paths
from bt_lightning.session.checkpoint_paths import (
    is_committed,
    is_loadable,
    is_url,
    local_path,
    reader_of_url,
)
from bt_lightning.session.draw_part import draw_part
from bt_lightning.session.shared_directory_check import ResumedFrom
from bt_lightning.uri import is_bt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from lightning.pytorch import Trainer

    from bt_lightning.restore.read_documents import MapLocation
    from bt_lightning.session.bt_and_evicted_paths import Pin, StorePaths
    from bt_lightning.session.draw_part import DrawnPart
    from bt_lightning.session.rank_session import RankSession
    from bt_lightning.session.snapshot_writer import SnapshotWriter
    from bt_lightning.session.start_point import StartPoint
    from bt_lightning.store.transfer.checkpoint_reader import CheckpointReader

T = TypeVar("T")
_OWN = frozenset(
    {
        "inner",
        "bt_evicted",
        "bt_io",
        "bt_own_weights_only",
        "bt_root",
        "bt_weights_only",
        "_agreed",
        "_session",
    }
)
"""Attributes that are not the inner plugin's; a user's may have a `root` or a `session` too."""
_SLURM_FILE = re.compile(r"hpc_ckpt_\d+\.ckpt")
"""SLURM requeue checkpoints, which Lightning looks for as files of this name."""


class RoutedCheckpointIO(CheckpointIO):
    """Routes paths under `bt_root` to `bt_io` and all others to `inner`, synchronously.

    The others are Lightning's temporary files (Tuner, ddp_spawn), SLURM's files, and checkpoints in
    a user's own directory. Committed checkpoints are loaded by `bt_io` wherever they are.
    """

    def __init__(
        self,
        inner: CheckpointIO,
        ours: BTCheckpointIO,
        root: Path,
        session: RankSession,
        evicted: StorePaths,
    ) -> None:
        """`evicted` finds the stored checkpoints of `bt_root` whose local copies were evicted."""
        self.inner = inner
        self.bt_evicted = evicted
        self.bt_io = ours
        self.bt_root = root
        self.bt_weights_only: bool | None = None
        """Used if Lightning passes no `weights_only`."""
        self.bt_own_weights_only: bool | None = None
        """The same, for checkpoints of `bt_root`."""
        self._session = session
        self._agreed: dict[str, str] = {}
        """Path -> digest of the checkpoint that rank 0 saw there, until it is opened."""
        accept_in_both(type(self))

    def __getattr__(self, name: str) -> Any:
        """Attributes of the user's own plugin, which scripts use through the strategy."""
        if name in _OWN or name.startswith("__"):  # pickle looks before any attribute exists
            raise AttributeError(name)
        return getattr(self.inner, name)

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        """Set attributes of the user's own plugin on it."""
        inner = vars(self).get("inner")
        own = name in _OWN or inner is None or not hasattr(inner, name)
        object.__setattr__(self if own else inner, name, value)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Save under `bt_root` by a snapshot (during a fit) or a commit; elsewhere by `inner`."""
        if not self.is_ours(path):
            self.inner.save_checkpoint(checkpoint, path, storage_options)
            return
        self._session.save(self.bt_io.writer, checkpoint, self._normalized(path), self.bt_root)

    def draw_part(
        self, refuse: Callable[[BaseException], None]
    ) -> AbstractContextManager[DrawnPart]:
        """This rank's part of the next save, as `session.draw_part`; `save_part` takes it."""
        return draw_part(self._session, refuse)

    def save_part(
        self, writer: SnapshotWriter[T], state: T, path: str | Path, drawn: DrawnPart
    ) -> None:
        """Save this rank's part of a checkpoint at a path of `bt_root`; on every rank."""
        final = self._normalized(path)
        self._session.save(writer, state, final, self.bt_root, drawn.take())

    def parts_drawn(self) -> int:
        """How many saves of parts the run has had, with the one under way; alike on all ranks."""
        parts = self._session.parts
        return 0 if parts is None else parts.saves

    def id_of(self, path: str | Path) -> str | None:
        """The checkpoint id of a path of `bt_root`; None for a path elsewhere."""
        return self._id(self._normalized(path)) if self.is_ours(path) else None

    @property
    def is_saving(self) -> bool:
        """Whether saves are snapshots: between the start of a fit and its end."""
        return self._session.saves is not None

    @contextlib.contextmanager
    def open(self, path: str | Path) -> Iterator[CheckpointReader | None]:
        """A committed checkpoint, on the disk or in a store; None for anything else.

        What is read of it may replace the state: no copy of that is under way then.

        Raises:
            CheckpointNotFoundError: it is not the one that the ranks agreed on.
        """
        saves = self._session.saves
        if saves is not None:
            saves.saver.state_may_change()
            saves.saver.finish_copy()
            if self.is_ours(path):
                saves.wait_for(self._id(self._normalized(path)))
        with self._opened(path) as reader:
            agreed = self._agreed.pop(str(path), None)
            if reader is not None and agreed not in {None, reader.manifest.digest}:
                msg = f"{path} was replaced since rank 0 looked at it: start again"
                raise CheckpointNotFoundError(msg)
            yield reader

    @contextlib.contextmanager
    def _opened(self, path: str | Path) -> Iterator[CheckpointReader | None]:
        pinned = str(path) in self.bt_evicted.pins
        if is_bt(path):
            yield self.bt_io.bt.reader(str(path))
        elif not pinned and is_loadable(path):
            with directory_reader(local_path(path)) as reader:
                yield reader
        elif pinned or (self.is_ours(path) and not local_path(path).exists()):
            yield self.bt_evicted.reader(str(path))
        else:
            yield reader_of_url(path)

    @override
    def load_checkpoint(
        self, path: str | Path, map_location: MapLocation = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load committed checkpoints and `bt://` paths by `bt_io`, anything else by `inner`."""
        if weights_only is None:
            weights_only = self.trusted(path)
        saves = self._session.saves
        if saves is not None and self.is_ours(path):
            saves.wait_for(self._id(self._normalized(path)))
        if is_bt(path):
            return self.bt_io.load_checkpoint(path, map_location, weights_only)
        if str(path) not in self.bt_evicted.pins and is_loadable(path):
            with contextlib.suppress(CheckpointNotFoundError):  # evicted at this moment
                return self.bt_io.load_checkpoint(path, map_location, weights_only)
        if str(path) in self.bt_evicted.pins or (
            self.is_ours(path) and not local_path(path).is_file()
        ):
            local = self.bt_evicted.reader(str(path))
            return self.bt_io.load_from(local, map_location=map_location, weights_only=weights_only)
        if (url := reader_of_url(path)) is not None:
            return self.bt_io.load_from(url, map_location=map_location, weights_only=weights_only)
        more: dict[str, Any] = {} if map_location is None else {"map_location": map_location}
        if takes_weights_only(self.inner.load_checkpoint):
            more["weights_only"] = weights_only
        return self.inner.load_checkpoint(path, **more)

    @override
    def remove_checkpoint(self, path: str | Path) -> None:
        """Request the removal of a checkpoint; it is deleted once a newer one is committed."""
        if not self.is_ours(path):
            self.inner.remove_checkpoint(path)
            return
        local = self._normalized(path)
        if local.is_symlink() or local.is_file():
            local.unlink()
            return
        self._session.remove(local, self.bt_root)

    @override
    def teardown(self) -> None:
        """Tear down the inner IO."""
        self.inner.teardown()

    def follow(self, start: StartPoint) -> None:
        """Find the checkpoints of the job, and what it starts from, where rank 0 found them."""
        self.bt_evicted.prefix = start.prefix
        if start.folder and start.path and start.digest:
            self.bt_evicted.pin(start.path, start.folder, start.digest)

    def trusted(self, path: str | Path) -> bool | None:
        """The `weights_only` of a load from `path` without one."""
        return self.bt_own_weights_only if self.is_ours(path) else self.bt_weights_only

    def trust(self, weights_only: bool | None, *, own: bool | None) -> None:  # noqa: FBT001
        """Set the `weights_only` for loads without one; `own` is for checkpoints of `bt_root`."""
        self.bt_weights_only, self.bt_own_weights_only = weights_only, own
        self.bt_io.writer.trusted = own is False

    def is_ours(self, path: str | Path) -> bool:
        """Whether `path` is the path of a checkpoint in the checkpoint directory."""
        if is_url(path):
            return False
        try:
            check_checkpoint_id(self._normalized(path).relative_to(self.bt_root).as_posix())
        except (ValueError, InvalidSettingError):
            return False
        return _SLURM_FILE.fullmatch(local_path(path).name) is None

    def pending(self, path: str | Path) -> bool:
        """Whether a save to `path` is in progress or done, even if its directory does not exist."""
        saves = self._session.saves
        if saves is None or not self.is_ours(path):
            return False
        checkpoint_id = self._id(self._normalized(path))
        return bool(saves.saver.pending(checkpoint_id)) or self._session.knows(checkpoint_id)

    def agree_on_path(self, trainer: Trainer, path: str | None) -> ResumedFrom:
        """Called on every rank: agree on the checkpoint at `path`, from which the run resumes.

        If rank 0 finds it in the store, all ranks read it there. Raises on every rank what
        `StorePaths.find` raised on rank 0.
        """
        chosen, pin = ranks_of(trainer).from_zero(lambda: self._resolve(path))
        if path is not None and pin is not None:
            source = self.bt_io.bt if is_bt(path) else self.bt_evicted
            source.pins[path] = pin
        if path is not None and chosen.digest is not None:
            self._agreed[path] = chosen.digest
        return chosen

    def _resolve(self, path: str | None) -> tuple[ResumedFrom, Pin | None]:
        """Called on rank 0: the checkpoint at a path, and its place in the store if it is there."""
        if path is None:
            return ResumedFrom(), None
        pin = self.bt_io.bt.find(path) if is_bt(path) else self.bt_evicted.pins.get(path)
        if pin is None and self.is_ours(path):
            pin = self.bt_evicted.find_if_not_local(path)
        if pin is not None:
            return ResumedFrom(pin.digest, stored=True), pin
        if (local := reader_of_url(path)) is not None:
            return ResumedFrom(local.manifest.digest), None
        return ResumedFrom(
            read_manifest(local_path(path)).digest if is_committed(path) else None
        ), None

    def _id(self, local: Path) -> str:
        return local.relative_to(self.bt_root).as_posix()

    def _normalized(self, path: str | Path) -> Path:
        """The path with its parent folder resolved, as `bt_root` is; a final link is kept."""
        local = local_path(path)
        return local.parent.resolve() / local.name


def install_io(
    trainer: Trainer, root: Path, session: RankSession, source: StorePaths
) -> RoutedCheckpointIO:
    """Replace the Trainer's CheckpointIO by a `RoutedCheckpointIO`; idempotent.

    `source` resolves `bt://` paths, unless the user's own `BTCheckpointIO` has a store.
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
    ours.first_read = session.first_read
    trainer.strategy.checkpoint_io = routed = RoutedCheckpointIO(inner, ours, root, session, source)
    ours.writer.live_objects = LiveObjects(
        (trainer.lightning_module, getattr(trainer, "datamodule", None))
    )
    register_store_paths(source)
    return routed
