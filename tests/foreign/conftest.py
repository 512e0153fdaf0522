"""The scene of the workers' tests."""

from tests.worker.conftest import scene

__all__ = ["scene"]
