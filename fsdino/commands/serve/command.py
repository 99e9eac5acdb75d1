"""`fsdino serve`: its options, and what it says."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from fsdino.commands.options import Device, Flag, check_model, check_range, wait_without_spinning
from fsdino.devices import check_device, find_device
from fsdino.errors import FsdinoError, UsageError
from fsdino.models.names import DEFAULT as DEFAULT_MODEL

logger = logging.getLogger("fsdino.commands")

PASSWORD_VARIABLE = "FSDINO_PASSWORD"


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Open a page in the browser: mark an object, and find it in other photographs.

    Prints the page's address, and serves it until Ctrl-C. Only this machine reaches the page,
    unless --host says otherwise, which needs a password. Nothing leaves this machine, and what
    visitors upload is removed when they leave. Needs the extra fsdino[page].
    """

    host: Annotated[str, tyro.conf.arg(metavar="ADDRESS")] = "127.0.0.1"
    """Address to listen on; 0.0.0.0 takes calls from everywhere."""
    port: Annotated[int, tyro.conf.arg(metavar="INT")] = 7860
    """Port to listen on; 0 takes any that is free."""
    password: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """Password that the browser asks visitors for, with any user name; or set FSDINO_PASSWORD,
    which other users of this machine do not see."""
    no_password: Flag = False
    """Let everybody in who reaches --host, for instance where a proxy asks for a password."""
    model: Annotated[str, tyro.conf.arg(metavar="NAME")] = DEFAULT_MODEL
    """Model that is chosen at first (see `fsdino models`), also a folder or a hub id. Beside it the
    page offers those that are on this machine."""
    device: Device = "auto"
    max_images: Annotated[int, tyro.conf.arg(metavar="INT")] = 100
    """Number of photographs that a visitor searches at a time."""
    max_size: Annotated[int, tyro.conf.arg(metavar="MB")] = 50
    """Size of an uploaded file, at most, in megabytes."""
    open: bool = False
    """Open the page in this machine's browser."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        wait_without_spinning()
        check_range("--port", self.port, 0, 65535)
        check_range("--max-images", self.max_images, 1, 1000)
        check_range("--max-size", self.max_size, 1, 1000)
        check_device(self.device)
        password = self._password()
        check_model(self.model)
        if importlib.util.find_spec("gradio") is None:
            raise FsdinoError('the page needs Gradio: pip install "fsdino[page]"')
        from fsdino.commands.serve import server

        listening = server.listen(self.host, self.port)
        with contextlib.ExitStack() as stack:
            stack.callback(listening.close)
            from fsdino.commands.serve.engine import Engine

            settings = server.Settings(
                self.host, password, self.no_password, self.max_images, self.max_size * 10**6
            )
            stack.enter_context(_ended_by_sigterm())
            engine = Engine(self.model, str(find_device(self.device)))
            with (
                contextlib.suppress(KeyboardInterrupt),
                server.serving(engine, settings, listening) as address,
            ):
                print(f"fsdino is at {address} (Ctrl-C ends it)", flush=True)
                if self.open:
                    import webbrowser

                    webbrowser.open(address)
                threading.Event().wait()
        print("the page is closed, and its temporary files are removed")
        return 0

    def _password(self) -> str | None:
        """The password that visitors need; None for none.

        Raises:
            UsageError: an empty one; both a password and none; an address that others reach, and
                neither.
        """
        from fsdino.commands.serve.guard import is_loopback

        given = os.environ.get(PASSWORD_VARIABLE) if self.password is None else self.password
        if given is not None and self.no_password:
            raise UsageError("--password and --no-password exclude each other: pass one of them")
        if given is not None and not given.strip():
            raise UsageError("--password is empty: pass another one, or --no-password")
        if given is None and not self.no_password and not is_loopback(self.host):
            raise UsageError(
                f"--host {self.host} lets other machines in: pass --password too, or --no-password "
                "to let everybody in"
            )
        return given


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM, which containers are stopped with, end the page like Ctrl-C."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
