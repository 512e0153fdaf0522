"""The runs that are killed, for every test that kills some."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.fault.nursery import Nursery


@pytest.fixture(scope="session")
def killing():
    """The module beside this file."""
    name = "killing"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def nursery(killing, fork_server):
    found = Nursery(fork_server, killing.JOB)
    yield found
    found.close()
