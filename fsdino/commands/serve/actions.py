"""What the page does for a visitor, without Gradio: each action gives the parts that it changes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fsdino.clips import Clip, Moment, open_clip
from fsdino.commands.serve import cards
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.examples import Marked
from fsdino.commands.serve.films import follow
from fsdino.commands.serve.queries import Added
from fsdino.commands.serve.results import search
from fsdino.commands.serve.sessions import Session
from fsdino.errors import FsdinoError, UsageError
from fsdino.sample_photographs import samples

# By the part's name: HTML, or the value of a component.
Parts: TypeAlias = dict[str, Any]

_EVERY = 0.5  # seconds between two pictures of a run that goes on


class Actions:
    """The actions of all visitors.

    Args:
        engine: the models.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.samples = samples()

    def open(self, session: Session, file: Path, name: str) -> Parts:
        """Take an uploaded photograph to mark."""
        with session.lock:
            session.examples.open(_content(file), name)
            return self._example(session)

    def mark(self, session: Session, model: str, data: Any) -> Parts:
        """Turn what was drawn into a mask."""
        with session.lock:
            photograph = session.examples.photograph
            if photograph is None or not isinstance(data, dict):
                raise UsageError("no photograph yet: drop one into step 1")
            if data.get("photo") != photograph.key:  # drawn before another one was opened
                return {}
            return self._marked(session.examples.mark(self.engine, model, data))

    def mark_file(self, session: Session, model: str, file: Path) -> Parts:
        """Take an uploaded mask of the photograph."""
        with session.lock:
            found = session.examples.mark_file(self.engine, model, _content(file))
            return self._marked(found)

    def keep(self, session: Session, model: str, name: str) -> Parts:
        """Add the marked photograph to a class."""
        with session.lock:
            kept = session.examples.keep(self.engine, model, name)
            said = f"Added to “{kept}”. Mark another photograph for it, or go on with step 2."
            return {**self._classes(session), "preview": cards.hint(said)}

    def change_class(self, session: Session, data: Any) -> Parts:
        """Remove a class."""
        with session.lock:
            if isinstance(data, dict) and isinstance(data.get("remove"), str):
                session.examples.remove(data["remove"])
            return self._classes(session)

    def load_support(self, session: Session, file: Path, name: str) -> Parts:
        """Take an uploaded support, under the file's name."""
        with session.lock:
            session.examples.load(file, name.removesuffix(".safetensors"))
            return self._classes(session)

    def add(self, session: Session, files: Sequence[tuple[Path, str]]) -> Parts:
        """Take uploaded photographs to search."""
        with session.lock:
            return {"queries": cards.queries(session.queries, session.queries.add(files))}

    def add_shipped(self, session: Session) -> Parts:
        """Take all photographs that are installed with fsdino."""
        with session.lock:
            added = [session.queries.add_shipped(s.image_file) for s in self.samples.values()]
            left_out = [reason for each in added for reason in each.left_out]
            both = Added(sum(each.count for each in added), left_out)
            return {"queries": cards.queries(session.queries, both)}

    def change_queries(self, session: Session) -> Parts:
        """Forget the photographs to search."""
        with session.lock:
            session.queries.clear()
            return {"queries": cards.queries(session.queries)}

    def try_out(self, session: Session, model: str, data: Any) -> Parts:
        """Take a shipped photograph as an example, and the one that belongs to it as a query."""
        sample = self.samples.get(str(data.get("sample"))) if isinstance(data, dict) else None
        if sample is None:
            raise UsageError("there is no such photograph: choose one of those shown")
        with session.lock:
            examples = session.examples
            examples.remove(sample.name)
            examples.open(sample.image, sample.name)
            found = examples.mark_file(self.engine, model, sample.mask)
            preview = cards.marked(found)
            examples.keep(self.engine, model, sample.name)
            added = session.queries.add_shipped(self.samples[sample.query].image_file)
            return {
                **self._example(session),
                "preview": preview,
                **self._classes(session),
                "queries": cards.queries(session.queries, added),
            }

    def search(self, session: Session, model: str) -> Iterator[Parts]:
        """Segment the photographs; gives the results so far now and then."""
        with session.lock:
            examples, queries = session.examples, [*session.queries]
            if not queries:
                raise UsageError("no photographs yet: drop some into step 2")
            if not examples.classes and examples.marked is not None:
                examples.keep(self.engine, model, "object")
            runs = search(self.engine, model, examples, queries, session.new_folder(session.run))
            session.run = run = next(runs)
            threshold = run.threshold
            first = {**self._classes(session), "threshold": threshold, "running": True}
        began = shown = time.monotonic()
        yield {**first, "status": cards.status(run), "results": cards.results(run, threshold)}
        for _ in runs:
            if time.monotonic() - shown > _EVERY:
                shown = time.monotonic()
                so_far = {"results": cards.results(run, threshold)} if run.done <= 24 else {}
                yield {"status": cards.status(run), **so_far}
        if session.run is not run:  # the next run has begun
            return
        yield {
            "status": cards.status(run, time.monotonic() - began),
            "running": False,
            **self.show(session, threshold),
        }

    def stop(self, session: Session) -> Parts:
        """End a run after the photograph or frame that it is at; what was found stays."""
        for run in (session.run, session.film):
            if run is not None:
                run.stopped.set()
        return {}

    def show(self, session: Session, threshold: float | None) -> Parts:
        """The results at another threshold, without the model; None while a number is typed."""
        if threshold is None:
            return {}
        if not 0 < threshold < 1:
            raise UsageError(f"threshold must lie between 0 and 1, got {threshold:g}")
        return {
            "results": cards.results(session.run, threshold),
            "download": cards.download(session.run, threshold),
        }

    def open_clip(self, session: Session, file: Path, name: str) -> Parts:
        """Take an uploaded video."""
        with session.lock:
            place = session.take(file)
            try:
                session.clip = open_clip(place)
            except FsdinoError as error:
                place.unlink(missing_ok=True)
                raise type(error)(str(error).replace(str(place), name)) from error
            return {"clip": cards.clip(session.clip.info, name)}

    def mark_frame(self, session: Session) -> Parts:
        """Take the first frame of the video as the photograph to mark."""
        with session.lock:
            session.examples.open(self._clip(session).frame_at(Moment(frame=0))[1], "first frame")
            return {**self._example(session), "tab": "images"}

    def follow(self, session: Session, model: str) -> Iterator[Parts]:
        """Follow the classes through the video; gives now and then how far it is."""
        with session.lock:
            clip, folder = self._clip(session), session.new_folder(session.film)
            session.film = None
            runs = follow(self.engine, model, session.examples, clip, folder)
            session.film = run = next(runs)
        began = shown = time.monotonic()
        yield {"film": cards.film_status(run), "filming": True}
        for _ in runs:
            if time.monotonic() - shown > _EVERY:
                shown = time.monotonic()
                yield {"film": cards.film_status(run)}
        if session.film is run:
            yield {"film": cards.film(run, time.monotonic() - began), "filming": False}

    def _clip(self, session: Session) -> Clip:
        if session.clip is None:
            raise UsageError("no video yet: drop one here first")
        return session.clip

    def _example(self, session: Session) -> Parts:
        photograph = session.examples.photograph
        assert photograph is not None
        height, width = photograph.size
        value = {"key": photograph.key, "width": width, "height": height}
        return {"marker": json.dumps(value), "preview": cards.hint("The mask appears here.")}

    def _marked(self, found: Marked | str) -> Parts:
        return {"preview": cards.hint(found) if isinstance(found, str) else cards.marked(found)}

    def _classes(self, session: Session) -> Parts:
        return {"classes": cards.classes(session.examples.classes, session.key)}


def _content(file: Path) -> bytes:
    """Of an uploaded file.

    Raises:
        UsageError: it was removed, since it waited too long.
    """
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise UsageError(f"{file.name}: the upload is gone; drop the file again") from error
