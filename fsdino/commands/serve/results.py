"""What was found in one visitor's photographs: kept on disk, shown and packed at any threshold."""

from __future__ import annotations

import json
import secrets
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fsdino import overlay
from fsdino.commands.segment.formats import CLASSES_FILE, COCO_FILE, Formats, coco_of_all, place
from fsdino.commands.segment.queries import MASKS, OVERLAYS
from fsdino.commands.serve.engine import Engine
from fsdino.commands.serve.examples import Examples
from fsdino.commands.serve.pictures import SIDE, jpeg
from fsdino.commands.serve.queries import Query
from fsdino.errors import FsdinoError
from fsdino.images import encode_image
from fsdino.models.queries import bytes_per_pixel
from fsdino.models.segmentation import Segmentation

FORMATS = Formats(("coco", "yolo", "labelme"))
RESULTS_FILE = "results.json"
MOST_BYTES = 4 * 10**9  # of one run's files
_SHARE = 0.25  # of the disk's free space, if that is less
_ROOM = "the results of one run have no more room: search the others afterwards"


@dataclass(frozen=True)
class Result:
    """The answer for one photograph, whose pixels and probabilities are in files.

    Attributes:
        query: the photograph's name, and the stem of its files' names.
        stem: of its files in the run's folder.
        names, scores, founds: as in `Segmentation`.
    """

    query: tuple[str, str]
    stem: Path
    names: tuple[str, ...]
    scores: tuple[float, ...]
    founds: tuple[bool, ...]

    @classmethod
    def write(cls, query: Query, stem: Path, found: Segmentation) -> Result:
        """Keep an answer."""
        np.save(f"{stem}-image.npy", found.image)
        np.save(f"{stem}-maps.npy", found.probabilities)
        return cls((query.name, query.stem), stem, found.names, found.scores, found.founds)

    def at(self, threshold: float) -> Segmentation:
        """The answer with another threshold, without the model."""
        return Segmentation(
            self._read("image"), self._read("maps"), self.names, threshold, self.scores
        )

    def original(self) -> bytes:
        """A picture of the photograph, as JPEG."""
        return jpeg(Image.fromarray(self._read("image")))

    def overlay(self, threshold: float) -> bytes:
        """A picture of the photograph with what was found, as JPEG."""
        found = self.at(threshold)
        small = overlay.shrunk(Image.fromarray(found.image), SIDE)
        labels = Image.fromarray(found.compact_labels())
        drawn = np.asarray(labels.resize(small.size, Image.Resampling.NEAREST))
        return jpeg(overlay.overlay(np.asarray(small), drawn))

    def _read(self, kind: str) -> npt.NDArray[Any]:
        return np.asarray(np.load(f"{self.stem}-{kind}.npy", mmap_mode="r"))


@dataclass
class Run:
    """The answers for all photographs, by one model.

    Attributes:
        folder: of its files; goes with the run.
        total: number of photographs.
        threshold: that the model takes unless told otherwise.
        results: answers so far.
        failed: why there is no answer, by the photograph's name.
        stopped: set where the visitor wants no more.
        key: that the page's addresses name.
    """

    folder: Path
    total: int
    threshold: float = 0.5
    results: list[Result] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    stopped: threading.Event = field(default_factory=threading.Event)
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def done(self) -> int:
        """Number of photographs that were searched, or could not be."""
        return len(self.results) + len(self.failed)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the classes."""
        return self.results[0].names if self.results else ()

    def close(self) -> None:
        """Remove the files."""
        self.stopped.set()
        shutil.rmtree(self.folder, ignore_errors=True)

    def archive(self, threshold: float) -> Path:
        """Pack masks, overlays and annotations into a zip file in the run's folder.

        Annotations name the photographs as if they lay beside the archive's folders.
        """
        path = self.folder / f"{secrets.token_hex(8)}.zip"
        parts, rows = list[dict[str, Any]](), list[dict[str, Any]]()
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for result in self.results:
                found = result.at(threshold)
                part, row = _pack(archive, result.query, found)
                parts.append(part)
                rows.append(row)
            queries = [f"/{result.query[0]}" for result in self.results]
            archive.writestr(COCO_FILE, coco_of_all(parts, queries, self.names))
            archive.writestr(CLASSES_FILE, "".join(f"{name}\n" for name in self.names))
            failed = [{"query": name, "error": error} for name, error in self.failed.items()]
            said = {"threshold": threshold, "queries": rows, "failed": failed}
            archive.writestr(RESULTS_FILE, json.dumps(said, indent=1))
        return path


def _pack(
    archive: zipfile.ZipFile, query: tuple[str, str], found: Segmentation
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pack the files of one photograph; returns its COCO file and its row of the results."""
    name, stem = query
    labels = found.compact_labels()
    kind, drawn = overlay.encode_overlay(overlay.named_overlay(found.image, labels, found.names))
    mask = encode_image(overlay.mask_image(labels, len(found.names)), "PNG")
    places = f"{MASKS}/{stem}.png", f"{OVERLAYS}/{stem}.{kind}"
    files = dict(zip(places, (mask, drawn), strict=True))
    root = Path("/archive")
    contents = FORMATS.contents(stem, root / name, root, found)
    part = json.loads(contents.pop(place("coco", stem)))
    for file, content in {**files, **contents}.items():
        archive.writestr(file, content)
    counts = np.bincount(labels.ravel(), minlength=len(found.names) + 1)[1:]
    classes = {
        each: {"score": round(score, 4), "found": there, "foreground": count / labels.size}
        for each, score, there, count in zip(
            found.names, found.scores, found.founds, counts.tolist(), strict=True
        )
    }
    return part, {"query": name, "mask": places[0], "overlay": places[1], "classes": classes}


def search(
    engine: Engine, model: str, examples: Examples, queries: list[Query], folder: Path
) -> Iterator[Run]:
    """Segment photographs one after another; yields the run at its begin and after each.

    Other visitors' calls of the model go in between. A photograph that fails is noted, and the
    others continue.

    Raises:
        UsageError: no example, or one that another model has made.
    """
    with engine.use(model) as loaded:
        supports = examples.supports(loaded)
        run = Run(folder, len(queries), loaded.config.threshold)
        answers = loaded.segment_iter(map(_content, queries), supports, errors="yield")
    room = min(MOST_BYTES, int(shutil.disk_usage(folder).free * _SHARE))
    yield run
    for number, query in enumerate(queries):
        if run.stopped.is_set():
            break
        with engine.use(model):
            answer = next(answers)
        if run.stopped.is_set():  # its folder may be gone
            break
        if isinstance(answer, FsdinoError):
            run.failed[query.name] = _said(answer, number)
        elif (room := room - _size(answer)) < 0:
            run.failed |= {later.name: _ROOM for later in queries[number:]}
            break
        else:
            run.results.append(Result.write(query, folder / str(number), answer))
        yield run
    answers.close()  # type: ignore[attr-defined]  # a generator
    yield run


def _content(query: Query) -> bytes:
    """Of a photograph's file; nothing where the visitor has removed it meanwhile."""
    try:
        return query.file.read_bytes()
    except FileNotFoundError:
        return b""


def _said(error: FsdinoError, number: int) -> str:
    """An error without the place among the queries, which the page names by file."""
    return str(error).removeprefix(f"query {number + 1}: ")


def _size(found: Segmentation) -> int:
    """Bytes of its files."""
    return found.image.size // 3 * bytes_per_pixel(len(found.names))
