"""Augmentation: one change for a whole episode, images and masks together, chance in one place."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from fsdino.data.batches import Batch, collate
from fsdino.data.episodes import NO_CLASS
from fsdino.data.procedural import ProceduralEpisodes
from fsdino.training.meta.augment import augment, crowd


def batch(shots: int = 2, episodes: int = 8) -> Batch:
    source = ProceduralEpisodes(3, "train", shots=shots, image_size=64)
    return collate([source[i] for i in range(episodes)], 64)


def alike(shots: int = 2) -> Batch:
    """Episodes whose supports are copies of the query, painted with its mask."""
    plain = batch(shots)
    painted = plain.query_masks[:, None].expand(-1, 3, -1, -1)
    return dataclasses.replace(
        plain,
        query_images=painted.contiguous(),
        support_images=painted[:, None].expand(-1, shots, -1, -1, -1).contiguous(),
        support_masks=plain.query_masks[:, None].expand(-1, shots, -1, -1).contiguous(),
    )


def test_query_and_supports_change_alike() -> None:
    result = augment(alike(), np.random.default_rng(0), 1.0)
    assert (result.class_ids == NO_CLASS).any()
    torch.testing.assert_close(
        result.support_images, result.query_images[:, None].expand_as(result.support_images)
    )
    torch.testing.assert_close(
        result.support_masks, result.query_masks[:, None].expand_as(result.support_masks)
    )


def test_episodes_change_differently() -> None:
    one = alike()
    first = {
        name: value[:1].expand(len(one), *value.shape[1:]).contiguous()
        for name, value in vars(one).items()
    }
    result = augment(Batch(**first), np.random.default_rng(0), 1.0)
    changed = result.query_masks[result.class_ids == NO_CLASS]
    assert len({mask.numpy().tobytes() for mask in changed}) == len(changed) > 1


def test_masks_follow_their_images() -> None:
    """Where the geometry alone changes, an image painted with its mask still shows its mask."""
    plain = alike()
    result = augment(plain, np.random.default_rng(1), 1.0)
    moved = 0
    for image, mask, before in zip(
        result.query_images, result.query_masks, plain.query_masks, strict=True
    ):
        if not torch.equal(image[0], image[1]):
            continue  # filtered: colours no longer say what was painted
        agreement = ((image[0] > 0.5) == (mask > 0.5)).float().mean()
        assert agreement > 0.97
        moved += int(((mask > 0.5) != (before > 0.5)).float().mean() > 0.05)
    assert moved >= 2


def test_results_are_valid_episodes() -> None:
    plain = batch()
    result = augment(plain, np.random.default_rng(2), 1.0)
    for name, before in vars(plain).items():
        after = getattr(result, name)
        assert after.shape == before.shape
        assert after.dtype == before.dtype
        assert after.is_contiguous()
    for images in (result.query_images, result.support_images):
        assert images.isfinite().all()
        assert images.min() >= 0
        assert images.max() <= 1
    for masks in (result.query_masks, result.support_masks):
        assert set(masks.unique().tolist()) <= {0.0, 1.0}
        assert masks.mean((-2, -1)).min() >= 0.02


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_untouched_episodes_keep_everything(share: float) -> None:
    plain = batch(episodes=16)
    result = augment(plain, np.random.default_rng(3), share)
    kept = result.class_ids == plain.class_ids
    assert kept.all() if share == 0 else kept.any() and not kept.all()
    for name, before in vars(plain).items():
        assert torch.equal(getattr(result, name)[kept], before[kept]), name


def test_an_episode_whose_target_would_leave_the_picture_stays() -> None:
    plain = batch()
    speck = torch.zeros_like(plain.query_masks)
    speck[:, 0, 0] = 1
    tiny = dataclasses.replace(plain, query_masks=speck)
    result = augment(tiny, np.random.default_rng(0), 1.0)
    assert torch.equal(result.class_ids, plain.class_ids)
    assert torch.equal(result.query_images, plain.query_images)


def test_the_generator_decides_everything() -> None:
    first, again, other = (augment(batch(), np.random.default_rng(s), 1.0) for s in (4, 4, 5))
    assert torch.equal(first.query_images, again.query_images)
    assert not torch.equal(first.query_images, other.query_images)


def test_a_flat_picture_stays_finite() -> None:
    plain = alike()
    flat = dataclasses.replace(
        plain,
        query_images=torch.full_like(plain.query_images, 0.5),
        support_images=torch.full_like(plain.support_images, 0.5),
    )
    result = augment(flat, np.random.default_rng(0), 1.0)
    assert result.query_images.isfinite().all()


def test_a_crowd_is_several_small_ones() -> None:
    """One square in the middle becomes squares of a third to two thirds of its side."""
    plain = alike(1)
    square = torch.zeros_like(plain.query_masks)
    square[:, 20:44, 20:44] = 1
    image = square[:, None].expand(-1, 3, -1, -1).contiguous()
    one = dataclasses.replace(
        plain,
        query_images=image,
        query_masks=square,
        support_images=image[:, None].clone(),
        support_masks=square[:, None].clone(),
        query_ignore=square == 0,
    )
    result = crowd(one, np.random.default_rng(0), 1.0)
    masks = torch.cat([result.query_masks, result.support_masks[:, 0]])
    assert len({mask.numpy().tobytes() for mask in masks}) == len(masks)  # each its own view
    for mask in masks:
        rows = mask[:, mask.sum(0).argmax()].tolist()
        edges = [0, *rows, 0]
        starts = sum(b > a for a, b in itertools.pairwise(edges))
        whole = [len(run) for run in "".join(map(str, map(int, rows))).strip("1").split("0") if run]
        assert starts >= 2
        assert all(24 / 2.9 - 1.5 <= side <= 24 / 1.4 + 1.5 for side in whole)
    assert ((result.query_images[:, 0] > 0.5) == (result.query_masks > 0.5)).float().mean() > 0.98
    # What was ignored, the square's surroundings, still is, but for rounding at the borders.
    assert (result.query_ignore == (result.query_masks == 0)).float().mean() > 0.99
    assert torch.equal(result.class_ids, one.class_ids)
    assert torch.equal(one.query_masks, square)  # nothing is changed in place


def test_a_crowd_leaves_the_rest_as_it_is() -> None:
    plain = batch(episodes=16)
    result = crowd(plain, np.random.default_rng(1), 0.5)
    for before, after in (
        (plain.query_images, result.query_images),
        (plain.support_images.flatten(0, 1), result.support_images.flatten(0, 1)),
    ):
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert 0.2 < sum(same) / len(same) < 0.8
    speck = torch.zeros_like(plain.query_masks)
    speck[:, 0, 0] = 1
    tiny = dataclasses.replace(plain, query_masks=speck)
    assert torch.equal(crowd(tiny, np.random.default_rng(0), 1.0).query_masks, speck)
