"""Tar shards of small photographs, as SA-1B has them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from PIL import Image

from tiny_models import picture

NAMES = [f"sa_{number}.jpg" for number in range(223750, 223790)]


def jpeg(seed: int, height: int = 12, width: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(height, width, seed)).save(buffer, format="JPEG")
    return buffer.getvalue()


def write_shard(path: Path, names: list[str] = NAMES) -> Path:
    """SA-1B's layout: an image and its annotations in turns, names with a leading ./"""
    with tarfile.open(path, "w") as archive:
        for seed, name in enumerate(names):
            for member, content in ((name, jpeg(seed)), (f"{Path(name).stem}.json", b"{}" * 99)):
                info = tarfile.TarInfo(f"./{member}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path
