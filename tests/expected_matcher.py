"""Matcher's sampling once more, sharing no code with the package, and a small file to try it on.

    python tests/expected_matcher.py                # episodes of the small file below
    python tests/expected_matcher.py lvis_val.pkl   # of another one, such as Matcher's

Everything is drawn as Matcher's data loader does in one process: `numpy.random.seed(0)`, then
`numpy.random.choice(LIST, 1, replace=False)[0]` on lists of names, an episode after the other.
Imports nothing of the package.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HEIGHT, WIDTH = 64, 72
LVIS_CLASSES = 47
# Rows from the top that a class covers, and columns from the left: see `lvis_mask`.
_BANDS = ((0, 20, 0, 30), (40, 64, 10, 72))


def lvis_images(place: int) -> list[str]:
    """The images of a class by its place in the file: one to seven, not in the order of names."""
    count = 1 + place * 5 % 7
    numbers = [(place * 13 + 29 * i) % 60 for i in range(count)]
    return [f"{'val' if n % 3 else 'train'}2017/{n:012d}.jpg" for n in numbers]


def lvis_mask(place: int, name: str) -> np.ndarray:
    """A class's mask in an image, bool [H, W]: two rectangles, the second one in some classes."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for top, bottom, left, right in _BANDS[: 1 + place % 2]:
        mask[top:bottom, left:right] = True
    return mask


def _segmentations(place: int) -> list[Any]:
    """Polygons of whole numbers and floats, or run lengths as bytes."""
    found: list[Any] = []
    for band, (top, bottom, left, right) in enumerate(_BANDS[: 1 + place % 2]):
        polygon = [float(left), top, right, top, float(right), bottom, left, float(bottom)]
        found.append([polygon])
        if (place + band) % 5 == 0:
            import pycocotools.mask

            mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
            mask[top:bottom, left:right] = 1
            found[-1] = pycocotools.mask.encode(mask)
    return found


def write_lvis(file: Path, protocol: int = 4) -> None:
    """A small file in the form of lvis_val.pkl; keys are category numbers in no order."""
    content = {
        place * 37 % 101: {
            name: {
                "annotations": [
                    {"segmentation": one, "category_id": place * 37 % 101, "iscrowd": False}
                    for one in _segmentations(place)
                ],
                "size": (HEIGHT, WIDTH),
                "note": None,
            }
            for name in lvis_images(place)
        }
        for place in range(LVIS_CLASSES)
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(pickle.dumps(content, protocol=protocol))


def lvis(file: Path, fold: int, shots: int, episodes: int = 2300) -> list[tuple[Any, list[str]]]:
    """The class's key, then query and supports, of each episode."""
    with file.open("rb") as stream:
        annotations = pickle.load(stream)
    keys = [key for key in annotations if len(annotations[key]) > shots]
    own = [keys[fold + 10 * v] for v in range(len(keys) // 10)]
    state = np.random.get_state()
    np.random.seed(0)
    found = []
    for k in range(episodes):
        key = own[k % len(own)]
        query = np.random.choice(list(annotations[key].keys()), 1, replace=False)[0]
        names = [str(query)]
        while len(names) < 1 + shots:
            name = np.random.choice(list(annotations[key].keys()), 1, replace=False)[0]
            if name != query:
                names.append(str(name))
        found.append((key, names))
    np.random.set_state(state)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(sys.argv[1] if len(sys.argv) > 1 else f"{temporary}/lvis_val.pkl")
        if len(sys.argv) == 1:
            write_lvis(file)
        for fold, shots in ((0, 1), (9, 1), (3, 3)):
            print(f"# LVIS, fold {fold}, {shots} shots")
            for key, names in lvis(file, fold, shots, 12):
                print(f'    ({key}, "{" ".join(names)}"),')


if __name__ == "__main__":
    main()
