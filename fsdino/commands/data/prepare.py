"""Make masks and lists that are not part of a data set, once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fsdino.commands.data.check import image_counts
from fsdino.data.catalog import open_source
from fsdino.data.davis import Davis
from fsdino.data.lists import is_derived
from fsdino.data.source import Source
from fsdino.errors import UsageError
from fsdino.files import write_json
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.commands")

INDEX_FILE = "index.json"
_LISTS = ("pascal", "coco", "fss")  # folders in a folder of lists
_CHUNK = 512  # files handed to the readers at once
_READERS = 8


def prepare(dataset: str, root: Path, out: Path | None = None) -> dict[str, Path]:
    """Make a data set's masks and lists, and an index of the lists; resumes after interruptions.

    Args:
        dataset: its name.
        root: its folder.
        out: where to; to be passed as --splits later. None is the cache, which is found by itself.

    Returns:
        Folders and files by title; none where a data set is read as it is.

    Raises:
        UsageError: `out` holds lists that were not derived.
        FsdinoError: something needed is missing, or cannot be read or written.
    """
    source = open_source(dataset, root)
    if out is not None and not is_derived(out):
        lists = next((path for path in map(out.joinpath, _LISTS) if path.exists()), None)
        if lists is not None:
            raise UsageError(
                f"--out {out}: {lists} exists and was not derived; it would be overwritten: pass "
                "another --out, or remove it"
            )
    with Progress(f"prepare {dataset}") as progress:
        made = source.prepare(out, progress.report)
    if isinstance(source, Davis) or "lists" not in made:
        return made
    folder = made["lists"]
    derived = open_source(dataset, root, folder)
    assert not isinstance(derived, Davis)
    index = {
        "dataset": dataset,
        "made": {title: str(path) for title, path in made.items()},
        "folds": list(_index(derived)),
    }
    write_json(folder / INDEX_FILE, index)
    return {**made, "index": folder / INDEX_FILE}


def _index(source: Source) -> Iterator[dict[str, Any]]:
    for fold in range(source.folds) if source.folds else (None,):
        for split in ("val", "train"):
            try:
                lists = source.lists(fold, split)
            except UsageError as error:  # images of one of COCO's years are not there
                logger.info("not in the index: %s", error)
                continue
            counts = {source.class_names[c]: n for c, n in image_counts(lists).items()}
            yield {"fold": fold, "split": split, "lists_hash": lists.hash, "classes": counts}
