"""The commands, a module for each group.

In come parsed options; each command calls `bt_lightning.manage` or `bt_lightning.runtime` and hands
the result to `bt_lightning.cli.render`. A command must never decide what is safe to delete, and
imports what it needs when it runs, so that `--help` is quick. Start reading at `checkpoints`.
"""
