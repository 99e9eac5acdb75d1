"""File names that come from visitors, made harmless and different from each other."""

from __future__ import annotations

import itertools
from pathlib import PurePosixPath

_MOST = 100  # characters of a name
_RESERVED = frozenset('<>:"|?*')  # that some file systems refuse


def harmless(name: str, otherwise: str = "image") -> str:
    """The last part of a path, without what no file name may have."""
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = "".join(c for c in last if c.isprintable() and c not in _RESERVED).strip(" .")
    path = PurePosixPath(kept)
    return f"{path.stem[:_MOST]}{path.suffix[:16]}" if kept else otherwise


class Names:
    """Names of files in one archive: those of images, and the stems of what belongs to each."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def take(self, name: str) -> tuple[str, str]:
        """A name like this one, and its stem, that no image has, also where case is ignored."""
        path = PurePosixPath(harmless(name))
        for number in itertools.count(1):
            stem = path.stem if number == 1 else f"{path.stem}-{number}"
            if stem.casefold() not in self._taken:
                self._taken.add(stem.casefold())
                return f"{stem}{path.suffix}", stem
        raise AssertionError("unreachable: the numbers do not end")
