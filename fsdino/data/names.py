"""Names of data sets and their settings, for modules that must not import torch."""

from __future__ import annotations

from typing import Literal, get_args

CROSS_DOMAIN = ("deepglobe", "isic", "lung")
EVALUATION_ONLY = ("lvis92i", "pascal-part", "paco-part", *CROSS_DOMAIN)  # never trained on
DATASETS = (
    *("pascal5i", "pascal5i-leak-safe", "coco20i", "fss1000", *EVALUATION_ONLY),
    *("folder", "davis17", "procedural"),
)
ON_DISK = tuple(name for name in DATASETS if name != "procedural")
VIDEO_PROTOCOLS = ("first-frame", "first-frame-official")  # of davis17
SAMPLINGS = ("hsnet", "seeded")
Layout = Literal["auto", "class-folders", "pairs", "labels"]  # of your own folder
LAYOUTS: tuple[str, ...] = get_args(Layout)
