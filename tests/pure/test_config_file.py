"""A `config.py` gives one project or one clear error, and leaves no trace in the process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

from bt_lightning import load_config
from bt_lightning.config_file import load_config as loading
from bt_lightning.errors import ConfigNotFoundError, InvalidSettingError
from bt_lightning.truss_definitions import TrainingProject

CONFIGS = Path(__file__).parents[1] / "truss" / "configs"
GOOD = """
from truss_train import Image, TrainingJob, TrainingProject
project = TrainingProject(name="p", job=TrainingJob(image=Image(base_image="i")))
"""


@pytest.fixture(autouse=True)
def _without_truss(monkeypatch):
    """Whether it is installed here or not."""
    for name in list(sys.modules):
        if name.partition(".")[0] in loading.TRUSS_ROOTS:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(loading, "find_spec", lambda _: None)


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> Path:
        file = tmp_path / "config.py"
        file.write_text(text)
        return file

    return write


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_config_is_read_without_truss_as_truss_reads_it(name):
    """tests/truss compares the same files and the same JSON with truss itself."""
    project = load_config(CONFIGS / f"{name}.py")
    read = {**project.model_dump(mode="json"), "job": project.job.model_dump(mode="json")}
    assert read == json.loads((CONFIGS / f"{name}.json").read_text())


def test_the_config_of_the_examples_starts_a_script_that_is_there():
    folder = Path(__file__).parents[2] / "examples" / "baseten"
    commands = load_config(folder / "config.py").job.runtime.start_commands
    assert (folder / commands[-1].removeprefix("bash ")).exists()


def test_a_path_may_be_text_and_relative(config, monkeypatch):
    monkeypatch.chdir(config(GOOD).parent)
    assert load_config("config.py").name == "p"


def test_a_config_may_be_written_with_our_own_definitions(config):
    text = GOOD.replace("truss_train", "bt_lightning.truss_definitions")
    assert type(load_config(config(text))) is TrainingProject


def test_a_file_knows_its_path_and_its_name_and_is_no_main(config):
    file = config(
        GOOD + "assert __name__ == 'config', __name__\n"
        "project.team_name = __import__('pathlib').Path(__file__).parent.name\n"
    )
    assert load_config(file).team_name == file.parent.name


def test_a_file_that_was_just_rewritten_is_read_anew(config):
    """A cached one of the same size and second would run the job of before."""
    for name in "abcdef":
        assert load_config(config(GOOD.replace('"p"', f'"{name}"'))).name == name
    assert not list(config(GOOD).parent.glob("__pycache__"))


def test_a_missing_file_is_a_missing_file(tmp_path):
    with pytest.raises(ConfigNotFoundError, match=r"there is no file .*nowhere\.py") as caught:
        load_config(tmp_path / "nowhere.py")
    assert isinstance(caught.value, FileNotFoundError)
    assert isinstance(caught.value, ValueError)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InvalidSettingError, match=r"cannot be read .*: name the file"):
        load_config(tmp_path)


WRONG = {
    "a syntax error": ("x = 1\nx = (\n", r"config\.py, line 2: .*never closed"),
    "an expression without end": ("x = " + "-" * 200_000 + "1", "expected a Python file"),
    "a NUL byte": ("x = '\0'", "expected a Python file"),
    "a foreign encoding": ("# coding: klingon\n", "unknown encoding: klingon"),
    "no project": ("x = 1", "has no global that is a TrainingProject, expected one: write"),
    "a project that is nobody's global": (GOOD + "projects = [project]\ndel project", "no global"),
    "the class alone": ("from truss_train import TrainingProject", "has no global"),
    "two projects": (GOOD + "other = project", r"2 globals .* \(other, project\), expected one"),
    "an error": ("import os\n\n\nos.environ['NOT_SET_AT_ALL']", r"line 4: KeyError: 'NOT_SET"),
    "an error of a function": ("def f():\n  1 / 0\nf()", "line 2: ZeroDivisionError"),
    "an exit": ("import sys\nsys.exit('bye')", "line 2: SystemExit: bye"),
    "a wrong definition": (
        "from truss_train import *\nCheckpointingConfig(volume_size_gib=-1)",
        r"line 2: CheckpointingConfig\.volume_size_gib is -1, expected at least 1",
    ),
    "a definition made wrong later": (
        GOOD + "project.job.runtime.start_commands.append('')",
        r"config\.py: Runtime\.start_commands\[0\] is ''",
    ),
    "a part of truss that is not stood in for": (
        "from truss.cli import train_commands",
        r"line 1: ModuleNotFoundError: No module named 'truss\.cli' \(without truss and truss_tr",
    ),
    "a name that is not stood in for": (
        "from truss.base import truss_config\ntruss_config.TrussConfig",
        "line 2: AttributeError: .*TrussConfig.*stubs",
    ),
    "a login to Baseten": (
        "from truss.remote.remote_factory import RemoteFactory\nRemoteFactory.create('baseten')",
        r"line 2: RemoteFactory\.create\(\) talks to Baseten, .* not installed: install it",
    ),
    "a push to Baseten": ("from truss_train import push\npush('x')", r"line 2: push\(\) talks"),
}


@pytest.mark.parametrize(("text", "complaint"), WRONG.values(), ids=WRONG)
def test_a_file_that_gives_no_project_says_where_and_why(config, text, complaint):
    with pytest.raises(InvalidSettingError, match=complaint):
        load_config(config(text))


def test_a_key_press_that_ends_the_program_is_no_wrong_config(config):
    with pytest.raises(KeyboardInterrupt):
        load_config(config("raise KeyboardInterrupt"))


def test_what_pydantic_says_of_a_wrong_value_is_said_without_the_value(config):
    """Invariant 10: its own text quotes what it was given, and that may be a token."""
    text = (
        "class ValidationError(ValueError):\n"
        "    title = 'Runtime'\n"
        "    def errors(self):\n"
        "        return [{'loc': ('environment_variables', 'T'), 'msg': 'not a string'}]\n"
        "raise ValidationError('input_value=hunter2')"
    )
    with pytest.raises(
        InvalidSettingError, match=r"Runtime\.environment_variables\.T: not a"
    ) as caught:
        load_config(config(text))
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("ending", ["", "raise OSError", "import sys; sys.exit()"])
def test_the_process_is_as_it_was_afterwards(config, ending, tmp_path):
    (tmp_path / "beside.py").write_text("from truss_train import Compute\n")
    path, modules = list(sys.path), set(sys.modules)
    text = (
        "import sys, pathlib\n"
        "sys.path.insert(0, str(pathlib.Path(__file__).parent))\n"
        f"import beside\n{GOOD}\nproject.job.compute = beside.Compute(cpu_count=3)\n{ending}"
    )
    if ending:
        with pytest.raises(InvalidSettingError):
            load_config(config(text))
    else:
        assert load_config(config(text)).job.compute.cpu_count == 3
    assert sys.path == path
    assert set(sys.modules) == modules


def test_two_configs_with_a_module_of_one_name_each_get_their_own(tmp_path):
    """A sweep that reads many configs would run them all with the numbers of the first."""
    names = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "common.py").write_text(f"NAME = {name!r}\n")
        file = tmp_path / name / "config.py"
        file.write_text(
            "import os, sys\nsys.path.append(os.path.dirname(__file__))\nimport common\n"
            + GOOD.replace('"p"', "common.NAME")
        )
        names.append(load_config(file).name)
    assert names == ["one", "two"]


def test_what_a_config_imports_from_elsewhere_stays_imported(config, tmp_path, monkeypatch):
    """numpy in a virtual environment of that very folder, say: it cannot be imported twice."""
    site = tmp_path / ".venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "installed_once.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    text = "import os, sys\nsys.path.insert(0, os.path.dirname(__file__))\nimport installed_once\n"
    load_config(config(text + GOOD))
    assert "installed_once" in sys.modules
    monkeypatch.delitem(sys.modules, "installed_once")


def test_what_is_installed_of_truss_is_not_stood_in_for(config, monkeypatch):
    """Half of it comes from an old version, say: the other half still has stand-ins."""
    real = ModuleType("truss_train")
    monkeypatch.setitem(sys.modules, "truss_train", real)
    with pytest.raises(InvalidSettingError, match=r"cannot import name 'Image'.*\(without truss,"):
        load_config(config(GOOD))
    assert sys.modules["truss_train"] is real
    assert "truss" not in sys.modules


def test_a_folder_that_happens_to_be_called_truss_is_not_truss(config, monkeypatch):
    class NoFile:
        origin = None

    monkeypatch.setattr(loading, "find_spec", lambda _: NoFile())
    assert load_config(config(GOOD)).name == "p"
