"""The README's picture: `python benchmarks/readme_picture.py` draws docs/photographs.jpg.

The photographs that are installed with fsdino, one pair of each kind of object, in their order:
above the marked example, below what fsdino-photo finds by it in another photograph. The file's
comment holds the model's fingerprint and the IoU of each pair as JSON, which tests/test_readme.py
compares with today's.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

import fsdino
from fsdino import images, overlay
from fsdino.evaluation import photographs
from fsdino.evaluation.photographs import EVERYTHING, PhotographAnswer
from fsdino.models.names import DEFAULT
from fsdino.overlay import marked

MODEL = DEFAULT
FILE = Path(__file__).resolve().parent.parent / "docs" / "photographs.jpg"
WIDTH, HEIGHT = 310, 232  # of the place of one picture
GAP, LINE = 10, 30
INK, SOFT = (27, 34, 48), (92, 102, 117)


def chosen() -> dict[str, fsdino.Sample]:
    """One pair of each kind: the first sample of each, and its query."""
    kept: dict[str, fsdino.Sample] = {}
    for name, sample in fsdino.samples().items():
        if sample.query not in kept:
            kept[name] = sample
    return kept


def picture(answers: list[PhotographAnswer]) -> Image.Image:
    """A column for each answer."""
    size = (
        len(answers) * (WIDTH + GAP) + GAP,
        2 * (HEIGHT + LINE) + 2 * GAP,
    )
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=17)
    for column, answer in enumerate(answers):
        left = GAP + column * (WIDTH + GAP)
        support, query = answer.support, answer.query
        found = f"found, IoU {answer.iou[MODEL]:.2f}"
        shown = (
            (marked(np.asarray(support.image), np.asarray(support.mask) == 255),
             "the marked example", SOFT),
            (overlay.overlay(np.asarray(query.image), answer.masks[MODEL]), found, INK),
        )  # fmt: skip
        for row, (image, line, ink) in enumerate(shown):
            top = GAP + row * (HEIGHT + LINE)
            scale = min(WIDTH / image.width, HEIGHT / image.height)
            image = image.resize(
                (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
            )
            sheet.paste(
                image, (left + (WIDTH - image.width) // 2, top + (HEIGHT - image.height) // 2)
            )
            draw.text((left + WIDTH // 2, top + HEIGHT + 4), line, ink, font, anchor="ma")
    return sheet


def main() -> None:
    """Segment and draw."""
    model = fsdino.load(MODEL)
    samples = fsdino.samples()
    answers = [photographs.answer({MODEL: model}, s, samples[s.query]) for s in chosen().values()]
    facts = {
        "command": "python benchmarks/readme_picture.py",
        "model": MODEL,
        "fingerprint": model.fingerprint(),
        "iou": {f"{a.support.name}-in-{a.query.name}": round(a.iou[MODEL], 4) for a in answers},
        "everything": {
            f"{a.support.name}-in-{a.query.name}": round(a.iou[EVERYTHING], 4) for a in answers
        },
    }
    images.write_image(FILE, picture(answers), "JPEG", quality=88, optimize=True,
                       comment=json.dumps(facts).encode())  # fmt: skip
    print(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
