"""A model's side of masks that are made from marks: which image has which, and its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from fsdino.images import Flags, ImageLike, Pixels, label_of, read_image
from fsdino.masks import MaskRule, read_mask
from fsdino.models import mark_arguments, marks
from fsdino.models.encoders import Features
from fsdino.models.few_shot import FewShotModel
from fsdino.models.mark_arguments import BoxesLike, Given, LabelsLike, PointsLike
from fsdino.resizing import to_tensor

BATCH = 8  # images that share an encoder pass


class Marking(FewShotModel):
    """A model that takes images, and turns what is marked in them into masks."""

    @torch.inference_mode()
    def mark(
        self,
        image: ImageLike,
        *,
        boxes: BoxesLike | None = None,
        points: PointsLike | None = None,
        labels: LabelsLike | None = None,
        scribbles: ImageLike | None = None,
    ) -> Flags:
        """The mask of an object that is marked by boxes, points or a scribble, one of them.

        See `fsdino.models.marks`. The mask may be corrected before `encode_support` takes it.

        Args:
            image: as in `encode_support`.
            boxes: (x0, y0, x1, y1) in pixels of the upright image, x1 and y1 just outside; or
                several, whose objects are joined.
            points: [(x, y), ...] in pixels of the upright image.
            labels: of each point: 1 on the object, 0 not on it; None makes all 1.
            scribbles: uint8 [H, W] of the image's size: 0 unknown, 1 object, 2 background; an
                array, a PIL image or a file.

        Returns:
            bool [H, W] at the upright image's size.

        Raises:
            UsageError: no mark or two kinds, marks outside of the image, no mark on the object.
            DataError: an unreadable image or scribble, a mark that finds nothing.
        """
        [entry] = mark_arguments.given(
            1, many=False, boxes=boxes, points=points, labels=labels, scribbles=scribbles
        )
        return self._mask_of(read_image(image, entry.name), entry, image, MaskRule())

    def _mask_of(self, array: Pixels, entry: Given, image: ImageLike, rule: MaskRule) -> Flags:
        """The mask bool [H, W] of an image uint8 [H, W, 3], read or made from marks."""
        size = (array.shape[0], array.shape[1])
        if entry.argument == "masks":
            name = entry.name.replace("image", "mask")
            return read_mask(entry.value, size, name, image=image, rule=rule)
        self._check_weights()
        entry = replace(entry, name=label_of(image, entry.name))
        return marks.to_mask(array, mark_arguments.read_marks(entry, size), self._encode_arrays)

    def _encode_arrays(self, arrays: Sequence[Pixels]) -> list[Features]:
        """Encode images uint8 [H, W, 3], a few at a time: many shots do not take memory at once."""
        found: list[Features] = []
        for start in range(0, len(arrays), BATCH):
            found += self.encode_list([self._prepare(a) for a in arrays[start : start + BATCH]])
        return found

    def _prepare(self, array: Pixels) -> Tensor:
        """uint8 [H, W, 3] -> [3, h, w] in [0, 1] at the model's size."""
        side, patch = self.config.image_size, self.patch_size
        size = (side, side)
        if self.config.keep_aspect:
            scale = side / max(array.shape[:2])
            height, width = (max(round(n * scale / patch), 1) * patch for n in array.shape[:2])
            size = (height, width)
        return to_tensor(array, size).to(self.device)
