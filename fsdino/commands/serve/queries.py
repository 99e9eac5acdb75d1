"""The photographs that one visitor wants searched."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fsdino.commands.serve.names import Names
from fsdino.errors import printable
from fsdino.image_files import why_not_image

_NAMED = 5  # files that a message names


@dataclass(frozen=True)
class Query:
    """A photograph to search.

    Attributes:
        name: that no other one has.
        stem: of the files that belong to it.
        file: where it is.
        own: whether the file is the visitor's, and goes with the visitor.
    """

    name: str
    stem: str
    file: Path
    own: bool


@dataclass(frozen=True)
class Added:
    """What became of files that were dropped.

    Attributes:
        count: of files that were taken.
        left_out: why others were not, by their names as they were given.
    """

    count: int
    left_out: list[tuple[str, str]]

    def summary(self) -> str:
        """What was left out, in a line; empty if nothing was."""
        if not self.left_out:
            return ""
        named = [f"{printable(name, 60)} ({reason})" for name, reason in self.left_out[:_NAMED]]
        more = len(self.left_out) - len(named)
        total = self.count + len(self.left_out)
        rest = f" and {more:,} more" if more else ""
        return f"{len(self.left_out):,} of {total:,} files left out: {', '.join(named)}{rest}"


class Queries(list[Query]):
    """The photographs, in the order in which they came.

    Args:
        folder: for the visitor's files, which exists.
        most: number of photographs.
    """

    def __init__(self, folder: Path, most: int) -> None:
        super().__init__()
        self._folder, self._most = folder, most
        self._names = Names()

    def add(self, files: Sequence[tuple[Path, str]]) -> Added:
        """Take the first ones that are images of some uploaded files, which stay.

        Args:
            files: paths, and the names that they had.
        """
        left_out, count = list[tuple[str, str]](), 0
        for path, name in files:
            reason = self._full()
            if reason is None:
                # Without the name's ending, which promises what the content may not hold.
                place = self._folder / secrets.token_hex(8)
                reason = copy(path, place) or why_not_image(place)
                if reason is None:
                    self.append(Query(*self._names.take(name), place, own=True))
                    count += 1
                    continue
                place.unlink(missing_ok=True)
            left_out.append((name, reason))
        return Added(count, left_out)

    def add_shipped(self, file: Path) -> Added:
        """Take a photograph that is installed with fsdino, unless it is here already."""
        if any(query.file == file for query in self):
            return Added(0, [])
        reason = self._full()
        if reason is not None:
            return Added(0, [(file.name, reason)])
        self.append(Query(*self._names.take(file.name), file, own=False))
        return Added(1, [])

    def clear(self) -> None:
        """Forget all of them."""
        for query in self:
            if query.own:
                query.file.unlink(missing_ok=True)
        super().clear()
        self._names = Names()

    def _full(self) -> str | None:
        return None if len(self) < self._most else f"at most {self._most} are searched at a time"


def copy(path: Path, place: Path) -> str | None:
    """Have a file under another name, too; gives a reason where that fails.

    The upload itself may be another visitor's as well: Gradio names uploads by their content.
    """
    try:
        os.link(path, place)
    except FileNotFoundError:
        return "the upload is gone; drop it again"
    except OSError:  # a file system without links
        shutil.copyfile(path, place)
    return None
