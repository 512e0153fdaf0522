"""Loggers that upload checkpoints, with the real packages: W&B offline, MLflow in a folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bt_lightning import BTCheckpointIO
from bt_lightning.localdir.list_and_verify_checkpoints import verify
from tests.plugin.wandb_files import records

if TYPE_CHECKING:
    from types import ModuleType

pytestmark = pytest.mark.matrix

_FITS = """
    import json, sys
    from pathlib import Path
    import plugin_runs as runs
    import wandb
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
    from bt_lightning import BTCheckpointIO, BTLightning

    for how in ("stock", "callback", "alone"):
        for name, (log_model, choice) in json.loads(sys.argv[2]).items():
            root = Path(sys.argv[1], f"{how}-{name}")
            root.mkdir()
            loggers = [
                WandbLogger(save_dir=root, project="p", log_model=log_model),
                MLFlowLogger(tracking_uri=f"file:{root}/mlruns", log_model=log_model),
            ]
            callbacks = [ModelCheckpoint(root / "ck", **choice)]
            if how == "callback":
                callbacks.append(BTLightning(dir=root / "ck"))
            plugins = [BTCheckpointIO()] if how == "alone" else []
            runs.fit(root, callbacks=callbacks, logger=loggers, plugins=plugins, max_epochs=2)
            wandb.finish()
"""
EACH_EPOCH = {"filename": "e{epoch}", "monitor": "step", "mode": "max", "save_top_k": 1}
SETTINGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "each": ("all", EACH_EPOCH),
    "in the end": (True, {**EACH_EPOCH, "save_last": True}),
    "each step": ("all", {**EACH_EPOCH, "filename": "s{step}", "every_n_train_steps": 1}),
}
"""With the last, checkpoints are to go while they are still being committed."""
EXPECTED = {
    "each": ["eepoch=0", "eepoch=1"],
    "in the end": ["eepoch=1", "last"],
    "each step": sorted(f"sstep={step}" for step in range(1, 17)),
}


@dataclass
class Artifact:
    """What a logger uploaded once: what is said of it, and its files."""

    name: str
    aliases: list[str]
    metadata: dict[str, Any]
    files: dict[str, Path] = field(default_factory=dict)

    def checkpoint(self, folder: Path) -> Path:
        """The one checkpoint in it, as whoever downloads it has it: a file, or a directory."""
        for name, source in self.files.items():
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(source.read_bytes())
        (found,) = folder.iterdir()
        return found


def _of_wandb(root: Path) -> list[Artifact]:
    (file,) = root.glob("wandb/offline-run-*/*.wandb")
    found = [r.artifact for r in records(file) if r.HasField("artifact") and r.artifact.finalize]
    return [
        Artifact(
            each.name,
            sorted(each.aliases),
            json.loads(each.metadata),
            {entry.path: Path(entry.local_path) for entry in each.manifest.contents},
        )
        for each in found
        if each.type == "model"
    ]


def _of_mlflow(root: Path) -> list[Artifact]:
    found = []
    for said in root.glob("mlruns/*/*/artifacts/**/metadata.yaml"):
        folder = said.parent
        files = {
            path.relative_to(folder).as_posix(): path
            for path in folder.rglob("*")
            if path.is_file() and path.parent / path.name not in {said, folder / "aliases.txt"}
        }
        aliases = yaml.safe_load((folder / "aliases.txt").read_text())
        metadata = yaml.safe_load(said.read_text())
        found.append(Artifact(folder.name, sorted(aliases), metadata, files))
    return sorted(found, key=lambda each: each.name)


@pytest.fixture(scope="module")
def uploaded(make_scripts: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What all ways of saving, with all settings, came to; trained in a process of its own."""
    pytest.importorskip("wandb")
    pytest.importorskip("mlflow")
    root, place = tmp_path_factory.mktemp("uploaded"), tmp_path_factory.mktemp("place")
    env = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "GIT_PYTHON_REFRESH": "quiet",
        "HOME": str(place),
        **{f"WANDB_{name}_DIR": str(place / name) for name in ("DATA", "CACHE", "CONFIG")},
    }
    make_scripts(place).run(_FITS, root, json.dumps(SETTINGS), env=env, timeout=280)
    return root


def _said(artifact: Artifact) -> tuple[list[str], dict[str, Any]]:
    """What is said of a checkpoint, whatever the suffix of its name."""
    name = artifact.metadata["original_filename"].removesuffix(".ckpt")
    return artifact.aliases, {**artifact.metadata, "original_filename": name}


@pytest.mark.parametrize("logger", ["wandb", "mlflow"])
@pytest.mark.parametrize("how", ["callback", "alone"])
@pytest.mark.parametrize("setting", list(SETTINGS))
@pytest.mark.timeout(300)  # the first waits for all trainings
def test_an_artifact_is_the_committed_directory_with_what_lightning_says_of_it(
    uploaded: Path, runs: ModuleType, tmp_path: Path, logger: str, how: str, setting: str
) -> None:
    """As many as plain Lightning uploads, though a checkpoint may have to go right away."""
    read = _of_wandb if logger == "wandb" else _of_mlflow
    found, stock = read(uploaded / f"{how}-{setting}"), read(uploaded / f"stock-{setting}")
    assert sorted(repr(_said(each)) for each in found) == sorted(repr(_said(e)) for e in stock)
    assert sorted(_said(each)[1]["original_filename"] for each in found) == EXPECTED[setting]
    for number, each in enumerate(found):
        place = each.checkpoint(tmp_path / str(number))
        named = {"eepoch=0": 8, "eepoch=1": 16, "last": 16}
        name = _said(each)[1]["original_filename"]
        assert verify(place).step == (named.get(name) or int(name.removeprefix("sstep=")))
        loaded = runs.Net.load_from_checkpoint(place)
        saved = BTCheckpointIO().load_checkpoint(place)["state_dict"]
        assert runs.digest(loaded.state_dict()) == runs.digest(saved)
        if logger == "wandb":
            assert place.name == "model.ckpt"  # the name that W&B's own example loads


@pytest.mark.timeout(300)
def test_a_logger_that_cannot_take_a_checkpoint_ends_the_fit_once_and_loses_none(
    scripts: Any, tmp_path: Path
) -> None:
    """As with plain Lightning; what was committed stays."""
    pytest.importorskip("mlflow")
    text = """
    import sys
    from pathlib import Path
    import pytest
    import plugin_runs as runs
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import MLFlowLogger
    from bt_lightning import BTLightning, UploadFailedError

    root = Path(sys.argv[1])
    logger = MLFlowLogger(tracking_uri=f"file:{root}/mlruns", log_model="all")
    folder = root / "mlruns" / logger.experiment_id / logger.run_id / "artifacts"
    for place in ("checkpoint-2", "model"):  # Lightning before 2.5 logs below model/checkpoints
        (folder / place).write_text("no folder")
    saving = ModelCheckpoint(every_n_train_steps=2, save_top_k=-1)
    with pytest.raises(UploadFailedError, match="MLFlowLogger did not take .*checkpoint-2: "):
        runs.fit(root, callbacks=[saving, BTLightning(dir=root / "ck")], logger=logger)
    """
    env = {"MLFLOW_ALLOW_FILE_STORE": "true", "GIT_PYTHON_REFRESH": "quiet"}
    scripts.run(text, tmp_path, env=env, timeout=280)
    assert verify(tmp_path / "ck" / "checkpoint-2").step == 2
