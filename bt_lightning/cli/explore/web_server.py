"""The explorer in a browser of this machine: a process for each page, protected by a token.

The server listens on the loopback interface only. The printed URL works once: its token is
exchanged for a cookie that every request needs. Requests that another site makes the browser send,
by a name that resolves to this machine, are refused by their Host and Origin. The page loads
nothing from other hosts: Textual's own page would load a font.
"""

from __future__ import annotations

import hmac
import os
import re
import secrets
import shlex
import socket
import sys
from typing import TYPE_CHECKING, Any

import click
from aiohttp import web
from textual_serve.server import Server

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from bt_lightning.manage.find_target import Target

_HOST = "127.0.0.1"
_COOKIE = "bt_lightning"
_FOREIGN_LINK = re.compile(r"<link\b[^>]*\bhref=\"https://[^>]*>")
_FOCUS = """
<script>
  const focusKeys = () => document.querySelector(".xterm-helper-textarea")?.focus();
  new MutationObserver((_, observer) => {
    if (document.querySelector(".xterm-helper-textarea")) { observer.disconnect(); focusKeys(); }
  }).observe(document, { childList: true, subtree: true });
  addEventListener("focus", focusKeys);
  addEventListener("pageshow", focusKeys);
</script>
"""
"""Gives the terminal the keys as soon as it is there, and whenever its window gets them."""
_LOCAL = "'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
"""Content sources of the page: itself, and this server."""


class RequestGuard:
    """Accepts the token once, and then only the cookie that it was exchanged for."""

    def __init__(self, origin: str) -> None:
        """`origin` is the scheme, host and port of the server."""
        self._origin = origin
        self.token: str | None = secrets.token_urlsafe(32)
        self._cookie = secrets.token_urlsafe(32)

    @web.middleware
    async def check(
        self,
        request: web.Request,
        handler: Callable[[web.Request], Awaitable[web.StreamResponse]],
    ) -> web.StreamResponse:
        """Check a request: pass it on, exchange its token, or refuse it."""
        origin = request.headers.get("Origin", self._origin)
        if f"http://{request.host}" != self._origin or origin != self._origin:
            raise web.HTTPForbidden(text="this explorer is for its own machine only")
        token = request.query.get("token")
        if self.token and token and _same(token, self.token):
            self.token = None
            there = web.HTTPSeeOther("/")
            there.set_cookie(_COOKIE, self._cookie, httponly=True, samesite="Strict")
            raise there
        cookie = request.cookies.get(_COOKIE, "")
        if not _same(cookie, self._cookie):
            raise web.HTTPForbidden(text="open the URL that bt-lightning printed; it works once")
        return self._confined(await handler(request))

    def _confined(self, answer: web.StreamResponse) -> web.StreamResponse:
        """Let the page load from this server only."""
        if answer.prepared:
            return answer  # the WebSocket of the terminal
        socket_url = self._origin.replace("http", "ws", 1)
        answer.headers["Content-Security-Policy"] = f"default-src {_LOCAL} {socket_url}"
        answer.headers["Referrer-Policy"] = "no-referrer"
        if isinstance(answer, web.Response) and answer.content_type == "text/html":
            page = _FOREIGN_LINK.sub("", answer.text or "")
            answer.text = page.replace("</head>", f"{_FOCUS}</head>", 1)
        return answer


def _same(given: str, secret: str) -> bool:
    """Compare in constant time; `given` may hold surrogates of bytes that are no text."""
    return hmac.compare_digest(given.encode(errors="replace"), secret.encode())


class _Server(Server):
    guard: RequestGuard

    async def _make_app(self) -> web.Application:
        app = await super()._make_app()
        app.middlewares.append(self.guard.check)
        return app


def serve(target: Target, name: str | None, port: int) -> None:
    """Serve the explorer until Ctrl-C."""
    with socket.socket() as probe:
        probe.bind((_HOST, port))
        port = probe.getsockname()[1]
    server = _Server(_command(target, name), _HOST, port, title="bt-lightning")
    server.guard = RequestGuard(f"http://{_HOST}:{port}")
    click.echo(f"open http://{_HOST}:{port}/?token={server.guard.token}", err=True)
    click.echo("it works once, for one browser of this machine; Ctrl-C ends it", err=True)
    server.serve()


def _command(target: Target, name: str | None) -> str:
    """The command line that starts the explorer of the same checkpoints.

    The store is passed by the environment: its URL may hold a secret, and command lines are public.
    """
    given: list[Any] = [sys.executable, "-m", "bt_lightning", "checkpoints", "explore"]
    settings = {"BT_CHECKPOINT_DIR": target.directory, "BT_STORE_URL": target.store}
    os.environ.update({name: value for name, value in settings.items() if value})
    options = {"--project": target.project, "--job-id": target.job}
    if target.url:
        given.append(f"{target.url}/{name}" if name else target.url)
    elif name:
        given.append(name)
    for option, value in options.items():
        if value:
            given += [option, value]
    return shlex.join(given)
