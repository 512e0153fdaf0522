"""Ours are the classes of truss: the same names, fields, defaults and serialised form."""

from __future__ import annotations

import inspect
import json
from dataclasses import MISSING, fields
from enum import Enum
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("truss_train", reason="truss is not installed here; `nox -s truss` has it")

import pydantic
import truss_train
from recipes import PRIVATE, make, of_ours, of_truss, recipes
from truss.base import truss_config
from truss_train import definitions as theirs
from truss_train.loader import import_training_project

from bt_lightning import load_config
from bt_lightning import truss_definitions as ours
from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions import Definition, TrainingJob, TrainingProject, as_definition

many = settings(deadline=None, database=None, max_examples=50)
CONFIGS = Path(__file__).parent / "configs"
DEFINED = [
    name
    for name in ours.__all__
    if isinstance(getattr(ours, name), type)
    and issubclass(getattr(ours, name), Definition)
    and name not in {"Definition", "CheckpointRef"}
]
ENUMS = [
    name
    for name in ours.__all__
    if isinstance(getattr(ours, name), type) and issubclass(getattr(ours, name), Enum)
]
LAX = ["AcceleratorSpec", "WeightsAuth", "WeightsSource", "LoRADetails"]
"""Classes in which truss converts what it is given, and keeps unknown fields."""
LAX += ["Checkpoint", "FullCheckpoint", "LoRACheckpoint", "WhisperCheckpoint"]


def test_every_name_that_truss_train_exports_is_here():
    assert set(truss_train.__all__) - {"push"} <= set(ours.__all__)


def test_every_class_that_a_training_job_can_hold_is_here():
    missing = {
        name
        for name, kind in vars(theirs).items()
        if isinstance(kind, type)
        and kind.__module__ == theirs.__name__
        and name not in {*PRIVATE.values(), "_CheckpointBase"}
        and not hasattr(ours, name)
    }
    assert missing == set()


@pytest.mark.parametrize("name", ENUMS)
def test_an_enum_has_the_members_of_that_of_truss(name):
    """A kind of GPU that is new in truss fails here: add it."""
    assert {m.name: m.value for m in of_ours(name)} == {m.name: m.value for m in of_truss(name)}


@pytest.mark.parametrize("name", DEFINED)
def test_a_class_has_the_fields_and_defaults_of_that_of_truss(name):
    expected = {
        field: (info.is_required(), None if info.is_required() else plain(info.get_default()))
        for field, info in of_truss(name).model_fields.items()
    }
    found = {}
    for item in fields(of_ours(name)):
        made = None if item.default_factory is MISSING else item.default_factory()
        default = made if item.default is MISSING else item.default
        needed = item.default is MISSING and item.default_factory is MISSING
        found[item.name] = (needed, plain(default))
    assert list(found) == list(expected) or name == "Runtime"
    assert found == expected


def plain(value):
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


@pytest.mark.parametrize("name", DEFINED)
@many
@given(data=st.data())
def test_an_object_has_the_serialised_form_of_that_of_truss(name, data):
    recipe = data.draw(recipes(of_ours(name)))
    mine, other = make(recipe, of_ours), make(recipe, of_truss)
    assert mine.model_dump(mode="json") == other.model_dump(mode="json")
    taken = as_definition(other, of_ours(name))
    assert taken == mine
    assert type(taken) is type(mine)
    if name != "TrainingProject":  # whose form is without the job
        form = json.loads(json.dumps(other.model_dump(mode="json")))
        assert as_definition(form, type(mine)).model_dump(mode="json") == form


@many
@given(recipes(TrainingProject))
def test_a_project_of_truss_is_taken_with_its_job(recipe):
    mine, other = make(recipe, of_ours), make(recipe, of_truss)
    assert as_definition(other, TrainingProject) == mine
    assert mine.job.model_dump(mode="json") == other.job.model_dump(mode="json")
    assert mine.job.model_dump() == other.job.model_dump()
    form = other.job.model_dump(mode="json")
    assert as_definition(form, TrainingJob).model_dump(mode="json") == form


JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 3),
    st.floats(allow_nan=False, width=16),
    st.sampled_from(["", " ", "3", "H100:2", "spot", "\ud800", "a", b"a", "on_startup"]),
    st.sampled_from([[], {}, (), ["a"], ("a",), [1], {"a": "b"}, {"name": "x"}, {1: 2}, object()]),
)


