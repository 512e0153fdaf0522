"""An S3 endpoint that is well at first, and then bad in one of the ways that stores are."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import sys
import threading
from typing import Any

KINDS = ("slow", "hanging", "refusing", "rubbish")
_SERVER = """
import sys
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer
s3_backends["123456789012"]["aws"].create_bucket("bucket", "us-east-1")
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
server.stop()
"""
_RUBBISH = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 34\r\n\r\n"
    b"<html>Please accept our terms</html"[:-1]
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_TICK_S = 0.05


class BadStore:
    """A real S3 server behind a port of ours, which passes bytes on as long as `kind` is "well".

    `slow` passes on `bytes_s` a second, `hanging` takes connections and answers nothing,
    `refusing` has nobody listen, `rubbish` answers each request with the page of a hotel.
    """

    def __init__(self, bytes_s: int = 20_000) -> None:
        self.bytes_s = bytes_s
        self._kind = "well"
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._server = subprocess.Popen(
            [sys.executable, "-c", _SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._server.stdout is not None
        self._upstream = int(self._server.stdout.readline())
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._port = self._listener.getsockname()[1]
        self._listener.settimeout(_TICK_S)
        self._start(self._accept, self._listener)

    @property
    def options(self) -> dict[str, Any]:
        """Storage options of it."""
        endpoint = {"endpoint_url": f"http://127.0.0.1:{self._port}", "region_name": "us-east-1"}
        return {"key": "AKIAOFTHETESTS", "secret": "s3kr3t-of-the-tests", "client_kwargs": endpoint}

    def become(self, kind: str) -> None:
        """Be of this kind from now on; whatever is under way is cut off, but for a slow one."""
        self._kind = kind
        if kind == "slow":
            return
        if kind == "refusing":
            self._listener.close()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End it, and wait for its threads."""
        self._closing.set()
        self.become("refusing")
        for thread in self._threads:
            thread.join(10)
        self._server.kill()
        self._server.communicate()

    def _start(self, target: Any, *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while not self._closing.is_set():
            try:
                client = listener.accept()[0]
            except TimeoutError:
                continue
            except OSError:
                return
            client.settimeout(None)
            self._open.add(client)
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            if self._kind == "hanging":
                self._closing.wait()
            elif self._kind == "rubbish":
                self._answer_rubbish(client)
            else:
                with socket.create_connection(("127.0.0.1", self._upstream)) as server:
                    self._open.add(server)
                    self._start(self._pass_on, server, client)
                    self._pass_on(client, server, paced=True)
                    self._open.discard(server)
        self._open.discard(client)

    def _pass_on(
        self, source: socket.socket, target: socket.socket, *, paced: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                slow = paced and self._kind == "slow"
                data = source.recv(int(self.bytes_s * _TICK_S) if slow else 65536)
                if not data:
                    break
                if slow:
                    self._closing.wait(len(data) / self.bytes_s)
                target.sendall(data)
        for each in (source, target):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _answer_rubbish(self, client: socket.socket) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                more = client.recv(65536)
                if not more:
                    return
                data += more
            head, data = data.split(b"\r\n\r\n", 1)
            found = _LENGTH.search(head)
            left = int(found[1]) if found else 0
            if b"100-continue" in head.lower():
                client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            while len(data) < left:
                more = client.recv(65536)
                if not more:
                    return
                data += more
            data = data[left:]
            client.sendall(_RUBBISH)
