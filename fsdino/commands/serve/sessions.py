"""The page's visitors: each has own examples, photographs and results, which go with the visit."""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from pathlib import Path

from fsdino.clips import Clip
from fsdino.commands.serve.examples import Examples
from fsdino.commands.serve.films import FilmRun
from fsdino.commands.serve.pictures import Pictures
from fsdino.commands.serve.queries import Queries, copy
from fsdino.commands.serve.results import Run
from fsdino.errors import UsageError

MOST = 32  # visitors at a time
_LEFT = 300.0  # seconds that a visitor's things stay after the page was left: a phone may sleep
_IDLE = 6 * 3600.0  # seconds without a call after which a page that is open counts as left


class Session:
    """One visit.

    Args:
        folder: of its files, which is made.
        most_images: photographs that are searched at a time.
    """

    def __init__(self, folder: Path, most_images: int) -> None:
        folder.mkdir(mode=0o700)
        self.folder = folder
        self.pictures = Pictures()
        self.examples = Examples(folder, self.pictures)
        self.queries = Queries(folder, most_images)
        self.run: Run | None = None
        self.clip: Clip | None = None
        self.film: FilmRun | None = None
        self.key = secrets.token_urlsafe(16)  # that the page's addresses name
        self.lock = threading.RLock()
        self.packing = threading.Lock()  # of one archive at a time
        self.used = time.monotonic()
        self.left: float | None = None
        self._runs = 0

    def new_folder(self, last: Run | FilmRun | None) -> Path:
        """A folder for the next run; the last one ends, and its files go."""
        with self.lock:
            if last is not None:
                last.close()
            self._runs += 1
            folder = self.folder / f"run-{self._runs}"
            folder.mkdir()
            return folder

    def take(self, file: Path) -> Path:
        """Have an uploaded file in the visit's own folder, under a name without a meaning.

        Raises:
            UsageError: it was removed, since it waited too long.
        """
        place = self.folder / secrets.token_hex(8)
        problem = copy(file, place)
        if problem is not None:
            raise UsageError(f"{file.name}: {problem}")
        return place

    def close(self) -> None:
        """Remove all files."""
        for run in (self.run, self.film):
            if run is not None:
                run.stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All visits, by the key that a browser chooses for each.

    Args:
        folder: of the visits' folders, which exists.
        most_images: see `Session`.
    """

    def __init__(self, folder: Path, most_images: int) -> None:
        self._folder, self._most_images = folder, most_images
        self._open: dict[str, Session] = {}
        self._count = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def get(self, key: str) -> Session:
        """The visit of this key, new if it is not known.

        Raises:
            UsageError: too many visitors.
        """
        with self._lock:
            now = time.monotonic()
            self._sweep(now)
            session = self._open.get(key)
            if session is None:
                if len(self._open) >= MOST:
                    raise UsageError(f"{MOST} people use this page now: try again later")
                self._count += 1
                session = Session(self._folder / f"visit-{self._count}", self._most_images)
                self._open[key] = session
            session.used, session.left = now, None
            return session

    def leave(self, key: str) -> None:
        """Note that a page was left; its visit ends unless it comes back soon."""
        with self._lock:
            session = self._open.get(key)
            if session is not None:
                session.left = time.monotonic()
            self._sweep(time.monotonic())

    def sweep(self) -> None:
        """End the visits whose pages were left a while ago."""
        with self._lock:
            self._sweep(time.monotonic())

    def close(self) -> None:
        """End all visits."""
        with self._lock:
            for session in self._open.values():
                session.close()
            self._open.clear()

    def picture(self, key: str) -> bytes | None:
        """A picture of any visit by its key, which only that visit's page knows."""
        found = (session.pictures.get(key) for session in [*self._open.values()])
        return next((content for content in found if content is not None), None)

    def by_key(self, key: str) -> Session | None:
        """A visit by the key in its addresses."""
        found = (session for session in [*self._open.values()] if session.key == key)
        return next(found, None)

    def run(self, key: str) -> tuple[Session, Run] | None:
        """A run of any visit by its key, which only that visit's page knows."""
        for session in [*self._open.values()]:
            if session.run is not None and session.run.key == key:
                return session, session.run
        return None

    def film(self, key: str) -> tuple[Session, FilmRun] | None:
        """A finished run over a video, of any visit by its key."""
        for session in [*self._open.values()]:
            film = session.film
            if film is not None and film.key == key and film.summary is not None:
                return session, film
        return None

    def _sweep(self, now: float) -> None:
        for key, session in [*self._open.items()]:
            gone = session.left is not None and now - session.left > _LEFT
            if gone or now - session.used > _IDLE:
                del self._open[key]
                session.close()
