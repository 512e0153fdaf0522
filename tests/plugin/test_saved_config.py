"""LightningCLI without a logger writes one config.yaml: a job can start again beside it."""

from __future__ import annotations

import pytest

SCRIPT = """
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

LightningCLI(BoringModel, BoringDataModule)
"""
ARGUMENTS = (
    "--trainer.logger=false",
    "--trainer.max_steps=2",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
)
GIVEN = "--trainer.callbacks+=bt_lightning.BTLightning"


@pytest.fixture
def start(scripts, tmp_path, environ):
    script = scripts.write(SCRIPT)
    environ.setenv("BT_CHECKPOINT_DIR", str(tmp_path / "root"))

    def run(*words: str, rc: int = 0) -> str:
        return scripts.run(script, *words, code=rc).err

    return run


def test_a_job_fits_again_and_validates_beside_its_config(start, tmp_path, environ):
    environ.setenv("BT_LIGHTNING", "1")
    start("fit", *ARGUMENTS)
    config = tmp_path / "scripts" / "config.yaml"
    kept = config.read_text()
    start("fit", *ARGUMENTS)
    start("validate", *ARGUMENTS)
    assert config.read_text() == kept


def test_without_us_nothing_changes(start):
    start("fit", *ARGUMENTS, GIVEN)
    refused = "to NOT exist. Aborting to avoid overwriting"
    for command in ("fit", "validate"):
        assert refused in start(command, *ARGUMENTS, rc=1)
