"""The photographs that tests and benchmarks look at, and their pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import photo_pairs
from PIL import Image
from scipy import ndimage

from fsdino import image_files
from fsdino.images import read_image
from fsdino.masks import read_mask
from pictures import (
    PHOTOGRAPHS,
)


def test_photographs_read_as_they_are() -> None:
    """Every photograph has a mask of its size, a licence in the README, and is small."""
    readme = (PHOTOGRAPHS / "README.md").read_text(encoding="utf-8")
    images = image_files.scan_folder(PHOTOGRAPHS).images
    photographs = [file for file in images if not file.stem.endswith("_mask")]
    assert len(photographs) >= 4
    for file in photographs:
        pixels = read_image(file)
        mask = read_mask(file.with_name(f"{file.stem}_mask.png"), pixels.shape[:2])
        assert 0.01 < mask.mean() < 0.5
        assert f"`{file.name}`" in readme and f"`{file.stem}_mask.png`" in readme
        assert file.stat().st_size < 150_000


def test_the_coins_are_all_there() -> None:
    """24 coins, told apart by the mask, each brighter than the cloth around it."""
    pixels = read_image(PHOTOGRAPHS / "coins.png")[:, :, 0]
    mask = read_mask(PHOTOGRAPHS / "coins_mask.png", (303, 384))
    coins, count = ndimage.label(mask)
    assert count == 24
    for coin in range(1, 25):
        inside = coins == coin
        ring = ndimage.binary_dilation(inside, iterations=6) & ~ndimage.binary_dilation(
            mask, iterations=2
        )
        assert pixels[inside].mean() > pixels[ring].mean() + 20


def test_pairs_of_photographs() -> None:
    """Each pair has a support and a query that show the object, and shares no pixel between them
    unless it says that the query is mirrored."""
    pairs = photo_pairs.load_pairs()
    assert len({pair.name for pair in pairs}) == len(pairs) >= 2
    for pair in pairs:
        for part in (*pair.supports, pair.query):
            assert part.image.shape[:2] == part.mask.shape
            assert 0.01 < part.mask.mean() < 0.5
    for entry in json.loads((PHOTOGRAPHS / "pairs.json").read_text())["pairs"]:
        query = entry["query"]
        for support in entry["supports"]:
            if support["image"] == query["image"] and not query.get("mirror", False):
                left, top, right, bottom = support["box"]
                x0, y0, x1, y1 = query["box"]
                assert right <= x0 or x1 <= left or bottom <= y0 or y1 <= top


def test_held_out_photographs() -> None:
    """Each is listed with its licence and masks; masks are 0 and 255, of its size, and show
    objects of 0.3 to 70 % of the picture; none is one that settings may be chosen by."""
    folder = photo_pairs.HELD_OUT
    readme = (folder / "README.md").read_text(encoding="utf-8")
    shows = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))["shows"]
    photographs = sorted(folder.glob("*.jpg"))
    assert [file.name for file in photographs] == sorted(shows) and len(photographs) >= 10
    chosen_by = {file.read_bytes() for file in PHOTOGRAPHS.iterdir() if file.is_file()}
    masks = set(folder.glob("*.png"))
    for file in photographs:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{file.name}` |"))
        assert re.search(r"CC0|public[ -]domain|as for `coast.jpg`", row, re.IGNORECASE)
        assert file.read_bytes() not in chosen_by
        pixels = read_image(file)
        assert max(pixels.shape[:2]) <= 640
        for mask_file in sorted(masks):
            if mask_file.stem.rpartition("_")[0] != file.stem:
                continue
            masks.remove(mask_file)
            assert f"`{mask_file.name}`" in readme
            assert mask_file.stem.rpartition("_")[2] in shows[file.name]
            with Image.open(mask_file) as mask:
                assert mask.mode == "L" and mask.size == pixels.shape[1::-1]
                counts = np.array(mask.histogram())
            assert counts[1:255].sum() == 0
            assert 0.003 < counts[255] / counts.sum() < 0.7
    assert not masks
    assert sum(file.stat().st_size for file in folder.iterdir()) < 1_500_000


def test_pairs_of_held_out_photographs() -> None:
    """At least eight pairs of six classes, each of two photographs that show the class; every
    class has photographs without it, to ask for what is not there."""
    folder = photo_pairs.HELD_OUT
    content = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    entries, shows = content["pairs"], content["shows"]
    pairs = photo_pairs.load_pairs(folder)
    assert len({pair.name for pair in pairs}) == len(pairs) == len(entries) >= 8
    classes = {entry["class"] for entry in entries}
    assert len(classes) >= 6
    for entry, pair in zip(entries, pairs, strict=True):
        parts = [*entry["supports"], entry["query"]]
        assert len({part["image"] for part in parts}) == len(parts)
        for part, photograph in zip(parts, [*pair.supports, pair.query], strict=True):
            assert part["mask"] == f"{Path(part['image']).stem}_{entry['class']}.png"
            assert entry["class"] in shows[part["image"]]
            assert photograph.image.shape[:2] == photograph.mask.shape
    for name in classes:
        assert sum(name not in shown for shown in shows.values()) >= 10
