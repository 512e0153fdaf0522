"""The `weights:` of a config, the secrets that they name, and how each kind of source is opened."""

from __future__ import annotations

import json

import pytest

from bt_lightning.errors import ConfigNotFoundError, InvalidSettingError
from bt_lightning.truss_definitions import WeightsSource
from bt_lightning.weights.source_secrets import Secrets, access_to
from bt_lightning.weights.weights_list import read_weights

yaml = pytest.importorskip("yaml")
AWS = {"aws_access_key_id": "AKIAX", "aws_secret_access_key": "s3cret/of/tests"}


@pytest.fixture
def written(tmp_path):
    def written(*weights, name="config.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump({"weights": list(weights)}))
        return path

    return written


def at(mount, source="hf://a/b", **more):
    return {"source": source, "mount_location": mount, **more}


def test_a_list_is_read_with_all_fields_of_truss(written):
    auth = {"auth_method": "custom_secret", "auth_secret_name": "s"}
    (one,) = read_weights(written(at("/m/x/", auth=auth, allow_patterns=["*.json"])))
    assert one.auth is not None
    assert (one.auth.auth_secret_name, one.allow_patterns) == ("s", ["*.json"])
    (local,) = read_weights(written(at("/m", "file:///mnt/models")))
    assert local.source == "file:///mnt/models"


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([], "no list"),
        (["hf://a/b"], r"weights\[0\]"),
        ([at("/m", "ftp://x/y")], "expected a URL"),
        ([at("/m", "file://x/y")], "file:///mnt"),
        ([at("m")], "absolute"),
        ([at("/")], "below '/'"),
        ([at("/m/../../etc")], "without '..'"),
        ([at("/m//x")], "empty parts"),
        ([at("/m"), at("/m/")], "named twice"),
        ([at("/m"), at("/m-2"), at("/m/x")], "lies in /m"),
        ([at("/m", typo=1)], "typo"),
        ([at("/m", ignore_patterns=["model-[0-3].bin"])], "bracket"),
        ([at("/m", auth={"auth_method": "AWS_OIDC"})], "aws_oidc_role_arn"),
    ],
)
def test_what_cannot_be_pulled_is_refused_and_named(written, weights, said):
    with pytest.raises(InvalidSettingError, match=said):
        read_weights(written(*weights))


@pytest.mark.parametrize(
    "text",
    ["weights: [", "- 1", "[" * 3000, "weights: !!python/object/apply:os.system ['true']", "\0"],
)
def test_a_file_that_is_no_truss_config_is_refused(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(InvalidSettingError, match=r"YAML|no list"):
        read_weights(path)
    with pytest.raises(ConfigNotFoundError):
        read_weights(tmp_path / "none.yaml")


def test_a_config_of_a_training_job_has_weights_too(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from truss_train import *\n"
        "weights = [WeightsSource(source='bt://p', mount_location='/m')]\n"
        "job = TrainingJob(image=Image(base_image='x'), weights=weights)\n"
        "project = TrainingProject(name='p', job=job)\n"
    )
    pytest.importorskip("bt_lightning.config_file.load_config")
    (one,) = read_weights(path)
    assert (one.source, one.mount_location) == ("bt://p", "/m")


def opened(source, secret=None, **more):
    told = []
    secrets = Secrets(more.pop("folder"), {} if secret is None else {"TRUSS_SECRET_s": secret})
    weights = WeightsSource(source=source, mount_location="/m", **more)
    return access_to(weights, secrets, told.append), told


def test_each_kind_of_bucket_is_opened_with_its_secret(tmp_path):
    access, told = opened("s3://b/x", json.dumps(AWS), folder=tmp_path, auth_secret_name="s")
    assert not told
    assert access.url == "s3://b/x"
    assert access.options["key"] == "AKIAX"
    assert access.options["client_kwargs"] == {"region_name": "us-east-1"}
    access, _ = opened("r2://acc.b/x", json.dumps(AWS), folder=tmp_path, auth_secret_name="s")
    assert access.url == "s3://b/x"
    assert access.options["client_kwargs"]["endpoint_url"].startswith("https://acc.r2.")
    access, _ = opened("cw://b/x", folder=tmp_path)
    assert "cwobject.com" in access.options["client_kwargs"]["endpoint_url"]
    access, _ = opened("gs://b/x", '{"type": "x"}', folder=tmp_path, auth_secret_name="s")
    assert access.options == {"token": {"type": "x"}}
    access, _ = opened("azure://acc/c/x", "Endpoint=1", folder=tmp_path, auth_secret_name="s")
    assert access.url == "abfs://c/x"
    assert access.options == {"account_name": "acc", "connection_string": "Endpoint=1"}
    assert "s3cret" not in repr(access)


def test_a_file_of_the_secret_goes_before_the_variable_and_a_missing_one_is_said(tmp_path):
    (tmp_path / "s").write_text("of the file\n")
    access, told = opened("hf://a/b", "of the variable", folder=tmp_path, auth_secret_name="s")
    assert (access.token, told) == ("of the file", [])
    access, told = opened("hf://a/b", folder=tmp_path / "none", auth_secret_name="s")
    assert access.token is None
    assert "TRUSS_SECRET_s" in told[0]
    oidc = {"auth_method": "AWS_OIDC", "aws_oidc_role_arn": "r", "aws_oidc_region": "us-west-2"}
    access, told = opened("s3://b", folder=tmp_path, auth=oidc)
    assert "works on Baseten only" in told[0]
    assert access.options["client_kwargs"] == {"region_name": "us-west-2"}


@pytest.mark.parametrize("secret", ["no json: s3cretvalue", "[1]", '{"access_key_id": "s3cretv"}'])
def test_a_secret_of_another_form_is_refused_without_its_value(tmp_path, secret):
    with pytest.raises(InvalidSettingError) as error:
        opened("s3://b/x", secret, folder=tmp_path, auth_secret_name="s")
    assert "s3cret" not in str(error.value)
    with pytest.raises(InvalidSettingError):
        opened("s3://b/x", folder=tmp_path, auth_secret_name="../s")


def test_what_is_said_of_a_source_hides_its_user_and_its_signature(tmp_path):
    source = "https://user:s3cretpw@host/x?sig=s3cretsig"
    _, told = opened(source, folder=tmp_path, auth_secret_name="s")
    assert "no token is sent" in told[0]
    assert "s3cret" not in told[0]
