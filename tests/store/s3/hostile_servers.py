"""Servers that answer with what no store says, and a program that asks one of them everything."""

from __future__ import annotations

import contextlib
import http.server
import itertools
import json
import os
import resource
import socketserver
import sys
import threading
import time
from pathlib import Path

MIB = 1024 * 1024
ZEROS = bytes(MIB)
QUIET_S = 1.0
"""What the program that asks allows a server to be quiet."""


class Hostile(socketserver.ThreadingTCPServer):
    """Does to everybody what `attack`, a generator of the bytes of an answer, says."""

    daemon_threads = False
    allow_reuse_address = True

    def __init__(self, attack):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.attack = attack
        self.asked = []
        """Who came: the first lines of requests, with their headers."""
        self.closing = threading.Event()
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"

    def rest(self, seconds):
        self.closing.wait(seconds)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(OSError, UnicodeDecodeError, IndexError):
            while not self.server.closing.is_set() and self._one():
                pass

    def _one(self):
        lines = []
        while (line := self.rfile.readline()) != b"\r\n":
            if not line:
                return False  # it left before its request was whole
            lines.append(line)
        head = b"".join(lines)
        self.server.asked.append(head)
        line, *rest = head.decode().lower().split("\r\n")
        sizes = [one.partition(":")[2] for one in rest if one.startswith("content-length:")]
        self.rfile.read(int(sizes[0]) if sizes else 0)
        for piece in self.server.attack(self.server, line):
            if self.server.closing.is_set():
                return False
            self.wfile.write(piece)
        return False


def head(status, **headers):
    lines = [f"HTTP/1.1 {status} x", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def endless_error(server, line):
    yield head(403, Content_Length=10 * 1024**3)
    yield from itertools.repeat(ZEROS)


def endless_chunks(server, line):
    yield head(200, Transfer_Encoding="chunked")
    yield from itertools.repeat(b"%x\r\n%b\r\n" % (MIB, ZEROS))


def endless_headers(server, line):
    yield b"HTTP/1.1 200 x\r\n"
    yield from itertools.repeat(b"X-A: " + b"a" * 60_000 + b"\r\n")


def endless_go_ons(server, line):
    yield from itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)


def drip(server, line):
    yield head(500, Content_Length=60_000)
    while True:
        server.rest(QUIET_S / 5)
        yield b"<"


def drip_of_headers(server, line):
    yield b"HTTP/1.1 200 x\r\n"
    while True:
        server.rest(QUIET_S / 5)
        yield b"a"


def many_tags(server, line):
    body = b"<ListBucketResult>" + b"<a/>" * (7 * MIB // 4)
    yield head(200, Content_Length=len(body)) + body


def entities(server, line):
    text = '<!DOCTYPE a [<!ENTITY a0 "aaaaaaaaaa">'
    text += "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10))
    body = f"{text}]><ListBucketResult>&a9;</ListBucketResult>".encode()
    yield head(200, Content_Length=len(body)) + body


def redirect(server, line):
    body = b"<Error><Code>Moved</Code></Error>"
    yield head(307, Content_Length=len(body), Location=f"{server.other}/bucket/x") + body


def found(server, line):
    yield head(302, Content_Length=0, Location=f"{server.other}/bucket/x")


def _page(names, token):
    objects = "".join(
        f"<Contents><Key>{name}</Key><Size>1</Size><ETag>&quot;0123456789abcdef&quot;</ETag>"
        "<LastModified>2026-01-02T03:04:05.000Z</LastModified><StorageClass>STANDARD</StorageClass>"
        "</Contents>"
        for name in names
    )
    body = (
        f"<ListBucketResult><IsTruncated>true</IsTruncated>{objects}"
        f"<NextContinuationToken>{token}</NextContinuationToken></ListBucketResult>"
    ).encode()
    return head(200, Content_Length=len(body)) + body


ENDLESS = _page([f"x/a/-number---{n:04}" for n in range(1000)], "-number--")


def endless_listing(server, line):
    """Every page is another, and goes on."""
    yield ENDLESS.replace(b"-number--", b"%09d" % next(server.numbers))


def repeating_listing(server, line):
    """Every page is the same, and says that it goes on."""
    yield _page([f"x/a/{n:04}" for n in range(1000)], next(server.numbers))


def empty_listing(server, line):
    yield _page([], next(server.numbers))


ATTACKS = [
    endless_error,
    endless_chunks,
    endless_headers,
    endless_go_ons,
    drip,
    drip_of_headers,
    many_tags,
    entities,
    redirect,
    found,
]
LISTINGS = [endless_listing, repeating_listing, empty_listing]


@contextlib.contextmanager
def serving(attack, other=None):
    with Hostile(attack) as server:
        server.other = other
        server.numbers = itertools.count(1)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.closing.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def recording():
    """A server that only writes down who came."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self):
            asked.append(self.rfile.readline())

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


class ElsewhereError(Exception):
    """Another client was to be asked."""


def main(kind, endpoint, *calls):
    """Ask everything; print what came of it, the seconds of each call, and the peak of memory."""
    from bt_lightning.errors import CheckpointError
    from bt_lightning.store.open_store import download_url, open_store
    from bt_lightning.store.s3 import signed_reads
    from bt_lightning.store.s3.s3_store import S3Store
    from bt_lightning.store.transfer.file_source import FileSource  # noqa: F401 - imported before the clock runs

    where = {"endpoint_url": endpoint, "region_name": "us-east-1"}
    user = {"key": "AKIAOFTHETESTS", "secret": "s3kr3t/of+tests", "token": "the-session-token"}
    options = {**user, "client_kwargs": where}
    signed_reads._READ_S = QUIET_S
    os.environ.update(
        AWS_ACCESS_KEY_ID=user["key"],
        AWS_SECRET_ACCESS_KEY=user["secret"],
        AWS_SESSION_TOKEN=user["token"],
        AWS_ENDPOINT_URL=endpoint,
    )
    if kind == "quick":
        store = open_store("s3://bucket/x", options)

        def elsewhere():
            raise ElsewhereError

        store._open_it = elsewhere
    else:
        limits = {"connect_timeout": 5, "read_timeout": QUIET_S, "retries": {"max_attempts": 0}}
        store = S3Store("s3://bucket/x", {**options, "config_kwargs": limits})
    acts = {
        "read": lambda: store.read("a/key"),
        "list": lambda: list(store.list("a")),
        "read_into": lambda: store.read_into("a/key", 0, memoryview(bytearray(1000))),
        "size": lambda: store.size("a/key"),
        "put": lambda: store.put("a/key", b"x"),
        "put_new": lambda: store.put_new("a/key", b"x"),
        "delete": lambda: store.delete(["a/key"]),
        "abandon": lambda: store.abandon("a", ()),
        "download": lambda: download_url("s3://bucket/x/a/key", Path(os.devnull)),
    }
    said = {}
    for call in calls:
        began, cpu = time.monotonic(), time.process_time()
        try:
            acts[call]()
            word, text = "done", ""
        except (CheckpointError, ElsewhereError) as error:
            word, text = type(error).__name__, str(error)
        said[call] = {
            "came": word,
            "text": text,
            "wall": time.monotonic() - began,
            "cpu": time.process_time() - cpu,
        }
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    print(json.dumps({"calls": said, "peak": peak * 1024}), flush=True)


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main(*sys.argv[1:])
    os._exit(0)
