"""The run of Lightning's `WandbLogger`.

Online, a run of that id is resumed by the server. Offline, W&B can go on with no run: each start
writes a file of its own, the last of one id is what a sync leaves, and a killed process loses what
was in its memory. So each row is kept in a journal beside these files, and a start that goes on
logs the rows of the journal first: its own file has the whole run.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bt_lightning.lightning_plugin.versioned_log_dirs import new_token
from bt_lightning.localdir.small_files import replace_small

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import TextIOWrapper

_OFFLINE = ("offline", "dryrun")
_TIME = "_timestamp"


class WandbLoggerRun:
    """Goes on with the run of the same id."""

    kind = "wandb"
    fields: ClassVar = {"id": str, "project": str, "token": str, "rows": int}

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self._token = ""
        self._rows = 0
        self._journal: TextIOWrapper | None = None
        self._log: Any = None

    @property
    def begun(self) -> bool:
        """As `LoggerRun.begun`."""
        import wandb

        return self.logger._experiment is not None or wandb.run is not None

    def takes(self, facts: dict[str, Any]) -> bool:
        """As `LoggerRun.takes`: not if the script names another run or project."""
        given: dict[str, Any] = self.logger._wandb_init
        named = given.get("id") or os.environ.get("WANDB_RUN_ID")
        if named not in (None, facts["id"]) or given.get("project") != facts["project"]:
            return False
        if given.get("resume_from") or given.get("fork_from"):
            return False
        given.update(id=facts["id"], resume=given.get("resume") or "allow")
        self.logger._id = facts["id"]
        self._token = facts["token"]
        return True

    def begin(self, facts: dict[str, Any] | None, *, cut: bool) -> None:
        """As `LoggerRun.begin`."""
        self._token = self._token or new_token()
        run = self.logger.experiment
        if not self._is_offline(run):
            return
        file = self._folder(run) / f"bt_lightning-{self._token}.jsonl"
        rows = list(_read(file))[: facts["rows"] if cut else None] if facts is not None else []
        replace_small(file, b"".join(rows), durable=False)
        for row in rows:
            said = json.loads(row)
            run.log({**said["row"], _TIME: said["time"]}, **said["how"])
        self._rows = len(rows)
        self._journal = file.open("a", encoding="utf-8")
        self._log = run.log
        vars(run)["log"] = self._noted

    def facts(self) -> dict[str, Any]:
        """As `LoggerRun.facts`."""
        run = self.logger.experiment
        named = {"id": run.id, "project": self.logger._wandb_init.get("project")}
        return {**named, "token": self._token, "rows": self._rows}

    def pending(self) -> list[Any]:
        """As `LoggerRun.pending`: the journal has all of them."""
        return []

    def add_pending(self, rows: list[Any]) -> None:
        """As `LoggerRun.add_pending`."""

    def end(self) -> None:
        """As `LoggerRun.end`. No sync takes the files of killed starts for the run any more."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        journal.close()
        run = self.logger.experiment
        vars(run).pop("log", None)
        own = Path(run.dir).parent
        for folder in self._folder(run).glob(f"offline-run-*-{run.id}"):
            file = folder / f"run-{run.id}.wandb"
            if folder.name != own.name and file.exists():
                file.with_name(f"{file.name}.synced").touch()  # W&B's own mark

    def _noted(self, data: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        """`wandb.Run.log`, with a line of the journal."""
        given = {**dict(zip(("step", "commit"), args, strict=False)), **kwargs}
        how = {name: given[name] for name in ("step", "commit") if given.get(name) is not None}
        line = {"row": dict(_plain(data)), "how": how, "time": time.time()}
        if self._journal is not None:
            self._journal.write(json.dumps(line) + "\n")
            self._journal.flush()
            self._rows += 1
        self._log(data, **how)

    @staticmethod
    def _is_offline(run: Any) -> bool:
        return str(run.settings.mode) in _OFFLINE

    @staticmethod
    def _folder(run: Any) -> Path:
        """Where the folders of all starts are; that of a run holds its `files`."""
        return Path(run.dir).parents[1]


def _plain(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What a line can hold: no images, no tables."""
    for name, value in data.items():
        is_scalar = hasattr(value, "item") and not getattr(value, "shape", ())
        number = value.item() if is_scalar else value
        if isinstance(number, bool | int | float | str):
            yield str(name), number


def _read(file: Path) -> Iterator[bytes]:
    """The lines of a journal, without one that a kill has cut off."""
    try:
        with file.open("rb") as stream:
            yield from (line for line in stream if line.endswith(b"\n"))
    except FileNotFoundError:
        return
