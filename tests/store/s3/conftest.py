"""A proxy that faults chosen requests between a client and a real server, and bytes to send."""

from __future__ import annotations

import contextlib
import datetime as dt
import http.client
import ipaddress
import os
import re
import socket
import ssl
import struct
import sys
import threading
import uuid
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer
from urllib.parse import parse_qs, urlsplit

import pytest
import xxhash

from bt_lightning.store.interface import AS_IT_GOES, Sending
from bt_lightning.store.s3.s3_store import S3Store
from bt_lightning.store.transfer.file_source import BufferedSource

_HERE = Path(__file__).parent
if str(_HERE) not in sys.path:
    sys.path.insert(0, str(_HERE))  # for `hostile_servers`, which is no test

MIB = 1024 * 1024
ON_CEPH = os.environ.get("BT_TEST_S3") == "radosgw"  # no test sees such variables
_ERROR = "<Error><Code>{}</Code><Message>as the test wants it</Message></Error>"
_STATUS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "200-error": (200, "InternalError"),
    "region": (400, "AuthorizationQueryParametersError"),
}
_OPERATIONS = (
    ("POST", r"uploads", "Create"),
    ("POST", r"uploadId=", "Complete"),
    ("DELETE", r"uploadId=", "Abort"),
    ("GET", r"uploadId=", "ListParts"),
    ("GET", r"uploads", "ListUploads"),
    ("PUT", r"partNumber=", "UploadPart"),
)


class Memory(BufferedSource):
    """Bytes to send. `held` is called with each range that is asked for."""

    def __init__(self, data, held=lambda offset, size: None):
        self._data = memoryview(data)
        self._held = held
        self.size = self.part_bytes = len(data)
        self.digest = xxhash.xxh3_128_hexdigest(data)

    @contextlib.contextmanager
    def hold(self, offset, size):
        self._held(offset, size)
        yield self._data[offset : offset + size]


def _operation(method, target, headers):
    query = urlsplit(target).query
    for verb, pattern, name in _OPERATIONS:
        if verb == method and re.search(rf"(^|&){pattern}", query):
            return name + "Copy" * ("x-amz-copy-source" in headers)
    return method


def _token(target, headers):
    query = parse_qs(urlsplit(target).query)
    return query.get("X-Amz-Security-Token", [headers.get("x-amz-security-token")])[0]


class FaultProxy(ThreadingTCPServer):
    """Passes requests on, counts them, and does to the n-th of them what `faults` says."""

    daemon_threads = False
    block_on_close = True
    allow_reuse_address = True

    def __init__(self, upstream):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        self.closing = threading.Event()
        self.changed = threading.Condition()
        self.tls = None
        self.token = None
        """The session token that counts; None for any, and none."""
        self.expired = "ExpiredToken"
        """The code of the answer to another one."""
        self.clients = set()
        self.reset()

    def reset(self, **faults):
        """Forget what was seen; `faults` maps a number from 1, as `n1`, to a kind."""
        with self.changed:
            self.faults = {int(name[1:]): kind for name, kind in faults.items()}
            self.seen = []
            self.headers = []
            self.received = 0
            """Bytes of bodies."""
            self.under_way = 0

    def began(self, operation):
        with self.changed:
            self.seen.append(operation)
            self.under_way += 1
            self.changed.notify_all()
            return self.faults.get(len(self.seen))

    def ended(self):
        with self.changed:
            self.under_way -= 1
            self.changed.notify_all()

    def wait_for(self, predicate):
        with self.changed:
            assert self.changed.wait_for(predicate, timeout=60)

    def count(self, operation):
        return self.seen.count(operation)

    def get_request(self):
        client, address = super().get_request()
        if self.tls is not None:
            try:
                client = self.tls.wrap_socket(client, server_side=True)
            except OSError:
                client.close()
                raise
        self.clients.add(client)
        return client, address

    def shutdown_request(self, request):
        self.clients.discard(request)
        super().shutdown_request(request)

    def stop(self):
        self.closing.set()
        self.shutdown()
        for client in list(self.clients):  # those that are kept alive
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.server_close()


