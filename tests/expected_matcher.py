"""Matcher's sampling once more, sharing no code with the package, and small files to try it on.

    python tests/expected_matcher.py                # episodes of the small files below
    python tests/expected_matcher.py lvis_val.pkl   # of another file, such as Matcher's
    python tests/expected_matcher.py VOC2010        # PASCAL-Part or PACO-Part in another folder

Everything is drawn as Matcher's data loader does in one process: `numpy.random.seed(0)`, then
`numpy.random.choice(LIST, 1, replace=False)[0]` on lists of names, an episode after the other.
Imports nothing of the package.
"""

from __future__ import annotations

import json
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
            found[-1] = _encoded(top, bottom, left, right)
    return found


def _encoded(top: int, bottom: int, left: int, right: int) -> dict[str, Any]:
    """A rectangle as pycocotools' run lengths, which are bytes."""
    import pycocotools.mask

    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[top:bottom, left:right] = 1
    found: dict[str, Any] = pycocotools.mask.encode(mask)
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


VOC_IMAGES = 48
# Folds, objects and parts in the order of the small index.
VOC_PARTS: dict[str, dict[str, list[str]]] = {
    "vehicles": {"bus": ["WHEEL", "BODY"], "aeroplane": ["BODY", "TAIL", "WING"]},
    "person": {"person": ["HEAD", "ARM"]},
    "animals": {"cat": ["TAIL", "HEAD", "EYE"], "bird": ["HEAD", "WING"]},
    "indoor": {"bottle": ["CAP", "BODY"]},
}
VOC_FOLDS = ("animals", "indoor", "person", "vehicles")
_KINDS = [kind for kinds in VOC_PARTS.values() for kind in kinds]
_KIND_PARTS = {kind: parts for kinds in VOC_PARTS.values() for kind, parts in kinds.items()}
_ONE_LIST = {("aeroplane", "WING"): "val", ("cat", "EYE"): "train"}  # the other one is empty


def voc_name(n: int) -> str:
    return f"2008_{n:06d}"


