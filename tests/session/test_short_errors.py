"""An error of set-up is one line; every other error keeps its traceback, and so does DEBUG."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

SCRIPT = """
import sys
if len(sys.argv) > 2:
    usual = sys.excepthook
    sys.excepthook = lambda *error: (print("reported", file=sys.stderr), usual(*error))
import lightning as L
from lightning.pytorch.demos.boring_classes import BoringModel
from bt_lightning import BTLightning
from bt_lightning.errors import CheckpointCorruptError


class Model(BoringModel):
    def training_step(self, batch, index):
        raise CheckpointCorruptError("a file of the user's is damaged")


quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
trainer = L.Trainer(
    max_steps=1, accelerator="cpu", callbacks=[BTLightning(dir=sys.argv[1])], **quiet
)
trainer.fit(Model())
"""
FIT_LINE = SCRIPT.splitlines().index("trainer.fit(Model())") + 1


@pytest.mark.parametrize(
    "case", ["set-up", "set-up at DEBUG", "training", "set-up, reported by another package"]
)
def test_only_an_error_of_set_up_is_one_line(case, fork_server, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "train.py").write_text(SCRIPT)
    directory = "ck" if case == "training" else "file"
    level = {"BT_LOG_LEVEL": "DEBUG"} if "DEBUG" in case else {}
    reported = ["report"] if "reported" in case else []
    done = fork_server.popen(
        [sys.executable, "train.py", directory, *reported],
        cwd=tmp_path,
        env={**os.environ, **level},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    _, said = done.communicate(timeout=100)
    assert done.returncode == 1
    last = said.strip().splitlines()[-1]
    if case == "set-up":
        assert "Traceback" not in said
        assert last.startswith(f"bt_lightning: train.py:{FIT_LINE}: DirectoryUnusableError: ")
        assert last.endswith("(BT_LOG_LEVEL=DEBUG shows the traceback)")
    else:
        assert "Traceback" in said
        kind = "CheckpointCorruptError" if case == "training" else "DirectoryUnusableError"
        assert last.startswith(f"bt_lightning.errors.{kind}: ")
        assert ("reported" in said.splitlines()) == bool(reported)
