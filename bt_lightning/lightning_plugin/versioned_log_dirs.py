"""The directory of a logger that numbers its runs: `version_0`, `version_1` ... ."""

from __future__ import annotations

import re
import secrets
from pathlib import Path
from typing import Any

from bt_lightning.errors import CheckpointCorruptError
from bt_lightning.file_limits import LINE
from bt_lightning.localdir.small_files import read_small_file, replace_small
from bt_lightning.session.checkpoint_paths import is_url

TOKEN_CHARS = 8
"""Hexadecimal digits of a token, which is a part of file names."""


class VersionedLogDir:
    """The directory of one logger's run, with a mark that tells it from others of that name.

    Args:
        logger: one of Lightning's that has `_version` and `log_dir`.
        kind: distinguishes loggers that share a directory.
    """

    def __init__(self, logger: Any, kind: str) -> None:
        self._logger = logger
        self._mark = f".bt_lightning-{kind}"
        self.token = ""
        """Of this run: in the mark."""

    @property
    def path(self) -> Path:
        """The directory, absolute."""
        return Path(self._logger.log_dir).absolute()

    @property
    def is_local(self) -> bool:
        """Whether files of it can be rewritten."""
        return not is_url(str(self._logger.log_dir))

    def takes(self, facts: dict[str, Any]) -> bool:
        """Whether the logger can go on in the directory of `facts`; its version is set.

        Not if the script names another version, nor if the directory is of another run: after the
        loss of a disk, a run of another job may have its number.
        """
        logger, own, version = self._logger, self._logger._version, facts["version"]
        numbered = own is None or own == logger._get_next_version()
        if own != version and not (numbered and isinstance(version, int)):
            return False  # a name is always the script's
        logger._version = version
        if self.is_local and (not self.path.exists() or self._read() == facts["token"]):
            self.token = facts["token"]
            return True
        logger._version = own
        return False

    def mark(self) -> None:
        """Mark the directory, which exists, as that of this run."""
        self.token = self.token or new_token()
        if self.is_local:
            replace_small(self.path / self._mark, self.token.encode("ascii"), durable=False)

    def facts(self) -> dict[str, Any]:
        """What `takes` is given."""
        return {"version": self._logger._version, "token": self.token}

    def _read(self) -> str:
        try:
            return read_small_file(self.path / self._mark, LINE).decode("ascii", "replace")
        except (OSError, CheckpointCorruptError):
            return ""


def new_token() -> str:
    """A name that no other run has."""
    return secrets.token_hex(TOKEN_CHARS // 2)


def is_token(value: object) -> bool:
    """Whether a value has the form of a token."""
    return isinstance(value, str) and re.fullmatch(rf"[0-9a-f]{{{TOKEN_CHARS}}}", value) is not None
