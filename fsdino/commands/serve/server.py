"""The page as a server: a socket, a folder for temporary files, and an end that leaves nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsdino import image_files
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.guard import Guard, is_loopback
from fsdino.commands.serve.sessions import Sessions
from fsdino.errors import FsdinoError, UsageError, first_line

UPLOADS = "uploads"  # folder where Gradio puts what is dropped
MOST_PIXELS = 50_000_000  # of an image
_SWEEP = 30.0  # seconds
# Seconds that an upload stays after it came, and where nobody is there: visits have own copies, but
# thousands of files take minutes until the page says that they have come.
_UPLOAD, _ALONE = 900.0, 60.0
_START, _STOP = 60.0, 5.0  # seconds that the server may take


@dataclass(frozen=True)
class Settings:
    """How the page is offered.

    Attributes:
        host: where it listens.
        password: that visitors need; None for none.
        open_to_all: whether to do without a password on an address that others reach.
        most_images: photographs that are searched at a time.
        most_bytes: of an uploaded file.
    """

    host: str = "127.0.0.1"
    password: str | None = None
    open_to_all: bool = False
    most_images: int = 100
    most_bytes: int = 50 * 10**6


def listen(host: str, port: int) -> socket.socket:
    """The socket of the page.

    Raises:
        UsageError: the port is in use or not allowed, or the host is not this machine's.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(
            f"--host {host} is unknown ({first_line(error)}): pass an address"
        ) from error
    try:
        if os.name == "posix":
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"--port {port} is in use on {host}: pass another one, or --port 0 for any that is "
                "free"
            ) from error
        raise UsageError(
            f"--host {host} --port {port} cannot be used ({first_line(error)}): pass others"
        ) from error
    return found


def address(host: str, port: int) -> str:
    """Where a browser finds the page."""
    if host in ("0.0.0.0", "::", ""):
        host = socket.gethostname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"


@contextlib.contextmanager
def serving(engine: Engine, settings: Settings, listening: socket.socket) -> Iterator[str]:
    """Serve the page inside the block, in a thread; gives its address.

    All temporary files are in one folder, which goes at the end.

    Raises:
        FsdinoError: the server does not start.
    """
    with (
        contextlib.closing(listening),
        _temporary_folder() as folder,
        image_files.pixel_limit(MOST_PIXELS),
    ):
        (folder / "visits").mkdir()
        sessions = Sessions(folder / "visits", settings.most_images)
        server = _server(_application(engine, settings, sessions, folder), listening)
        thread = threading.Thread(target=server.run, args=([listening],), name="fsdino-page")
        ended = threading.Event()
        sweeper = threading.Thread(
            target=_sweep, args=(sessions, folder / UPLOADS, ended), daemon=True
        )
        thread.start()
        sweeper.start()
        try:
            _wait(server, thread)
            yield address(settings.host, listening.getsockname()[1])
        finally:
            ended.set()
            sessions.close()
            server.should_exit = True
            thread.join(_STOP)
            server.force_exit = True
            thread.join(_STOP)
            sweeper.join(_STOP)


def _application(engine: Engine, settings: Settings, sessions: Sessions, folder: Path) -> Guard:
    from fsdino.commands.serve import page, routes

    app = routes.application(sessions)
    app = page.mount(app, engine, sessions, settings.most_images, settings.most_bytes)
    any_host = settings.password is not None or settings.open_to_all
    most = settings.most_images * settings.most_bytes

    def room() -> int:
        return shutil.disk_usage(folder).free // 2

    return Guard(app, settings.password, any_host or not is_loopback(settings.host), most, room)


def _server(app: Guard, listening: socket.socket) -> Any:
    import uvicorn

    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, ws="none",
        timeout_graceful_shutdown=1, limit_concurrency=512,
    )  # fmt: skip
    return uvicorn.Server(config)


def _wait(server: Any, thread: threading.Thread) -> None:
    """Return when the page answers."""
    pause = threading.Event()
    for _ in range(int(_START / 0.02)):
        if server.started:
            return
        if not thread.is_alive():
            break
        pause.wait(0.02)
    raise FsdinoError("the page does not start: run with --debug, and see what is said above")


def _sweep(sessions: Sessions, uploads: Path, ended: threading.Event) -> None:
    while not ended.wait(_SWEEP):
        sessions.sweep()
        remove_old(uploads, _UPLOAD if len(sessions) else _ALONE)


def remove_old(folder: Path, seconds: float) -> None:
    """Remove the files below a folder that are older than this, and folders that become empty."""
    oldest = time.time() - seconds
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                file = Path(place, name)
                if file.stat().st_mtime < oldest:
                    file.unlink()
        if place != str(folder):
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(place)


@contextlib.contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder of this process alone, also for the files that Gradio takes in."""
    folder = Path(tempfile.mkdtemp(prefix="fsdino-page-"))
    before = os.environ.get("GRADIO_TEMP_DIR")
    os.environ["GRADIO_TEMP_DIR"] = str(folder / UPLOADS)
    try:
        yield folder
    finally:
        if before is None:
            del os.environ["GRADIO_TEMP_DIR"]
        else:
            os.environ["GRADIO_TEMP_DIR"] = before
        shutil.rmtree(folder, ignore_errors=True)
