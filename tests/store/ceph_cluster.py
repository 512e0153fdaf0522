"""A Ceph of one node with its S3 gateway, the strictest server that runs here; for a nightly run.

It keeps everything in memory, and knows no users but those of S3. Needs the packages of
`nox -s radosgw`. Documentation: docs.ceph.com/en/latest/install/manual-deployment/.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.error
import urllib.request
import uuid

_START_S = 60
_LOOK_S = 0.2

_CONFIG = """
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon}]
ms bind msgr2 = false
mon initial members = a
auth cluster required = none
auth service required = none
auth client required = none
run dir = {place}
admin socket = {place}/$name.$pid.asok
log file = {place}/$name.log
keyring = {place}/keyring
mon data = {place}/mon
mgr data = {place}/mgr
osd data = {place}/osd
rgw data = {place}/rgw
osd objectstore = memstore
memstore device bytes = 4294967296
osd crush chooseleaf type = 0
osd class update on start = false
osd crush update on start = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
[osd]
public addr = 127.0.0.1
[mgr]
public addr = 127.0.0.1
[client]
rgw frontends = beast endpoint=127.0.0.1:{port}
"""


@contextlib.contextmanager
def running(place, mon, port, key, secret):
    """Start a cluster below `place`, an empty folder; yield when it serves S3 on `port`."""
    config, monitors, fsid = place / "ceph.conf", place / "monmap", str(uuid.uuid4())
    config.write_text(_CONFIG.format(fsid=fsid, place=place, mon=mon, port=port))
    (place / "keyring").touch()
    for name in ("mon", "mgr", "osd", "rgw"):
        (place / name).mkdir()
    with contextlib.ExitStack() as until_then:

        def do(program, *words):
            words = [program, "-c", config, *words]
            return subprocess.run(
                words, check=True, capture_output=True, text=True, timeout=_START_S
            ).stdout

        def keep(program, *words):
            with (place / f"{program}.out").open("wb") as out:
                process = subprocess.Popen(
                    [program, "-c", config, "-f", *words], stdout=out, stderr=out, cwd=place
                )
            until_then.callback(process.wait)
            until_then.callback(process.kill)
            return process

        address = f"[v1:127.0.0.1:{mon}]"
        do("monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monitors)
        do("ceph-mon", "--mkfs", "-i", "a", "--monmap", monitors)
        keep("ceph-mon", "-i", "a")
        osd = str(uuid.uuid4())
        number = do("ceph", "osd", "new", osd).strip()
        # by hand: an OSD that does it at its start may be quicker than its monitor, and ends then
        do("ceph", "osd", "crush", "add", f"osd.{number}", "1.0", "root=default", "host=here")
        do("ceph-osd", "-i", number, "--mkfs", "--osd-uuid", osd)
        keep("ceph-osd", "-i", number)
        keep("ceph-mgr", "-i", "x")
        user = ("--uid=tests", "--display-name=tests", f"--access-key={key}", f"--secret={secret}")
        do("radosgw-admin", "user", "create", *user)
        gateway = keep("radosgw", "-n", "client.rgw")
        deadline = time.monotonic() + _START_S
        while not _serves(port):
            with contextlib.suppress(subprocess.TimeoutExpired):
                gateway.wait(_LOOK_S)
            lives = gateway.poll() is None and time.monotonic() < deadline
            assert lives, (place / "radosgw.out").read_text()
        yield


def _serves(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
