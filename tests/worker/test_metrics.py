"""A worker writes the numbers of its directory for Prometheus: into a file, and on a port."""

from __future__ import annotations

import http.client
import re
import socket
import threading

from bt_lightning.localdir.event_log import note
from bt_lightning.metrics_target import MetricsTarget
from bt_lightning.worker import metrics_server
from bt_lightning.worker.metrics_server import MetricsServer
from bt_lightning.worker.metrics_thread import metrics_file

LABELS = 'project="p",job_id="j",node="0"'


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def ask(port, path="/metrics"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    except OSError:
        return None, ""
    finally:
        connection.close()


def value(text, name, labels=""):
    found = re.search(rf"^bt_lightning_{name}{{{LABELS}{labels}}} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else None


class Page:
    """The metrics file of a scene."""

    def __init__(self, scene, path):
        self._scene, self.path = scene, path

    def value(self, name, labels=""):
        return value(self.path.read_text(), name, labels) if self.path.exists() else None

    def shows(self, wanted, name, labels=""):
        self._scene.eventually(lambda: self.value(name, labels) == wanted)


def test_a_file_follows_what_happens(scene, tmp_path):
    page = Page(scene, tmp_path / "shown" / "run.prom")
    (manifest,) = scene.make(3)
    worker = scene.worker(metrics=MetricsTarget(str(page.path)))
    worker.begin(frozenset())
    page.shows(1, "checkpoints", ',place="store"')
    assert page.value("training") == 1
    for place in ("disk", "store"):
        labels = f',place="{place}"'
        page.shows(3, "newest_checkpoint_step", labels)
        assert page.value("newest_checkpoint_timestamp_seconds", labels) == 1893456000
        assert page.value("checkpoint_bytes", labels) == manifest.size
    page.shows(1, "save_durable_seconds_count", ',place="store"')
    page.shows(0, "waiting_bytes")
    assert page.value("sent_bytes_total") >= manifest.size
    assert page.value("store_failing") == 0
    note(scene.root, "evicted", checkpoint="checkpoint-1", bytes=7)  # another process did
    page.shows(7, "evicted_bytes_total")
    assert [path.name for path in page.path.parent.iterdir()] == ["run.prom"]
    worker.stop()
    page.shows(0, "training")


def test_a_store_that_refuses_is_shown(scene, tmp_path):
    page = Page(scene, tmp_path / "run.prom")
    scene.folder.write_text("no folder")
    (manifest,) = scene.make(3)
    worker = scene.worker(metrics=MetricsTarget(str(page.path)))
    worker.begin(frozenset())
    page.shows(1, "store_refusing")
    page.shows(manifest.size, "waiting_bytes")
    page.shows(1, "failures_total", ',of="store"')
    assert page.value("store_failing") == page.value("waiting_checkpoints") == 1
    assert page.value("publish_failures_total") >= 1
    assert page.value("checkpoints", ',place="store"') is None  # nobody knows


def test_of_two_workers_the_one_that_publishes_has_file_and_port(scene, tmp_path):
    """The runner's stands by while a training lives, and goes on when it is killed."""
    port = free_port()
    target = MetricsTarget(str(tmp_path / "run.prom"), ("127.0.0.1", port))
    page = Page(scene, tmp_path / "run.prom")
    standby = scene.worker(metrics=target, standby=True)
    standby.begin(frozenset())
    page.shows(0, "training")
    worker = scene.worker(metrics=target)
    worker.begin(frozenset())
    page.shows(1, "training")
    scene.eventually(lambda: value(ask(port)[1], "training") == 1)
    note(scene.root, "began", step=0)
    note(scene.root, "attempt_ended", outcome="failed")
    worker.kill()
    page.shows(1, "attempts_total", ',outcome="failed"')
    page.shows(0, "training")
    assert page.value("runs_total", ',end="lost"') == 1  # once, however often a worker took over
    scene.eventually(lambda: value(ask(port)[1], "training") == 0)
    assert ask(port, "/")[0] == 404


def test_what_cannot_be_written_ends_nothing_and_is_said_once(scene, tmp_path, capfd):
    (tmp_path / "file").write_text("")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        target = MetricsTarget(str(tmp_path / "file" / "run.prom"), other.getsockname())
        worker = scene.worker(metrics=target)
        worker.begin(frozenset())
        said = []

        def both():
            said.append(capfd.readouterr().err)
            return "BT_METRICS_FILE" in "".join(said) and "BT_METRICS_PORT" in "".join(said)

        scene.eventually(both)
        scene.make(3)
        worker.wake()
        scene.watch(worker, lambda: scene.published == ["checkpoint-3"])
        worker.stop()
    said.append(capfd.readouterr().err)
    assert "".join(said).count("BT_METRICS_FILE") == 1
    assert "".join(said).count("cannot be listened on") == 1


def test_in_a_folder_each_job_has_a_file_of_its_own(tmp_path):
    prefix = "training_projects/p/jobs/j/rank-2"
    own = tmp_path / "bt_lightning-p-jobs-j-rank-2.prom"
    assert metrics_file(MetricsTarget(str(tmp_path)), prefix) == own
    assert metrics_file(MetricsTarget(f"{tmp_path}/new/"), prefix) == tmp_path / "new" / own.name
    assert metrics_file(MetricsTarget(f"{tmp_path}/a.prom"), prefix) == tmp_path / "a.prom"
    assert metrics_file(MetricsTarget(), prefix) is None


def test_a_client_that_asks_nothing_keeps_nobody_else_out(scene):
    before = threading.active_count()
    server = MetricsServer(("127.0.0.1", 0))
    server.text = "bt 1\n"
    try:
        with socket.create_connection(("127.0.0.1", server.port)):  # connects, and is silent
            assert ask(server.port) == (200, "bt 1\n")
    finally:
        server.close()
    scene.eventually(lambda: threading.active_count() == before)  # the silent one has left


def test_a_client_that_drips_is_left_at_the_deadline(scene, monkeypatch):
    monkeypatch.setattr(metrics_server, "_REQUEST_S", 0.5)
    server = MetricsServer(("127.0.0.1", 0))
    try:
        with socket.create_connection(("127.0.0.1", server.port)) as client:

            def dripped():
                try:
                    client.send(b"G")
                except OSError:
                    return True
                return False

            scene.eventually(dripped)
    finally:
        server.close()
