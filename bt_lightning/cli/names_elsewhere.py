"""The table of `truss train`'s and `baseten train`'s commands, and ours, for the reference page."""

from __future__ import annotations

from typing import Final

NAMES: Final[tuple[tuple[str, str, str, str], ...]] = (
    ("push CONFIG", "", "run CONFIG.py", "on this machine; `--tail` is what it does anyway"),
    ("init", "", "init", "a Lightning script and its config.py"),
    ("view", "job list", "jobs list", "newest first"),
    ("view --job-id J", "job describe", "jobs show J", ""),
    ("", "project list", "projects list", ""),
    ("logs [--tail]", "job logs [--tail]", "jobs logs J [--follow]", "also of a lost machine"),
    ("metrics", "job metrics", "jobs metrics J", "what the training logs, not CPU and GPU"),
    ("stop [--all]", "job stop", "jobs stop J [--all]", "saves first"),
    ("recreate", "job recreate", "jobs recreate J", "a new job, from the beginning"),
    ("checkpoints list", "checkpoint list", "checkpoints list", "theirs: the newest first"),
    ("get_checkpoint_urls", "checkpoint files", "checkpoints urls", ""),
    ("deploy_checkpoints", "checkpoint deploy", "checkpoints deploy", "writes a Truss to push"),
    ("download", "job download", "jobs download J", "files of the job; theirs: its code"),
    ("cache summarize", "project cache describe", "cache summarize", "of this machine"),
    ("capacity view", "capacity describe", "", "GPUs of an organization"),
    ("capacity update", "capacity update", "", "as above"),
    ("update", "job update", "", "there is no queue"),
    ("isession", "job session describe", "", "use ssh, or tmux"),
    ("update_session", "", "", "as above"),
    ("workstation", "workstation create", "", "start the job where you are"),
    ("", "", "checkpoints show, files, explore, diff, verify", ""),
    ("", "", "checkpoints download, copy, export", ""),
    ("", "", "checkpoints protect, delete, trash", ""),
    ("", "", "jobs delete, projects delete", "theirs: in the browser"),
    ("", "", "jobs events, status, report, trace, doctor", ""),
    ("", "", "weights pull", "brings what `weights:` of a config names"),
)
"""Command of `truss train`, of `baseten train`, ours, and what differs; empty where there is none.

Sources: `truss train --help` of truss 0.18.36; the sources of the `baseten` CLI, and its pages for
what came later (`checkpoint deploy`, `workstation create`).
"""


def other_names() -> str:
    """The table as Markdown."""
    head = (
        "Each works as it is spelled there too: `bt-lightning train stop --job-id J --remote R`"
        " is `jobs stop J`, and says that it leaves `--remote` out. Other names of `checkpoints`,"
        " `jobs`, `projects` and `show` are `checkpoint`, `job`, `project` and `describe`; of"
        " `--project`, `--output-format`, `--order` and the argument JOB_ID they are"
        " `--project-id`, `--output`, `--direction` and `--job-id`.\n"
    )
    titles = ("`truss train`", "`baseten train`", "`bt-lightning`", "Differs")
    rows = [titles, ("---",) * len(titles), *(_row(*row) for row in NAMES)]
    return head + "\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _row(truss: str, baseten: str, ours: str, differs: str) -> tuple[str, ...]:
    return (*(f"`{name}`" if name else "" for name in (truss, baseten, ours)), differs)
