"""A store that costs next to nothing, so that what is measured is the client; for benchmarks only.

It speaks as much S3 as the clients here use, with paths as `/bucket/key`, and checks no signature.
Of an object it remembers the size and XXH3-128 of each part, and throws the bytes away; objects in
the bucket `kept` stay in memory and can be read and copied. Run it as a program: it prints its
port, and ends when its standard input does.

`GET /-/object/BUCKET/KEY` tells what arrived, `GET /-/received` how many bytes of bodies did.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import socket
import ssl
import sys
import threading
import time
from xml.sax.saxutils import escape

from sink_objects import KEPT, Content, Shared, copied, listing, receive
from sink_wire import PIECE, Request, Wire

LEAST_PART = 5 * 1024 * 1024
"""What S3 asks of all parts but the last."""
STATUS = {200: "OK", 204: "No Content", 206: "Partial Content", 404: "Not Found"}
STATUS |= {400: "Bad Request", 412: "Precondition Failed", 416: "Range Not Satisfiable"}


class Answers:
    """One method for each kind of request; each sends exactly one answer."""

    def __init__(self, wire: Wire, shared: Shared) -> None:
        self.wire, self.shared = wire, shared

    def send(self, status: int, body: str = "", **headers: object) -> None:
        data = body.encode()
        headers.setdefault("content_length", len(data))
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        head = "\r\n".join([f"HTTP/1.1 {status} {STATUS[status]}", *lines, "", ""])
        self.wire.socket.sendall(head.encode() + data)

    def error(self, status: int, code: str) -> None:
        self.send(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>")

    def handle(self, request: Request) -> None:
        bucket, _, key = request.path.partition("/")
        if bucket == "-":
            self.control(request, key)
        elif not key:
            self.bucket(request, bucket)
        else:
            action = getattr(self, f"do_{request.method.lower()}")
            action(request, bucket, f"{bucket}/{key}")

    def control(self, request: Request, what: str) -> None:
        with self.shared.lock:
            found = self.shared.objects.get(what.removeprefix("object/"))
        if what.startswith("object/"):
            parts = [] if found is None else [(part.size, part.xxh3) for part in found.parts]
            self.send(200, json.dumps(parts))
        else:
            self.send(200, json.dumps(self.shared.received))

    def bucket(self, request: Request, bucket: str) -> None:
        if request.method == "POST":
            keys = re.findall(r"<Key>(.*?)</Key>", request.read().decode())
            for key in keys:
                self.shared.drop(f"{bucket}/{key}")
            self.send(200, "<DeleteResult></DeleteResult>", content_type="application/xml")
        elif request.method == "GET" and "uploads" in request.query:
            self.send(200, "<ListMultipartUploadsResult></ListMultipartUploadsResult>")
        elif request.method == "GET" and "location" in request.query:
            self.send(200, "<LocationConstraint></LocationConstraint>")
        elif request.method == "GET":
            self.send(
                200,
                listing(self.shared.under(bucket), bucket, request.query),
                content_type="application/xml",
            )
        else:
            self.send(200)

    def do_put(self, request: Request, bucket: str, path: str) -> None:
        if "x-amz-copy-source" in request.headers:
            part = copied(request, self.shared, bucket)
            if part is None:
                self.error(404, "NoSuchKey")
                return
        else:
            part = receive(request, self.shared, bucket)
        answer = f"<ETag>{escape(part.etag)}</ETag>"
        if number := request.query.get("partNumber"):
            with self.shared.lock:
                known = self.shared.uploads.get(request.query["uploadId"])
                if known:
                    known[1][int(number)] = part
            if not known:
                self.error(404, "NoSuchUpload")
                return
            kind = "CopyPartResult"
        else:
            with self.shared.lock:
                taken = path in self.shared.objects and "if-none-match" in request.headers
            if not taken:
                self.shared.keep(path, Content([part]))
            else:
                self.error(412, "PreconditionFailed")
                return
            kind = "CopyObjectResult"
        if "x-amz-copy-source" in request.headers:
            self.send(200, f"<{kind}>{answer}</{kind}>", content_type="application/xml")
        else:
            self.send(200, etag=part.etag)

    def do_post(self, request: Request, bucket: str, path: str) -> None:
        body = request.read().decode()
        key = escape(path.partition("/")[2])
        if "uploads" in request.query:
            with self.shared.lock:
                upload = f"upload-{next(self.shared.numbers)}"
                self.shared.uploads[upload] = (path, {})
            self.send(
                200,
                f"<InitiateMultipartUploadResult><Bucket>{bucket}</Bucket><Key>{key}</Key>"
                f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>",
                content_type="application/xml",
            )
            return
        with self.shared.lock:
            known = self.shared.uploads.pop(request.query.get("uploadId", ""), None)
            numbers = [int(text) for text in re.findall(r"<PartNumber>(\d+)<", body)]
            if known is None or not set(numbers) <= set(known[1]):
                content = None
            else:
                content = Content([known[1][number] for number in numbers])
        if content is None or any(part.size < LEAST_PART for part in content.parts[:-1]):
            self.error(400, "InvalidPart" if content is None else "EntityTooSmall")
            return
        self.shared.keep(path, content)
        self.send(
            200,
            f"<CompleteMultipartUploadResult><Location>/{bucket}/{key}</Location>"
            f"<Bucket>{bucket}</Bucket><Key>{key}</Key><ETag>{escape(content.etag)}</ETag>"
            "</CompleteMultipartUploadResult>",
            content_type="application/xml",
        )

    def do_delete(self, request: Request, bucket: str, path: str) -> None:
        if upload := request.query.get("uploadId"):
            with self.shared.lock:
                self.shared.uploads.pop(upload, None)
        else:
            self.shared.drop(path)
        self.send(204)

    def do_head(self, request: Request, bucket: str, path: str) -> None:
        with self.shared.lock:
            content = self.shared.objects.get(path)
        if content is None:
            self.send(404)
        else:
            self.send(200, **facts(content), content_length=content.size)

    def do_get(self, request: Request, bucket: str, path: str) -> None:
        if upload := request.query.get("uploadId"):
            self.list_parts(upload, bucket, path)
            return
        with self.shared.lock:
            content = self.shared.objects.get(path) if bucket == KEPT else None
        if content is None:
            self.error(404, "NoSuchKey")
            return
        begin, end, status = 0, content.size, 200
        if match := re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", "")):
            status = 206
            begin = int(match[1]) if match[1] else max(0, end - int(match[2]))
            end = min(end, int(match[2]) + 1) if match[1] and match[2] else end
            if begin >= content.size:
                self.error(416, "InvalidRange")
                return
        headers = {**facts(content), "content_length": end - begin}
        if status == 206:
            headers["content_range"] = f"bytes {begin}-{end - 1}/{content.size}"
        self.send(status, **headers)
        for descriptor, offset, size in content.cut(begin, end):
            self.send_file(descriptor, offset, size)

    def send_file(self, descriptor: int, offset: int, size: int) -> None:
        wire = self.wire
        for start in range(offset, offset + size, PIECE):
            length = min(PIECE, offset + size - start)
            if wire.plain:
                done = 0
                while done < length:
                    done += os.sendfile(
                        wire.socket.fileno(), descriptor, start + done, length - done
                    )
            else:
                count = os.preadv(descriptor, [wire.buffer[:length]], start)
                wire.socket.sendall(wire.buffer[:count])
            wire.pace(length)

    def list_parts(self, upload: str, bucket: str, path: str) -> None:
        with self.shared.lock:
            known = self.shared.uploads.get(upload)
        if known is None:
            self.error(404, "NoSuchUpload")
            return
        items = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(part.etag)}</ETag>"
            f"<Size>{part.size}</Size></Part>"
            for number, part in sorted(known[1].items())
        )
        self.send(
            200,
            f"<ListPartsResult><Bucket>{bucket}</Bucket><UploadId>{upload}</UploadId>"
            f"<IsTruncated>false</IsTruncated>{items}</ListPartsResult>",
            content_type="application/xml",
        )


def facts(content: Content) -> dict[str, object]:
    return {
        "etag": content.etag,
        "accept_ranges": "bytes",
        "content_type": "application/octet-stream",
        "last_modified": "Thu, 01 Jan 2026 00:00:00 GMT",
    }


def serve(connection: socket.socket, shared: Shared, context: ssl.SSLContext | None) -> None:
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            connection = context.wrap_socket(connection, server_side=True)
        wire = Wire(connection, shared.cap)
        answers = Answers(wire, shared)
        while head := wire.head():
            request = Request(head, wire)
            if request.headers.get("expect", "").lower() == "100-continue":
                connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            if shared.latency and not request.path.startswith("-/"):
                time.sleep(shared.latency)
            answers.handle(request)
            while request.body.take(PIECE):  # what no answer asked for
                pass
    except OSError:
        pass  # a client that went away
    finally:
        connection.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds before each answer")
    parser.add_argument("--cap", type=float, default=0.0, help="bytes a second and connection")
    parser.add_argument("--certificate", help="file of a key and a certificate: speak TLS")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    context = None
    if options.certificate:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate)
    shared = Shared(options.latency, options.cap)
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=serve, args=(connection, shared, context), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
