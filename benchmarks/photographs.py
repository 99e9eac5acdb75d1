"""Few-shot segmentation of real photographs: `python benchmarks/photographs.py`.

Segments the query of every pair in tests/photographs and prints its IoU with the hand-made mask,
beside "everything is foreground" and beside the training-free matchers on the same encoder. Writes
a JSON file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from photo_pairs import Pair, load_pairs
from record import write_record

import fsdino
from fsdino.models import zoo
from fsdino.models.config import MATCHERS
from fsdino.models.segmenter import Segmenter

Mask = npt.NDArray[np.bool_]


def iou(prediction: Mask, truth: Mask) -> float:
    """Intersection over union, in percent."""
    return 100 * float((prediction & truth).sum() / (prediction | truth).sum())


def segment(model: Segmenter, pair: Pair, tiles: bool) -> Mask:
    """The query's mask, at the query's size."""
    support = model.encode_support(
        [s.image for s in pair.supports], [s.mask for s in pair.supports]
    )
    return model.segment(pair.query.image, support, tiles=tiles).mask


def main() -> None:
    """Segment, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fsdino-tiny")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/fsdino-tiny-photographs.json")
    )
    options = parser.parse_args()
    model = fsdino.load(options.model)
    free = {matcher: zoo.training_free(model, matcher) for matcher in MATCHERS}
    rows = []
    print(
        f"{'IoU in percent':22} {'model':>7} {'tiles':>7} {'prototypes':>11} {'matches':>8} "
        f"{'everything':>11}"
    )
    for pair in load_pairs():
        truth = pair.query.mask
        row = {
            "pair": pair.name,
            "model": iou(segment(model, pair, tiles=False), truth),
            "model_tiles": iou(segment(model, pair, tiles=True), truth),
            "prototypes": iou(segment(free["prototype"], pair, tiles=False), truth),
            "correspondences": iou(segment(free["correspondence"], pair, tiles=False), truth),
            "all_foreground": iou(np.ones_like(truth), truth),
        }
        name, *numbers = row.values()
        print("{:22} {:7.1f} {:7.1f} {:11.1f} {:8.1f} {:11.1f}".format(name, *numbers))
        rows.append({k: v if isinstance(v, str) else round(v, 1) for k, v in row.items()})
    write_record(
        options.out,
        "python benchmarks/photographs.py",
        model=options.model,
        model_fingerprint=model.fingerprint(),
        results=rows,
    )


if __name__ == "__main__":
    main()
