"""The loss of a batch of episodes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fsdino.models.encoders import Features
from fsdino.models.segmenter import Segmenter
from fsdino.models.training_free import prototype_score
from fsdino.training.meta.losses import TokenClassifier, contrast_loss, mask_loss, prototype_loss


class Objective(nn.Module):
    """A segmenter with its losses, so that processes wrap one module and call it once per batch.

    Args:
        model: what is trained.
        classifier: also trained, for `class_weight`.
        dice_weight, prototype_weight, class_weight, contrast_weight: see `TrainConfig`.
        dtype: of the trained part, under autocast where it is not float32.
    """

    def __init__(
        self,
        model: Segmenter,
        classifier: TokenClassifier | None,
        dice_weight: float,
        prototype_weight: float,
        class_weight: float,
        contrast_weight: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.model, self.classifier = model, classifier
        self.prototype_weight, self.class_weight = prototype_weight, class_weight
        self.dice_weight, self.contrast_weight = dice_weight, contrast_weight
        self.dtype = dtype

    def forward(
        self, images: Tensor | Features, masks: Tensor, shots: int, class_ids: Tensor
    ) -> Tensor:
        """Mean loss of the predictions: each of N images is once the query.

        Args:
            images: [N, 3, H, W] in [0, 1], the K + 1 of an episode side by side; or the frozen
                encoder's features of them.
            masks: [N, H, W] in [0, 1].
            shots: K.
            class_ids: [N / (K + 1)].
        """
        on = self.dtype != torch.float32
        with torch.autocast(masks.device.type, self.dtype, enabled=on):
            query = images if isinstance(images, Features) else self.model.encode(images)
            others = supports_of(len(masks), shots).to(masks.device)
            support = self.model.pool(query[others], masks[others], shots)
            size = (masks.shape[-2], masks.shape[-1])
            answer = self.model.answer(query, [support], size)
        loss = mask_loss(answer.logits, masks, self.dice_weight)
        if self.prototype_weight:
            score = prototype_score(query, support)
            loss = loss + self.prototype_weight * prototype_loss(score, masks)
        if self.classifier is not None:
            class_ids = class_ids.repeat_interleave(shots + 1)
            loss = loss + self.class_weight * self.classifier(query.last, masks, class_ids)
        if self.contrast_weight:
            loss = loss + self.contrast_weight * contrast_loss(query.last, masks, shots)
        return loss


def supports_of(images: int, shots: int) -> Tensor:
    """The supports of each image: the others of its episode, in turn; int64 [images * K]."""
    group = shots + 1
    first = torch.arange(images // group)[:, None, None] * group
    turn = (torch.arange(group)[:, None] + torch.arange(1, group)) % group  # [K + 1, K]
    return (first + turn).flatten()
