"""What stands before the page: who may ask for what, and how much may be sent.

An ASGI application around another one, https://asgi.readthedocs.io/en/latest/specs/www.html.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeAlias

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

# All that the page asks for; Gradio has more, such as a proxy and calls that bypass the queue.
_OPEN = (
    "/assets/", "/static/", "/svelte/", "/fsdino/", "/gradio_api/queue/", "/gradio_api/file=",
    "/gradio_api/heartbeat/",
)  # fmt: skip
_OPEN_ALONE = frozenset(
    {
        "/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt",
        "/gradio_api/theme.css", "/gradio_api/upload", "/gradio_api/upload_progress",
        "/gradio_api/cancel", "/gradio_api/app_id", "/gradio_api/startup-events",
    }
)  # fmt: skip
UPLOAD = "/gradio_api/upload"
_MOST_CALL = 16 * 2**20  # bytes of a request that uploads nothing
_WRONG = 1.0  # seconds that a wrong password takes

# The page loads nothing from other hosts, and no other page embeds it. Gradio's own code needs the
# two exceptions.
_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; frame-ancestors 'self'; "
        b"form-action 'self'; base-uri 'self'; object-src 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


@dataclass(frozen=True)
class Guard:
    """Lets through what the page needs.

    Attributes:
        app: the page.
        password: that a browser must send with any user name (HTTP Basic); None asks for none.
        any_host: whether requests may name any host. If not, they must name this machine, so that
            no page elsewhere reaches the visitor's own server under a name of its own.
        most_upload: bytes of one request that uploads files.
        room: gives the bytes that uploads may take now.
    """

    app: App
    password: str | None
    any_host: bool
    most_upload: int
    room: Callable[[], int]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or pass it on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await self._http(scope, receive, send)
        # Anything else, such as a web socket, is nothing that the page uses.

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.lower(): value for name, value in scope["headers"]}
        most = _MOST_CALL
        if scope["path"] == UPLOAD:
            most = min(self.most_upload, self.room())
        if not self.any_host and not _is_here(headers.get(b"host", b"").decode("latin-1")):
            await _refuse(send, 403, "open the page as http://127.0.0.1 or http://localhost")
        elif not self._allowed(headers.get(b"authorization", b"")):
            await asyncio.sleep(_WRONG if b"authorization" in headers else 0)
            ask = [(b"www-authenticate", b'Basic realm="fsdino", charset="UTF-8"')]
            await _refuse(send, 401, "a password is needed", ask)
        elif scope["path"] not in _OPEN_ALONE and not scope["path"].startswith(_OPEN):
            await _refuse(send, 404, "there is no such page")
        elif scope["method"] == "POST" and not 0 <= _length(headers) <= most:
            await _refuse(send, 413, f"at most {most:,} bytes can be sent at a time")
        else:
            await self.app(scope, _limited(receive, most), _with_headers(send))

    def _allowed(self, authorization: bytes) -> bool:
        if self.password is None:
            return True
        kind, _, encoded = authorization.partition(b" ")
        try:
            given = base64.b64decode(encoded, validate=True).partition(b":")[2]
        except binascii.Error:
            return False
        return kind.lower() == b"basic" and secrets.compare_digest(given, self.password.encode())


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, which no other machine reaches."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _is_here(host: str) -> bool:
    """Whether a Host header names this machine."""
    name = host[1 : host.index("]")] if host.startswith("[") and "]" in host else host
    return is_loopback(name if name != host else host.partition(":")[0])


def _length(headers: MutableMapping[bytes, bytes]) -> int:
    """Of a request's body; -1 if it is not said."""
    value = headers.get(b"content-length", b"")
    return int(value) if value.isdigit() and len(value) < 20 else -1


def _limited(receive: Receive, most: int) -> Receive:
    """Reading a body that ends where it must, whatever its header says."""
    read = 0

    async def limited() -> MutableMapping[str, Any]:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return message if read <= most else {"type": "http.disconnect"}

    return limited


def _with_headers(send: Send) -> Send:
    async def wrapped(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return wrapped


async def _refuse(
    send: Send, status: int, reason: str, more: list[tuple[bytes, bytes]] | None = None
) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *(more or ()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"fsdino: {reason}\n".encode()})
