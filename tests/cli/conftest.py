"""Checkpoints to look at, and screens that are compared with what a person approved."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from bt_lightning.cli.app import main
from bt_lightning.localdir.commit import commit
from bt_lightning.localdir.list_and_verify_checkpoints import LocalCheckpoint
from bt_lightning.manifest import Manifest

_HERE = Path(__file__).parent
_GOLDEN = _HERE / "golden"
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # for `hostile`, which is no test


@pytest.fixture
def make():
    """Commit a checkpoint below a directory; its bytes and its times depend on its step only."""

    def make(root, name, step, metrics=None, files=None, **facts):
        def describe(entries):
            return Manifest(
                checkpoint_id=name,
                generation=1,
                step=step,
                epoch=step // 10,
                created_at=f"2026-01-02T{step // 60 % 24:02d}:{step % 60:02d}:05+00:00",
                files=entries,
                metrics={"val_loss": 1 / step} if metrics is None else metrics,
                **facts,
            )

        files = {"trainer.json": b"{}" * 300 * step} if files is None else files
        streams = {path: (lambda data=data: iter([data])) for path, data in files.items()}
        return LocalCheckpoint(root / name, commit(root / name, root, streams, describe))

    return make


@pytest.fixture
def cli(monkeypatch):
    """Run a command in this process, in 100 columns, without the environment's settings."""
    for name in [name for name in os.environ if name.startswith("BT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "100")

    def cli(*args, code=0, **options):
        monkeypatch.setattr("sys.argv", ["bt-lightning", *map(str, args)])
        done = CliRunner().invoke(main, [str(arg) for arg in args], **options)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == code, done.output
        return done

    return cli


@pytest.fixture
def golden():
    """Compare with the approved text of that name; APPROVE_SCREENS=1 approves what is there."""

    def golden(name, text, *roots):
        for root in roots:
            text = text.replace(str(root), "<root>")
        file = _GOLDEN / name
        if os.environ.get("APPROVE_SCREENS"):
            file.parent.mkdir(exist_ok=True)
            file.write_text(text)
        assert text == file.read_text()

    return golden
