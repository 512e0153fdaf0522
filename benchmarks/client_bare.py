"""The floor of `transfer.py`: HTTP and nothing else."""

from __future__ import annotations

import http.client
import os
import re
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from client_tools import MIB, PART, Bytes, opened, preallocated

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server


class Bare:
    """HTTP and nothing else: the floor. Signed URLs where the server looks at them."""

    def __init__(self, server: Server, bucket: str, connections: int) -> None:
        self.server, self.bucket, self.connections = server, bucket, connections
        self.place = urlsplit(server.url)
        self.boto3 = None if server.is_sink else server.boto3()
        self.tls = ssl.create_default_context(cafile=server.certificate) if server.tls else None
        self.local = threading.local()

    def _url(self, action: str, key: str, **words: object) -> str:
        """Path and query of a request."""
        if self.boto3 is None:
            names = {"UploadId": "uploadId", "PartNumber": "partNumber"}
            query = "&".join(f"{names[name]}={value}" for name, value in words.items())
            uploads = "uploads" if action == "create_multipart_upload" else ""
            return f"/{self.bucket}/{key}?{uploads}{query}"
        params = {"Bucket": self.bucket, "Key": key, **words}
        parts = urlsplit(self.boto3.generate_presigned_url(action, Params=params))
        return f"{parts.path}?{parts.query}"

    def _connection(self) -> http.client.HTTPConnection:
        """One for each thread."""
        found = getattr(self.local, "connection", None)
        if found is None:
            found = (
                http.client.HTTPSConnection(self.place.netloc, context=self.tls)
                if self.tls
                else http.client.HTTPConnection(self.place.netloc)
            )
            self.local.connection = found
            found.connect()
        return found

    def _ask(self, method: str, url: str, body: bytes = b"") -> bytes:
        connection = self._connection()
        connection.request(method, url, body)
        return _answer(connection).read()

    def _put(self, url: str, source: Bytes, offset: int, size: int) -> str:
        connection = self._connection()
        connection.putrequest("PUT", url)
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        if source.in_memory or self.tls:
            connection.sock.sendall(source.view[offset : offset + size])
        else:
            end = offset + size
            while offset < end:
                offset += os.sendfile(
                    connection.sock.fileno(), source.descriptor, offset, end - offset
                )
        response = _answer(connection)
        response.read()
        return response.headers["ETag"]

    def upload(self, source: Bytes, key: str) -> None:
        begun = self._ask("POST", self._url("create_multipart_upload", key)).decode()
        upload = re.search("<UploadId>(.*?)</UploadId>", begun)[1]

        def send(number: int) -> str:
            offset = (number - 1) * PART
            url = self._url("upload_part", key, PartNumber=number, UploadId=upload)
            return self._put(url, source, offset, min(PART, source.size - offset))

        numbers = range(1, -(-source.size // PART) + 1)
        with ThreadPoolExecutor(self.connections) as pool:
            tags = list(pool.map(send, numbers))
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{tag}</ETag></Part>"
            for number, tag in zip(numbers, tags, strict=True)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        self._ask("POST", self._url("complete_multipart_upload", key, UploadId=upload), body)

    def upload_many(self, folder: Path, names: list[str], prefix: str) -> None:
        def send(name: str) -> None:
            with opened(folder / name) as source:
                self._put(self._url("put_object", f"{prefix}/{name}"), source, 0, source.size)

        with ThreadPoolExecutor(self.connections) as pool:
            list(pool.map(send, names))

    def read_range(self, key: str, offset: int, target: memoryview) -> None:
        connection = self._connection()
        span = {"Range": f"bytes={offset}-{offset + len(target) - 1}"}
        connection.request("GET", self._url("get_object", key), headers=span)
        response = _answer(connection)
        while target:
            count = response.readinto(target)
            if not count:
                msg = f"{len(target)} bytes are missing"
                raise ConnectionResetError(msg)
            target = target[count:]

    def download(self, key: str, target: Path, size: int) -> None:
        url = self._url("get_object", key)

        def fetch(offset: int) -> None:
            connection = self._connection()
            end = min(offset + PART, size)
            connection.request("GET", url, headers={"Range": f"bytes={offset}-{end - 1}"})
            response = _answer(connection)
            if not hasattr(self.local, "buffer"):
                self.local.buffer = memoryview(bytearray(MIB))
            buffer = self.local.buffer
            while count := response.readinto(buffer):
                os.pwrite(descriptor, buffer[:count], offset)
                offset += count
            if offset != end:
                msg = f"{end - offset} bytes are missing"
                raise ConnectionResetError(msg)

        with preallocated(target, size) as descriptor, ThreadPoolExecutor(self.connections) as pool:
            list(pool.map(fetch, range(0, size, PART)))


def _answer(connection: http.client.HTTPConnection) -> http.client.HTTPResponse:
    response = connection.getresponse()
    if response.status not in {200, 206}:
        msg = f"{response.status}: {response.read()[:500]!r}"
        raise ConnectionError(msg)
    return response
