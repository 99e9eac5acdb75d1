"""Episodes of one colour, for tests of what is done with any."""

from __future__ import annotations

import numpy as np

from fsdino.data.episodes import Episode, Sample


def sample(height: int = 8, width: int = 8, class_id: int = 3, value: int = 0) -> Sample:
    image = np.full((height, width, 3), value, dtype=np.uint8)
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[: height // 2] = True
    return Sample(image=image, mask=mask, name=f"{height}x{width}", class_id=class_id)


def episode(*supports: Sample, query: Sample | None = None, index: int = 0) -> Episode:
    return Episode(query or sample(), supports, 3, "three", index)
