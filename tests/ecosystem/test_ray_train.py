"""Ray Train starts the ranks; a worker that is killed costs a restart, and the result is equal."""

from __future__ import annotations

import json
import sys
import tempfile
from typing import TYPE_CHECKING, Any

import pytest
import torch

from bt_lightning import BTCheckpointIO
from tests.ecosystem.test_launchers import PLUGIN, run

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SCRIPT = """
import json, os, signal, sys
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

given = json.loads(sys.argv[1])

def train(config):
    import lightning as L
    import plugin_runs as runs
    from sharded_runs import CpuFSDP
    import ray.train.lightning as rl
    from lightning.pytorch.callbacks import Callback, ModelCheckpoint
    from bt_lightning import BTLightning

    class Killer(Callback):
        def on_train_batch_start(self, trainer, *_):
            mark = config["place"] + "/killed"
            step = config["kill"]
            if trainer.global_step == step and trainer.is_global_zero and not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)

    class Say(Callback):
        def on_train_end(self, trainer, module):
            if trainer.is_global_zero:
                said = {"steps": module.steps, "ranks": trainer.world_size}
                with open(config["place"] + "/end.json", "w") as file:
                    json.dump(said, file)

    class FSDP(CpuFSDP, rl.RayFSDPStrategy):
        pass

    L.seed_everything(3)
    root = config["place"] + "/ck"
    trainer = runs.trainer(
        root,
        BTLightning(dir=root),
        ModelCheckpoint(every_n_train_steps=2),
        Killer(),
        Say(),
        strategy=FSDP() if config["sharded"] else rl.RayDDPStrategy(),
        plugins=[rl.RayLightningEnvironment()],
        devices="auto",
        max_epochs=2,
    )
    trainer = rl.prepare_trainer(trainer)
    trainer.fit(runs.Net(), runs.loader())

ray.init(num_cpus=2, include_dashboard=False, configure_logging=False)
TorchTrainer(
    train,
    train_loop_config=given,
    torch_config=TorchConfig(backend="gloo"),
    scaling_config=ScalingConfig(num_workers=2, use_gpu=False),
    run_config=RunConfig(
        name="run",
        storage_path=given["place"] + "/ray",
        failure_config=FailureConfig(max_failures=2),
    ),
).fit()
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ray") / "script.py"
    path.write_text(SCRIPT)
    return path


def _end(script: Path, place: Path, kill: int, *, sharded: bool) -> dict[str, Any]:
    place.mkdir()
    words = json.dumps({"place": str(place), "kill": kill, "sharded": sharded})
    env = {"RAY_TRAIN_V2_ENABLED": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as own:
        # one of its own, with a short name: the path of a socket is 107 bytes at most
        code = run(
            [sys.executable, str(script), words],
            place,
            {**env, "RAY_TMPDIR": own, "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1"},
        )
    assert code == 0, (place / "said").read_text()[-6000:]
    found: dict[str, Any] = json.loads((place / "end.json").read_text())
    newest = max((place / "ck").glob("*/bt_manifest.json"), key=lambda one: _step(one.parent))
    state = BTCheckpointIO().load_checkpoint(newest.parent)
    return {**found, "state": state["state_dict"], "step": _step(newest.parent)}


def _step(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


@pytest.mark.parametrize("sharded", [False, True], ids=["RayDDPStrategy", "RayFSDPStrategy"])
def test_a_run_of_ray_train_goes_on_and_ends_equal(
    script: Path, tmp_path: Path, *, sharded: bool
) -> None:
    assert PLUGIN.exists()
    whole = _end(script, tmp_path / "whole", -1, sharded=sharded)
    killed = _end(script, tmp_path / "killed", 5, sharded=sharded)
    assert whole["ranks"] == killed["ranks"] == 2
    assert whole["step"] == killed["step"] == len(whole["steps"]) == 8
    assert 0 < killed["steps"][0] <= 5
    assert killed["state"].keys() == whole["state"].keys()
    for name, tensor in whole["state"].items():
        assert torch.equal(killed["state"][name], tensor), name
    files = list((tmp_path / "killed" / "ck").glob("*/shard-*"))
    assert bool(files) == sharded
