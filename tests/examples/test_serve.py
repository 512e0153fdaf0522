"""examples/serve.py answers real requests, and ends when it is told to."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest

from tests.examples.example_runs import EXAMPLES, Example
from tests.fork_server import script_environ

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.timeout(200)
def test_the_server_answers_by_the_checkpoint_of_the_store(tmp_path: Path) -> None:
    if missing := Example(EXAMPLES / "serve.py").missing():
        pytest.skip(f"needs {', '.join(missing)}")
    shutil.copytree(EXAMPLES, tmp_path / "examples")
    words = [sys.executable, "examples/serve.py", "--port", "0"]
    pipes = {"stdout": subprocess.PIPE, "text": True}
    with (
        (tmp_path / "stderr").open("w+") as told,
        subprocess.Popen(
            words, cwd=tmp_path, env=script_environ(), stderr=told, **pipes
        ) as process,
    ):
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            line = next((one for one in lines if one.startswith("serving")), None)
            assert line is not None, (tmp_path / "stderr").read_text()
            name, address = line.split()[1], line.split()[-1]
            assert name == "bt://sorting@sorter"
            assert _asked(f"{address}/health") == {"model": name}
            answer = _asked(f"{address}/sort", {"digits": [3, 3, 0, 9, 1, 4]})
            assert sorted(answer["digits"]) == answer["digits"]
            with pytest.raises(urllib.error.HTTPError) as error:
                _asked(f"{address}/sort", {"digits": [10]})
            assert error.value.code == 422
            error.value.close()
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        finally:
            process.kill()
    assert process.returncode in {0, -signal.SIGTERM}  # uvicorn raises the signal again at its end


def _asked(url: str, body: object = None) -> dict[str, list[int]]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)
