"""The output folder of `fsdino video`: masks, an overlay video and annotations, made in parts.

While it is made, `parts/` holds a journal and a video for every hundred frames, so that a call that
was interrupted, or killed, resumes after the last frame that it finished, and so that no more than
one part is in memory. `Output.finish` puts the parts together.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from fsdino import files, overlay
from fsdino.clips import Clip, Damage, Frame
from fsdino.commands.options import check_folder
from fsdino.commands.video.formats import COCO, FILES, OVERLAY, VideoFormats, coco_lines
from fsdino.errors import DataError, UsageError, listed, printable
from fsdino.images import decode_file, encode_image
from fsdino.locks import Lock
from fsdino.models.exports import numbered
from fsdino.models.segmentation import Segmentation
from fsdino.video_writer import VideoWriter, join_videos

FORMAT = "fsdino-video-1"
CALL_FILE, SUMMARY_FILE, ROWS_FILE, LOCK_FILE = (
    "video.json", "summary.json", "results.jsonl", "video.lock",
)  # fmt: skip
MASKS, PARTS = "masks", "parts"
REMEDY = "pass another --out"
PART = 100  # frames

_REPEAT = "run the same command with --overwrite"


@dataclass(frozen=True)
class Row:
    """A finished frame.

    Attributes:
        frame: its number in the clip.
        time: its time in seconds, as a fraction.
        image: its file, or the name that it gets when the clip is taken apart.
        bytes: of its mask's file, to notice one that was cut off.
        size: (H, W).
        classes: share of the pixels by class, 0 to 1.
        scores: how likely it is that each class is in the frame at all, 0 to 1.
        found: whether that is enough for a mask, by class.
        objects: COCO annotations, where they are asked for; their ids are given at the end.
    """

    frame: int
    time: str
    image: str
    bytes: int
    size: tuple[int, int]
    classes: dict[str, float]
    scores: dict[str, float]
    found: dict[str, bool]
    objects: list[dict[str, Any]]

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> Row | None:
        """A row of a part's journal; None if it is not one."""
        if set(data) != {part.name for part in fields(cls)}:
            return None
        try:
            row = cls(**{**data, "size": (int(data["size"][0]), int(data["size"][1]))})
            _ = row.seconds, row.classes.keys(), [*row.objects]
        except (TypeError, ValueError, LookupError, AttributeError, ZeroDivisionError):
            return None
        plain = "/" not in row.image and "\0" not in row.image
        return row if plain and type(row.frame) is type(row.bytes) is int else None

    @property
    def seconds(self) -> Fraction:
        """Its time."""
        return Fraction(self.time)

    @property
    def mask(self) -> str:
        """Its file, relative to the output folder."""
        return f"{MASKS}/{PurePosixPath(self.image).stem}.png"

    def public(self) -> dict[str, Any]:
        """A line of `results.jsonl`."""
        return {
            "frame": self.frame,
            "time": round(float(self.seconds), 6),
            "mask": self.mask,
            "foreground": round(sum(self.classes.values()), 6),
            "classes": self.classes,
            "scores": self.scores,
            "found": self.found,
        }


