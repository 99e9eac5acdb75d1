"""What the page shows and offers besides Gradio's components: pictures, and files to download.

Addresses hold keys that only the visit's own page knows. Nothing is written for them but the
archive, which goes when it was sent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fastapi import FastAPI, HTTPException
from fastapi.responses import FileResponse, Response, StreamingResponse

from fsdino.commands.serve.pictures import jpeg
from fsdino.commands.serve.results import Run
from fsdino.commands.serve.sessions import Session, Sessions
from fsdino.sample_photographs import samples

_GONE = "this is no longer here: reload the page"
_CHUNK = 2**20


def application(sessions: Sessions) -> FastAPI:
    """An application with these addresses, below /fsdino/."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    thumbnails = {name: jpeg(s.image, 240) for name, s in samples().items()}

    @app.get("/fsdino/sample/{name}")
    def sample(name: str) -> Response:
        return _picture(thumbnails.get(name))

    @app.get("/fsdino/picture/{key}")
    def picture(key: str) -> Response:
        return _picture(sessions.picture(key))

    @app.get("/fsdino/original/{key}/{number}")
    def original(key: str, number: int) -> Response:
        _, run = _run(sessions, key)
        if not 0 <= number < len(run.results):
            raise HTTPException(404, _GONE)
        return _picture(run.results[number].original())

    @app.get("/fsdino/overlay/{key}/{number}")
    def overlay(key: str, number: int, threshold: float) -> Response:
        _, run = _run(sessions, key)
        if not 0 <= number < len(run.results) or not 0 < threshold < 1:
            raise HTTPException(404, _GONE)
        return _picture(run.results[number].overlay(threshold))

    @app.get("/fsdino/archive/{key}")
    def archive(key: str, threshold: float) -> Response:
        session, run = _run(sessions, key)
        if not run.results or not 0 < threshold < 1:
            raise HTTPException(404, _GONE)
        try:
            with session.packing:
                return _download(run.archive(threshold), "fsdino.zip", "application/zip")
        except FileNotFoundError as error:  # the next run, or the visit's end, came in between
            raise HTTPException(404, _GONE) from error

    @app.get("/fsdino/film/{key}")
    def film(key: str) -> Response:
        found = sessions.film(key)
        if found is None:
            raise HTTPException(404, _GONE)
        return FileResponse(found[1].overlay, media_type="video/mp4")

    @app.get("/fsdino/film-archive/{key}")
    def film_archive(key: str) -> Response:
        found = sessions.film(key)
        if found is None:
            raise HTTPException(404, _GONE)
        with found[0].packing:
            return _download(found[1].archive(), "fsdino-video.zip", "application/zip")

    @app.get("/fsdino/support/{key}/{name}")
    def support(key: str, name: str) -> Response:
        session = sessions.by_key(key)
        if session is None or name not in session.examples.classes:
            raise HTTPException(404, _GONE)
        file = session.examples.save(name)
        return _download(file, f"{name}.safetensors", "application/octet-stream")

    return app


def _run(sessions: Sessions, key: str) -> tuple[Session, Run]:
    found = sessions.run(key)
    if found is None:
        raise HTTPException(404, _GONE)
    return found


def _picture(content: bytes | None) -> Response:
    if content is None:
        raise HTTPException(404, _GONE)
    return Response(content, media_type="image/jpeg", headers={"cache-control": "private"})


def _download(file: Path, name: str, kind: str) -> Response:
    """A file as a download that removes it."""
    from urllib.parse import quote

    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name, safe='')}",
        "content-length": str(os.stat(file).st_size),
        "cache-control": "no-store",
    }
    return StreamingResponse(_content(file), media_type=kind, headers=headers)


def _content(file: Path) -> Iterator[bytes]:
    try:
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                yield chunk
    finally:
        file.unlink(missing_ok=True)
