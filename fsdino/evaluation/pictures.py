"""Pictures of an evaluation's best and worst episodes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from fsdino import overlay
from fsdino.data.episodes import Episode, Episodes
from fsdino.evaluation.evaluate import Result, Settings, predict_masks
from fsdino.evaluation.journal import Row
from fsdino.evaluation.predictors import ModelPredictor
from fsdino.evaluation.questions import load
from fsdino.files import make_folder
from fsdino.images import write_png
from fsdino.models.segmenter import Segmenter
from fsdino.resizing import nearest_mask

_PICTURE = re.compile(r"(best|worst)-\d+-episode-\d+-iou-[\d.]+\.png")
_PANEL, _GAP = 224, 6  # height of a picture's panels and the space between them, in pixels


def save(
    folder: Path, model: Segmenter, run: tuple[Episodes, Result], settings: Settings, count: int
) -> list[Path]:
    """Draw the best and the worst `count` episodes: supports, truth, prediction.

    Raises:
        FsdinoError: a picture cannot be written.
    """
    episodes, result = run
    ranked = sorted((row for row in result.rows if row.error is None), key=lambda row: -row.iou)
    chosen = [("best", n, row) for n, row in enumerate(ranked[:count], start=1)]
    chosen += [("worst", n, row) for n, row in enumerate(reversed(ranked[-count:]), start=1)]
    make_folder(folder, "pass another --out")
    for before in folder.glob("*.png"):  # of a call that was overwritten
        if _PICTURE.fullmatch(before.name):
            before.unlink(missing_ok=True)
    paths = []
    for kind, number, row in chosen:
        path = folder / f"{kind}-{number:02d}-episode-{row.episode}-iou-{100 * row.iou:.1f}.png"
        write_png(path, _picture(model, episodes, row, settings))
        paths.append(path)
    return paths


def _picture(model: Segmenter, episodes: Episodes, row: Row, settings: Settings) -> Image.Image:
    episode = episodes[row.episode]
    alone = replace(settings, workers=0)
    [questions] = load(episodes, [[row.episode]], size=settings.size, protocol=settings.protocol)
    [mask] = predict_masks(ModelPredictor(model), questions, alone)
    return _side_by_side([*_panels(episode, mask)])


def _panels(episode: Episode, mask: torch.Tensor) -> Iterator[Image.Image]:
    for support in episode.supports:
        yield overlay.overlay(support.image, support.mask)
    image = episode.query.image
    yield overlay.overlay(image, episode.query.mask, colors=[(46, 160, 67)])
    found = nearest_mask(mask.cpu().numpy(), (image.shape[0], image.shape[1]))
    yield overlay.overlay(image, found.numpy() > 0)


def _side_by_side(panels: Sequence[Image.Image]) -> Image.Image:
    scaled = [p.resize((max(round(p.width * _PANEL / p.height), 1), _PANEL)) for p in panels]
    width = sum(panel.width + _GAP for panel in scaled) - _GAP
    sheet = Image.new("RGB", (width, _PANEL), "white")
    left = 0
    for panel in scaled:
        sheet.paste(panel, (left, 0))
        left += panel.width + _GAP
    return sheet
