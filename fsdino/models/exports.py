"""Objects in the formats of other tools: COCO, YOLO, LabelMe, Label Studio and supervision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fsdino.errors import UsageError, listed, shown
from fsdino.models.instances import Instance
from fsdino.models.polygons import polygon

if TYPE_CHECKING:
    import supervision

_MOST_MASKS = 2**32  # bytes of the masks of one image's objects, which supervision holds at once


def coco_annotations(
    instances: Sequence[Instance],
    image_id: int,
    categories: Mapping[str, int],
    first_id: int = 1,
) -> list[dict[str, Any]]:
    """COCO annotations with masks as compressed run lengths, which keep every pixel.

    Args:
        instances: objects of one image.
        image_id: of the image.
        categories: ids by class name.
        first_id: id of the first annotation; the others count on from there.

    Raises:
        UsageError: an object of a class that has no id.
    """
    return [
        {
            "id": number,
            "image_id": image_id,
            "category_id": _of_class(categories, instance.name, "categories"),
            "segmentation": {"size": [*instance.size], "counts": compressed(instance)},
            "area": instance.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "score": round(instance.score, 6),
        }
        for number, instance in enumerate(instances, first_id)
        for x0, y0, x1, y1 in [instance.box]
    ]


def numbered(names: Sequence[str]) -> dict[str, int]:
    """COCO's ids of classes: 1, 2, ... in their order."""
    return {name: number for number, name in enumerate(names, 1)}


def compressed(instance: Instance) -> str:
    """The mask as pycocotools compresses it: run lengths down the columns, as text.

    Each number is the difference to the last but one, in letters of 5 bits, the lowest first
    (`rleToString` in cocoapi's maskApi.c).
    """
    begins, lengths = instance.runs.T
    goes_on = np.zeros(len(begins), np.bool_)  # from the end of a column at the top of the next
    goes_on[1:] = begins[1:] == begins[:-1] + lengths[:-1]
    first = np.flatnonzero(~goes_on)
    ends = np.append((begins + lengths)[first[1:] - 1], begins[-1] + lengths[-1])
    borders = np.stack([begins[first], ends], axis=1).ravel()
    rest = instance.size[0] * instance.size[1] - int(borders[-1])
    counts = np.diff(borders, prepend=0).tolist() + ([rest] if rest else [])
    letters = bytearray()
    for place, count in enumerate(counts):
        value = count - counts[place - 2] if place > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            done = value == (-1 if bits & 16 else 0)
            letters.append(48 + bits + (0 if done else 32))
            if done:
                break
    return letters.decode("ascii")


def yolo_lines(instances: Sequence[Instance], classes: Sequence[str]) -> str:
    """A label file of YOLO for segmentation: on each line `class x y x y ...`.

    Args:
        instances: objects of one image.
        classes: class names; the place of an object's class among them, from 0 on, is its number.

    Raises:
        UsageError: an object of a class that is not among them.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    lines = []
    for instance in instances:
        height, width = instance.size
        number = _of_class(numbers, instance.name, "classes")
        places = (outline(instance) / (width, height)).ravel().tolist()
        lines.append(" ".join([str(number), *(f"{place:.6f}" for place in places)]) + "\n")
    return "".join(lines)


def labelme_file(
    instances: Sequence[Instance], size: tuple[int, int], image_path: str
) -> dict[str, Any]:
    """The content of a LabelMe 5 file, without the image itself.

    Args:
        instances: objects of one image.
        size: (H, W) of the image.
        image_path: of the image, from the folder of the LabelMe file.
    """
    shapes = [
        {
            "label": instance.name,
            "points": outline(instance).astype(float).tolist(),
            "group_id": None,
            "description": "",
            "shape_type": "polygon",
            "flags": {},
            "mask": None,
        }
        for instance in instances
    ]
    return {
        "version": "5.5.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": size[0],
        "imageWidth": size[1],
    }


def label_studio_task(
    instances: Sequence[Instance],
    image: str,
    *,
    from_name: str = "label",
    to_name: str = "image",
    model_version: str = "fsdino",
) -> dict[str, Any]:
    """A task of Label Studio with one prediction, whose regions are polygons.

    Args:
        instances: objects of one image.
        image: address of the image as Label Studio finds it.
        from_name, to_name: names of the `PolygonLabels` and `Image` tags in its configuration.
        model_version: what Label Studio calls the prediction.
    """
    result = []
    for number, instance in enumerate(instances, 1):
        height, width = instance.size
        points = outline(instance) * (100 / width, 100 / height)  # in percent
        result.append(
            {
                "id": f"object-{number}",
                "type": "polygonlabels",
                "from_name": from_name,
                "to_name": to_name,
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": round(instance.score, 6),
                "value": {
                    "points": np.round(points, 4).tolist(),
                    "closed": True,
                    "polygonlabels": [instance.name],
                },
            }
        )
    scores = [instance.score for instance in instances]
    score = round(float(np.mean(scores)), 6) if scores else 0.0
    prediction = {"model_version": model_version, "score": score, "result": result}
    return {"data": {to_name: image}, "predictions": [prediction]}


def detections(
    instances: Sequence[Instance], size: tuple[int, int], classes: Sequence[str]
) -> supervision.Detections:
    """`supervision.Detections`, with a mask for each object.

    Args:
        instances: objects of one image.
        size: (H, W) of the image.
        classes: class names; their places, from 0 on, are the `class_id`s.

    Raises:
        UsageError: supervision is not installed; too many masks for memory; an object of a class
            that is not among `classes`.
    """
    try:
        import supervision
    except ImportError as error:
        raise UsageError(
            "supervision.Detections need the package supervision: pip install supervision"
        ) from error
    if len(instances) * size[0] * size[1] > _MOST_MASKS:
        raise UsageError(
            f"{len(instances):,} masks of {size[0]} x {size[1]} pixels are too many for "
            "supervision.Detections: pass a larger min_area"
        )
    numbers = {name: number for number, name in enumerate(classes)}
    masks = np.zeros((len(instances), *size), np.bool_)
    for mask, instance in zip(masks, instances, strict=True):
        x0, y0, x1, y1 = instance.box
        mask[y0:y1, x0:x1] = instance.crop
    owners = [_of_class(numbers, instance.name, "classes") for instance in instances]
    return supervision.Detections(
        xyxy=np.array([i.box for i in instances], np.float32).reshape(-1, 4),
        mask=masks,
        confidence=np.array([i.score for i in instances], np.float32),
        class_id=np.array(owners, np.int64),
        data={"class_name": np.array([i.name for i in instances], np.str_)},
    )


def outline(instance: Instance) -> npt.NDArray[np.float64]:
    """The polygon of an object: float64 [P, 2], (x, y) in pixels of the image; see `polygons`."""
    return polygon(instance.crop).astype(np.float64) + instance.box[:2]


def _of_class(numbers: Mapping[str, int], name: str, argument: str) -> int:
    if name not in numbers:
        raise UsageError(
            f"class {shown(name)} is not among {argument} ({listed(numbers)}): add it there"
        )
    return numbers[name]
