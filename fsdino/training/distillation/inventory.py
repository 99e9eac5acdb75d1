"""What is known of a run's images once their embeddings are there: in memory, and in a file."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Container, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fsdino.files import read_json, write_json

logger = logging.getLogger("fsdino.training")


@dataclass
class Inventory:
    """What is known of images after their embeddings were computed.

    Attributes:
        contents: SHA-256 of each image file's content, by the image's name.
        unreadable: the reason, by the image's name.
    """

    contents: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)

    def add(self, other: Inventory) -> None:
        """Take over what another process found."""
        self.contents |= other.contents
        self.unreadable |= other.unreadable

    def write(self, path: Path, hashes: Mapping[str, str]) -> None:
        """Write it as JSON, with a hash.

        Args:
            path: the file.
            hashes: of encoder, teacher and images, which must be the same when it is read.

        Raises:
            FsdinoError: the file cannot be written.
        """
        data = {"hashes": hashes, "images": self.contents, "unreadable": self.unreadable}
        write_json(path, {**data, "sha256": _sha256(data)})


def read_inventory(
    path: Path, hashes: Mapping[str, str], embeddings: Container[str]
) -> Inventory | None:
    """An inventory from its file.

    Args:
        path: the file.
        hashes: see `Inventory.write`.
        embeddings: contents whose embeddings are there.

    Returns:
        None where the file is missing, damaged (with a warning) or of other images, and where an
        embedding is missing.
    """
    try:
        data = read_json(path)
        kept = {name: data[name] for name in ("hashes", "images", "unreadable")}
        if data.get("sha256") != _sha256(kept):
            raise ValueError("its content is not what was written")
        found = Inventory(kept["images"], kept["unreadable"])
        there = all(content in embeddings for content in found.contents.values())
        return found if there and kept["hashes"] == hashes else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        logger.warning("%s is damaged (%s): reading all images again", path, error)
        return None


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()
