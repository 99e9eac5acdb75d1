"""Masks from marks: `python benchmarks/marks.py`.

How well a box or clicks become the mask of an object, as IoU in percent with a mask painted by
hand. A tight box is compared with itself filled, with the ellipse inscribed in it, and with
scikit-image's random walker (at the settings of `WALKS` that are best on average). Clicks follow a
rule: the first is the object's pixel that is farthest from its border, each next one that of the
largest connected error. Objects are those of tests/photographs, with `--held-out` those of its
held-out pictures instead; and with `--labels FOLDER` every connected car, sign and pedestrian of
more than 1 % of a frame with CamVid's labels (see camvid.py), by drive. Prints tables and writes a
JSON file.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see photographs.py

import camvid
import numpy as np
import numpy.typing as npt
from photo_methods import PHOTO
from photo_pairs import FOLDER, HELD_OUT, Photograph
from photo_statistics import iou
from PIL import Image
from scipy import ndimage
from skimage.segmentation import random_walker

import fsdino
from fsdino import processes as sharing
from fsdino.bench.record import write_record
from fsdino.errors import DataError, FsdinoError
from fsdino.models.segmenter import Segmenter
from fsdino.progress import Progress
from fsdino.tables import print_table

Flags = npt.NDArray[np.bool_]
Box = tuple[int, int, int, int]

CLASSES = ("car", "sign", "pedestrian")
LEAST = 0.01  # of the image that an object covers, in road scenes and held-out pictures
LEAST_COIN = 0.001
CLICKS = 5
SHOWN = (1, 3, 5)
OWN_GROUP, COINS, HELD = "photographs", "coins", "held out"
FILLED, OVAL, WALKER, OWN = "box filled", "ellipse", "random walker", "fsdino"
# Share of the box that the ellipse of seeds spans; beta of the walker.
WALKS = ((0.5, 1000.0), (0.75, 130.0), (0.75, 1000.0), (0.75, 3000.0))
WINDOW = 0.25  # of the box around it that the walker sees
EVERY_PIXEL = np.ones((3, 3), bool)


@dataclass(frozen=True)
class Object:
    """One object to mark.

    Attributes:
        group: "photographs", "coins", "held out", or the drive of a road scene.
        name: of the file, with a number.
        picture: with the object's mask.
    """

    group: str
    name: str
    picture: Photograph


def parts(mask: Flags, least: float) -> Iterator[Flags]:
    """The connected regions of a mask that cover more than a share of the image."""
    labels, count = ndimage.label(mask, EVERY_PIXEL)
    for label in range(1, count + 1):
        part = labels == label
        if part.mean() > least:
            yield part


def tight_box(mask: Flags) -> Box:
    """(x0, y0, x1, y1) of a mask."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def own_objects(folder: Path = FOLDER) -> Iterator[Object]:
    """The astronaut, the man at the camera, the cup, each eye; and each coin in its own group."""
    for name in ("astronaut", "camera", "coffee", "chelsea", "coins"):
        [file] = [f for f in sorted(folder.glob(f"{name}.*")) if f.suffix in (".jpg", ".png")]
        image = np.asarray(Image.open(file).convert("RGB"))
        mask = np.asarray(Image.open(folder / f"{name}_mask.png")) == 255
        apart = name in ("chelsea", "coins")
        group = COINS if name == "coins" else OWN_GROUP
        for k, part in enumerate(parts(mask, LEAST_COIN) if apart else [mask]):
            yield Object(group, f"{name} {k + 1}", Photograph(image, part))


def held_out_objects(folder: Path = HELD_OUT) -> Iterator[Object]:
    """Every connected region of more than 1 % of a picture."""
    for file in sorted(folder.glob("*_*.png")):
        picture, _, _ = file.stem.rpartition("_")
        image = np.asarray(Image.open(folder / f"{picture}.jpg").convert("RGB"))
        for k, part in enumerate(parts(np.asarray(Image.open(file)) == 255, LEAST)):
            yield Object(HELD, f"{file.stem} {k + 1}", Photograph(image, part))


def road_objects(frames: camvid.Frames) -> Iterator[Object]:
    """Every connected car, sign and pedestrian of more than 1 % of a frame."""
    for name, drive, image, labels in zip(
        frames.names, frames.drives, frames.images, frames.labels, strict=True
    ):
        for kind in CLASSES:
            for k, part in enumerate(parts(labels == camvid.CLASSES.index(kind), LEAST)):
                picture = Photograph(image, part, labels == camvid.IGNORED)
                yield Object(drive, f"{name} {kind} {k + 1}", picture)


