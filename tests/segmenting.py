"""Shared by the tests of `fsdino segment`: one run, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import Outcome, segment_files
from fsdino.models.fsdino import FSDINO

CALL = {"model": "m", "threshold": 0.5}


def run(model: FSDINO, support: Any, queries: Path, out: Path, **options: Any) -> Outcome:
    supports = support if isinstance(support, dict) else {"foreground": support}
    return segment_files(model, supports, find_queries([queries]), Output(out, CALL, **options))


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*"))}