class Output:
    """The output folder of one call, in use by one process until `close`.

    Attributes:
        summary: what `finish` returned in an earlier call; None if the results are not whole.

    Args:
        folder: created if missing.
        call: what decides the results; a folder belongs to one call.
        names: of the classes, in the order of their labels.
        formats: what to write beside masks.
        overwrite: remove the results of another call first, and no other files.

    Raises:
        UsageError: the folder is in use, belongs to another call, or has files of another program.
        FsdinoError: the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        call: Mapping[str, Any],
        names: Sequence[str],
        formats: VideoFormats,
        *,
        overwrite: bool = False,
    ) -> None:
        self.folder, self._names, self._formats = folder, tuple(names), formats
        check_folder(folder)
        files.make_folder(folder, "pass an --out that can be written")
        self._lock = Lock(folder / LOCK_FILE, f"--out {folder}", REMEDY)
        self._stack = contextlib.ExitStack()
        self._writer: VideoWriter | None = None
        self._drawn = 0  # frames of the part that is being made
        try:
            self._check_call(dict(call), overwrite)
            files.write_json(folder / CALL_FILE, dict(call))
            self.summary = self._read_summary()
            self._full, self._rows = 0, list[Row]()
            if self.summary is not None:
                shutil.rmtree(folder / PARTS, ignore_errors=True)
            else:
                (folder / SUMMARY_FILE).unlink(missing_ok=True)
                for name in (MASKS, PARTS):
                    files.make_folder(folder / name, "pass an --out that can be written")
                self._full, self._rows = self._finished()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give up a part's video that is not whole, and let other processes use the folder."""
        with contextlib.suppress(_UnfinishedError):
            self._stack.__exit__(_UnfinishedError, _UnfinishedError(), None)
        self._lock.release()

    @property
    def done(self) -> int:
        """Number of frames that are finished."""
        return self._full * PART + len(self._rows)

    @property
    def written(self) -> list[str]:
        """Names of what `finish` writes beside the masks."""
        return [ROWS_FILE, *self._formats.files]

    @property
    def part(self) -> int:
        """Number of frames in the parts that are whole."""
        return self._full * PART

    def _read_summary(self) -> dict[str, Any] | None:
        path = self.folder / SUMMARY_FILE
        if not path.exists():
            return None
        found = files.read_object(path, _REPEAT)
        sizes = found.pop("sizes", None)
        if not isinstance(sizes, dict) or set(sizes) != set(self.written):
            return None
        whole = all(
            (self.folder / name).is_file() and (self.folder / name).stat().st_size == size
            for name, size in sizes.items()
        )
        return found if whole else None

    def row(self, place: int) -> Row:
        """The finished frame of a place among all that are segmented, from 0."""
        if place >= self.part:
            return self._rows[place - self.part]
        return self._read_part(place // PART)[place % PART]

    def labels(self, row: Row) -> npt.NDArray[np.integer[Any]]:
        """The labels [H, W] of a finished frame, 0 to the number of classes.

        Raises:
            DataError: the file is damaged.
        """
        labels = np.asarray(decode_file(self.folder / row.mask, "mask"))
        if labels.shape != row.size or labels.dtype != np.uint8:
            raise DataError(f"{self.folder / row.mask} was changed: {_REPEAT}")
        return (labels > 0).astype(np.uint8) if len(self._names) == 1 else labels

    def replay(self, frame: Frame, row: Row, clip: Clip) -> None:
        """Draw a finished frame of the part that is being made: its video was lost with the call.

        All of these have to come, in their order, before others are added.
        """
        self._draw(frame, self.labels(row), clip)

    def add(self, frame: Frame, result: Segmentation, clip: Clip) -> Row:
        """Write a frame's mask, then the row that records it; and draw it.

        Raises:
            FsdinoError: a file cannot be written; what is finished is kept.
        """
        labels = result.compact_labels()
        content = encode_image(overlay.mask_image(labels, len(self._names)), "PNG")
        shares = np.bincount(labels.ravel(), minlength=len(self._names) + 1) / labels.size
        row = Row(
            frame=frame.index,
            time=str(frame.time),
            image=frame.image,
            bytes=len(content),
            size=(labels.shape[0], labels.shape[1]),
            classes={n: round(float(shares[i]), 6) for i, n in enumerate(self._names, 1)},
            scores={n: round(s, 4) for n, s in zip(result.names, result.scores, strict=True)},
            found=dict(zip(result.names, result.founds, strict=True)),
            objects=self._formats.objects(result),
        )
        files.write_bytes(self.folder / row.mask, content)
        files.append_json_lines(self._journal(self._full), [vars(row)])
        self._rows.append(row)
        self._draw(frame, labels, clip)
        return row

    def _draw(self, frame: Frame, labels: npt.NDArray[Any], clip: Clip) -> None:
        """Add a frame to the video of the part, and end the part if it is whole."""
        self._drawn += 1
        if self._formats.overlay:
            if self._writer is None:
                path = self.folder / PARTS / f"{self._full:06d}.mp4"
                temporary = self._stack.enter_context(files.atomic_write(path))
                writer = VideoWriter(temporary, clip.info.size, clip.info.time_base)
                self._writer = self._stack.enter_context(writer)
                self._begin = frame.time
            drawn = overlay.named_overlay(frame.pixels, labels, self._names)
            self._writer.write(np.asarray(drawn), frame.time - self._begin)
        if self._drawn == PART:
            self._end_part()
            self._full, self._rows, self._drawn = self._full + 1, [], 0

    def finish(self, clip: Clip, damage: Damage) -> dict[str, Any]:
        """Put the parts together, and remove them.

        Returns:
            What was found: number of frames, times, in how many frames each class is, what was
            damaged, and the files.

        Raises:
            DataError: there is no frame.
            FsdinoError: a file cannot be written.
        """
        if not self.done:
            raise DataError(
                f"clip {clip.path}: no frame lies between --from and --to; change one of them"
            )
        if self._rows:
            self._end_part()
        count = self._full + bool(self._rows)
        summary = self._summary(count, clip, damage)
        with files.atomic_write(self.folder / ROWS_FILE) as temporary:
            _write_lines(temporary, (json.dumps(row.public()) + "\n" for row in self._all(count)))
        if self._formats.overlay:
            with files.atomic_write(self.folder / FILES[OVERLAY]) as temporary:
                join_videos(self._videos(count), temporary)
        if self._formats.coco:
            lines = coco_lines(lambda: self._all(count), numbered(self._names))
            with files.atomic_write(self.folder / FILES[COCO]) as temporary:
                _write_lines(temporary, lines)
        sizes = {name: (self.folder / name).stat().st_size for name in self.written}
        files.write_json(self.folder / SUMMARY_FILE, {**summary, "sizes": sizes})
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return summary

    def _summary(self, count: int, clip: Clip, damage: Damage) -> dict[str, Any]:
        shown_in = dict.fromkeys(self._names, 0)
        frames, first, last = 0, None, Fraction(0)
        for row in self._all(count):
            frames, last = frames + 1, row.seconds
            first = last if first is None else first
            for name in shown_in:
                shown_in[name] += row.classes[name] > 0
        return {
            "frames": frames,
            "from": round(float(first or 0), 6),
            "to": round(float(last), 6),
            "size": [*clip.info.size],
            "rate": round(clip.info.rate, 6),
            "shown_in": shown_in,
            "damaged": damage.count,
            "damage": damage.first,
            "sound": clip.info.audio,
        }

    def _end_part(self) -> None:
        self._stack.close()
        self._writer = None

    def _all(self, count: int) -> Iterator[Row]:
        for part in range(count):
            yield from self._read_part(part)

    def _videos(self, count: int) -> Iterator[tuple[Path, Fraction]]:
        """The parts' videos, and when they begin."""
        begin: Fraction | None = None
        for part in range(count):
            first = self._read_part(part)[0].seconds
            begin = first if begin is None else begin
            yield self.folder / PARTS / f"{part:06d}.mp4", first - begin

    def _journal(self, part: int) -> Path:
        return self.folder / PARTS / f"{part:06d}.jsonl"

    def _read_part(self, part: int) -> list[Row]:
        """The frames that a part has, up to the first that is damaged or whose mask is."""
        rows, _ = files.read_journal(self._journal(part), Row.read, quiet=True)
        found: list[Row] = []
        for row in rows:
            mask = self.folder / row.mask
            if not mask.is_file() or mask.stat().st_size != row.bytes:
                break
            found.append(row)
        return found

    def _finished(self) -> tuple[int, list[Row]]:
        """How many parts are whole, and the frames of the one after them; removes the rest."""
        full = 0
        while True:
            rows = self._read_part(full)
            video = self.folder / PARTS / f"{full:06d}.mp4"
            if len(rows) < PART or (self._formats.overlay and not video.is_file()):
                break
            full += 1
        rows = rows[:PART]
        for entry in (self.folder / PARTS).iterdir():
            number = int(entry.stem) if entry.stem.isdecimal() else -1
            if number > full or (number == full and (entry.suffix == ".mp4" or not rows)):
                entry.unlink()
        if rows:  # without lines that are damaged
            files.write_json_lines(self._journal(full), map(vars, rows))
        return full, rows

    def _check_call(self, call: dict[str, Any], overwrite: bool) -> None:
        """Refuse a folder that is not this call's, or remove what is here of another one."""
        file = self.folder / CALL_FILE
        own = (MASKS, PARTS, ROWS_FILE, SUMMARY_FILE, *self._formats.files)
        if not file.exists():
            foreign = [name for name in own if _is_filled(self.folder / name)]
            if foreign:
                raise UsageError(
                    f"--out {self.folder} has {listed(foreign)} of another program: {REMEDY}"
                )
            return
        if overwrite:
            self._clear()
            return
        before = files.read_object(file, f"{REMEDY}, or --overwrite", UsageError)
        changed = sorted(k for k in {*before, *call} if before.get(k) != call.get(k))
        if changed:
            raise UsageError(
                f"--out {self.folder} holds results of another call (it differs in "
                f"{', '.join(map(printable, changed))}): {REMEDY}, or --overwrite"
            )

    def _clear(self) -> None:
        """Remove the results of an earlier call, and no other files."""
        results, before = self.folder / ROWS_FILE, list[str]()
        with contextlib.suppress(UsageError):
            formats = files.read_object(self.folder / CALL_FILE, "", UsageError).get("formats")
            before = [FILES[name] for name in formats or () if name in FILES]
        if results.exists():
            with results.open(encoding="utf-8") as lines:
                for line in lines:
                    with contextlib.suppress(ValueError, LookupError, TypeError):
                        self._remove_mask(json.loads(line)["mask"])
        if (self.folder / PARTS).is_dir():
            for journal in sorted((self.folder / PARTS).glob("*.jsonl")):
                for row in files.read_journal(journal, Row.read, quiet=True)[0]:
                    self._remove_mask(row.mask)
            shutil.rmtree(self.folder / PARTS)
        for name in (results.name, *before, SUMMARY_FILE, CALL_FILE):
            (self.folder / name).unlink(missing_ok=True)

    def _remove_mask(self, name: str) -> None:
        if Path(name).parent == Path(MASKS) and Path(name).suffix == ".png":
            (self.folder / name).unlink(missing_ok=True)


class _UnfinishedError(Exception):
    """Ends a part's video that is not whole, so that its file is removed."""


def _write_lines(path: Path, lines: Iterator[str]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(lines)


def _is_filled(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()