# ---------------------------------------------------------------------------------------- baselines


def filled(box: Box, size: tuple[int, ...]) -> Flags:
    flags = np.zeros(size, bool)
    x0, y0, x1, y1 = box
    flags[y0:y1, x0:x1] = True
    return flags


def ellipse(box: Box, size: tuple[int, ...], span: float = 1.0) -> Flags:
    """The ellipse in a box, which spans a share of it."""
    x0, y0, x1, y1 = box
    rows, columns = np.ogrid[0.5 : size[0], 0.5 : size[1]]
    across = (columns - (x0 + x1) / 2) / (span * (x1 - x0) / 2)
    down = (rows - (y0 + y1) / 2) / (span * (y1 - y0) / 2)
    return across**2 + down**2 <= 1


def walked(image: npt.NDArray[np.uint8], box: Box, span: float, beta: float) -> Flags:
    """scikit-image's random walker (Grady, PAMI 2006).

    Seeds of the object are an ellipse in the box, those of the background all that is outside.
    """
    inside = filled(box, image.shape[:2])
    x0, y0, x1, y1 = box
    across, down = (max(round(WINDOW * side), 4) for side in (x1 - x0, y1 - y0))
    window = np.s_[max(y0 - down, 0) : y1 + down, max(x0 - across, 0) : x1 + across]
    seeds = np.where(inside, 0, 2)
    seeds[ellipse(box, inside.shape, span) & inside] = 1
    seeds[(y0 + y1) // 2, (x0 + x1) // 2] = 1
    if not (seeds[window] == 2).any():
        return inside
    found = np.zeros_like(inside)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its solver, about speed
        found[window] = (
            random_walker(
                image[window] / 255, seeds[window], beta=beta, mode="cg_j", channel_axis=-1
            )
            == 1
        )
    return found


# ------------------------------------------------------------------------------------------- clicks


def centre(flags: Flags) -> tuple[int, int]:
    """(x, y) of the pixel that is farthest from the border of a region, the image's included."""
    inner = ndimage.distance_transform_edt(np.pad(flags, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(inner.argmax(), inner.shape)
    return int(x), int(y)


def next_click(found: Flags, picture: Photograph) -> tuple[tuple[int, int], int] | None:
    """Where the largest error is, and whether it belongs to the object; None without errors."""
    wrong = found != picture.mask
    if picture.ignored is not None:
        wrong &= ~picture.ignored
    labels, count = ndimage.label(wrong)
    if not count:
        return None
    largest = np.bincount(labels.ravel())[1:].argmax() + 1
    x, y = centre(labels == largest)
    return (x, y), int(picture.mask[y, x])


def marked(model: Segmenter, picture: Photograph, **marks: Any) -> Flags:
    """The mask of a mark; empty where the model finds nothing."""
    try:
        return model.mark(picture.image, **marks)
    except DataError:
        return np.zeros_like(picture.mask)


def clicked(model: Segmenter, picture: Photograph, clicks: int = CLICKS) -> list[float]:
    """IoU after each click; of a perfect mask, there are no more clicks."""
    points, labels = [centre(picture.mask)], [1]
    found: list[float] = []
    while len(found) < clicks:
        mask = marked(model, picture, points=points, labels=labels)
        found.append(iou(mask, picture.mask, picture.ignored))
        step = next_click(mask, picture)
        if step is None:
            return found + [found[-1]] * (clicks - len(found))
        points.append(step[0])
        labels.append(step[1])
    return found


# --------------------------------------------------------------------------------------- the tables


def measure(model: Segmenter, thing: Object, *, clicks: bool) -> dict[str, Any]:
    """IoU in percent of every method on one object."""
    picture = thing.picture
    box, size = tight_box(picture.mask), picture.mask.shape
    masks = {FILLED: filled(box, size), OVAL: ellipse(box, size)}
    masks |= {f"{WALKER} {span} {beta:g}": walked(picture.image, box, span, beta)
              for span, beta in WALKS}  # fmt: skip
    masks[OWN] = marked(model, picture, boxes=box)
    found: dict[str, Any] = {"group": thing.group, "name": thing.name}
    found["box"] = {
        method: round(iou(mask, picture.mask, picture.ignored), 2) for method, mask in masks.items()
    }
    if clicks:
        found["clicks"] = [round(value, 2) for value in clicked(model, picture)]
    return found


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over objects; of the walker, its best settings by this mean."""
    means = {
        method: float(np.mean([row["box"][method] for row in rows])) for method in rows[0]["box"]
    }
    walks = {method: mean for method, mean in means.items() if method.startswith(WALKER)}
    settings = max(walks, key=lambda method: walks[method])
    best = max(means[FILLED], means[OVAL], walks[settings])
    box = {FILLED: means[FILLED], OVAL: means[OVAL], WALKER: walks[settings], OWN: means[OWN]}
    clicks = [row["clicks"] for row in rows if "clicks" in row]
    return {
        "objects": len(rows),
        "box": {method: round(mean, 1) for method, mean in box.items()},
        "walker_settings": settings.removeprefix(WALKER).split(),
        "gain": round(means[OWN] - best, 1),
        "clicks": [round(float(value), 1) for value in np.mean(clicks, 0)] if clicks else None,
        "objects_clicked": len(clicks),
    }


def summaries(rows: Sequence[dict[str, Any]], chosen: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Of each group, and of road scenes of the chosen drives, the others, and all."""
    groups = list(dict.fromkeys(row["group"] for row in rows))
    found = {
        group: summary([row for row in rows if row["group"] == group])
        for group in groups
        if group in (OWN_GROUP, COINS, HELD)
    }
    road = [row for row in rows if row["group"] not in found]
    for name, part in (
        ("road, drives of the settings", [row for row in road if row["group"] in chosen]),
        ("road, other drives", [row for row in road if row["group"] not in chosen]),
        ("road, all", road),
    ):
        if part:
            found[name] = summary(part)
    return found


def show(found: dict[str, dict[str, Any]]) -> None:
    """Print the means."""
    print_table(
        ["objects", "number", FILLED, OVAL, WALKER, OWN, "gain", *(f"{n} clicks" for n in SHOWN)],
        [
            [
                name,
                str(part["objects"]),
                *(f"{part['box'][method]:.1f}" for method in (FILLED, OVAL, WALKER, OWN)),
                f"{part['gain']:+.1f}",
                *("–" if part["clicks"] is None else f"{part['clicks'][n - 1]:.1f}" for n in SHOWN),
            ]
            for name, part in found.items()
        ],
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=PHOTO, help="name or folder of a model")
    parser.add_argument("--labels", type=Path, help="folder of frames with CamVid's labels")
    parser.add_argument("--held-out", action="store_true", help="the held-out pictures")
    parser.add_argument("--drives", nargs="+", default=[], help="on which settings were chosen")
    parser.add_argument(
        "--clicks",
        type=int,
        default=1,
        metavar="N",
        help="click on the photographs and every N-th object beside them; 0 on none",
    )
    parser.add_argument("--threads", type=int, default=sharing.cores())
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/marks.json"))
    options = parser.parse_args(arguments)
    if options.drives and options.labels is None:
        parser.error("--drives needs --labels")
    if options.clicks < 0:
        parser.error("--clicks must be at least 0")
    return options


def run(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    objects = [*(held_out_objects() if options.held_out else own_objects())]
    facts: dict[str, Any] = {}
    if options.labels is not None:
        frames = camvid.read_frames(options.labels)
        facts["camvid_sha256"] = frames.sha256
        objects += road_objects(frames)
    model = fsdino.load(options.model)
    rows = []
    with sharing.threads(options.threads), Progress("marks", len(objects), unit="objects") as bar:
        for place, thing in enumerate(objects):
            clicks = options.clicks > 0 and (
                place % options.clicks == 0 or thing.group == OWN_GROUP
            )
            rows.append(measure(model, thing, clicks=clicks))
            bar.advance(note=thing.name)
    found = summaries(rows, options.drives)
    show(found)
    words = [f"python benchmarks/marks.py --model {Path(options.model).name}"]
    words += ["--held-out"] if options.held_out else []
    words += ["--labels CAMVID"] if options.labels else []
    words += ["--drives", *options.drives] if options.drives else []
    words += [f"--clicks {options.clicks}"] if options.clicks != 1 else []
    write_record(
        options.out,
        " ".join(words),
        model=Path(options.model).name,
        model_fingerprint=model.fingerprint(),
        drives_of_the_settings=options.drives,
        **facts,
        means=found,
        objects=rows,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, with errors in one line."""
    try:
        run(parse(arguments))
    except FsdinoError as error:
        raise SystemExit(f"marks.py: {error}") from error


if __name__ == "__main__":
    main()
