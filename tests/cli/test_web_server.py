"""The explorer in a browser: only for who has the URL, once; and it is the same explorer."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from http.cookiejar import CookieJar
from pathlib import Path

import aiohttp
import pytest

pytestmark = pytest.mark.thorough
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
PATIENCE_S = 40


@contextmanager
def served(root):
    with subprocess.Popen(
        [sys.executable, "-m", "bt_lightning", "checkpoints", "explore", "--web", "--dir", root],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            url = re.search(r"http://\S+", process.stderr.readline()).group()
            until(lambda: status(url.partition("?")[0]) == 403)
            yield url
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=PATIENCE_S)


def until(holds):
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def status(url, opener=None, **headers):
    request = urllib.request.Request(url, headers=headers)
    try:
        with (opener or urllib.request.build_opener()).open(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except urllib.error.URLError:
        return None  # not listening yet


@pytest.fixture
def root(tmp_path, make):
    for step in (3, 20):
        make(tmp_path / "ck", f"checkpoint-{step}", step)
    return tmp_path / "ck"


def test_only_who_has_the_url_gets_in_and_only_once(root):
    with served(root) as url:
        page = url.partition("?")[0]
        port = page.rstrip("/").rpartition(":")[2]
        assert status(page) == 403
        assert status(f"{page}?token=wrong") == 403
        assert status(f"{page}ws") == 403
        assert status(url, Host=f"evil.example:{port}") == 403
        assert status(url, Origin="http://evil.example") == 403
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        assert status(url, browser) == 200
        assert status(page, browser) == 200
        assert status(page, browser, Origin="http://evil.example") == 403
        assert status(url) == 403  # it works once


ODD = [b"bt_lightning=\xff\xfe", b"bt_lightning=\xc3\xa9", b"\xff", b'bt_lightning="\\377"']


@pytest.mark.parametrize("cookie", ODD)
def test_a_cookie_of_any_bytes_is_refused_as_any_other(root, cookie):
    with served(root) as url:
        host, _, port = url.partition("?")[0].strip("/").rpartition("/")[2].partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection:
            asked = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nConnection: close\r\nCookie: "
            connection.sendall(asked.encode() + cookie + b"\r\n\r\n")
            assert connection.makefile("rb").readline().split()[1] == b"403"


def test_the_page_asks_no_other_host(root):
    with served(root) as url:
        page = url.partition("?")[0]
        browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(CookieJar()))
        with browser.open(url, timeout=PATIENCE_S) as answer:
            text, policy = answer.read().decode(), answer.headers["Content-Security-Policy"]
        ours = page.rstrip("/")
        assert policy.startswith("default-src 'self'")
        assert set(re.findall(r"\w+://[\w.:]+", policy)) == {ours.replace("http", "ws", 1)}
        asked = re.findall(r"""(?:href|src|url)\s*[=(]\s*["'](\w+:)?//([^/"']+)""", text)
        assert asked
        assert {f"{scheme}//{host}" for scheme, host in asked} <= {
            ours,
            ours.replace("http", "ws", 1),
        }
        styles = [link for link in re.findall(r'href="([^"]+)"', text) if link.endswith(".css")]
        with browser.open(styles[0], timeout=PATIENCE_S) as answer:
            style = re.sub(r"/\*.*?\*/", "", answer.read().decode(), flags=re.DOTALL)
        assert "://" not in style


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_explorer_and_takes_its_keys(root, tmp_path):
    with served(root) as url:
        asyncio.run(browse(url, tmp_path))


async def browse(url, tmp_path):
    arguments = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,600")
    chromium = await asyncio.create_subprocess_exec(
        CHROMIUM,
        *arguments,
        f"--user-data-dir={tmp_path / 'profile'}",
        "--remote-debugging-port=0",
        "about:blank",
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        line = b""
        while b"ws://" not in line:
            line = await asyncio.wait_for(chromium.stderr.readline(), PATIENCE_S)
            assert line
        port = re.search(rb"ws://[^:]+:(\d+)/", line).group(1).decode()
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
                tabs = [tab for tab in await answer.json() if tab["type"] == "page"]
            async with session.ws_connect(tabs[0]["webSocketDebuggerUrl"], max_msg_size=0) as tab:
                await walk(Tab(tab), url)
    finally:
        chromium.kill()
        await chromium.wait()


class Tab:
    """A page of the browser, by its debugging protocol; `drawn` is what its terminal was sent."""

    def __init__(self, socket):
        self._socket, self._numbers, self.drawn = socket, itertools.count(1), b""

    async def call(self, method, **params):
        number = next(self._numbers)
        await self._socket.send_json({"id": number, "method": method, "params": params})
        while (answer := await self._receive()).get("id") != number:
            pass
        return answer["result"]

    async def shows(self, word):
        """Wait until the terminal, which draws on a canvas, was sent that word."""
        while word not in self.drawn:
            await self._receive()

    async def _receive(self):
        said = await self._socket.receive_json(timeout=PATIENCE_S)
        if said.get("method") == "Network.webSocketFrameReceived":
            frame = said["params"]["response"]
            data = frame["payloadData"]
            self.drawn += base64.b64decode(data) if frame["opcode"] == 2 else data.encode()
        return said


async def walk(tab, url):
    await tab.call("Network.enable")
    await tab.call("Page.navigate", url=url)
    await tab.shows(b"checkpoint-20")
    for kind in ("keyDown", "keyUp"):
        await tab.call(
            "Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter",
            windowsVirtualKeyCode=13, text="\r" if kind == "keyDown" else "",
        )  # fmt: skip
    await tab.shows(b"trainer.json")
    if (kept := os.environ.get("KEEP_SCREENSHOT")) is not None:
        shot = await tab.call("Page.captureScreenshot")
        Path(kept).write_bytes(base64.b64decode(shot["data"]))  # noqa: ASYNC240 - the last thing
