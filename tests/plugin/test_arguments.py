"""Every argument of `BTLightning`: what people write is taken, the rest refused by its name."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from bt_lightning import BTLightning, BTModelCheckpoint, InvalidSettingError, settings
from bt_lightning.session.options import Options

if TYPE_CHECKING:
    from types import ModuleType

RUBBISH: dict[str, tuple[Any, ...]] = {
    "dir": (3, b"runs", ["a"]),
    "store": (3, b"s3://x"),
    "load_dir": (3, {}),
    "resume": (None, True, "yes", 1, ["auto"]),
    "strict": ("false", 1, 0),
    "weights_only": ("False", 0),
    "exact": (None, "yes", 1),
    "resume_loggers": (None, "yes", 1),
    "on_error": (None, "ignore", ["raise"]),
    "drain_timeout": (None, "60", 0, -1, math.nan, math.inf, True, 1e300, timedelta(0)),
    "storage_options": ("key=x", [1], {1: 2}),
    "upload_mb_s": ("5", True, 0, 0.01, math.nan, math.inf),
    "content_md5": (None, "yes"),
    "project": (3, Path("x")),
    "job": (3, b"x"),
    "fit_name": (3, "", "a/b", "../x", "x" * 101),
    "snapshot": (None, "fast", True),
    "overlap": (None, "drop", ["wait"]),
    "arenas": (None, "2", 0, -1, 1.0, True),
    "arena_memory": ("1GB", -1, 1e9, True),
    "hold_memory": ("30", "0:00:30", -5, math.nan, math.inf, False, timedelta(seconds=-1)),
    "grace": ("30", "0:00:30", 0, -5, math.nan, math.inf, False, timedelta(seconds=-1)),
    "save_at_end": ("False", 0),
    "interval": ("often", 0, -1, math.nan, True, ["auto"], timedelta(0)),
    "failures_every": (None, "5", 0, math.inf, timedelta(0)),
    "max_overhead": (None, "5%", 0, 5, -0.1, math.nan, True),
    "volume_size_gib": ("10", 0, -1, math.inf, math.nan, True),
    "save_frozen": ("no", 0, 1),
    "sync_files": (None, "no", 1),
    "sync_include": ("*.json", [""], [1], 3),
    "sync_exclude": ("*.json", [None], {"a": 1}),
}


ARGUMENTS = inspect.signature(BTLightning).parameters


def test_every_argument_is_tried() -> None:
    assert set(RUBBISH) == set(ARGUMENTS)


def test_every_argument_is_the_option_of_its_name() -> None:
    """One source: `session.options`. Times may be given as numbers besides."""
    fields = {one.name: one for one in dataclasses.fields(Options) if one.metadata}
    assert list(fields) == list(ARGUMENTS)
    for name, argument in ARGUMENTS.items():
        assert argument.default == fields[name].default, name
        taken = argument.annotation.replace("timedelta | float", "timedelta")
        assert taken == fields[name].type, name


def test_a_misspelled_option_is_refused() -> None:
    """An adapter passes names that nobody else checks."""
    with pytest.raises(InvalidSettingError, match="drain_timout: no such option, expected dir, "):
        Options.of(drain_timout=5)


def test_every_argument_is_documented_in_its_order() -> None:
    text = inspect.getdoc(BTLightning)
    assert text is not None
    block = text[text.index("Args:") : text.index("Raises:")]
    assert re.findall(r"^    (\w+): ", block, re.MULTILINE) == list(ARGUMENTS)


def test_the_table_of_settings_has_every_argument_and_variable() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference" / "settings.md").read_text()
    table = text[text.index("| argument of `BTLightning` |") :].partition("\n\n")[0]
    rows = [row.split("|") for row in table.splitlines()[2:]]
    named = [name for row in rows for name in re.findall(r"`(\w+)`", row[1])]
    assert sorted(named) == sorted(ARGUMENTS)
    read = set(re.findall(r"BT_[A-Z0-9_]+", inspect.getsource(settings)))
    assert set(re.findall(r"BT_[A-Z0-9_]+", table)) <= read


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in RUBBISH.items() for value in values]
)
def test_rubbish_is_refused_at_once_by_its_name(name: str, value: object) -> None:
    with pytest.raises(InvalidSettingError, match=f"^{name} is .*, expected"):
        BTLightning(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["drain_timeout", "hold_memory", "grace", "interval", "failures_every"]
)
@pytest.mark.parametrize("value", [90, 90.0, np.float32(90), np.int64(90), timedelta(seconds=90)])
def test_a_time_is_a_timedelta_or_seconds(name: str, value: Any) -> None:
    options = BTLightning(**{name: value})._options
    assert getattr(options, name) == timedelta(seconds=90)


def test_numbers_of_numpy_are_numbers() -> None:
    options = BTLightning(
        arenas=np.int64(2),  # type: ignore[arg-type]
        arena_memory=np.int64(10**9),  # type: ignore[arg-type]
        upload_mb_s=np.float64(5),
        volume_size_gib=np.int32(3),
    )._options
    assert (options.arenas, options.arena_memory) == (2, 10**9)
    assert (options.upload_mb_s, options.volume_size_gib) == (5.0, 3.0)


def test_a_store_may_be_a_path(tmp_path: Path) -> None:
    assert BTLightning(store=tmp_path)._options.store == str(tmp_path)  # type: ignore[arg-type]


def test_a_refused_dictionary_is_not_shown() -> None:
    """It holds passwords."""
    with pytest.raises(InvalidSettingError) as caught:
        BTLightning(storage_options=[{"secret": "hunter2hunter2"}])  # type: ignore[arg-type]
    assert "hunter2" not in str(caught.value)
    assert "of the type list" in str(caught.value)


def test_a_model_checkpoint_takes_seconds_too() -> None:
    found = BTModelCheckpoint(train_time_interval=90)._train_time_interval
    assert found == timedelta(seconds=90)
    with pytest.raises(InvalidSettingError, match="train_time_interval is '90', expected"):
        BTModelCheckpoint(train_time_interval="90")  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of jsonargparse, by how it is called
@pytest.mark.parametrize(
    ("text", "seconds"),
    [("20", 20), ("20.5", 20.5), ("12:00:00", 43200), ('"12:00:00"', 43200), ("0:00:20", 20)],
)
def test_the_command_line_of_lightning_takes_the_same(
    runs: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, seconds: float
) -> None:
    """YAML itself reads an unquoted 12:00:00 as the number of its seconds."""
    from lightning.pytorch.cli import LightningCLI

    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's own arguments are none of its
    config = tmp_path / "config.yaml"
    lines = [f"      {name}: {text}" for name in ("grace", "failures_every", "interval")]
    config.write_text(
        "trainer:\n  logger: false\n  callbacks:\n"
        "  - class_path: bt_lightning.BTLightning\n    init_args:\n" + "\n".join(lines)
    )
    cli = LightningCLI(
        runs.Net,
        run=False,
        args=["--config", str(config)],
        save_config_callback=None,
        seed_everything_default=False,
    )
    (ours,) = [c for c in cli.trainer.callbacks if isinstance(c, BTLightning)]
    expected = timedelta(seconds=seconds)
    assert ours._options.grace == ours._options.failures_every == expected
    assert ours._options.interval == expected
