"""A server of GCS for the tests: its JSON API by gcp-storage-emulator, what that lacks by this.

That is put-if-absent (`ifGenerationMatch=0`), the XML API with its multipart uploads, and users: a
client has to show a token that was given at `/token`. `python gcs_server.py`
prints its port.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import sys
import threading
import time
import uuid
import xml.etree.ElementTree as ET
from email.utils import formatdate
from functools import partial
from http.server import ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

import google_crc32c
from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.server import RequestHandler, _read_raw_data
from gcp_storage_emulator.storage import Storage

SPACE = "http://doc.s3.amazonaws.com/2006-03-01"
JSON_ROOTS = {"storage", "upload", "download", "batch", "b"}


class ExistsError(Exception):
    """A precondition did not hold."""


class Bench(Storage):
    """Objects, and what the XML API has beside them."""

    def __init__(self):
        super().__init__(use_memory_fs=True)
        self.lock = threading.RLock()
        self.only_new = False
        self.damage = False
        self.listing = {"status": "200", "heeds": "prefix", "after": "upload-id-marker"}
        self.token_s = 3600
        self.uploads = {}
        self.tokens = {}

    def create_file(self, bucket_name, file_name, content, file_obj, file_id=None):
        if self.only_new and file_name in self.objects.get(bucket_name, {}):
            raise ExistsError
        super().create_file(bucket_name, file_name, content, file_obj, file_id)

    def keep(self, bucket, key, data):
        """Make an object of what came by the XML API; its MD5."""
        if self.damage:
            data = b"?" + data[1:]
        checksum = google_crc32c.Checksum(data)
        self.create_file(
            bucket,
            key,
            data,
            {
                "kind": "storage#object",
                "bucket": bucket,
                "name": key,
                "size": str(len(data)),
                "generation": str(time.time_ns()),
                "metageneration": "1",
                "contentType": "application/octet-stream",
                "md5Hash": base64.b64encode(hashlib.md5(data).digest()).decode(),
                "crc32c": base64.b64encode(checksum.digest()).decode(),
                "etag": hashlib.md5(data).hexdigest(),
            },
        )
        return hashlib.md5(data).hexdigest()


class Handler(RequestHandler):
    """Requests of both APIs, one after the other."""

    def do_GET(self):
        self._take(super().do_GET)

    def do_PUT(self):
        self._take(super().do_PUT)

    def do_POST(self):
        self._take(super().do_POST)

    def do_DELETE(self):
        self._take(super().do_DELETE)

    def _take(self, by_json):
        parts = urlsplit(self.path)
        query = {k: v[0] for k, v in parse_qs(parts.query, keep_blank_values=True).items()}
        root, _, rest = parts.path.lstrip("/").partition("/")
        if root == "token":
            self._token()  # who asks may have begun another request, and not go on with it before
            return
        known = root == "bench" or self._known(query)
        body = None if known and root in JSON_ROOTS else _read_raw_data(self) or b""
        with self.storage.lock:
            if root == "bench":
                self._bench(rest, query)
            elif not known:
                error = {"error": {"code": 401, "message": "Invalid Credentials"}}
                self._answer(401, json.dumps(error).encode())
            elif body is not None:
                self._xml(root, unquote(rest), query, body)
            else:
                self.storage.only_new = query.get("ifGenerationMatch") == "0"
                try:
                    by_json()
                except ExistsError:
                    self._answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
                finally:
                    self.storage.only_new = False

    def _bench(self, what, query):
        """Of the tests alone: what is there, and what the server is to do from now on."""
        if what == "damage":
            self.storage.damage = query["on"] == "1"
        elif what == "listing":
            self.storage.listing.update(query)
        elif what == "forget":
            self.storage.uploads = {}
        elif what == "refuse":
            self.storage.tokens = dict.fromkeys(self.storage.tokens, 0)
        elif what == "tokens":
            self.storage.token_s = int(query["last"])
        facts = {
            "uploads": [list(place) for place, _ in self.storage.uploads.values()],
            "tokens": len(self.storage.tokens),
        }
        self._answer(200, json.dumps(facts).encode())

    def _token(self):
        _read_raw_data(self)
        token = uuid.uuid4().hex
        self.storage.tokens[token] = time.time() + self.storage.token_s
        facts = {"access_token": token, "expires_in": self.storage.token_s, "token_type": "Bearer"}
        self._answer(200, json.dumps(facts).encode())

    def _known(self, query):
        """Whether a token is shown that holds; signatures are believed."""
        shown = self.headers.get("Authorization", "").removeprefix("Bearer ")
        return self.storage.tokens.get(shown, 0) > time.time() or "Signature" in query

    def _xml(self, bucket, key, query, body):
        try:
            getattr(self, f"_xml_{self.command.lower()}")(bucket, key, query, body)
        except (KeyError, NotFound):
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")

    def _xml_get(self, bucket, key, query, _):
        if not key and "uploads" in query:
            listing = self.storage.listing
            if listing["status"] != "200":
                self._answer(int(listing["status"]), b"<Error><Code>AccessDenied</Code></Error>")
                return
            prefix = query.get(listing["heeds"], "")
            found = [
                f"<Upload><Key>{escape(name)}</Key><UploadId>{upload}</UploadId></Upload>"
                for upload, ((there, name), _) in sorted(self.storage.uploads.items())
                if there == bucket and name.startswith(prefix)
                if upload > query.get(listing["after"], "")
            ]
            more = len(found) > 1  # a page of one, so that the tests see several
            last = found[0].partition("<UploadId>")[2].partition("<")[0] if found else ""
            marks = (
                f"<NextKeyMarker>k</NextKeyMarker><NextUploadIdMarker>{last}</NextUploadIdMarker>"
            )
            text = "".join([f"<IsTruncated>{str(more).lower()}</IsTruncated>", marks, *found[:1]])
            self._answer_xml("ListMultipartUploadsResult", text)
            return
        data = self.storage.get_file(bucket, key)
        facts = self.storage.get_file_obj(bucket, key)
        headers = {"ETag": f'"{facts["etag"]}"', "Last-Modified": formatdate(usegmt=True)}
        span = self.headers.get("Range")
        if span is None:
            self._answer(200, data, headers)
            return
        first, _, last = span.removeprefix("bytes=").partition("-")
        if int(first) >= len(data):
            self._answer(416, b"<Error><Code>InvalidRange</Code></Error>")
            return
        part = data[int(first) : int(last) + 1]
        reached = int(first) + len(part) - 1
        headers["Content-Range"] = f"bytes {first}-{reached}/{len(data)}"
        self._answer(206, part, headers)

    def _xml_put(self, bucket, key, query, body):
        if "uploadId" not in query:
            self._answer(200, b"", {"ETag": f'"{self.storage.keep(bucket, key, body)}"'})
            return
        _, parts = self.storage.uploads[query["uploadId"]]
        parts[int(query["partNumber"])] = body
        self._answer(200, b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    def _xml_post(self, bucket, key, query, body):
        if "uploads" in query:
            upload = uuid.uuid4().hex
            self.storage.uploads[upload] = ((bucket, key), {})
            self._answer_xml("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
            return
        place, parts = self.storage.uploads[query["uploadId"]]
        numbers = [
            int(element.text) for element in ET.fromstring(body).iter() if "Number" in element.tag
        ]
        if place != (bucket, key) or numbers != sorted(parts):
            self._answer(400, b"<Error><Code>InvalidPart</Code></Error>")
            return
        etag = self.storage.keep(bucket, key, b"".join(parts[number] for number in numbers))
        del self.storage.uploads[query["uploadId"]]
        self._answer_xml("CompleteMultipartUploadResult", f'<ETag>"{etag}"</ETag>')

    def _xml_delete(self, bucket, key, query, _):
        if "uploadId" in query:
            del self.storage.uploads[query["uploadId"]]
        else:
            self.storage.delete_file(bucket, key)
        self._answer(204, b"")

    def _answer_xml(self, root, text):
        body = f'<?xml version="1.0"?><{root} xmlns="{SPACE}">{text}</{root}>'.encode()
        self._answer(200, body, {"Content-Type": "application/xml"})

    def _answer(self, status, body, headers=()):
        self.send_response(status)
        for name, value in dict(headers).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main():
    """Serve until killed."""
    logging.disable()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, Bench()))
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
