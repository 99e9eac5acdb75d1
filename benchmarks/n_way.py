"""Several classes in one call, with one example each from photographs that have nothing in common.

`python benchmarks/n_way.py --record benchmarks/results/n_way.json`. Classes are drawn from the
held-out photographs (tests/photographs/held_out), each with one of its pairs; the query of each is
asked for all of them. "Alone" puts together what each class gives by itself; "beside" is one call
of `Segmenter.segment`. Nothing was chosen on these photographs.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import record
import torch
from photo_pairs import HELD_OUT, Pair, load_pairs

import fsdino
from fsdino.bench.record import write_record
from fsdino.evaluation.photographs import iou
from fsdino.models import companions
from fsdino.models.segmentation import Segmentation
from fsdino.tables import print_table

COUNTS = (2, 3, 4, 6)  # classes in a call
CALLS = 12  # of each count
SURFACES = ("sky", "sand", "water")  # several of them are in one photograph
METHODS = ("alone", "beside")


def calls(pairs: Sequence[Pair], count: int, number: int, seed: int = 0) -> list[list[Pair]]:
    """Draws of `count` classes with a pair of one support each."""
    by_class: dict[str, list[Pair]] = {}
    for pair in pairs:
        if pair.kind and pair.kind not in SURFACES and len(pair.supports) == 1:
            by_class.setdefault(pair.kind, []).append(pair)
    draw = random.Random(f"{seed} {count}")
    return [
        [draw.choice(by_class[kind]) for kind in draw.sample(sorted(by_class), count)]
        for _ in range(number)
    ]


def judged(found: Segmentation, pair: Pair) -> dict[str, Any]:
    """How right an answer is about the query of a pair.

    Returns:
        `iou` of the pair's class; `others`, the share of the picture that has the label of a class
        which it does not show; `false`, whether each of these is found; `first`, whether the
        picture's class has the highest score.
    """
    own = found.names.index(pair.kind)
    absent = [n for n, name in enumerate(found.names) if name not in {pair.kind, *pair.shown}]
    labels = found.labels
    return {
        "iou": iou(labels == own + 1, pair.query.mask),
        "others": float(np.isin(labels, [n + 1 for n in absent]).mean()),
        "false": [found.founds[n] for n in absent],
        "first": int(np.argmax(found.scores)) == own,
    }


def summary(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means in percent."""
    return {
        "iou": 100 * float(np.mean([a["iou"] for a in answers])),
        "others": 100 * float(np.mean([a["others"] for a in answers])),
        "false": 100 * float(np.mean([f for a in answers for f in a["false"]])),
        "first": 100 * float(np.mean([a["first"] for a in answers])),
    }


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="fsdino-photo")
    parser.add_argument("--calls", type=int, default=CALLS, help="of each number of classes")
    parser.add_argument("--record", type=Path, help="file for the results")
    chosen = parser.parse_args()
    model, pairs = fsdino.load(chosen.model), load_pairs(HELD_OUT)
    supports = {
        p.name: model.encode_support(p.supports[0].image, p.supports[0].mask) for p in pairs
    }
    encoded = {p.name: model.encode_image(p.query.image) for p in pairs}
    results: dict[str, dict[str, Any]] = {method: {} for method in METHODS}
    for count in COUNTS:
        answers: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
        for call in calls(pairs, count, chosen.calls):
            alone = {pair.kind: supports[pair.name] for pair in call}
            asked = {"alone": alone, "beside": companions.beside(model, alone, alone)}
            for method, named in asked.items():
                features = {name: support.features(1) for name, support in named.items()}
                for pair in call:
                    found = model.segment_encoded(
                        pair.query.image, encoded[pair.name], features, model.config.threshold
                    )
                    answers[method].append(judged(found, pair))
        for method in METHODS:
            results[method][str(count)] = summary(answers[method])
    print_table(
        ["classes", "", "IoU %", "others' pixels %", "found, not there %", "first %"],
        [
            [str(n), m, *(f"{value:.1f}" for value in results[m][str(n)].values())]
            for n in COUNTS
            for m in METHODS
        ],
    )
    if chosen.record is not None:
        write_record(
            chosen.record,
            record.command(),
            model=chosen.model,
            calls=chosen.calls,
            results=results,
        )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