def voc_objects(n: int) -> list[tuple[str, tuple[int, int, int, int], list[str]]]:
    """The objects of image n: kind, box and parts. Some lack a part, some boxes leave the image."""
    found = []
    for j in range(1 + n % 4):
        kind = _KINDS[(n // 4 + 3 * (j % 2)) % len(_KINDS)]
        parts = [part for i, part in enumerate(_KIND_PARTS[kind]) if (n + j + i) % 3]
        box = (4 + 8 * j, 2 + 6 * j, 90 if j == 2 else 34 + 8 * j, 30 + 6 * j)
        found.append((kind, box, parts))
    return found


def voc_bands(j: int, part: int) -> list[tuple[int, int, int, int]]:
    """Rectangles (top, bottom, left, right) of a part of object j, which leave its box."""
    top, left = 6 + 6 * j + 5 * part, 8 * j
    return [(top, top + 4, left, left + 14), (top + 2, top + 6, left + 10, left + 50)][: 1 + j % 2]


def voc_mask(n: int, j: int, part: str) -> np.ndarray:
    """A part of object j of image n in that object's box, bool [h, w]."""
    kind, (x0, y0, x1, y1), _ = voc_objects(n)[j]
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for top, bottom, left, right in voc_bands(j, _KIND_PARTS[kind].index(part)):
        mask[top:bottom, left:right] = True
    return mask[y0 : min(y1, HEIGHT), x0 : min(x1, WIDTH)]


def _run_lengths(top: int, bottom: int, left: int, right: int) -> dict[str, Any]:
    counts = _encoded(top, bottom, left, right)["counts"]
    return {"size": [HEIGHT, WIDTH], "counts": counts.decode("ascii")}


def _voc_annotation(n: int) -> dict[str, Any]:
    objects = []
    for j, (kind, box, parts) in enumerate(voc_objects(n)):
        keys = ("xmin", "ymin", "xmax", "ymax") if n % 3 else ("ymin", "xmin", "ymax", "xmax")
        values = [str(value) if n % 5 == 0 else value for value in box]
        masks = [
            {
                "name": part,
                "mask": [_run_lengths(*b) for b in voc_bands(j, _KIND_PARTS[kind].index(part))],
            }
            for part in parts
        ]
        objects.append(
            {"name": kind, "bndbox": dict(zip(keys, values, strict=True)), "parts": masks}
        )
    return {"filename": f"{voc_name(n)}.jpg", "object": objects}


def voc_listed(kind: str, part: str) -> list[str]:
    """Images with an object that has the part, not in the order of names; the first one twice."""
    numbers = sorted(range(VOC_IMAGES), key=lambda n: n * 29 % 101)
    found = [
        voc_name(n) for n in numbers if any(o[0] == kind and part in o[2] for o in voc_objects(n))
    ]
    return [*found, found[0]]


def write_pascal_part(root: Path) -> None:
    """The small index and its annotations in the form of Matcher's, without the images."""
    index: dict[str, Any] = {}
    for fold, kinds in VOC_PARTS.items():
        index[fold] = {"object": {}}
        for kind, parts in kinds.items():
            lists = {
                part: {"train": ["2009_000001"], "val": voc_listed(kind, part)} for part in parts
            }
            for part in parts:
                if (kind, part) in _ONE_LIST:
                    lists[part]["val" if _ONE_LIST[kind, part] == "train" else "train"] = []
            index[fold]["object"][kind] = {"part": lists}
    folder = root / "Annotations_Part_json_merged_part_classes"
    folder.mkdir(parents=True, exist_ok=True)
    (root / "all_obj_part_to_image.json").write_text(json.dumps(index))
    for n in range(VOC_IMAGES):
        (folder / f"{voc_name(n)}.json").write_text(json.dumps(_voc_annotation(n)))


def pascal_part(root: Path, fold: int, shots: int) -> list[tuple[str, list[tuple[str, int]]]]:
    """Class, then image and number of the object of query and supports, of each episode."""
    index = json.loads((root / "all_obj_part_to_image.json").read_text())[VOC_FOLDS[fold]]["object"]
    classes, total = [], 0
    for kind in index:
        for part, lists in index[kind]["part"].items():
            total += len(lists["val"])
            if lists["train"] and lists["val"] and f"{kind}+{part}" != "aeroplane+TAIL":
                classes.append((kind, part))
    state = np.random.get_state()
    np.random.seed(0)
    found = []
    for k in range(min(total, 2500)):
        kind, part = classes[k % len(classes)]
        drawn: list[tuple[str, int]] = []
        while len(drawn) < 1 + shots:
            names = index[kind]["part"][part]["val"]
            name = str(np.random.choice(names, 1, replace=False)[0])
            if name in [image for image, _ in drawn]:
                continue
            file = root / "Annotations_Part_json_merged_part_classes" / f"{name}.json"
            objects = json.loads(file.read_text())["object"]
            of_kind = [{**one, "number": j} for j, one in enumerate(objects) if one["name"] == kind]
            chosen = np.random.choice(np.array(of_kind, dtype=object), 1, replace=False)[0]
            if any(one["name"] == part for one in chosen["parts"]):
                drawn.append((name, chosen["number"]))
        found.append((f"{kind} {part}", drawn))
    np.random.set_state(state)
    return found


PACO_FOLDERS = ("train2017", "val2017")


def paco_category(place: int) -> int:
    """The category at a place of the training file: numbers in no order."""
    return 75 + place * 37 % 1009


def paco_images(place: int) -> list[int]:
    """Numbers of a category's validation images, none for most; not in order, some twice."""
    if place % 11 > 3:
        return []
    found = [(place * 13 + 29 * i) % 60 for i in range(1 + place * 5 % 7)]
    return [*found[:2], found[0], *found[2:]]


def paco_name(n: int) -> str:
    return f"{PACO_FOLDERS[n % 3 % 2]}/{n:012d}.jpg"


def paco_objects(n: int, place: int) -> list[int]:
    """Objects of image n with the part at a place, in the order of their first annotations."""
    return [9000 + 10 * o for o in ((2, 0, 1), (1, 0), (0,))[(n + place) % 3]]


def paco_box(number: int) -> tuple[float, float, float, float]:
    """x, y, w, h: x + w is 40 or more only by the sum of two fractions."""
    o = (number - 9000) // 10
    return 4.6 + 8 * o, 2.3 + 6 * o, 35.5 - 8 * o, 28.8


def _paco_bands(number: int, place: int) -> list[tuple[int, int, int, int]]:
    o = (number - 9000) // 10
    return [(6 * o, 6 * o + 9, 8 * o, 8 * o + 20), (20, 50, 20, 60)][: 1 + (o + place) % 2]


def paco_mask(number: int, place: int) -> np.ndarray:
    """The part of an object in its box, bool [h, w]; by hand: x1 = 40, y1 = 31 + 6 o."""
    mask = np.zeros((HEIGHT, WIDTH), bool)
    for top, bottom, left, right in _paco_bands(number, place):
        mask[top:bottom, left:right] = True
    o = (number - 9000) // 10
    return mask[2 + 6 * o : 31 + 6 * o, 4 + 8 * o : 40]


def _paco_annotations(n: int) -> list[dict[str, Any]]:
    """First annotations of all objects, then second ones, whose boxes do not count."""
    first, second = [], []
    for place in range(448):
        if n not in paco_images(place):
            continue
        for number in paco_objects(n, place):
            for i, (top, bottom, left, right) in enumerate(_paco_bands(number, place)):
                polygon = [left, top, right, top, float(right), float(bottom), left, bottom]
                found = {
                    "category_id": paco_category(place),
                    "obj_ann_id": number,
                    "obj_bbox": [0.5, 0, 9, 9] if i else list(paco_box(number)),
                    "segmentation": [polygon] if place % 2 else _encoded(top, bottom, left, right),
                    "iscrowd": False,
                }
                (second if i else first).append(found)
    return first + second


def write_paco_part(root: Path) -> None:
    """Small files in the form of Matcher's, without the images."""
    order = sorted(range(448), key=lambda place: place * 29 % 449)
    val = {
        "cid2img": {
            paco_category(place): [
                {n + 500: f"/data/coco/{paco_name(n)}"} for n in paco_images(place)
            ]
            for place in order
            if paco_images(place)
        },
        "img2anno": {n + 500: _paco_annotations(n) for n in range(60)},
    }
    train = {
        "cid2img": {paco_category(place): [{1: "train2017/1.jpg"}] for place in range(448)},
        "img2anno": {1: [{"obj_bbox": [1.0, 2.0, 3.0, 4.0]}]},
    }
    (root / "paco").mkdir(parents=True, exist_ok=True)
    for name, content in (("train", train), ("val", val)):
        file = root / "paco" / f"paco_part_{name}.pkl"
        file.write_bytes(pickle.dumps(content, protocol=4))


def paco_part(root: Path, fold: int, shots: int) -> list[tuple[int, list[tuple[str, int]]]]:
    """Category, then image and object of query and supports, of each of the 2,500 episodes."""
    train, val = (
        pickle.loads((root / "paco" / f"paco_part_{name}.pkl").read_bytes())
        for name in ("train", "val")
    )
    images: dict[int, list[dict[int, str]]] = {}
    for category, entries in val["cid2img"].items():
        images[category] = []
        for entry in entries:
            if all(entry.keys() != one.keys() for one in images[category]):
                images[category].append(entry)
    classes = [
        category
        for category in list(train["cid2img"])[fold::4]
        if len(images.get(category, [])) > shots
    ]
    state = np.random.get_state()
    np.random.seed(0)
    found = []
    for _ in range(2500):
        category = int(np.random.choice(classes, 1, replace=False)[0])
        drawn: list[tuple[str, int]] = []
        while len(drawn) < 1 + shots:
            chosen: Any = np.random.choice(np.array(images[category]), 1, replace=False)[0]
            [(number, path)] = chosen.items()
            name = "/".join(path.split("/")[-2:])
            if drawn and name == drawn[0][0]:
                continue
            own = [a for a in val["img2anno"][number] if a["category_id"] == category]
            objects = list(dict.fromkeys(a["obj_ann_id"] for a in own))
            drawn.append((name, int(np.random.choice(objects, 1, replace=False)[0])))
        found.append((category, drawn))
    np.random.set_state(state)
    return found


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        given = [Path(argument) for argument in sys.argv[1:]]
        if not given:
            given = [Path(temporary) / name for name in ("lvis_val.pkl", "VOC2010", "PACO-Part")]
            for path, write in zip(
                given, (write_lvis, write_pascal_part, write_paco_part), strict=True
            ):
                write(path)
        for path in given:
            for fold, shots in ((0, 1), (3, 1), (3, 3)):
                draw = lvis
                if path.is_dir():
                    draw = paco_part if (path / "paco").is_dir() else pascal_part
                found: Any = draw(path, fold, shots)
                print(f"# {path.name}, fold {fold}, {shots} shots")
                for key, names in found[:12]:
                    print(f"    ({key!r}, {names}),")


if __name__ == "__main__":
    main()
