"""Losses of the second training stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fsdino.resizing import area_shares


def mask_loss(logits: Tensor, target: Tensor, dice_weight: float = 1.0) -> Tensor:
    """Binary cross entropy plus Dice; the mean over the batch.

    Args:
        logits: [B, 1, H, W].
        target: [B, H, W] in [0, 1].
        dice_weight: of the latter; 0 leaves the cross entropy alone, which over the two channels
            of HSNet is that of their difference.
    """
    logits = logits[:, 0].float()
    loss = F.binary_cross_entropy_with_logits(logits, target)
    return loss + dice_weight * dice_loss(logits, target) if dice_weight else loss


def dice_loss(logits: Tensor, target: Tensor) -> Tensor:
    """1 - Dice coefficient of the probabilities (Milletari et al., V-Net, 2016), batch mean.

    Args:
        logits: [B, H, W].
        target: [B, H, W] in [0, 1].
    """
    probability = logits.sigmoid()
    overlap = 2 * (probability * target).sum((1, 2)) + 1
    return (1 - overlap / (probability.sum((1, 2)) + target.sum((1, 2)) + 1)).mean()


def prototype_loss(score: Tensor, target: Tensor, temperature: float = 0.1) -> Tensor:
    """Cross entropy of the prototype score, to shape an encoder that is trained from scratch.

    Args:
        score: [B, 1, h, w], cosine to the foreground minus cosine to the background prototype.
        target: [B, H, W] in [0, 1], brought to h x w by its area mean.
        temperature: divides the score.
    """
    cover = area_shares(target, (score.shape[-2], score.shape[-1]))[:, None]
    return F.binary_cross_entropy_with_logits(score.float() / temperature, cover)


def contrast_loss(tokens: Tensor, target: Tensor, shots: int, temperature: float = 0.1) -> Tensor:
    """Cross entropy of foreground tokens among the prototypes of all episodes of a batch.

    It tells classes apart without their names. A token's own episode is represented by its other
    images; every prototype is a mean of the images' normalised means (as in prototypical networks:
    Snell et al., NeurIPS 2017).

    Args:
        tokens: [B * (K + 1), C, h, w], the images of an episode side by side.
        target: [B * (K + 1), H, W] in [0, 1].
        shots: K, at least 1.
        temperature: divides the cosine.
    """
    cover = area_shares(target, (tokens.shape[-2], tokens.shape[-1]))
    flat = tokens.float().flatten(2).transpose(1, 2)  # [N, h * w, C]
    means = F.normalize((cover.flatten(1)[..., None] * flat).sum(1), dim=1)  # [N, C]
    sums = means.unflatten(0, (-1, shots + 1)).sum(1)  # [B, C]
    own = torch.arange(len(means), device=means.device) // (shots + 1)
    others = F.normalize(sums[own] - means, dim=1)  # [N, C]
    tokens = F.normalize(flat, dim=2)
    cosine = tokens @ F.normalize(sums, dim=1).T  # [N, h * w, B]
    mine = tokens @ others[..., None]  # [N, h * w, 1]
    is_own = F.one_hot(own, len(sums)).bool()[:, None]  # [N, 1, B]
    scores = torch.where(is_own, mine, cosine) / temperature
    inside = cover.flatten(1) > 0.5
    if not inside.any():
        return tokens.sum() * 0  # DDP waits for every gradient
    return F.cross_entropy(scores[inside], own[:, None].expand_as(inside)[inside])


class TokenClassifier(nn.Module):
    """Cross entropy of foreground tokens against the base classes, for an encoder from scratch.

    A cosine classifier with one learned prototype per class; it exists during training only.

    Args:
        channels: C of the tokens.
        classes: ids of the base classes.
        temperature: divides the cosine.
    """

    def __init__(self, channels: int, classes: Sequence[int], temperature: float = 0.1) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.randn(len(classes), channels))
        self.rows = {class_id: row for row, class_id in enumerate(classes)}
        self.temperature = temperature

    def forward(self, tokens: Tensor, target: Tensor, class_ids: Tensor) -> Tensor:
        """Mean loss over the tokens that are mostly foreground.

        Args:
            tokens: [B, C, h, w].
            target: [B, H, W] in [0, 1].
            class_ids: int [B]; images of other than the base classes do not count.
        """
        grid = (tokens.shape[-2], tokens.shape[-1])
        inside = area_shares(target, grid) > 0.5
        found = [self.rows.get(int(c), -1) for c in class_ids]
        rows = torch.tensor(found, device=tokens.device)[:, None, None]
        inside = inside & (rows >= 0)
        labels = rows.expand(inside.shape)[inside]  # [M]
        chosen = tokens.permute(0, 2, 3, 1)[inside]  # [M, C]
        if len(labels) == 0:
            return (tokens.sum() + self.prototypes.sum()) * 0  # DDP waits for every gradient
        cosine = F.normalize(chosen, dim=1) @ F.normalize(self.prototypes, dim=1).T
        return F.cross_entropy(cosine / self.temperature, labels)