class _Handler(StreamRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError, BrokenPipeError):
            while self._one():
                pass

    def _one(self):
        line = self.rfile.readline().decode("latin-1").split()
        if not line:
            return False
        method, target = line[0], line[1]
        headers = {}
        while (header := self.rfile.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        self.server.headers.append(headers)
        fault = self.server.began(_operation(method, target, headers))
        if self.server.token is not None and self.server.token != _token(target, headers):
            fault = "expired"
        try:
            return self._served(method, target, headers, fault)
        finally:
            self.server.ended()

    def _served(self, method, target, headers, fault):
        size = int(headers.get("content-length") or 0)
        if fault == "reset":
            self.rfile.read(size // 2)
            return self._reset()
        if headers.pop("expect", None):
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray(self.rfile.read(size))
        with self.server.changed:
            self.server.received += len(body)
        if len(body) != size:
            return False  # the client died
        refusal = {**_STATUS, "expired": (400, self.server.expired)}.get(fault)
        if refusal:
            return self._answer(method, *refusal)
        if fault == "stall":
            self.server.closing.wait()
            return False
        if fault == "flip" and body:
            body[len(body) // 2] ^= 1
        status, reply, data = self._passed_on(method, target, headers, bytes(body))
        if fault == "lost":
            return self._reset()
        if fault == "flip" and method == "GET" and data:
            data = bytearray(data)
            data[len(data) // 2] ^= 1
        head = [f"HTTP/1.1 {status} x"]
        skip = {"connection", "transfer-encoding", "content-length"}
        head += [f"{name}: {value}" for name, value in reply if name.lower() not in skip]
        length = {name.lower(): value for name, value in reply}.get("content-length")
        head += [f"Content-Length: {length if method == 'HEAD' else len(data)}", "", ""]
        answer = "\r\n".join(head).encode("latin-1") + data
        if fault == "truncate":
            answer = answer[: len(answer) - max(len(data) // 2, 9)]
        self.wfile.write(answer)
        return fault != "truncate"

    def _passed_on(self, method, target, headers, body):
        upstream = self.server.upstream
        parts = urlsplit(target)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
        with contextlib.closing(connection):
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()

    def _answer(self, method, status, code):
        body = _ERROR.format(code).encode()
        head = f"HTTP/1.1 {status} x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.wfile.write(head + (b"" if method == "HEAD" else body))
        return True

    def _reset(self):
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.request.close()
        return False


@pytest.fixture
def memory():
    return Memory


@pytest.fixture
def proxied():
    """Put a proxy in front of a server; it is gone, with its threads, at the test's end."""
    with contextlib.ExitStack() as stack:

        def start(server):
            proxy = FaultProxy(server.endpoint)
            thread = threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            stack.callback(thread.join)
            stack.callback(proxy.stop)
            return proxy

        yield start


@pytest.fixture
def connect(weed, tmp_path):
    """A store on SeaweedFS with parts of 8 MiB, straight or by a proxy."""
    url = f"s3://bucket/{uuid.uuid4().hex}"

    def connect(
        endpoint=weed.endpoint,
        journal=tmp_path / "journal",
        kind=None,
        part_bytes=8 * MIB,
        sending=AS_IT_GOES,
        **options,
    ):
        """`kind` is that of a fault: what stalls should not do so for long."""
        if kind == "flip" and ON_CEPH:
            sending = Sending(content_md5=True)  # Ceph 16 knows no other checksum
        timeouts = {"connect_timeout": 5, "read_timeout": 1.0 if kind == "stall" else 30.0}
        options = {
            **weed.options,
            "client_kwargs": {"endpoint_url": endpoint, "region_name": "us-east-1"},
            "config_kwargs": {**timeouts, "retries": {"max_attempts": 0}},
            **options,
        }
        return S3Store(url, options, journal, part_bytes=part_bytes, sending=sending)

    return connect


@pytest.fixture
def uploads_of():
    """Keys of the multipart uploads that the server has under a store's root."""

    def uploads_of(store):
        answer = store._api.call("list_multipart_uploads", Prefix=store._base)
        return [upload["Key"] for upload in answer.get("Uploads", ())]

    return uploads_of


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A self-signed certificate for 127.0.0.1: (its file, its key's file)."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = dt.datetime.now(dt.timezone.utc)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    (folder / "cert.pem").write_bytes(built.public_bytes(serialization.Encoding.PEM))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (folder / "key.pem").write_bytes(private)
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def tls_proxy(proxied, weed, certificate):
    proxy = proxied(weed)
    proxy.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    proxy.tls.load_cert_chain(*certificate)
    proxy.endpoint = proxy.endpoint.replace("http:", "https:")
    return proxy
