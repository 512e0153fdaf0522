"""Which credentials a native client may be given: never others than fsspec's would use."""

from __future__ import annotations

import pytest

from bt_lightning.store.backends.obstore_config import az_config, gs_certain

KEY = {"account_name": "acc", "account_key": "k"}
APP = {"account_name": "acc", "client_id": "i", "client_secret": "s", "tenant_id": "t"}


@pytest.mark.parametrize(
    ("options", "environment", "config"),
    [
        (KEY, {}, KEY),
        ({}, {"AZURE_STORAGE_ACCOUNT_NAME": "acc", "AZURE_STORAGE_ACCOUNT_KEY": "k"}, KEY),
        (KEY, {"AZURE_STORAGE_ACCOUNT_NAME": "other", "PATH": "/"}, KEY),
        (
            {"account_name": "acc", "sas_token": "?sv=1&sig=2"},
            {},
            {"account_name": "acc", "sas_key": "sv=1&sig=2"},
        ),
        (APP, {}, APP),
        (
            {"connection_string": "AccountName=acc;AccountKey=a==;BlobEndpoint=http://h:1/acc/"},
            {},
            {"account_name": "acc", "account_key": "a==", "endpoint": "http://h:1/acc"},
        ),
        (
            {"connection_string": "AccountName=acc;AccountKey=a==;EndpointSuffix=core.example"},
            {},
            {
                "account_name": "acc",
                "account_key": "a==",
                "endpoint": "https://acc.blob.core.example",
            },
        ),
    ],
)
def test_credentials_that_are_certain_are_passed_on(options, environment, config):
    assert az_config(options, environment) == config


@pytest.mark.parametrize(
    ("options", "environment"),
    [
        ({}, {}),
        ({"account_name": "acc"}, {}),
        ({"account_key": "k"}, {}),
        ({**KEY, "sas_token": "s"}, {}),
        (KEY, {"AZURE_STORAGE_SAS_TOKEN": "s"}),
        (KEY, {"AZURE_CLIENT_ID": "read by the native client alone"}),
        ({**KEY, "credential": object()}, {}),
        ({**KEY, "account_host": "h"}, {}),
        ({"account_name": "acc", "client_id": "i", "client_secret": "s"}, {}),
        ({"connection_string": "AccountName=acc;SharedAccessSignature=s"}, {}),
        ({"connection_string": "UseDevelopmentStorage=true"}, {}),
    ],
)
def test_whatever_is_not_certain_is_left_to_fsspec(options, environment):
    assert az_config(options, environment) is None


@pytest.mark.parametrize(
    ("options", "environment", "certain"),
    [
        ({}, {}, True),
        ({"token": "key.json", "project": "p", "access": "read_write"}, {"PATH": "/"}, True),
        ({"endpoint_url": "http://h:1"}, {"GOOGLE_APPLICATION_CREDENTIALS": "key.json"}, True),
        ({"requester_pays": True}, {}, False),
        ({"session_kwargs": {"trust_env": True}}, {}, False),
        ({}, {"GOOGLE_BEARER_TOKEN": "another's"}, False),
        ({}, {"GOOGLE_SERVICE_ACCOUNT": "another.json"}, False),
        ({}, {"SERVICE_ACCOUNT": "me@example.com"}, False),
        ({}, {"GOOGLE_BEARER_TOKEN": ""}, True),
    ],
)
def test_google_s_bytes_go_where_gcsfs_would_send_them(options, environment, certain):
    assert gs_certain(options, environment) is certain
