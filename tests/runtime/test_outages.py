"""The store goes away in the middle of a job, or at its end, and comes back."""

from __future__ import annotations

import contextlib
import json
import re
import select
import socket
import sys
import threading

import pytest

from tests.store.conftest import SECRET, s3  # noqa: F401 - a fixture

pytestmark = pytest.mark.matrix

STEPS = 30
SCRIPT = f"""
import lightning as L
import torch
from torch.utils.data import DataLoader, TensorDataset


class Net(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(8, 1)

    def training_step(self, batch, index):
        print("step", self.global_step, flush=True)
        input()
        return self.net(batch[0]).pow(2).mean()

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), 1e-2)


if __name__ == "__main__":
    save = L.pytorch.callbacks.ModelCheckpoint(every_n_train_steps=1, save_top_k=-1)
    rows = DataLoader(TensorDataset(torch.randn({4 * STEPS}, 8)), batch_size=4)
    quiet = dict(logger=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", callbacks=[save], **quiet)
    trainer.fit(Net(), rows)
"""


class Road:
    """What lies between a job and its store: connections to one port, as long as it is open."""

    def __init__(self, port):
        self._there = ("127.0.0.1", port)
        self.port = 0
        self._listener = None
        self._ends = []
        self.open()

    def open(self):
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, args=[self._listener], daemon=True).start()

    def close(self):
        """Refuse new connections, and cut those that are open."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        while self._ends:
            with contextlib.suppress(OSError):
                self._ends.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self, listener):
        with contextlib.suppress(OSError):
            while True:
                here = listener.accept()[0]
                threading.Thread(target=self._carry, args=[here], daemon=True).start()

    def _carry(self, here):
        with here, contextlib.suppress(OSError), socket.create_connection(self._there) as there:
            self._ends += [here, there]
            ways = {here: there, there: here}
            while True:
                for source in select.select([*ways], [], [])[0]:
                    data = source.recv(1 << 16)
                    if not data:
                        return
                    ways[source].sendall(data)


@pytest.fixture
def road(s3):  # noqa: F811
    road = Road(int(s3.endpoint.rpartition(":")[2]))
    yield road
    road.close()
    for thread in threading.enumerate():
        if "_accept" in thread.name or "_carry" in thread.name:
            thread.join(10)


@pytest.fixture
def job(runner, road, s3):  # noqa: F811
    """Starts the job; `stored` says what of it is committed in the store."""
    (runner.path / "train.py").write_text(SCRIPT)
    url = f"s3://bucket/{runner.path.name}"
    env = {
        "AWS_ACCESS_KEY_ID": s3.options["key"],
        "AWS_SECRET_ACCESS_KEY": s3.options["secret"],
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{road.port}",
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }

    class Job:
        def start(self, *options):
            words = ("--store", url, "--job-id", "j", *options, "--", sys.executable, "train.py")
            return runner.start(*words, env=env, stdin=-1)

        def go_on(self, process, until):
            """Let it train up to the step `until`; without a store or with it."""
            for line in process.stdout:
                found = re.fullmatch(r"step (\d+)\n", line)
                if found and int(found[1]) == until:
                    return
                if found:
                    self.let(process)

        def let(self, process):
            process.stdin.write("\n")
            process.stdin.flush()

        def stored(self):
            import s3fs

            files = s3fs.S3FileSystem(skip_instance_cache=True, **s3.options)
            found = files.find(url.removeprefix("s3://"))
            names = [key.split("/")[-2] for key in found if key.endswith("/bt_manifest.json")]
            record = next(key for key in found if key.endswith("/.bt_lightning-job"))
            return set(names), json.loads(files.cat_file(record))

    return Job()


ALL = {f"checkpoint-{step}" for step in range(1, STEPS + 1)}


@pytest.mark.timeout(300)
def test_training_goes_on_without_its_store_and_everything_is_sent_later(runner, road, job):
    process = job.start()
    job.go_on(process, STEPS // 3)
    road.close()
    job.let(process)
    job.go_on(process, 2 * STEPS // 3)  # every step of an outage is trained and saved
    road.open()
    job.let(process)
    job.go_on(process, STEPS)
    _, err = runner.end(process, 0)
    names, record = job.stored()
    assert names == ALL, err
    assert (record["status"], record["checkpoint_sync_status"]) == ("COMPLETED", "COMPLETED")
    assert SECRET not in err


@pytest.mark.slow  # a minute and a half: it waits for the deadline of a sync
@pytest.mark.timeout(300)
def test_what_was_not_sent_is_named_and_the_next_start_sends_it(runner, road, job):
    process = job.start("--drain-timeout", "2")
    job.go_on(process, 2 * STEPS // 3)
    road.close()
    job.let(process)
    job.go_on(process, STEPS)
    _, err = runner.end(process, 25)
    assert "checkpoint-30" in err
    assert "The next start" in err
    record = runner.record()
    assert (record["status"], record["checkpoint_sync_status"]) == ("FAILED", "SYNCING")
    assert record["newest_step"] == STEPS
    assert "checkpoint-30" in record["waiting"]
    road.open()
    again = job.start()
    job.go_on(again, STEPS)
    _, err = runner.end(again, 0)
    names, record = job.stored()
    assert names == ALL, err
    assert record["status"] == "COMPLETED"
    assert [one["outcome"] for one in record["attempts"]] == ["done", "done"]


@pytest.mark.timeout(300)
def test_a_store_that_never_answers_does_not_keep_a_job_from_beginning(runner):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, and says nothing
        env = {
            "AWS_ACCESS_KEY_ID": "a",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{silent.getsockname()[1]}",
        }
        words = ("--store", "s3://bucket/x", "--job-id", "j", "--drain-timeout", "1")
        out, err = runner(*words, "--", "echo", "ran", env=env)
    assert out == "ran\n"
    assert "begins without it" in err
    assert SECRET not in err
