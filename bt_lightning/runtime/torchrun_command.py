"""The torchrun command line that starts one program on every device of every node. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from bt_lightning.errors import InvalidSettingError
from bt_lightning.runtime.job_spec_and_environment import LEADER_PORT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bt_lightning.runtime.job_spec_and_environment import Nodes

_PYTHON: Final = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_WITH_VALUE: Final = frozenset({"-W", "-X", "--check-hash-based-pycs"})


def torchrun_command(
    words: Sequence[str], nodes: Nodes, processes: int, job_id: str
) -> tuple[str, ...]:
    """Wrap `words` (`python train.py --lr 1`, or any other program) in torchrun.

    `processes` is the number on each node. torchrun restarts nothing: the runner does. Source:
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
    options = [f"--nnodes={nodes.size}", f"--nproc-per-node={processes}", "--max-restarts=0"]
    if nodes.size == 1:
        options.append("--standalone")
    else:
        options += [
            f"--node-rank={nodes.rank}",
            "--rdzv-backend=c10d",
            f"--rdzv-endpoint={nodes.leader}:{LEADER_PORT}",
            f"--rdzv-id={job_id}",
        ]
    if not _PYTHON.fullmatch(words[0]):
        return ("torchrun", *options, "--no-python", *words)
    python, flags, program = words[0], *_split(words[1:])
    return (python, *flags, "-m", "torch.distributed.run", *options, *program)


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
