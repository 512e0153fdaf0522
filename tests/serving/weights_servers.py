"""Real servers of weights beside the tests: files over TLS, and the routes of a model hub."""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import ipaddress
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    import ssl
    from pathlib import Path


class FileServer:
    """Serves `files` (path -> bytes); what it does otherwise is set by its attributes."""

    def __init__(self, scheme: str) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        """Headers that are added to the answers for a path."""
        self.redirects: dict[str, str] = {}
        self.statuses: dict[str, int] = {}
        self.token: str | None = None
        self.ranges = self.lengths = True
        self.cut: set[str] = set()
        """Paths of which half of what was asked for is sent."""
        self.hold_after = -1
        """Requests for more than a byte that are answered before the others wait for `go`."""
        self.go = threading.Event()
        self.held = threading.Event()
        self.seen: list[tuple[str, dict[str, str]]] = []
        """Path and headers of each request."""
        self.scheme, self._lock, self._bytes_asked = scheme, threading.Lock(), 0
        self.url = ""
        self.connections: list[socket.socket] = []

    def asked(self, path: str) -> list[str]:
        """The ranges that were asked for, without that of the first byte."""
        spans = [headers.get("range", "all") for at, headers in self.seen if at == path]
        return [span for span in spans if span != "bytes=0-0"]

    def wait(self) -> None:
        with self._lock:
            self._bytes_asked += 1
            free = self.hold_after < 0 or self._bytes_asked <= self.hold_after
        if not free:
            self.held.set()
            self.go.wait(60)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.own.connections.append(self.connection)

    def do_GET(self) -> None:
        own: FileServer = self.server.own
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        own.seen.append((path, headers))
        if own.token is not None and headers.get("authorization") != f"Bearer {own.token}":
            return self.answer(401, b"")
        if path in own.statuses:
            return self.answer(own.statuses[path], b"")
        if path in own.redirects:
            return self.answer(302, b"", {"Location": own.redirects[path]})
        if path not in own.files:
            return self.answer(404, b"no such file")
        if headers.get("range") not in {None, "bytes=0-0"}:
            own.wait()
        data = own.files[path]
        told = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', **own.headers.get(path, {})}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", headers.get("range", ""))
        if span and own.ranges:
            first, last = int(span[1]), min(int(span[2]), len(data) - 1)
            if first >= len(data):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            told["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], told, last > 0 and path in own.cut)
        return self.answer(200, data, told, path in own.cut)

    def do_HEAD(self) -> None:
        self.do_GET()

    def answer(self, status, data, headers=None, cut=False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if value:
                self.send_header(name, value)
        if self.server.own.lengths:
            self.send_header("Content-Length", str(len(data)))
        else:
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        with contextlib.suppress(OSError):
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def log_message(self, *_args) -> None:
        pass


@contextlib.contextmanager
def serving(own: FileServer, handler: type = _Handler, context: ssl.SSLContext | None = None):
    """Run the server in threads of this process until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.own, server.daemon_threads = own, False
    server.handle_error = lambda *_: None  # clients are killed
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    own.url = f"{own.scheme}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield own
    finally:
        own.go.set()
        server.shutdown()
        for connection in own.connections:  # clients keep them
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        server.server_close()
        thread.join(10)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests")])
    now = dt.datetime.now(dt.timezone.utc)
    own = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(own, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    trusted, private = folder / "ca.pem", folder / "key.pem"
    trusted.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    return trusted, private


class Hub(FileServer):
    """One repository at one commit, as a model hub serves it."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repository: str, large: set[str]) -> None:
        super().__init__("http")
        self.repository, self.large = repository, large
        self.listed: dict[str, bytes] = {}
        """What the tree says of the files, where it is not what is served."""
        self.elsewhere = ""
        """URL of the server that large files are redirected to."""

    def tree(self) -> list[dict[str, object]]:
        found = []
        for path, served in self.files.items():
            data = self.listed.get(path, served)
            one = {"type": "file", "path": path, "size": len(data), "oid": git_digest(data)}
            if path in self.large:
                digest = hashlib.sha256(data).hexdigest()
                one["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
            found.append(one)
        return found


def git_digest(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class HubHandler(_Handler):
    def do_GET(self) -> None:
        own: Hub = self.server.own
        path = unquote(urlsplit(self.path).path)
        own.seen.append((path, {name.lower(): value for name, value in self.headers.items()}))
        if own.token is not None and self.headers.get("authorization") != f"Bearer {own.token}":
            return self.answer(401, b"", {"X-Error-Code": "GatedRepo"})
        api = f"/api/models/{own.repository}"
        if path.startswith(f"{api}/tree/"):
            return self.answer_json(own.tree())
        if path == api or path.startswith(f"{api}/revision/"):
            return self.answer_json({"id": own.repository, "sha": own.commit, "siblings": []})
        front = f"/{own.repository}/resolve/{own.commit}/"
        name = path.removeprefix(front)
        if not path.startswith(front) or name not in own.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        data = own.files[name]
        etag = hashlib.sha256(data).hexdigest() if name in own.large else git_digest(data)
        told = {"ETag": f'"{etag}"', "X-Repo-Commit": own.commit, "Accept-Ranges": "bytes"}
        if own.elsewhere and name in own.large:
            told |= {"X-Linked-Etag": told["ETag"], "X-Linked-Size": str(len(data))}
            return self.answer(302, b"", {**told, "Location": f"{own.elsewhere}/{name}?sig=x"})
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("range", ""))
        if span:
            first, last = int(span[1]), int(span[2] or len(data) - 1)
            told["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], told)
        return self.answer(200, data, told)

    def answer_json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})
