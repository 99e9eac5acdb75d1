"""A Hugging Face hub on this machine: one file, what was asked for, and every way to fail."""

from __future__ import annotations

import contextlib
import hashlib
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """What the server answers, and what it was asked.

    Attributes:
        content: of the file, whatever its name.
        cut: bytes after which a connection breaks off; None never does.
        hangs: whether it falls silent there instead.
        ranges: whether parts of the file can be had.
        status: of every answer.
        headers: of an answer to HEAD that are left out.
        asked: method and Range header of each request for the file.
    """

    content: bytes
    cut: int | None = None
    hangs: bool = False
    ranges: bool = True
    status: int = 200
    without: tuple[str, ...] = ()
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    endpoint: str = ""


@contextlib.contextmanager
def serve(content: bytes) -> Iterator[FakeHub]:
    """A hub that has `content` as each file of each repository."""
    hub = FakeHub(content)
    ended = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            if "/resolve/" not in self.path:  # what the library asks for itself
                self.send_response(404)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            wanted = self.headers["Range"]
            hub.asked.append((self.command, wanted))
            if not hub.ranges:
                wanted = None
            first = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
            part = hub.content[first:]
            self.send_response(206 if wanted and hub.status == 200 else hub.status)
            said = {
                "X-Repo-Commit": COMMIT,
                "ETag": f'"{hashlib.sha256(hub.content).hexdigest()}"',
                "Content-Length": str(len(part)),
            }
            if wanted:
                said["Content-Range"] = f"bytes {first}-{len(hub.content) - 1}/{len(hub.content)}"
            for name, value in said.items():
                if name not in hub.without:
                    self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(part[: hub.cut])
            if body and hub.cut is not None:
                self.wfile.flush()
                if hub.hangs:
                    ended.wait()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            ended.set()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def silence() -> Iterator[str]:
    """Address of a server that accepts connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=50) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
