"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fsdino.training.meta.losses import (
    TokenClassifier,
    contrast_loss,
    dice_loss,
    mask_loss,
    prototype_loss,
)


def test_dice_by_hand() -> None:
    """Probabilities 1/2 over four pixels, two of them true: 1 - (2 * 1 + 1) / (2 + 2 + 1)."""
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice_loss(torch.zeros(1, 2, 2), target).item() == pytest.approx(1 - 3 / 5)


def test_mask_loss_adds_equal_parts() -> None:
    """Cross entropy of logit 0 is ln 2, whatever the target; Dice comes on top."""
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    loss = mask_loss(torch.zeros(1, 1, 2, 2), target)
    assert loss.item() == pytest.approx(math.log(2) + 0.4)
    half = mask_loss(torch.zeros(1, 1, 2, 2), target, dice_weight=0.5)
    assert half.item() == pytest.approx(math.log(2) + 0.2)


def test_without_dice_it_is_the_cross_entropy_of_two_channels() -> None:
    """HSNet's loss, of which the logit is foreground minus background."""
    generator = torch.Generator().manual_seed(0)
    both = torch.randn(2, 2, 3, 4, generator=generator)
    target = (torch.rand(2, 3, 4, generator=generator) > 0.5).float()
    found = mask_loss(both[:, 1:] - both[:, :1], target, dice_weight=0.0)
    torch.testing.assert_close(found, F.cross_entropy(both, target.long()))


def test_prototype_loss_compares_with_the_share_of_each_token() -> None:
    """The mask reaches the token grid as its area mean: one true pixel of 2 x 2 is 1/4."""
    score, target = torch.tensor([[[[0.1]]]]), torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])
    probability = 1 / (1 + math.exp(-1))
    expected = -(0.25 * math.log(probability) + 0.75 * math.log(1 - probability))
    assert prototype_loss(score, target).item() == pytest.approx(expected)


def test_classifier_reads_foreground_tokens_only() -> None:
    """Only tokens mostly inside the mask are classified, by cosine over temperature."""
    classifier = TokenClassifier(2, classes=(5, 8))
    classifier.prototypes.data = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    tokens = torch.tensor([[[[4.0, -9.0]], [[0.0, 7.0]]]])  # first token along class 5
    target = torch.tensor([[[1.0, 0.0]]])
    loss = classifier(tokens, target, torch.tensor([5]))
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)
    assert classifier(tokens, torch.zeros(1, 1, 2), torch.tensor([5])).item() == 0


def test_token_classifier_leaves_out_images_of_other_classes() -> None:
    torch.manual_seed(0)
    classifier = TokenClassifier(2, classes=(5, 8))
    tokens, target = torch.randn(2, 2, 3, 3), torch.ones(2, 6, 6)
    both = classifier(tokens, target, torch.tensor([5, -1]))
    assert torch.equal(both, classifier(tokens[:1], target[:1], torch.tensor([5])))
    assert classifier(tokens, target, torch.tensor([-1, -1])) == 0


def test_contrast_by_hand() -> None:
    """Two episodes of two images; tokens outside the masks, the second ones, do not count.

    The first token of each image lies along its episode's axis, so its cosine is 1 to its own
    episode's other image and 0 to the other episode.
    """
    along_x, along_y = [[[3.0, 0.0]], [[0.0, 1.0]]], [[[0.0, 9.0]], [[2.0, 1.0]]]
    tokens = torch.tensor([along_x, along_x, along_y, along_y])
    target = torch.tensor([[[1.0, 0.0]]]).expand(4, 1, 2)
    loss = contrast_loss(tokens, target, 1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-10)), rel=1e-3)


@pytest.mark.parametrize("shots", [1, 2])
def test_contrast_against_loops(shots: int) -> None:
    """One token at a time: its own episode is stood for by the other images, never by its own."""
    torch.manual_seed(0)
    images, side = 6, 4
    tokens, target = torch.randn(images, 5, side, side), (torch.rand(images, 8, 8) > 0.5).float()
    cover = target.unflatten(1, (side, 2)).unflatten(3, (side, 2)).mean((2, 4))
    means = [unit((tokens[n] * cover[n]).sum((1, 2))) for n in range(images)]
    losses = []
    for n in range(images):
        prototypes = []
        for first in range(0, images, shots + 1):
            members = [i for i in range(first, first + shots + 1) if i != n]
            prototypes.append(unit(torch.stack([means[i] for i in members]).sum(0)))
        for y, x in (cover[n] > 0.5).nonzero().tolist():
            scores = torch.stack([unit(tokens[n, :, y, x]) @ p for p in prototypes]) / 0.1
            losses.append(scores.logsumexp(0) - scores[n // (shots + 1)])
    expected = torch.stack(losses).mean()
    torch.testing.assert_close(contrast_loss(tokens, target, shots), expected)


def test_contrast_always_has_a_gradient() -> None:
    """Zero without a foreground token: DDP waits for every parameter's gradient."""
    tokens = torch.randn(2, 4, 3, 3, requires_grad=True)
    contrast_loss(tokens, torch.zeros(2, 6, 6), 1).backward()
    assert tokens.grad is not None and tokens.grad.abs().max() == 0


def unit(vector: torch.Tensor) -> torch.Tensor:
    """The vector at length 1."""
    return vector / vector.norm()
