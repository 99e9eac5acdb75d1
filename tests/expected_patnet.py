"""PATNet's episodes once more, sharing no code with the package, and small sets in its layouts.

    python tests/expected_patnet.py           # the first episodes of the small sets
    python tests/expected_patnet.py ROOT      # the same of others, such as the real ones

Drawn as PATNet's data loaders do in one process: `numpy.random.seed(0)`, sorted paths, then
`numpy.random.choice(LIST, 1, replace=False)[0]`, an episode after the other. Imports nothing of the
package.
"""

from __future__ import annotations

import glob
import os
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = {"deepglobe": 6, "isic": 3, "lung": 1}
FOLDERS = {"deepglobe": "Deepglobe", "isic": "ISIC", "lung": "LungSegmentation"}
SIDE = 24


def write_deepglobe(root: Path) -> None:
    """Tiles of JPEG with PNG masks; names are not of one length, and classes not of one size."""
    for number in range(1, 7):
        for i in range(3 + number):
            test = root / "Deepglobe" / str(number) / "test"
            stem = f"{(37 * i + number) * 9}_{i % 6}{number}"
            _write(test / "origin" / f"{stem}.jpg", test / "groundtruth" / f"{stem}.png", i)


def write_isic(root: Path) -> None:
    """Images in three folders, all masks in one, and files beside them that are not images."""
    for number in range(1, 4):
        folder = root / "ISIC" / "ISIC2018_Task1-2_Training_Input" / str(number)
        for i in range(2 + number):
            stem = f"ISIC_{31 * i + 1000 * number:07d}"
            masks = root / "ISIC" / "ISIC2018_Task1_Training_GroundTruth"
            _write(folder / f"{stem}.jpg", masks / f"{stem}_segmentation.png", i)
        (folder / "ATTRIBUTION.txt").write_text("x")
        (folder / "._ISIC_0000000.jpg").write_text("x")


def write_lung(root: Path) -> None:
    """Masks whose order is not that of the images, one of which has no mask."""
    folder = root / "LungSegmentation"
    for i, number in enumerate(("1", "10", "2", "100", "0323", "0001_0", "0001_1")):
        stem = f"CHNCXR_{number}"
        _write(folder / "CXR_png" / f"{stem}.png", folder / "masks" / f"{stem}_mask.png", i)
    _write(folder / "CXR_png" / "MCUCXR_0001_0.png", None, 9)


WRITERS = {"deepglobe": write_deepglobe, "isic": write_isic, "lung": write_lung}


def _write(image: Path, mask: Path | None, seed: int) -> None:
    """A picture, and a mask with gray levels around 128: row 4 is 127, rows 5 to 11 are more."""
    image.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.RandomState(seed).randint(0, 256, (3, 3, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((SIDE, SIDE)).save(image)
    if mask is not None:
        mask.parent.mkdir(parents=True, exist_ok=True)
        gray = np.zeros((SIDE, SIDE), np.uint8)
        gray[4:12, 3 : 12 + seed] = 255
        gray[4], gray[5] = 127, 128
        Image.fromarray(gray).save(mask)


def paths(root: Path, dataset: str, number: int) -> list[str]:
    """What is drawn from for a class: of lungs masks, else images."""
    base = os.path.join(root, FOLDERS[dataset])
    folder, kind = {
        "deepglobe": (os.path.join(base, str(number), "test", "origin"), "jpg"),
        "isic": (os.path.join(base, "ISIC2018_Task1-2_Training_Input", str(number)), "jpg"),
        "lung": (os.path.join(base, "masks"), "png"),
    }[dataset]
    found = sorted(glob.glob(f"{folder}/*"))
    return [path for path in found if os.path.basename(path).split(".")[1] == kind]


def episodes(root: Path, dataset: str, shots: int, count: int) -> list[tuple[int, list[str]]]:
    """Class, then query and supports by the paths of their images below the set's folder."""
    lists = [paths(root, dataset, number + 1) for number in range(CLASSES[dataset])]
    np.random.seed(0)
    found = []
    for k in range(count):
        own = lists[k % len(lists)]
        drawn = [np.random.choice(own, 1, replace=False)[0]]
        while len(drawn) <= shots:
            name = np.random.choice(own, 1, replace=False)[0]
            if name != drawn[0]:
                drawn.append(name)
        found.append((k % len(lists), [image(root, dataset, str(name)) for name in drawn]))
    return found


def image(root: Path, dataset: str, path: str) -> str:
    """The image of a drawn path, relative to the set's folder."""
    if dataset == "lung":
        path = os.path.join(root, FOLDERS[dataset], "CXR_png", os.path.basename(path)[:-9] + ".png")
    return os.path.relpath(path, os.path.join(root, FOLDERS[dataset]))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for dataset, write in WRITERS.items():
            if len(sys.argv) == 1:
                write(root)
            for shots in (1, 5):
                print(f"# {dataset}, K = {shots}")
                for class_id, names in episodes(root, dataset, shots, 6):
                    print(class_id, *names)


if __name__ == "__main__":
    main()
