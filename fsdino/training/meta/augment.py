"""Augmentation of episodes: other classes, and more and smaller objects.

A few-shot model must segment what it has never seen, so new classes matter more to it than new
views of known ones. Stretching, turning or filtering query and supports alike (`augment`) makes an
object that no base class has, and keeps the question intact: what is marked still looks alike in
all of them. Shrinking images one by one, with their mirror images around them (`crowd`), asks the
same question at other scales, of several objects at once.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fsdino.data.batches import Batch
from fsdino.data.episodes import NO_CLASS

_STRETCH = 0.35  # largest logarithm of width over height, halved
_ZOOM = (-0.20, 0.25)  # logarithms
_SHEAR = 0.25
_FILTERED = 0.5
_FILTER_SIDES = (1, 3, 5)
_LEAST_AREA = 0.02
_SHRINK = (0.35, 1.05)  # logarithms: 1.4 to 2.9 times smaller


def augment(batch: Batch, rng: np.random.Generator, share: float) -> Batch:
    """Transform a share of the episodes, each in its own way, its images all in the same way.

    An episode is mirrored, turned by any angle, stretched, sheared and zoomed about the centre
    (bilinear, reflected at the borders; masks nearest), and half of the time filtered by a random
    convolution, mixed with the original (RandConv: Xu et al., ICLR 2021). It stays as it is where
    the target would cover less than 2 % of one of its images.

    Args:
        batch: B episodes.
        rng: decides everything.
        share: probability in [0, 1] that an episode is transformed.

    Returns:
        The batch; `class_ids` is `NO_CLASS` for transformed episodes, as their class is a new one.
    """
    images = torch.cat([batch.query_images[:, None], batch.support_images], 1)
    masks = torch.cat([batch.query_masks[:, None], batch.support_masks], 1)
    ignore, class_ids = batch.query_ignore.clone(), batch.class_ids.clone()
    for episode in range(len(batch)):
        if rng.random() >= share:
            continue
        matrix, kernel = _draw_matrix(rng), _draw_filter(rng)
        warped = _warp(masks[episode][:, None], matrix, "nearest")[:, 0]
        if warped.mean((1, 2)).min() < _LEAST_AREA:
            continue
        masks[episode] = warped
        images[episode] = _warp(images[episode], matrix, "bilinear")
        if kernel is not None:
            images[episode] = _filtered(images[episode], kernel, float(rng.random()))
        ignored = _warp(ignore[episode][None, None].float(), matrix, "nearest")
        ignore[episode] = ignored[0, 0] > 0
        class_ids[episode] = NO_CLASS
    return replace(
        batch,
        query_images=images[:, 0].contiguous(),
        support_images=images[:, 1:].contiguous(),
        query_masks=masks[:, 0].contiguous(),
        support_masks=masks[:, 1:].contiguous(),
        query_ignore=ignore,
        class_ids=class_ids,
    )


def crowd(batch: Batch, rng: np.random.Generator, share: float) -> Batch:
    """Shrink a share of the images, each by a factor of its own, and surround it by mirror images.

    One object becomes several small ones: 1.4 to 2.9 times smaller, about a random place (bilinear;
    masks nearest). An image stays as it is where the target would cover less than 2 % of it.

    Args:
        batch: B episodes.
        rng: decides everything.
        share: probability in [0, 1] that an image is shrunk.

    Returns:
        The batch; its classes are as they were.
    """
    batch = replace(batch, **{f.name: getattr(batch, f.name).clone() for f in fields(batch)})
    for episode in range(len(batch)):
        views = [
            (batch.query_images[episode], batch.query_masks[episode]),
            *zip(batch.support_images[episode], batch.support_masks[episode], strict=True),
        ]
        for index, (image, mask) in enumerate(views):
            shrunk, scale = rng.random() < share, float(np.exp(rng.uniform(*_SHRINK)))
            shift = torch.from_numpy(rng.uniform(-1, 1, 2)).float()
            if not shrunk:
                continue
            matrix = scale * torch.eye(2)
            warped = _warp(mask[None, None], matrix, "nearest", shift)[0, 0]
            if warped.mean() < _LEAST_AREA:
                continue
            image.copy_(_warp(image[None], matrix, "bilinear", shift)[0])
            mask.copy_(warped)
            if index == 0:
                ignore = batch.query_ignore[episode]
                ignore.copy_(_warp(ignore[None, None].float(), matrix, "nearest", shift)[0, 0] > 0)
    return batch


def _draw_matrix(rng: np.random.Generator) -> Tensor:
    """Draw the map [2, 2] from places in the result to places in the source, both in -1..1."""
    turn, stretch, shear, zoom = rng.random(4).tolist()
    angle = 2 * math.pi * turn
    cosine, sine = math.cos(angle), math.sin(angle)
    stretch, shear = _STRETCH * (2 * stretch - 1), _SHEAR * (2 * shear - 1)
    scale = math.exp(-(_ZOOM[0] + (_ZOOM[1] - _ZOOM[0]) * zoom))
    turned = np.array([[cosine, -sine], [sine, cosine]])
    stretched = np.array([[math.exp(stretch), shear], [0.0, math.exp(-stretch)]])
    mirrored = np.diag([1.0 if rng.random() < 1 / 2 else -1.0, 1.0])
    matrix: Tensor = torch.from_numpy(scale * turned @ stretched @ mirrored).float()
    return matrix


def _draw_filter(rng: np.random.Generator) -> Tensor | None:
    """Draw a convolution [3, 3, k, k] or, half of the time, none."""
    if rng.random() >= _FILTERED:
        return None
    side = int(rng.choice(_FILTER_SIDES))
    weight = rng.standard_normal((3, 3, side, side), dtype=np.float32)
    return torch.from_numpy(weight)


def _warp(images: Tensor, matrix: Tensor, mode: str, shift: Tensor | None = None) -> Tensor:
    """Resample [N, C, H, W] about its centre, or another place of it."""
    moved = torch.zeros(2) if shift is None else shift
    theta = torch.cat([matrix, moved[:, None]], 1).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)


def _filtered(images: Tensor, kernel: Tensor, weight: float) -> Tensor:
    """Mix images [N, 3, H, W] with their convolution, at the same mean and contrast."""
    mean = images.mean((2, 3), keepdim=True)
    centred = images - mean
    contrast = centred.std().clamp_min(1e-4)
    pad = kernel.shape[-1] // 2
    changed = F.conv2d(F.pad(centred, (pad, pad, pad, pad), mode="reflect"), kernel)
    changed = changed / changed.std().clamp_min(1e-4)
    mixed = weight * changed + (1 - weight) * centred / contrast
    mixed = (mixed - mixed.mean((2, 3), keepdim=True)) / mixed.std().clamp_min(1e-4)
    return (mixed * contrast + mean).clamp(0, 1)
