"""A checkpoint in a bucket of the user's own is deployed by its URL there, and pulled by it."""

from __future__ import annotations

import contextlib
import json

import pytest

from bt_lightning.manage.checkpoint_items import find
from bt_lightning.manage.find_target import Target, open_job
from bt_lightning.manage.servable_checkpoints import deployable
from bt_lightning.manage.vllm_truss_config import ServingOptions, vllm_truss_config
from bt_lightning.store.open_store import open_store
from bt_lightning.truss_definitions import WeightsSource
from bt_lightning.weights.blob_cache import BlobCache
from bt_lightning.weights.pull import PullPlaces, pull_weights, resolve_weights
from bt_lightning.weights.source_secrets import Secrets

CONFIG = {"base_model_name_or_path": "own/base", "r": 8, "peft_type": "LORA"}
FILES = {
    "adapter_config.json": json.dumps(CONFIG).encode(),
    "adapter_model.safetensors": bytes(range(256)) * 40_000,
    "optimizer.pt": b"o",
}


@pytest.fixture
def as_configured(weed, monkeypatch):
    """The user's environment and a secret of Baseten's form, both of the server."""
    options = weed.options
    monkeypatch.setenv("AWS_ENDPOINT_URL", weed.endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", options["key"])
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", options["secret"])
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    return json.dumps(
        {"aws_access_key_id": options["key"], "aws_secret_access_key": options["secret"]}
    )


def test_the_url_that_is_written_is_what_is_pulled(
    weed, s3_url, published, as_configured, tmp_path, monkeypatch
):
    published(open_store(s3_url, weed.options), name="checkpoint-7", files=FILES)
    job = open_job(Target(store=s3_url, project="demo", job="job1"), str)
    item = find(job, "checkpoint-7")
    ready = deployable([(job, item)], "auto")
    options = ServingOptions(
        model_name="m", base_source=ready.base_source, bucket_secret="aws_credentials"
    )
    base, adapter = vllm_truss_config(ready.served, options)["weights"]
    assert base == {"source": "hf://own/base", "mount_location": "/models/base"}
    where = "training_projects/demo/jobs/job1/rank-0/checkpoint-7"
    assert adapter["source"] == f"{s3_url}/{where}"
    assert adapter["auth"]["auth_secret_name"] == "aws_credentials"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)  # the secret alone opens the bucket
    places = PullPlaces(
        root=tmp_path / "root",
        cache=tmp_path / "cache",
        store_url=None,
        secrets=Secrets(tmp_path, {"TRUSS_SECRET_aws_credentials": as_configured}),
    )
    resolved = resolve_weights(WeightsSource(**adapter), places, pytest.fail)
    (pulled,) = pull_weights(
        [resolved], BlobCache(places.cache), lambda *_: contextlib.nullcontext(int)
    )
    found = {path.name: path.read_bytes() for path in pulled.location.iterdir()}
    assert found == {name: data for name, data in FILES.items() if name != "optimizer.pt"}
    assert "size" not in pulled.verified
    by_name = deployable([(job, item)], "bt")
    assert by_name.served[0].source == "bt://demo@job1/checkpoint-7"
