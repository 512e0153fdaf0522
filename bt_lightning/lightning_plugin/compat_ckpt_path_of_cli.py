"""Private names of LightningCLI for the hyperparameters of the checkpoint in `--ckpt_path`."""

from __future__ import annotations

import functools
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def patch_ckpt_path_of_cli(find: Callable[[str], dict[str, Any] | None]) -> None:
    """Let LightningCLI take the hyperparameters that `find` has for a path; idempotent.

    It makes the model with those of the checkpoint in `--ckpt_path`, which it reads as a file.
    Source: `LightningCLI._parse_ckpt_path`, from 2.6 on; it must be imported before this runs.
    """
    for name in ("lightning.pytorch.cli", "pytorch_lightning.cli"):
        kind = getattr(sys.modules.get(name), "LightningCLI", None)
        original = getattr(kind, "_parse_ckpt_path", None)
        if original is None or getattr(original, "patched_by_bt_lightning", False):
            continue
        kind._parse_ckpt_path = _patched(original, find)  # type: ignore[union-attr]  # found there


def _patched(
    original: Callable[[Any], None], find: Callable[[str], dict[str, Any] | None]
) -> Callable[[Any], None]:
    @functools.wraps(original)
    def parse_ckpt_path(cli: Any) -> None:
        command = cli.config.get("subcommand")
        path = cli.config[command].get("ckpt_path") if command else None
        found = find(str(path)) if path else None
        if found is None:
            original(cli)
            return
        with tempfile.TemporaryDirectory(prefix="bt_lightning-") as folder:
            file = Path(folder) / "hyper_parameters.ckpt"
            torch.save({"hyper_parameters": found}, file)
            cli.config[command]["ckpt_path"] = str(file)
            try:
                original(cli)
            finally:
                cli.config[command]["ckpt_path"] = path

    parse_ckpt_path.patched_by_bt_lightning = True  # type: ignore[attr-defined]
    return parse_ckpt_path
