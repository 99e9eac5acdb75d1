"""Small data sets on disk, in the layouts and file formats of the real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

import expected_hsnet
import expected_matcher

Labels = npt.NDArray[np.uint8]

HEIGHT, WIDTH = 64, 72
# The palette of VOC and DAVIS: an index's bits, three by three, are the colour's highest ones.
VOC_COLOURS = [
    sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3))
    for index in range(256)
    for channel in range(3)
]


def picture(seed: int, height: int = HEIGHT, width: int = WIDTH) -> npt.NDArray[np.uint8]:
    """A smooth picture that JPEG keeps nearly as it is; each seed has another brightness."""
    ramp = np.linspace(0, 60, width)[None, :, None] + np.linspace(0, 60, height)[:, None, None]
    return (ramp + (seed * 37) % 130 + np.array([0, 3, 6])).astype(np.uint8)


def save_jpeg(path: Path, seed: int = 0, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, height, width)).save(path, quality=95)


def save_labels(path: Path, labels: Labels, palette: Sequence[int] | None = None) -> None:
    """A palette PNG with these indices, or a gray one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels)
    if palette is not None:
        image.putpalette(list(palette))
    image.save(path)


def stacked(values: Sequence[int], border: int | None = None) -> Labels:
    """Labels in equal bands from the top, and one row of `border` beneath the first band."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    band = HEIGHT // max(len(values), 1)
    for i, value in enumerate(values):
        labels[i * band : (i + 1) * band] = value
    if border is not None:
        labels[band - 1] = border
    return labels


def listed(splits: Path) -> dict[str, list[tuple[str, int]]]:
    """Stem and classes of each line of the small PASCAL lists, by part."""
    return {
        part: [
            (line.rpartition("__")[0], int(line.rpartition("__")[2]))
            for fold in range(4)
            for line in (splits / "pascal" / part / f"fold{fold}.txt").read_text().split()
        ]
        for part in ("trn", "val")
    }


def write_voc(root: Path, splits: Path, masks: str = "SegmentationClassAug") -> None:
    """VOC2012 with the images of the small lists: each class of an image is a band of its mask."""
    expected_hsnet.write_lists(splits)
    parts = listed(splits)
    for part in parts.values():
        for seed, stem in enumerate(dict.fromkeys(stem for stem, _ in part)):
            classes = [class_id for name, class_id in part if name == stem]
            save_jpeg(root / "JPEGImages" / f"{stem}.jpg", seed)
            palette = VOC_COLOURS if masks == "SegmentationClass" else None
            save_labels(root / masks / f"{stem}.png", stacked(classes, 255), palette)
    sets = root / "ImageSets" / "Segmentation"
    sets.mkdir(parents=True)
    for name, part in (("train", "trn"), ("val", "val")):
        stems = dict.fromkeys(stem for stem, _ in parts[part])
        (sets / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def rectangle(top: int, left: int, bottom: int, right: int) -> list[list[int]]:
    """A polygon, as COCO writes it, of whole pixels."""
    return [[left, top, right, top, right, bottom, left, bottom]]


def instances(images: Mapping[int, Sequence[tuple[int, object, float]]], year: str) -> object:
    """What instances_*.json holds: for each image number (class, segmentation, area).

    Category ids leave gaps, as COCO's do: contiguous class c is category c + 1, or c + 11 from 40.
    """
    return {
        "images": [
            {
                "id": number,
                "file_name": f"COCO_{year}_{number:012d}.jpg",
                "height": HEIGHT,
                "width": WIDTH,
            }
            for number in images
        ],
        "annotations": [
            {
                "id": 100 * number + i,
                "image_id": number,
                "category_id": category(class_id),
                "segmentation": segmentation,
                "area": area,
                "iscrowd": int(isinstance(segmentation, dict)),
            }
            for number, annotations in images.items()
            for i, (class_id, segmentation, area) in enumerate(annotations)
        ],
        "categories": [{"id": category(c), "name": f"class {c}"} for c in reversed(range(80))],
    }


def category(class_id: int) -> int:
    return class_id + 1 if class_id < 40 else class_id + 11


def write_coco(root: Path) -> None:
    """COCO 2014 without mask PNGs: image n of a year shows two classes, one above the other.

    Every class fills half of four images of each year; in two more it is too small to be listed.
    """
    (root / "annotations").mkdir(parents=True)
    for year, first in (("train2014", 1000), ("val2014", 1)):
        images: dict[int, list[tuple[int, object, float]]] = {}
        for i in range(160):
            upper, lower = i % 80, (i + 7) % 80
            images[first + i] = [
                (upper, rectangle(0, 0, 32, WIDTH), 32.0 * WIDTH),
                (lower, rectangle(32, 0, 64, WIDTH), 32.0 * WIDTH),
                ((i + 9) % 80, rectangle(0, 0, 4, 4), 16.0),
            ]
            save_jpeg(root / year / f"COCO_{year}_{first + i:012d}.jpg", i)
        content = json.dumps(instances(images, year))
        (root / "annotations" / f"instances_{year}.json").write_text(content)


def write_fss(root: Path, names: Sequence[str]) -> None:
    """FSS-1000: ten pictures of each class, the mask a disc of gray levels around 128."""
    for seed, name in enumerate(names):
        for number in range(1, 11):
            save_jpeg(root / name / f"{number}.jpg", 10 * seed + number, 32, 32)
            gray = np.zeros((32, 32), np.uint8)
            gray[8:24, 8:24] = 255
            gray[8, 8:24] = 127
            gray[9, 8:24] = 128
            Image.fromarray(gray).convert("RGB").save(root / name / f"{number}.png")


def write_lvis(root: Path) -> None:
    """LVIS-92i: the small file of `expected_matcher` with all its images."""
    expected_matcher.write_lvis(root / "lvis_val.pkl")
    for place in range(expected_matcher.LVIS_CLASSES):
        for name in expected_matcher.lvis_images(place):
            save_jpeg(root / "coco" / name, int(name[-8:-4]))


def write_pascal_part(root: Path) -> None:
    """PASCAL-Part: the small files of `expected_matcher` with all their images."""
    expected_matcher.write_pascal_part(root)
    for n in range(expected_matcher.VOC_IMAGES):
        save_jpeg(root / "JPEGImages" / f"{expected_matcher.voc_name(n)}.jpg", n)


def write_paco_part(root: Path) -> None:
    """PACO-Part: the small files of `expected_matcher` with all their images."""
    expected_matcher.write_paco_part(root)
    for n in range(60):
        save_jpeg(root / "coco" / expected_matcher.paco_name(n), n)


def write_davis(root: Path, sequences: Sequence[str] = ("bear", "dogs")) -> None:
    """DAVIS-17: three frames of each sequence, two objects that move, an undecided pixel."""
    for name in sequences:
        for number in range(3):
            save_jpeg(root / "JPEGImages" / "480p" / name / f"{number:05d}.jpg", number)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[10 + number : 20 + number, 10:20] = 1
            labels[30:40, 10 + number : 30] = 2
            labels[63, 71] = 255
            path = root / "Annotations" / "480p" / name / f"{number:05d}.png"
            save_labels(path, labels, VOC_COLOURS)
    sets = root / "ImageSets" / "2017"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("".join(f"{name}\n" for name in sequences))


def disc_photograph(color: tuple[int, int, int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A disc on a textured gray ground, uint8 [96, 128, 3], and the disc's mask."""
    y, x = np.mgrid[:96, :128]
    mask = (x + 0.5 - 70) ** 2 + (y + 0.5 - 44) ** 2 < 20**2
    ground = 100 + 50 * (y > 70) + np.random.default_rng(seed).integers(-6, 7, (96, 128))
    image = np.repeat(ground[..., None], 3, 2).astype(np.uint8)
    image[mask] = color
    return image, mask


def write_photographs(folder: Path) -> Path:
    """A photograph with a red disc, two with gray ones, and a file that is none."""
    (folder / "more").mkdir(parents=True)
    for name, color in (("red", (210, 30, 30)), ("dark", (20,) * 3), ("more/bright", (240,) * 3)):
        Image.fromarray(disc_photograph(color, len(name))[0]).save(folder / f"{name}.png")
    (folder / "SOURCES.json").write_text("{}")
    return folder
