"""LightningCLI: every option from YAML and the command line, and runs that go on."""

from __future__ import annotations

import inspect
import json
import signal
import sys
from datetime import timedelta
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from bt_lightning import BTLightning, BTModelCheckpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from types import ModuleType

pytestmark = [
    pytest.mark.matrix,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of jsonargparse
]

GIVEN = "--trainer.callbacks+=bt_lightning.BTLightning"
TEXTS: dict[str, tuple[str, Any]] = {
    "dir": ("runs/a", "runs/a"),
    "store": ("s3://bucket/prefix", "s3://bucket/prefix"),
    "load_dir": ("/tmp/loaded", "/tmp/loaded"),
    "resume": ("require", "require"),
    "strict": ("false", False),
    "weights_only": ("true", True),
    "exact": ("false", False),
    "resume_loggers": ("false", False),
    "on_error": ("warn", "warn"),
    "drain_timeout": ("0:03:00", timedelta(minutes=3)),
    "storage_options": ('{"anon": true, "client_kwargs": {"region_name": "x"}}', None),
    "upload_mb_s": ("12.5", 12.5),
    "content_md5": ("true", True),
    "project": ("p", "p"),
    "job": ("j-7", "j-7"),
    "fit_name": ("first", "first"),
    "snapshot": ("eager", "eager"),
    "overlap": ("latest", "latest"),
    "arenas": ("2", 2),
    "arena_memory": ("1000000", 1_000_000),
    "hold_memory": ("0", timedelta(0)),
    "grace": ("45", timedelta(seconds=45)),
    "save_at_end": ("false", False),
    "interval": ("auto", "auto"),
    "failures_every": ("2 days, 1:00:00", timedelta(days=2, hours=1)),
    "max_overhead": ("0.1", 0.1),
    "volume_size_gib": ("80", 80),
    "save_frozen": ("false", False),
    "sync_files": ("false", False),
    "sync_include": ('["*.json"]', ["*.json"]),
    "sync_exclude": ('["*.tmp", "cache/**"]', ["*.tmp", "cache/**"]),
}
"""Of each option: what is written on a command line, and its value; None: as JSON has it."""


