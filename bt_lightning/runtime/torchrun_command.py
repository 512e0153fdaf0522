"""The torchrun command line that starts one program on every device of every node. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import InvalidSettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.runtime.job_spec_and_environment import Nodes

JOIN_S: Final = 30.0
_AFTER_ADDRESSES: Final = "~"
"""Sorts behind every letter and digit."""
_PYTHON: Final = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_WITH_VALUE: Final = frozenset({"-W", "-X", "--check-hash-based-pycs"})


def torchrun_command(
    words: Sequence[str], nodes: Nodes, processes: int, job_id: str, join_wait_s: float = JOIN_S
) -> tuple[str, ...]:
    """Wrap `words` (`python train.py --lr 1`, or any other program) in torchrun.

    `processes` is the number on each node. torchrun restarts nothing when a process fails: the
    runner does. With `nodes.fewest`, a start waits `join_wait_s` for nodes beyond those. Source:
    torch.distributed.run.

    Raises:
        InvalidSettingError: several nodes have no leader address, or Python has no program.
    """
    if nodes.size > 1 and not nodes.leader:
        msg = (
            f"BT_GROUP_SIZE is {nodes.size} and BT_LEADER_ADDR is not set: expected the address of"
            " node 0, where the nodes of the job meet"
        )
        raise InvalidSettingError(msg)
    fewest = nodes.fewest or nodes.size
    count = str(nodes.size) if fewest == nodes.size else f"{fewest}:{nodes.size}"
    options = [f"--nnodes={count}", f"--nproc-per-node={processes}", "--max-restarts=0"]
    if nodes.size == 1:
        options.append("--standalone")
    else:
        options += _rendezvous(nodes, job_id, join_wait_s)
    if not _PYTHON.fullmatch(words[0]):
        return ("torchrun", *options, "--no-python", *words)
    python, flags, program = words[0], *_split(words[1:])
    return (python, *flags, "-m", "torch.distributed.run", *options, *program)


def _rendezvous(nodes: Nodes, job_id: str, join_wait_s: float) -> list[str]:
    """Options by which the nodes meet at node 0, and node 0 has rank 0.

    c10d knows no `--node-rank`: it numbers the nodes in the order of their local addresses, of
    which only that of rank 0 is ever connected to. Rank 0 decides where checkpoints lie, so it must
    not be on another node at the next attempt. Source: torch's dynamic_rendezvous.
    """
    host, port = nodes.meeting
    is_host = int(nodes.rank == 0)
    return [
        f"--local-addr={host if is_host else f'{_AFTER_ADDRESSES}{nodes.rank:06}'}",
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={host}:{port}",
        f"--rdzv-id={job_id}",
        f"--rdzv-conf=is_host={is_host},last_call_timeout={max(1, round(join_wait_s))}",
    ]


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Python's own flags, and the program with its arguments in torchrun's form."""
    at = 0
    while at < len(words) and words[at].startswith("-") and words[at] not in {"-m", "-c", "-"}:
        at += 2 if words[at] in _WITH_VALUE else 1
    flags, rest = list(words[:at]), list(words[at:])
    if rest[:1] == ["-m"] and len(rest) > 1:
        return flags, ["--module", *rest[1:]]
    if not rest or rest[0] in {"-m", "-c", "-"}:
        msg = (
            f"--elastic needs a program to start in each process, and {' '.join(words)!r} names"
            " none: expected python train.py ..., or python -m module ..."
        )
        raise InvalidSettingError(msg)
    return flags, rest
