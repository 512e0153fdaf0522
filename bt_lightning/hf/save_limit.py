"""Which checkpoints of a training may go, by the rules of the Trainer (`save_total_limit`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.hf.stock_folders import stock_folders

if TYPE_CHECKING:
    from bt_lightning.session.running_session import RunningSession

_NAME: Final = re.compile(r"checkpoint-(\d+)")


class KeptCheckpoints:
    """The checkpoints of one training that are there; on every rank, the same on each.

    Args:
        run: the session.
        folder: where they are.
        best: name of the one that was best until here.
    """

    def __init__(self, run: RunningSession, folder: Path, best: str | None) -> None:
        self._run, self._folder, self._best = run, folder, best
        prefix = folder.relative_to(run.root).as_posix()
        ids = run.ranks.from_zero(lambda: [one.checkpoint_id for one in run.checkpoints()])
        names = [_name_in(one, prefix) for one in ids]
        self._names = sorted((name for name in names if name is not None), key=_step)
        """The oldest first."""

    def saved(self, state: Any, limit: int | None) -> None:
        """Every rank: the present step was saved; ask to remove what `limit` leaves no room for.

        As the Trainer does it, the newest one and the best one stay. All stay until a newer one is
        committed.
        """
        newest = f"checkpoint-{state.global_step}"
        self._names = [*(one for one in self._names if one != newest), newest]
        self._best = self.best(state)
        if not limit or limit < 0:
            return
        self.remove_stock(limit)
        stay = {newest, *([self._best] if self._best else [])}
        for name in list(self._names):
            if len(self._names) <= max(limit, len(stay)):
                return
            if name not in stay:
                self._names.remove(name)
                if self._run.ranks.is_zero:
                    self._run.session.remove(self._folder / name, self._run.root)

    def remove_stock(self, limit: int | None) -> None:
        """Rank that writes: remove what a Trainer without us left, as far as `limit` says.

        Not before something newer is committed, and never what this run resumed from.
        """
        writer = self._run.session.writer
        if not limit or limit < 0 or writer is None or writer.newest is None:
            return
        most = max(0, limit - len(self._names))
        needed = {self._best, Path(self._run.start.path or "").name}
        left = [one for one in stock_folders(self._folder) if one.name not in needed]
        for folder in left[: max(0, len(left) - most)]:
            self._run.session.remove(folder, self._run.root)

    def best(self, state: Any) -> str | None:
        """Name of the best checkpoint, if it was saved."""
        step = getattr(state, "best_global_step", None)
        name = f"checkpoint-{step}" if step else self._best
        saving = f"checkpoint-{state.global_step}"
        return name if name in self._names or name == saving else self._best

    def path_of(self, named: str | None) -> str | None:
        """The final path of what the Trainer names in the folder that it writes to."""
        return None if named is None else str(self._folder / re.split(r"[/\\]", named)[-1])


def _name_in(checkpoint_id: str, folder: str) -> str | None:
    """The name of a checkpoint of a Trainer in the folder of this training."""
    parent, _, name = checkpoint_id.rpartition("/")
    return name if (parent or ".") == folder and _NAME.fullmatch(name) else None


def _step(name: str) -> int:
    return int(name.removeprefix("checkpoint-"))
