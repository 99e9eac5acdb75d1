"""Pictures of the best and worst episodes: which, where, and what they show."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from fsdino.evaluation import protocols
from fsdino.evaluation import run as evaluation
from fsdino.evaluation.evaluate import Settings
from fsdino.evaluation.request import Request
from tiny_models import SIDE, tiny_model

GENERATED = Request("procedural", episodes=6)
SETTINGS = Settings(SIDE, protocols.find("joint-seeded"))


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_pictures_show_the_best_and_the_worst(tmp_path: Path) -> None:
    """Support, truth and prediction beside each other, named by rank and IoU."""
    out = tmp_path / "r.json"
    evaluation.run(tiny_model(), "tiny", GENERATED, SETTINGS, out=out, pictures=2)
    rows = [json.loads(line) for line in (tmp_path / "r.episodes.jsonl").read_text().splitlines()]
    ious = [row["intersection"][1] / max(row["union"][1], 1) for row in rows[1:]]
    best, worst = int(np.argmax(ious)), int(np.argmin(ious))
    files = names_in(tmp_path / "r.pictures")
    assert len(files) == 4
    assert files[0] == f"best-01-episode-{best}-iou-{100 * ious[best]:.1f}.png"
    assert any(f.startswith(f"worst-01-episode-{worst}-") for f in files)
    with Image.open(tmp_path / "r.pictures" / files[0]) as image:
        assert image.size == (3 * 224 + 2 * 6, 224)


def test_pictures_of_an_overwritten_call_go(tmp_path: Path) -> None:
    """The folder shows one call's episodes; what somebody else put there stays."""
    out, folder = tmp_path / "r.json", tmp_path / "r.pictures"
    folder.mkdir()
    for name in ("best-07-episode-3-iou-12.5.png", "best.png"):
        (folder / name).write_bytes(b"")
    evaluation.run(tiny_model(), "tiny", GENERATED, SETTINGS, out=out, pictures=1)
    assert len(names_in(folder)) == 3 and "best.png" in names_in(folder)
    assert "best-07-episode-3-iou-12.5.png" not in names_in(folder)