@pytest.fixture
def cli(runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A LightningCLI that makes a Trainer and trains nothing."""
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's own arguments are none of its

    def make(*args: str, kind: Any = LightningCLI) -> Any:
        more = {"save_config_callback": None, "seed_everything_default": False}
        return kind(runs.Net, run=False, args=["--trainer.logger=false", *args], **more)

    return make


def _ours(cli: Any, kind: Any = BTLightning) -> Any:
    (found,) = [each for each in cli.trainer.callbacks if type(each) is kind]
    return found


def _options(cli: Any) -> Any:
    return _ours(cli)._options


def test_every_option_is_set_by_the_command_line_and_by_yaml_and_is_read_back(
    cli: Any, tmp_path: Path, environ: pytest.MonkeyPatch
) -> None:
    assert list(TEXTS) == list(inspect.signature(BTLightning).parameters)
    for name in ("BT_CHECKPOINT_DIR", "BT_STORE_URL", "BT_LOAD_CHECKPOINT_DIR"):
        environ.delenv(name, raising=False)
    said = [f"--trainer.callbacks.{name}={text}" for name, (text, _) in TEXTS.items()]
    by_words = cli(GIVEN, *said)
    values = {name: json.loads(t) if v is None else v for name, (t, v) in TEXTS.items()}
    options = _options(by_words)
    assert {n: getattr(options, n) for n in TEXTS if n != "exact"} == {
        n: v for n, v in values.items() if n != "exact"
    }
    assert _ours(by_words)._added.exact is None
    dumped = tmp_path / "dumped.yaml"
    dumped.write_text(by_words.parser.dump(by_words.config, skip_none=False))
    assert _options(cli("--config", str(dumped))) == options
    written = tmp_path / "written.yaml"
    lines = "".join(f"      {name}: {text}\n" for name, (text, _) in TEXTS.items())
    written.write_text(
        f"trainer:\n  callbacks:\n  - class_path: bt_lightning.BTLightning\n    init_args:\n{lines}"
    )
    assert _options(cli("--config", str(written))) == options


@pytest.mark.parametrize("name", list(TEXTS))
def test_an_option_that_may_be_none_is_none_in_yaml(cli: Any, name: str) -> None:
    parameter = inspect.signature(BTLightning).parameters[name]
    if parameter.default is None:
        made = cli(GIVEN, f"--trainer.callbacks.{name}=null")
        assert made.config.trainer.callbacks[0].init_args[name] is None


def test_rubbish_is_an_error_of_the_command_line(cli: Any, capsys: Any) -> None:
    for text in ("resume=perhaps", "arenas=many", "strict=7", "sync_include=3", "nothing=1"):
        with pytest.raises(SystemExit):
            cli(GIVEN, f"--trainer.callbacks.{text}")
        assert text.partition("=")[0] in capsys.readouterr().err


def test_model_checkpoint_and_plugin_are_set_as_well(cli: Any, tmp_path: Path) -> None:
    made = cli(
        GIVEN,
        "--trainer.callbacks+=bt_lightning.BTModelCheckpoint",
        "--trainer.callbacks.train_time_interval=0:10:00",
        "--trainer.callbacks.save_last=link",
        "--trainer.callbacks.monitor=val",
        "--trainer.plugins+=bt_lightning.BTCheckpointIO",
        f"--trainer.plugins.store={tmp_path}",
    )
    found = _ours(made, BTModelCheckpoint)
    assert found._train_time_interval == timedelta(minutes=10)
    assert (found.save_last, found.monitor) == ("link", "val")
    assert type(made.trainer.strategy.checkpoint_io).__name__ == "BTCheckpointIO"


def test_a_subclass_may_link_arguments_to_the_callback(cli: Any) -> None:
    from lightning.pytorch.cli import LightningCLI

    class Linked(LightningCLI):
        def add_arguments_to_parser(self, parser: Any) -> None:
            parser.add_lightning_class_args(BTLightning, "saving")
            parser.set_defaults({"saving.interval": "auto"})
            parser.link_arguments("model.width", "saving.job", compute_fn=lambda n: f"width-{n}")

    options = _options(cli("--model.width=24", "--saving.grace=90", kind=Linked))
    assert (options.job, options.interval) == ("width-24", "auto")
    assert options.grace == timedelta(seconds=90)


OLD = tuple(map(int, version("lightning").split(".")[:2])) < (2, 6)
"""Lightning resumes exactly at the ends of epochs only."""
SCRIPT = """
import os, sys
from lightning.pytorch.cli import LightningCLI
import plugin_runs as runs
import lightning as L

class Model(runs.Net):
    def __init__(self, width: int = 16):
        super().__init__(int(os.environ.get("KILL", 0)) or None, runs.kill_group, width)
        self.save_hyperparameters()

class Data(L.LightningDataModule):
    def __init__(self, noise: bool = True):
        super().__init__()
        self.noise = noise

    def train_dataloader(self):
        return runs.loader(noise=self.noise)

    def val_dataloader(self):
        return runs.validation()

    test_dataloader = val_dataloader

class CLI(LightningCLI):
    def after_fit(self):
        print(runs.digest(self.model.state_dict()), len(self.model.steps))

cli = CLI(Model, Data, auto_configure_optimizers=True, seed_everything_default=5)
print("width", cli.model.hparams.width)
"""
ARGUMENTS = (
    "--optimizer=AdamW",
    "--optimizer.lr=0.01",
    "--lr_scheduler=StepLR",
    "--lr_scheduler.step_size=1",
    "--trainer.max_epochs=3",
    "--trainer.accelerator=cpu",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.callbacks+=ModelCheckpoint",
    f"--trainer.callbacks.{'every_n_epochs=1' if OLD else 'every_n_train_steps=3'}",
)
KILLS = (10, 18) if OLD else (5, 11)


@pytest.fixture
def start(scripts: Any, tmp_path: Path, environ: pytest.MonkeyPatch) -> Any:
    """Runs the script beside its own directory of checkpoints."""
    script = scripts.write(SCRIPT)

    def start(
        *words: str,
        root: str = "ck",
        kill: int = 0,
        rc: int = 0,
        auto: bool = True,
        fresh: bool = False,
    ) -> Any:
        env = {"BT_CHECKPOINT_DIR": str(tmp_path / root), "KILL": str(kill)}
        if auto:
            env["BT_LIGHTNING"] = "1"
        return scripts.run(script, *words, env=env, code=rc, fresh=fresh)

    return start


@pytest.mark.parametrize("how", ["given, without a logger", "automatic, with the default logger"])
def test_a_killed_run_ends_as_the_uninterrupted_one(start: Any, tmp_path: Path, how: str) -> None:
    """From another config file, with its arguments in another order, beside its config.yaml."""
    auto = how.startswith("automatic")
    words = [*ARGUMENTS] if auto else [*ARGUMENTS, "--trainer.logger=false", GIVEN]
    where = [f"--trainer.default_root_dir={tmp_path / name}" for name in ("whole", "killed")]
    whole = start("fit", *words, where[0], root="whole-ck", auto=auto).out
    start("fit", *words, where[1], kill=KILLS[0], rc=-signal.SIGKILL, auto=auto)
    printed = start("fit", *words, where[1], "--print_config", auto=auto).out
    config = tmp_path / "elsewhere.yaml"
    config.write_text(printed)
    start("fit", "--config", str(config), kill=KILLS[1], rc=-signal.SIGKILL, auto=auto)
    last = start("fit", where[1], *reversed(words[4:8]), *words[8:], *words[:4], auto=auto).out
    digest, steps = last.split()[:2]
    assert digest == whole.split()[0]
    assert int(steps) < 24
    kept = list((tmp_path / "killed").rglob("config*.yaml"))
    assert [file.name for file in kept] == ["config.yaml"]


def test_a_run_that_goes_on_with_another_config_keeps_the_old_one_and_says_so(
    start: Any, tmp_path: Path
) -> None:
    words = [*ARGUMENTS, "--trainer.logger=false", f"--trainer.default_root_dir={tmp_path / 'r'}"]
    start("fit", *words)
    said = start("fit", *words, "--trainer.max_epochs=4").err
    assert f"that of its earlier start is {tmp_path / 'r' / 'config-1.yaml'}" in said
    limits = [
        yaml.safe_load((tmp_path / "r" / name).read_text())["trainer"]["max_epochs"]
        for name in ("config-1.yaml", "config.yaml")
    ]
    assert limits == [3, 4]
    refused = start("fit", *words, "--trainer.max_epochs=5", root="of another run", rc=1).err
    assert "to NOT exist. Aborting to avoid overwriting" in refused


@pytest.mark.skipif(OLD, reason="Lightning takes no hyperparameters of --ckpt_path before 2.6")
def test_the_model_of_a_named_checkpoint_has_its_hyperparameters(
    start: Any, tmp_path: Path
) -> None:
    words = [*ARGUMENTS[4:8], "--trainer.logger=false"]
    start("fit", *ARGUMENTS, "--trainer.logger=false", "--model.width=24")
    path = tmp_path / "ck" / "checkpoint-24"
    words += ["--trainer.callbacks+=bt_lightning.BTLightning", f"--ckpt_path={path}"]
    assert "width 24" in start("test", *words, auto=False, fresh=True).out
