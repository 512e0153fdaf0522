"""Servers of weights, and the command that pulls from them."""

from __future__ import annotations

import contextlib
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # for `weights_servers`, which is no test


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    pytest.importorskip("cryptography")
    from weights_servers import make_certificate

    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def https(certificate, monkeypatch):
    """Starts servers of files over TLS, which this process and its children trust."""
    from weights_servers import FileServer, serving

    trusted, private = certificate
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(trusted))
    monkeypatch.setenv("no_proxy", "*")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(trusted, private)
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(serving(FileServer("https"), context=context))


@pytest.fixture
def config(tmp_path):
    """Write a `config.yaml` with these sources."""
    import yaml

    def config(*sources):
        given = [
            {"mount_location": f"/models/{number}", **source}
            for number, source in enumerate(sources)
        ]
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"model_name": "m", "weights": given}))
        return path

    return config


class Puller:
    """The command `weights pull`, with a root and a cache below the test's own directory."""

    def __init__(self, place: Path) -> None:
        self.root, self.cache, self.secrets = place / "root", place / "cache", place / "secrets"

    def words(self, config, *more):
        return [
            *(sys.executable, "-m", "bt_lightning", "weights", "pull", str(config)),
            *("--root", str(self.root), "--cache", str(self.cache)),
            *("--secrets", str(self.secrets), *more),
        ]

    def __call__(self, config, *more, code=0, **environ):
        """Run it in a process; return stdout and stderr together."""
        done = subprocess.run(
            self.words(config, *more),
            env={**os.environ, **environ},
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert "Traceback" not in said
        return said

    def inside(self, config, *more, code=0):
        """Run it in this process, which is quicker; return stdout and stderr together."""
        from click.testing import CliRunner

        from bt_lightning.cli.app import main

        done = CliRunner().invoke(main, self.words(config, *more)[3:])
        assert done.exit_code == code, done.output
        return done.output

    def files(self, mount="0"):
        """What is mounted: path -> bytes."""
        place = self.root / "models" / mount
        return {
            path.relative_to(place).as_posix(): path.read_bytes()
            for path in sorted(place.rglob("*"))
            if path.is_file()
        }

    def leftovers(self):
        """Files of the cache and beside mounts that are neither blobs nor notes."""
        known = ("blobs", "known", "mounts", "incoming")
        beside = list(self.root.rglob(".*")) if self.root.exists() else []
        return [p for p in self.cache.glob("*") if p.name not in known] + beside


@pytest.fixture
def pull(tmp_path):
    return Puller(tmp_path)
