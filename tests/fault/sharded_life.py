"""One start of a training of several ranks, whose processes are watched and killed from outside."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fork_server import script_environ
from tests.kernels import mount_there

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tests.fork_server import ForkServer

SCRIPT = Path(__file__).with_name("sharded_job.py")
PLUGIN = Path(__file__).parents[1] / "plugin"
LIMIT_S = 60.0
"""Longer than this without a sign of life is a hang."""
TERM_S, KILL_S = 0.1, 30.0
"""When torchrun sends SIGTERM to the other ranks after one failed, and SIGKILL after that."""
_LOOK_S = 0.0003
_MARK = "SHARDED_KILLS_OF"
_PORTS = range(20_000, 30_000)
"""Below those that the kernel gives to whoever connects."""


class Life:
    """The ranks of one start, each in a session of its own, and the workers that they start."""

    def __init__(
        self,
        fork_server: ForkServer,
        job: dict[str, Any],
        ranks: int,
        disks: tuple[Path, list[Path]] | None = None,
    ) -> None:
        """`job`: of `sharded_job.train`. `disks`: a place, and the folder that each rank has there.

        What a rank says goes to the files `<notes>-<rank>` and `<notes>-<rank>.err`.
        """
        self.place = Path(job["notes"])
        self.notes: list[list[dict[str, Any]]] = [[] for _ in range(ranks)]
        """What each rank noted."""
        self._read = [0] * ranks
        shared = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
            "RANKS": str(ranks),
            "LOCAL_RANK": "0",
            _MARK: str(self.place.parent),
        }
        self.ranks: list[subprocess.Popen[Any]] = []
        for rank in range(ranks):
            more = {"NODE_RANK": str(rank)}
            prepare: Callable[[], object] | None = None
            if disks is not None:
                more |= {"BT_NODE_RANK": str(rank), "BT_GROUP_SIZE": str(ranks)}
                prepare = functools.partial(mount_there, str(disks[1][rank]), str(disks[0]))
            with Path(f"{self.place}-{rank}.err").open("wb") as errors:
                self.ranks.append(
                    fork_server.popen(
                        [sys.executable, str(SCRIPT), json.dumps(job)],
                        preexec_fn=prepare,
                        stdin=subprocess.DEVNULL,
                        stdout=errors,
                        stderr=errors,
                        cwd=self.place.parent,
                        env=script_environ({**shared, **more}, (PLUGIN,)),
                        start_new_session=True,
                    )
                )
        self.heard_at = time.monotonic()

    def hear(self) -> None:
        """Read what the ranks have noted since."""
        for rank, said in enumerate(self.notes):
            try:
                with Path(f"{self.place}-{rank}").open("rb") as file:
                    file.seek(self._read[rank])
                    data = file.read()
            except FileNotFoundError:  # it has not begun
                continue
            whole = data[: data.rfind(b"\n") + 1]
            self._read[rank] += len(whole)
            said.extend(map(json.loads, whole.splitlines()))
            if whole:
                self.heard_at = time.monotonic()

    def steps_of(self, event: str) -> list[list[int]]:
        """The step of each such note, by rank."""
        return [[n["step"] for n in said if n["event"] == event] for said in self.notes]

    def workers(self, rank: int) -> list[int]:
        """The workers that a rank had when it noted something last, and that are there still."""
        noted = self.notes[rank][-1]["workers"] if self.notes[rank] else []
        return [pid for pid in noted if _is_of(pid, self.place.parent)]

    def reach(self, is_there: Callable[[], bool]) -> bool:
        """Whether a moment comes before a rank ends."""
        looks = 0
        while not is_there():
            looks += 1
            if looks % 64 == 0:
                if self.any_ended():
                    return False
                self._check_alive()
            time.sleep(_LOOK_S)
        return not self.any_ended()

    def any_ended(self) -> bool:
        return any(process.poll() is not None for process in self.ranks)

    def _check_alive(self) -> None:
        self.hear()
        if time.monotonic() > self.heard_at + LIMIT_S:
            self.fail(f"hung: nothing happened for {LIMIT_S:.0f} s")

    def end(self, *, told: bool) -> list[int]:
        """How all ranks ended. `told`: one was killed, so the others are ended as torchrun does.

        Else they end by themselves; whoever takes longer than the limit hangs.
        """
        begun, sent = time.monotonic(), 0
        while None in (codes := [process.poll() for process in self.ranks]):
            gone_s = time.monotonic() - begun
            if told and sent < (gone_s > TERM_S) + (gone_s > KILL_S):
                sent += 1
                self._send(signal.SIGTERM if sent == 1 else signal.SIGKILL)
            if any(codes) and gone_s > LIMIT_S:
                self.fail(f"hung: a rank outlived another by {LIMIT_S:.0f} s")
            self._check_alive()
            time.sleep(0.01)
        self.hear()
        return [code for code in codes if code is not None]

    def _send(self, number: int) -> None:
        for process in self.ranks:
            if process.poll() is None:
                process.send_signal(number)

    def workers_end(self) -> None:
        """Wait until nothing is left of this start or of those before, in the same folder."""
        until = time.monotonic() + LIMIT_S
        while left := processes_of(self.place.parent):
            if time.monotonic() > until:
                self.fail(f"hung: workers {left} outlived their training by {LIMIT_S:.0f} s")
            time.sleep(0.02)

    def fail(self, why: str) -> None:
        """Say where the threads of the ranks are, and end all of it."""
        self._send(signal.SIGABRT)
        for process in self.ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        self.close()
        msg = f"{why}\n{self.errors()}"
        raise AssertionError(msg)

    def errors(self) -> str:
        files = [Path(f"{self.place}-{rank}.err") for rank in range(len(self.ranks))]
        codes = [process.poll() for process in self.ranks]
        said = [file.read_text(errors="replace")[-6000:] for file in files]
        return f"exit codes {codes}\n" + "\n--- next rank\n".join(said)

    def close(self) -> None:
        """Leave nothing running."""
        self._send(signal.SIGKILL)
        for process in self.ranks:
            process.wait(LIMIT_S)
        kill(processes_of(self.place.parent))


def kill(victims: Iterable[int]) -> None:
    """SIGKILL for each of these process ids that is there still."""
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """The workers of the trainings of this folder, and what else they have started."""
    pids = [int(place.name) for place in Path("/proc").glob("[0-9]*")]
    return [pid for pid in pids if _is_of(pid, folder)]


def _is_of(pid: int, folder: Path) -> bool:
    """Whether a process has the mark of this folder in its variables; a zombie has none."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return f"{_MARK}={folder}".encode() in words
    return False


def _free_port() -> int:
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
