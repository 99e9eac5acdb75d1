"""The published sampling once more, sharing no code with the package, and small lists to try it on.

    python tests/expected_hsnet.py            # the literals of tests/data/test_sampling.py
    python tests/expected_hsnet.py SPLITS     # the same episodes on other lists, such as HSNet's

The first form writes the small lists below to a temporary folder. Everything is drawn as HSNet's
data loaders do in one process: `numpy.random.seed(0)`, then `numpy.random.choice(LIST, 1,
replace=False)[0]` on lists of strings, an episode after the other. Imports nothing of the package.
"""

from __future__ import annotations

import pickle
import sys
import tempfile
from pathlib import Path

import numpy as np

FSS_TEST = ["zebra_cup", "ant", "bus", "Abacus"]


def write_lists(folder: Path) -> None:
    """Small lists in the published layout; PASCAL's have 15 lines, some images in two of them."""
    for part, year, offset in (("trn", 2008, 100), ("val", 2007, 0)):
        for fold in range(4):
            first = offset + 20 * fold
            lines = [
                f"{year}_{first + i // 2 * 2 + (i == 5):06d}__{5 * fold + 1 + i % 5:02d}"
                for i in range(15)
            ]
            file = folder / "pascal" / part / f"fold{fold}.txt"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("\n".join(lines) + "\n")
            own = part == "val"
            lists = {
                c: [
                    f"{'val' if own else 'train'}2014/COCO_{'val' if own else 'train'}2014_"
                    f"{1000 * fold + 10 * c + i:012d}.jpg"
                    for i in range(2 + c % 7)
                ]
                if (c % 4 == fold) == own
                else []
                for c in range(80)
            }
            file = folder / "coco" / part / f"fold{fold}.pkl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(pickle.dumps(lists, protocol=2))
    (folder / "fss").mkdir(exist_ok=True)
    (folder / "fss" / "trn.txt").write_text("car\nbird\nmug\n")
    (folder / "fss" / "val.txt").write_bytes(b"hat\r\nowl\r\n")
    (folder / "fss" / "test.txt").write_bytes("\r\n".join([*FSS_TEST, ""]).encode())


def supports(names: list[str], query: str, shots: int) -> list[str]:
    found: list[str] = []
    while True:
        name = np.random.choice(names, 1, replace=False)[0]
        if name != query:
            found.append(str(name))
        if len(found) == shots:
            return found


def pascal(splits: Path, fold: int, shots: int, episodes: int) -> list[tuple[int, list[str]]]:
    lines = (splits / "pascal" / "val" / f"fold{fold}.txt").read_text().split("\n")[:-1]
    items = [line.split("__") for line in lines]
    by_class: dict[str, list[str]] = {}
    for name, number in items:
        by_class.setdefault(number, []).append(name)
    np.random.seed(0)
    found = []
    for k in range(episodes):
        name, number = items[k % len(items)]
        found.append((int(number), [name, *supports(by_class[number], name, shots)]))
    return found


def coco(splits: Path, fold: int, shots: int, episodes: int) -> list[tuple[int, list[str]]]:
    with (splits / "coco" / "val" / f"fold{fold}.pkl").open("rb") as file:
        by_class = pickle.load(file)
    classes = [fold + 4 * v for v in range(20)]
    np.random.seed(0)
    found = []
    for _ in range(episodes):
        number = np.random.choice(classes, 1, replace=False)[0]
        query = np.random.choice(by_class[number], 1, replace=False)[0]
        found.append((int(number), [str(query), *supports(by_class[number], query, shots)]))
    return found


def fss(splits: Path, shots: int, episodes: int) -> list[tuple[int, list[str]]]:
    categories = sorted((splits / "fss" / "test.txt").read_text().split())
    before = sum(len((splits / "fss" / f"{p}.txt").read_text().split()) for p in ("trn", "val"))
    images = [f"{c}/{n}.jpg" for c in categories for n in sorted(map(str, range(1, 11)))]
    np.random.seed(0)
    found = []
    for query in images[:episodes]:
        category = query.split("/")[0]
        drawn: list[str] = []
        while len(drawn) < shots:
            name = f"{category}/{np.random.choice(range(1, 11), 1, replace=False)[0]}.jpg"
            if name != query:
                drawn.append(name)
        found.append((before + categories.index(category), [query, *drawn]))
    return found


def short(name: str) -> str:
    """The part of a name that differs: the number of an image, or class and number."""
    stem = name.removesuffix(".jpg")
    return stem if "/" in stem and "_" not in stem else str(int(stem.rpartition("_")[2]))


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        splits = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        if len(sys.argv) == 1:
            write_lists(splits)
        for title, episodes in (
            ("PASCAL, fold 1, 1 shot", pascal(splits, 1, 1, 12)),
            ("PASCAL, fold 2, 5 shots", pascal(splits, 2, 5, 4)),
            ("COCO, fold 0, 1 shot", coco(splits, 0, 1, 8)),
            ("COCO, fold 3, 5 shots", coco(splits, 3, 5, 4)),
            ("FSS, 1 shot", fss(splits, 1, 12)),
            ("FSS, 5 shots", fss(splits, 5, 3)),
        ):
            print(f"# {title}")
            for class_id, names in episodes:
                print(f'    ({class_id}, "{" ".join(map(short, names))}"),')


if __name__ == "__main__":
    main()
