"""A small HTTP server for Prometheus: `GET /metrics`, and nothing else.

Each request has a thread of its own and a deadline, and gets a text that lies ready; a client that
is silent keeps no other out. Beyond `_MOST` of them at a time a request is dropped.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any, Final

from bt_lightning.prometheus_text import CONTENT_TYPE

if TYPE_CHECKING:
    from collections.abc import Callable

_REQUEST_S: Final = 5.0
"""Seconds that one request may take."""
_CLOSE_S: Final = 2.0
_MOST: Final = 8
"""Requests at a time."""


class MetricsServer:
    """Answers with `text` at an address until `close`."""

    def __init__(self, address: tuple[str, int]) -> None:
        """Listen.

        Raises:
            OSError: the address is taken, or none of this machine.
        """
        self.text = ""
        """What `/metrics` answers; replaced by the thread that measures."""
        self._server = _server(address, lambda: self.text)
        self._thread = threading.Thread(
            target=self._server.serve_forever, daemon=True, name="bt_lightning metrics port"
        )
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._server.server_port

    def close(self) -> None:
        """Let another process listen there."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(_CLOSE_S)


def _server(address: tuple[str, int], text: Callable[[], str]) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        timeout = _REQUEST_S
        server_version, sys_version = "bt_lightning", ""

        def do_GET(self) -> None:
            found = self.path.partition("?")[0] == "/metrics"
            body = text().encode() if found else b"look at /metrics\n"
            self.send_response(200 if found else 404)
            self.send_header("Content-Type", CONTENT_TYPE if found else "text/plain")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Log no request: there is one every few seconds."""

    class Server(ThreadingHTTPServer):
        address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        daemon_threads, block_on_close = True, False

        def server_bind(self) -> None:
            TCPServer.server_bind(self)  # HTTPServer's own asks a name server, which may hang
            self.server_name, self.server_port = address[0], self.socket.getsockname()[1]

        def process_request(self, request: Any, client_address: Any) -> None:
            if free.acquire(blocking=False):
                super().process_request(request, client_address)
            else:
                self.shutdown_request(request)

        def process_request_thread(self, request: Any, client_address: Any) -> None:
            deadline = threading.Timer(_REQUEST_S, _hang_up, [request])  # for one that drips
            deadline.daemon = True
            deadline.start()
            try:
                super().process_request_thread(request, client_address)
            finally:
                deadline.cancel()
                free.release()

        def handle_error(self, *_: object) -> None:
            """Print no traceback: the client is gone."""

    free = threading.Semaphore(_MOST)
    return Server(address, Handler)


def _hang_up(request: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is over
        request.shutdown(socket.SHUT_RDWR)
