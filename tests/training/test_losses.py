"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from fsdino.training.losses import TokenClassifier, dice_loss, mask_loss, prototype_loss


def test_dice_by_hand() -> None:
    """Probabilities 1/2 over four pixels, two of them true: 1 - (2 * 1 + 1) / (2 + 2 + 1)."""
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    assert dice_loss(torch.zeros(1, 2, 2), target).item() == pytest.approx(1 - 3 / 5)


def test_mask_loss_adds_equal_parts() -> None:
    """Cross entropy of logit 0 is ln 2, whatever the target; Dice comes on top."""
    target = torch.tensor([[[1.0, 1.0], [0.0, 0.0]]])
    loss = mask_loss(torch.zeros(1, 1, 2, 2), target)
    assert loss.item() == pytest.approx(math.log(2) + 0.4)


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
