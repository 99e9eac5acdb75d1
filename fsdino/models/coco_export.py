"""The answers for many images as one COCO file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fsdino.errors import UsageError, shown
from fsdino.models.exports import numbered
from fsdino.models.instances import Split
from fsdino.models.segmentation import Segmentation


def export_coco(
    results: Mapping[str, Segmentation] | Iterable[tuple[str, Segmentation]],
    categories: Mapping[str, int] | None = None,
    *,
    split: Split = "connected",
    min_area: int = 1,
) -> dict[str, Any]:
    """Put answers into one COCO file: images, categories and annotations, as plain data for JSON.

    Args:
        results: answers by file name, or pairs of both, which may come one by one.
        categories: ids by class name; None numbers the results' names from 1 on as they appear.
        split, min_area: see `Segmentation.instances`.

    Returns:
        The file's content. Ids of images and annotations count from 1. Masks are compressed run
        lengths; `score` is an object's mean probability.

    Raises:
        UsageError: a file name twice, an object of a class without an id, unknown `split`,
            `min_area` below 1.

    Example:
        >>> import fsdino
        >>> coins, model = fsdino.samples()["coins"], fsdino.load()
        >>> support = model.encode_support(coins.image, coins.mask)
        >>> result = model.segment(coins.image, {"coin": support})
        >>> content = fsdino.export_coco({"coins.png": result}, min_area=50)
        >>> len(content["annotations"]), content["categories"][0]["name"]
        (12, 'coin')
    """
    pairs = results.items() if isinstance(results, Mapping) else results
    ids = {} if categories is None else dict(categories)
    images: dict[str, dict[str, Any]] = {}
    annotations: list[dict[str, Any]] = []
    for file_name, result in pairs:
        if file_name in images:
            raise UsageError(f"file name {shown(file_name)} occurs twice: pass each image once")
        height, width = result.image.shape[:2]
        number = len(images) + 1
        images[file_name] = {
            "id": number, "file_name": file_name, "width": width, "height": height,
        }  # fmt: skip
        if categories is None:
            ids = numbered([*dict.fromkeys([*ids, *result.names])])
        annotations += result.to_coco(
            number, ids, first_id=len(annotations) + 1, split=split, min_area=min_area
        )
    return coco_file([*images.values()], ids, annotations)


def coco_file(
    images: list[dict[str, Any]], categories: Mapping[str, int], annotations: list[dict[str, Any]]
) -> dict[str, Any]:
    """The parts of a COCO file put together, with the categories by id."""
    named = [{"id": n, "name": name, "supercategory": ""} for name, n in categories.items()]
    return {
        "info": {"description": "Segmented by fsdino"},
        "licenses": [],
        "images": images,
        "categories": named,
        "annotations": annotations,
    }


def coco_pieces(
    images: Iterable[Mapping[str, Any]],
    categories: Mapping[str, int],
    annotations: Iterable[Mapping[str, Any]],
) -> Iterator[str]:
    """The text of `coco_file`, in pieces, so that neither images nor annotations need memory."""
    whole: dict[str, Any] = coco_file([], categories, [])
    del whole["images"], whole["annotations"]
    yield json.dumps(whole)[:-1]
    for name, entries in (("images", images), ("annotations", annotations)):
        yield f', "{name}": ['
        for place, entry in enumerate(entries):
            yield (",\n" if place else "\n") + json.dumps(entry)
        yield "]"
    yield "}\n"
