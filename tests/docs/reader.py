"""Follows a page as a reader does: saves its files, runs its code, compares what it shows."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.docs.code_blocks import PROJECT, Block, shows
from tests.fork_server import script_environ

if TYPE_CHECKING:
    from tests.fork_server import ForkServer

_LIMIT_S = 600
_GIVEN = Path(__file__).with_name("given.py")
_MINIO = "http://127.0.0.1:9000"
_SHELL = """
[ ! -e .reader/exported ] || . .reader/exported
set -euo pipefail
. "$1"
export -p > .reader/exported
"""


class Reader:
    """A folder, and a shell whose variables last from block to block.

    Args:
        folder: an empty one.
        server: starts Python without the seconds of its imports.
        environ: what the reader's shell has to begin with.
        endpoint: of the S3 server that stands where the pages have MinIO.
    """

    def __init__(
        self, folder: Path, server: ForkServer, environ: dict[str, str], endpoint: str
    ) -> None:
        self._folder, self._server, self._endpoint = folder, server, endpoint
        self._path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._first = {**environ, "PATH": self._path, "HOME": str(folder)}
        self.printed = ""
        (folder / ".reader").mkdir()
        shutil.copy(_GIVEN, folder)
        shutil.copytree(PROJECT / "examples", folder / "examples")

    def save(self, block: Block) -> None:
        assert block.file is not None
        (self._folder / block.file).write_text(self._here(block.text))

    def run(self, block: Block) -> None:
        """Run a block, and keep what it printed."""
        name = f".reader/line_{block.line}"
        path = self._folder / (f"{name}.py" if block.language == "python" else f"{name}.sh")
        path.write_text(self._here(block.text))
        if block.language == "python":
            path.write_text(f"from given import *\n{path.read_text()}")
            command = [sys.executable, str(path)]
        else:
            command = ["bash", "-c", _SHELL, "bash", str(path)]
        with (self._folder / f"{name}.out").open("w+") as out:
            process = self._server.popen(
                command,
                cwd=self._folder,
                env=self._environ(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(_LIMIT_S)
            finally:
                process.kill()
            out.seek(0)
            self.printed = out.read()
        assert status == 0, f"{block.place} ended with {status}:\n{self.printed}"

    def compare(self, block: Block) -> None:
        where = f"{block.place} is not what was printed:\n{self.printed}"
        assert shows(block.text, self.printed), where

    def _here(self, text: str) -> str:
        return text.replace(_MINIO, self._endpoint)

    def _environ(self) -> dict[str, str]:
        environ = script_environ(self._first, (self._folder,))
        exported = self._folder / ".reader" / "exported"
        if not exported.exists():
            return environ
        words = ["bash", "-c", f'. "{exported}"; env -0']
        found = subprocess.run(words, env=environ, capture_output=True, text=True, check=True)
        pairs = [one.split("=", 1) for one in found.stdout.split("\0") if "=" in one]
        return {name: value for name, value in pairs if name not in {"_", "SHLVL", "OLDPWD"}}
