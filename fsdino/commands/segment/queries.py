"""Queries as a command line names them: files, and folders of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fsdino.commands.segment.formats import PLACES
from fsdino.errors import UsageError
from fsdino.image_files import Listing, scan_folder

MASKS, OVERLAYS = "masks", "overlays"  # folders of the results
REMEDY = "pass another --out"


class Queries(list[Path]):
    """Files to segment.

    Attributes:
        left_out: the other files in the folders that were searched, with the reason.
    """

    def __init__(self, paths: Iterable[Path], left_out: Mapping[str, str]) -> None:
        super().__init__(paths)
        self.left_out = dict(left_out)

    def summary(self) -> str:
        """What was left out, in a line."""
        return Listing(list(self), self.left_out).summary()


def find_queries(paths: Sequence[Path], out: Path | None = None) -> Queries:
    """Files as they are, folders as the images in them and in their subfolders; each once.

    Args:
        paths: files and folders.
        out: folder of the results, which are not queries themselves.

    Raises:
        UsageError: no query, a missing path, a folder without images, a query among the results.
    """
    if not paths:
        raise UsageError("no query given: pass --query with images or folders of images")
    results = (MASKS, OVERLAYS, *(folder for folder, _ in PLACES.values()))
    own = set() if out is None else {os.path.realpath(out / name) for name in results}
    found: dict[str, Path] = {}
    left_out: dict[str, str] = {}
    for path in paths:
        if _lies_in(path, own):
            raise UsageError(
                f"query {path} lies where the results of this call are written: {REMEDY}"
            )
        if path.is_dir():
            listing = scan_folder(path, recursive=True)
            images = [file for file in listing.images if not _lies_in(file, own)]
            others = {
                str(path / name): reason
                for name, reason in listing.left_out.items()
                if not _lies_in(path / name, own)
            }
            if not images:
                why = f" ({Listing([], others).summary()})" if others else ""
                raise UsageError(f"query {path}: there is no image in this folder{why}")
            left_out |= others
        elif path.exists():
            images = [path]
        else:
            raise UsageError(f"query {path}: no such file or folder")
        for file in images:
            found.setdefault(os.path.abspath(file), file)
    return Queries(found.values(), left_out)


def _lies_in(path: Path, folders: set[str]) -> bool:
    """Whether a path is in one of some folders (absolute, without links), or is one."""
    if not folders:
        return False
    whole = Path(os.path.realpath(path))
    return any(str(part) in folders for part in (whole, *whole.parents))
