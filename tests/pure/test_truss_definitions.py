"""Definitions refuse what cannot be run, say what to do about it, and survive a round trip."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bt_lightning import truss_definitions
from bt_lightning.errors import InvalidSettingError
from bt_lightning.truss_definitions import (
    Accelerator,
    AcceleratorSpec,
    AvailabilityModel,
    BasetenCheckpoint,
    CacheConfig,
    Checkpoint,
    CheckpointingConfig,
    CheckpointList,
    CheckpointRef,
    Compute,
    DockerAuth,
    DockerAuthType,
    Image,
    InteractiveSession,
    LatestCheckpoint,
    LoadCheckpointConfig,
    LoopsCheckpoint,
    LoRACheckpoint,
    NamedCheckpoint,
    RegistrySecretDockerAuth,
    Runtime,
    SecretReference,
    TrainingJob,
    TrainingProject,
    WeightsAuth,
    WeightsSource,
    Workspace,
    as_definition,
    on_a_store,
)

IMAGE = Image(base_image="python:3.11")
LATEST = LatestCheckpoint()

WRONG = {
    "a volume of nothing": (
        lambda: CheckpointingConfig(volume_size_gib=0),
        r"CheckpointingConfig\.volume_size_gib is 0, expected at least 1: leave it out",
    ),
    "a volume of less": (lambda: CheckpointingConfig(volume_size_gib=-3), "is -3, expected"),
    "a volume that is True": (
        lambda: CheckpointingConfig(volume_size_gib=True),
        "is of type bool, expected a whole number",
    ),
    "a switch that is text": (
        lambda: CheckpointingConfig(enabled="no"),
        r"CheckpointingConfig\.enabled is of type str, expected True or False",
    ),
    "an empty path": (lambda: CheckpointingConfig(checkpoint_path=" "), "expected a path"),
    "a path with NUL": (lambda: CheckpointingConfig(checkpoint_path="/a\0"), "expected a path"),
    "a misspelled field": (
        lambda: CheckpointingConfig(volume_size_gb=3),
        "CheckpointingConfig has no field 'volume_size_gb', did you mean 'volume_size_gib'",
    ),
    "a field of another world": (
        lambda: CheckpointingConfig(xyz=3),
        "has no field 'xyz', expected enabled, checkpoint_path, volume_size_gib",
    ),
    "nothing where something is needed": (
        lambda: NamedCheckpoint(checkpoint_name="a"),
        "NamedCheckpoint needs job_id",
    ),
    "loading nothing": (
        lambda: LoadCheckpointConfig(enabled=True, checkpoints=[]),
        r"checkpoints is empty, expected at least one .*: add BasetenCheckpoint\.from_latest",
    ),
    "a latest checkpoint of nowhere": (
        BasetenCheckpoint.from_latest_checkpoint,
        "no project_name and no job_id, expected one",
    ),
    "a job that is a path": (
        lambda: LatestCheckpoint(job_id="../other"),
        r"LatestCheckpoint\.job_id is '\.\./other', expected an id such as 'gvpql31'",
    ),
    "a job that is a folder up": (lambda: LatestCheckpoint(job_id=".."), "which is no path"),
    "a job without a name": (lambda: LatestCheckpoint(job_id=""), "expected an id"),
    "a project without a name": (lambda: LatestCheckpoint(project_name=" "), "expected a name"),
    "a project with a line break": (lambda: LatestCheckpoint(project_name="a\nb"), "a name"),
    "a checkpoint outside": (
        lambda: BasetenCheckpoint.from_named_checkpoint("../x", "j"),
        r"NamedCheckpoint\.checkpoint_name is '\.\./x', expected the name of a checkpoint",
    ),
    "an absolute checkpoint": (
        lambda: BasetenCheckpoint.from_named_checkpoint("/etc", "j"),
        "expected the name of a checkpoint",
    ),
    "a checkpoint in a folder of temporaries": (
        lambda: BasetenCheckpoint.from_named_checkpoint(".bt_lightning/checkpoint-1", "j"),
        "without .* dot folders",
    ),
    "a checkpoint that ends in a slash": (
        lambda: BasetenCheckpoint.from_named_checkpoint("checkpoint-20/", "j"),
        "without .* empty parts",
    ),
    "a target that no run has": (
        lambda: LoopsCheckpoint.from_checkpoint("r", "s", "judge"),
        "target is 'judge', expected 'trainer' or 'sampler'",
    ),
    "another typ": (
        lambda: NamedCheckpoint(typ="x", checkpoint_name="a", job_id="b"),
        "typ is 'x', expected 'baseten_named_checkpoint'",
    ),
    "a reference of no kind": (lambda: LoadCheckpointConfig(checkpoints=[{"typ": "x"}]), "is 'x'"),
    "a reference of no form": (
        lambda: LoadCheckpointConfig(checkpoints=[{"checkpoint_name": "a"}]),
        r"checkpoints\[0\] has the fields 'checkpoint_name', expected those of one of",
    ),
    "a reference that is text": (
        lambda: LoadCheckpointConfig(checkpoints=["bt://p"]),
        r"checkpoints\[0\] is of type str, expected CheckpointRef",
    ),
    "a reference that is none": (CheckpointRef, "says nothing by itself"),
    "no node": (lambda: Compute(node_count=0), "node_count is 0, expected at least 1"),
    "no core": (lambda: Compute(cpu_count=0), "cpu_count is 0, expected at least 1"),
    "memory without a number": (lambda: Compute(memory="lots"), "'16Gi' or '512Mi'"),
    "memory of another unit": (lambda: Compute(memory="2GB"), "memory is '2GB'"),
    "another GPU": (lambda: Compute(accelerator="TPU:2"), "is 'TPU:2', expected a GPU .* H100,"),
    "no GPU of a kind": (lambda: Compute(accelerator="H100:0"), "such as 'H100:8'"),
    "a GPU too many words": (lambda: Compute(accelerator="H100:1:2"), "such as 'H100:8'"),
    "a GPU's kind misspelled": (
        lambda: AcceleratorSpec(accelerator="h100"),
        r"accelerator is 'h100', expected one of Accelerator\.T4",
    ),
    "GPUs below none": (lambda: AcceleratorSpec(count=-1), "at least 0"),
    "half a GPU": (lambda: AcceleratorSpec(count=0.5), "a whole number"),
    "a capacity as text": (
        lambda: Compute(availability_model="spot"),
        r"is 'spot', expected one of AvailabilityModel\.DEDICATED, AvailabilityModel\.SPOT",
    ),
    "one command as text": (lambda: Runtime(start_commands="python x"), "expected a list"),
    "a command of blanks": (lambda: Runtime(start_commands=["a", " "]), r"commands\[1\] is ' '"),
    "half a character": (lambda: Runtime(start_commands=["\ud800"]), "half a character"),
    "a variable without a name": (
        lambda: Runtime(environment_variables={"": "x"}),
        "has the name '', expected one without",
    ),
    "a variable with '='": (lambda: Runtime(environment_variables={"A=B": "x"}), "rename it"),
    "a variable that is a number": (
        lambda: Runtime(environment_variables={"A": 1}),
        r"environment_variables\['A'\] is of type int, expected text or SecretReference",
    ),
    "two spellings of the cache": (
        lambda: Runtime(enable_cache=True, cache_config=CacheConfig()),
        "has both enable_cache and cache_config",
    ),
    "a cache that is no switch": (lambda: Runtime(enable_cache="yes"), "True or False"),
    "a registry without a way in": (
        lambda: DockerAuth(auth_method=DockerAuthType.AWS_IAM, registry="r"),
        "has no part, expected aws_iam_docker_auth and no other",
    ),
    "a registry with another way in": (
        lambda: DockerAuth(
            auth_method=DockerAuthType.AWS_IAM,
            registry="r",
            registry_secret_docker_auth=RegistrySecretDockerAuth(secret_ref={"name": "s"}),
        ),
        "has registry_secret_docker_auth, expected aws_iam_docker_auth",
    ),
    "weights from nowhere": (
        lambda: WeightsSource(source="Qwen/x", mount_location="/m"),
        "source is 'Qwen/x', expected a URL that begins with one of",
    ),
    "weights of no bucket": (
        lambda: WeightsSource(source="s3://", mount_location="/m"),
        "expected s3:// and a name",
    ),
    "a revision of a bucket": (
        lambda: WeightsSource(source="s3://b/x@main", mount_location="/m"),
        "expected no '@'",
    ),
    "a bt:// URL that is none": (
        lambda: WeightsSource(source="bt://p@a@b", mount_location="/m"),
        "more than one '@'",
    ),
    "a relative mount": (
        lambda: WeightsSource(source="hf://a/b", mount_location="m"),
        "mount_location is 'm', expected an absolute path",
    ),
    "two mounts in one place": (
        lambda: TrainingJob(
            image=IMAGE,
            weights=[
                WeightsSource(source="hf://a/b", mount_location="/m"),
                WeightsSource(source="hf://a/c", mount_location="/m/"),
            ],
        ),
        "has '/m' as the mount_location of two sources",
    ),
    "a login with nothing": (
        lambda: WeightsAuth(auth_method="AWS_OIDC"),
        "no aws_oidc_role_arn and no aws_oidc_region, expected",
    ),
    "a login with too much": (
        lambda: WeightsAuth(auth_method="CUSTOM_SECRET", auth_secret_name="s", aws_oidc_region="r"),
        "has aws_oidc_region, expected auth_secret_name and no other",
    ),
    "a secret named twice": (
        lambda: WeightsSource(
            source="hf://a/b",
            mount_location="/m",
            auth_secret_name="s",
            auth={"auth_method": "custom_secret", "auth_secret_name": "s"},
        ),
        "both itself and in auth",
    ),
    "a job without an image": (TrainingJob, "TrainingJob needs image"),
    "a job that is an image": (
        lambda: TrainingProject(name="p", job=IMAGE),
        r"TrainingProject\.job is of type Image, expected TrainingJob",
    ),
    "both kinds of checkpoints": (
        lambda: CheckpointList(
            checkpoints=[LoRACheckpoint(training_job_id="j", checkpoint_name="c")],
            loops_checkpoint_ids=["x"],
        ),
        "has both checkpoints and loops_checkpoint_ids",
    ),
}


@pytest.mark.parametrize(("make", "complaint"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_run_is_refused_with_what_was_expected(make, complaint):
    with pytest.raises(InvalidSettingError, match=complaint) as caught:
        make()
    assert isinstance(caught.value, ValueError)


def project() -> TrainingProject:
    return TrainingProject(
        name="a project / with a slash",
        job=TrainingJob(
            image=IMAGE,
            compute=Compute(
                accelerator=AcceleratorSpec(accelerator=Accelerator.H100, count=8),
                availability_model=AvailabilityModel.SPOT,
            ),
            runtime=Runtime(
                start_commands=["a", "b\nc"],
                environment_variables={"A": "1", "S": SecretReference(name="s")},
                load_checkpoint_config=LoadCheckpointConfig(
                    enabled=True,
                    checkpoints=[
                        BasetenCheckpoint.from_latest_checkpoint(project_name="p"),
                        BasetenCheckpoint.from_named_checkpoint("a/checkpoint-7", "j"),
                        BasetenCheckpoint.from_named_checkpoint(".", "j"),
                        LoopsCheckpoint.from_checkpoint("r", "step-1"),
                    ],
                ),
                cache_config=CacheConfig(enabled=True),
            ),
            interactive_session=InteractiveSession(),
            workspace=Workspace(external_dirs=["../data"]),
            weights=[
                WeightsSource(source="bt://p@j/checkpoint-1", mount_location="/w"),
                WeightsSource(
                    source="hf://a/b",
                    mount_location="/m",
                    auth=WeightsAuth(auth_method="custom_secret", auth_secret_name="s"),
                ),
            ],
        ),
    )


def test_a_definition_survives_its_serialised_form():
    made = project()
    form = json.loads(json.dumps(made.job.model_dump(mode="json")))
    assert as_definition(form, TrainingJob) == made.job
    whole = {**made.model_dump(mode="json"), "job": form}
    assert as_definition(whole, TrainingProject) == made


@pytest.mark.parametrize("again", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_definition_can_be_copied_and_sent_to_a_process(again):
    assert again(project()) == project()


def test_the_job_is_no_part_of_the_serialised_project():
    assert project().model_dump(mode="json") == {"name": project().name, "team_name": None}


def test_values_of_variables_are_in_no_text_and_in_no_error():
    """Invariant 10: people write tokens there."""
    runtime = Runtime(environment_variables={"TOKEN": "hunter2"})
    assert "hunter2" not in repr(TrainingJob(image=IMAGE, runtime=runtime))
    for wrong in ({"TOKEN": ["hunter2"]}, {"TOKEN": "hunter2\0"}, {"TOKEN": {"x": "hunter2"}}):
        with pytest.raises(InvalidSettingError) as caught:
            Runtime(environment_variables=wrong)
        assert "hunter2" not in str(caught.value)


def test_the_password_in_a_url_is_in_no_error():
    with pytest.raises(InvalidSettingError, match=r"//\.\.\.@bucket") as caught:
        WeightsSource(source="s3://key:hunter2@bucket/x", mount_location="/m")
    assert "hunter2" not in str(caught.value)


def test_a_field_is_checked_when_it_is_assigned_and_keeps_its_value_if_refused():
    config = LoadCheckpointConfig(enabled=True)
    with pytest.raises(InvalidSettingError, match="checkpoints is empty"):
        config.checkpoints = []
    assert config.checkpoints == [LATEST]
    with pytest.raises(InvalidSettingError, match="expected a list"):
        config.checkpoints = None
    with pytest.raises(InvalidSettingError, match="did you mean 'enabled'"):
        config.enable = False
    config.checkpoints = [{"job_id": "j"}]
    assert config.checkpoints == [LatestCheckpoint(job_id="j")]


def test_what_was_changed_inside_is_checked_when_it_is_taken():
    runtime = Runtime()
    runtime.start_commands.append("")
    with pytest.raises(InvalidSettingError, match=r"start_commands\[0\]"):
        as_definition(runtime, Runtime)


def test_what_was_taken_does_not_change_with_what_it_was_taken_from():
    runtime = Runtime(start_commands=["a"])
    taken = as_definition(runtime, Runtime)
    runtime.start_commands.append("b")
    assert taken.start_commands == ["a"]


def test_two_definitions_share_no_default():
    one, other = TrainingJob(image=IMAGE), TrainingJob(image=IMAGE)
    one.runtime.start_commands.append("x")
    one.runtime.checkpointing_config.enabled = True
    assert other.runtime == Runtime()


def test_enable_cache_becomes_a_cache_config():
    assert Runtime(enable_cache=True).cache_config == CacheConfig(
        enabled=True, enable_legacy_hf_mount=True
    )
    assert Runtime(enable_cache=True).enable_cache is None
    with pytest.raises(InvalidSettingError, match="assign cache_config"):
        Runtime().enable_cache = True


@pytest.mark.parametrize(
    ("given", "spec"),
    [
        ("H100", AcceleratorSpec(accelerator=Accelerator.H100)),
        (" H200:8 ", AcceleratorSpec(accelerator=Accelerator.H200, count=8)),
        ({"accelerator": "L4", "count": "2"}, AcceleratorSpec(accelerator=Accelerator.L4, count=2)),
        (None, None),
    ],
)
def test_a_gpu_is_spelled_in_every_way_that_truss_knows(given, spec):
    assert Compute(accelerator=given).accelerator == spec


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        (AcceleratorSpec(), None),
        (AcceleratorSpec(accelerator="H100"), "H100"),
        (AcceleratorSpec(accelerator="H100", count=0), None),
        (AcceleratorSpec(accelerator="H100", count=2.0), "H100:2"),
    ],
)
def test_gpus_by_themselves_are_serialised_as_text(spec, text):
    assert spec.model_dump(mode="json") == text


def test_members_of_enums_stay_members_unless_json_is_asked_for():
    dumped = InteractiveSession().model_dump()
    assert dumped["trigger"] is truss_definitions.InteractiveSessionTrigger.ON_DEMAND
    assert json.dumps(dumped) == json.dumps(InteractiveSession().model_dump(mode="json"))


@pytest.mark.parametrize(
    ("form", "ref"),
    [
        ({}, LATEST),
        ({"typ": "baseten_latest_checkpoint"}, LATEST),
        ({"project_name": "p"}, LatestCheckpoint(project_name="p")),
        ({"checkpoint_name": "c", "job_id": "j"}, NamedCheckpoint(checkpoint_name="c", job_id="j")),
        ({"run_id": "r", "checkpoint_name": "c"}, LoopsCheckpoint.from_checkpoint("r", "c")),
    ],
)
def test_a_reference_is_told_by_its_typ_or_by_its_fields(form, ref):
    assert as_definition(form, CheckpointRef) == ref
    assert as_definition(ref.model_dump(mode="json"), CheckpointRef) == ref


def test_a_reference_of_one_kind_is_not_taken_for_another():
    with pytest.raises(InvalidSettingError, match="expected NamedCheckpoint"):
        as_definition(LATEST, NamedCheckpoint)
    with pytest.raises(InvalidSettingError, match="NamedCheckpoint has no field 'project_name'"):
        as_definition(LATEST.model_dump(), NamedCheckpoint)


def test_a_checkpoint_of_loops_is_a_definition_that_no_store_can_serve():
    assert on_a_store(LATEST) is LATEST
    with pytest.raises(InvalidSettingError, match="Loops is a service of Baseten"):
        on_a_store(LoopsCheckpoint.from_checkpoint("run1", "step-1"))


def test_a_checkpoint_to_deploy_keeps_its_kind():
    adapter = LoRACheckpoint(training_job_id="j", checkpoint_name="c", lora_details={"rank": 64})
    taken = as_definition(adapter, Checkpoint)
    assert taken == adapter
    assert type(taken) is LoRACheckpoint


@pytest.mark.parametrize(
    "value", [None, 3, "x", [], object(), SimpleNamespace(name="p", job=None), Image, b"", {"x"}]
)
def test_rubbish_is_no_definition(value):
    with pytest.raises(InvalidSettingError, match="expected TrainingProject"):
        as_definition(value, TrainingProject)


KINDS = [
    kind
    for kind in map(vars(truss_definitions).get, truss_definitions.__all__)
    if isinstance(kind, type) and issubclass(kind, truss_definitions.Definition)
    if kind is not TrainingProject  # whose form is without the job
]
NAMES = sorted({name for kind in KINDS for name in kind.names()})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 99) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(deadline=None, database=None, max_examples=300)
@given(st.sampled_from(KINDS), JSON)
def test_any_json_is_a_definition_or_a_refusal(kind, value):
    """Anything else that is raised would be a traceback instead of what to do."""
    try:
        made = as_definition(value, kind)
    except InvalidSettingError:
        return
    form = made.model_dump(mode="json")
    assert as_definition(form, type(made)).model_dump(mode="json") == form


@pytest.mark.parametrize("key", [3, None, ("a",), b"name"])
def test_a_mapping_with_names_that_are_none_is_refused(key):
    with pytest.raises(InvalidSettingError, match="has no field"):
        as_definition({"name": "p", key: 1}, TrainingProject)


def test_a_class_of_the_same_name_from_elsewhere_is_not_taken_for_one_of_truss():
    image = type("Image", (), {"base_image": "x", "model_fields_set": {"base_image"}})()
    with pytest.raises(InvalidSettingError, match="expected Image"):
        as_definition(image, Image)


def test_an_object_that_tells_nothing_of_its_class_is_rubbish_too():
    stranger = type("TrainingProject", (), {"__module__": None})()
    with pytest.raises(InvalidSettingError, match="expected TrainingProject"):
        as_definition(stranger, TrainingProject)


def test_a_user_s_own_subclass_is_taken_as_what_it_is():
    class MyImage(Image):
        pass

    made = TrainingJob(image=MyImage(base_image="x"))
    assert as_definition(made, TrainingJob).image.base_image == "x"
    assert as_definition(IMAGE, Image) == IMAGE


def test_definitions_need_neither_truss_nor_pydantic():
    code = (
        "import sys, bt_lightning.truss_definitions\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert not loaded & {"truss", "truss_train", "pydantic", "torch", "lightning", "fsspec"}