@pytest.mark.parametrize("name", DEFINED)
@many
@given(data=st.data())
def test_what_is_taken_here_is_taken_by_truss_and_its_types_are_taken_here(name, data):
    """Otherwise a config would run on the desk and fail when it is pushed, or the other way."""
    recipe = data.draw(recipes(of_ours(name)))
    field = data.draw(st.sampled_from([item.name for item in fields(of_ours(name))]))
    junk = data.draw(JUNK)
    arguments = {**recipe.arguments, field: junk}
    try:
        mine = of_ours(name)(**{k: make(v, of_ours) for k, v in arguments.items()})
    except InvalidSettingError as error:
        mine, refusal = None, error.message
    try:
        other = of_truss(name)(**{k: make(v, of_truss) for k, v in arguments.items()})
    except (ValueError, TypeError, AttributeError):
        other = None
    if mine is None and other is not None and name not in LAX:
        assert "is of type" not in refusal  # but a value of that type that cannot work
    if mine is not None:
        assert other is not None, (field, junk)
        assert mine.model_dump(mode="json") == other.model_dump(mode="json")


@pytest.mark.parametrize("name", DEFINED)
def test_a_field_that_is_unknown_here_is_refused_in_objects_of_truss_too(name):
    if name not in LAX:
        with pytest.raises(pydantic.ValidationError):
            of_truss(name)(unknown=1)
    with pytest.raises(InvalidSettingError, match="has no field 'unknown'"):
        of_ours(name)(unknown=1)


def test_a_field_of_a_newer_truss_is_refused_if_it_was_given_and_no_matter_otherwise():
    class Image(theirs.Image):
        mirror: str | None = None

    Image.__module__ = theirs.__name__
    assert as_definition(Image(base_image="x"), ours.Image).base_image == "x"
    with pytest.raises(InvalidSettingError, match="Image has no field 'mirror'"):
        as_definition(Image(base_image="x", mirror="y"), ours.Image)


def test_objects_of_truss_stand_in_the_fields_of_ours():
    runtime = ours.Runtime(
        checkpointing_config=theirs.CheckpointingConfig(enabled=True, volume_size_gib=5),
        load_checkpoint_config=ours.LoadCheckpointConfig(
            checkpoints=[theirs.BasetenCheckpoint.from_latest_checkpoint(job_id="j")]
        ),
        environment_variables={"S": theirs.SecretReference(name="s")},
    )
    assert runtime.checkpointing_config == ours.CheckpointingConfig(enabled=True, volume_size_gib=5)
    assert runtime.load_checkpoint_config.checkpoints == [ours.LatestCheckpoint(job_id="j")]
    assert runtime.environment_variables == {"S": ours.SecretReference(name="s")}
    compute = ours.Compute(accelerator={"accelerator": truss_config.Accelerator.H100})
    assert compute.accelerator.accelerator is ours.Accelerator.H100


def test_what_truss_lets_pass_is_refused_when_it_is_taken():
    job = theirs.TrainingJob(
        image=theirs.Image(base_image="x"),
        runtime=theirs.Runtime(checkpointing_config=theirs.CheckpointingConfig(volume_size_gib=-3)),
    )
    with pytest.raises(InvalidSettingError, match=r"volume_size_gib is -3, expected at least 1"):
        as_definition(job, TrainingJob)


@pytest.mark.parametrize(
    ("factory", "method"),
    [
        ("BasetenCheckpoint", "from_latest_checkpoint"),
        ("BasetenCheckpoint", "from_named_checkpoint"),
        ("LoopsCheckpoint", "from_checkpoint"),
    ],
)
def test_the_factories_take_the_arguments_of_those_of_truss(factory, method):
    mine, other = (
        inspect.signature(getattr(getattr(module, factory), method)) for module in (ours, theirs)
    )
    assert {n: p.default for n, p in mine.parameters.items()} == {
        n: p.default for n, p in other.parameters.items()
    }


@pytest.mark.parametrize("name", ["small", "full"])
def test_a_config_is_read_as_truss_reads_it(name):
    """tests/pure reads the same files without truss and compares the same JSON."""
    file = CONFIGS / f"{name}.py"
    expected = json.loads((CONFIGS / f"{name}.json").read_text())
    with import_training_project(file) as other:
        assert {**other.model_dump(mode="json"), "job": plain(other.job)} == expected
    mine = load_config(file)
    assert {**mine.model_dump(mode="json"), "job": plain(mine.job)} == expected


def test_the_config_of_the_examples_is_one_that_truss_takes():
    file = Path(__file__).parents[2] / "examples" / "baseten" / "config.py"
    with import_training_project(file) as other:
        assert load_config(file) == as_definition(other, TrainingProject)


def test_what_truss_itself_refuses_is_told_by_line_and_without_the_value(tmp_path):
    file = tmp_path / "config.py"
    file.write_text(
        "from truss_train import Runtime\n\nRuntime(environment_variables={'T': ['hunter2']})\n"
    )
    with pytest.raises(InvalidSettingError, match=r"config\.py, line 3: Runtime\.") as caught:
        load_config(file)
    assert "hunter2" not in str(caught.value)
