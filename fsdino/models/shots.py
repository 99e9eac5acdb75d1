"""Annotated images as a forward pass takes them: their tokens, their masks on the token grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fsdino.models.encoders import Features, middle
from fsdino.resizing import area_shares


@dataclass(frozen=True)
class Shot:
    """One annotated image of each of B episodes, as tokens.

    Attributes:
        correlation: the levels of `Features.correlation`, each [B, L_i, C_i, h_i, w_i].
        masks: of each level [B, h_i, w_i] in [0, 1], as the model makes it: FS-DINO's is the share
            of foreground of each token.
    """

    correlation: tuple[Tensor, ...]
    masks: tuple[Tensor, ...]

    def __getitem__(self, index: slice) -> Shot:
        """The shot of some of the episodes."""
        return self.map(lambda part: part[index])

    def map(self, change: Callable[[Tensor], Tensor]) -> Shot:
        """The same with every tensor changed."""
        return Shot(tuple(map(change, self.correlation)), tuple(map(change, self.masks)))


@dataclass(frozen=True)
class PooledShot(Shot):
    """A shot with its prototypes, the masked means of its last tokens.

    Attributes:
        foreground: [B, C], weighted by the mask.
        background: [B, C], weighted by what the mask leaves out.
    """

    foreground: Tensor
    background: Tensor

    @classmethod
    def of(cls, features: Features, masks: tuple[Tensor, ...]) -> PooledShot:
        """Of encoded images and the masks of their levels, each [B, h_i, w_i]."""
        mask = middle(masks)
        return cls(
            features.correlation,
            masks,
            masked_mean(features.last, mask),
            masked_mean(features.last, 1 - mask),
        )

    def by_episode(self, shots: int) -> list[PooledShot]:
        """The K shots of B episodes, of B * K images with the K of an episode side by side."""
        stacked = self.map(lambda part: part.unflatten(0, (-1, shots)))

        def shot(k: int) -> PooledShot:
            return stacked.map(lambda part: part[:, k])

        return [shot(k) for k in range(shots)]

    def map(self, change: Callable[[Tensor], Tensor]) -> PooledShot:
        """The same with every tensor changed."""
        own = super().map(change)
        pooled = change(self.foreground), change(self.background)
        return PooledShot(own.correlation, own.masks, *pooled)


@dataclass(frozen=True)
class FittedShot:
    """A shot as queries are matched with it.

    Attributes:
        tokens: [B, L, C, h, w] in float32, standardised.
        sides: [B, h, w], 1 on the object, -1 beside it, 0 where that is ambiguous.
    """

    tokens: Tensor
    sides: Tensor


@dataclass(frozen=True)
class TokenFit:
    """What `training_free.TrainingFree` has fitted to the supports of B episodes, in float32.

    Attributes:
        mean: [B, L, C] of the supports' tokens.
        scale: [B, L, C] one over their standard deviation; 0 where that is 0.
        weight: [B, L, C] classifier of standardised tokens.
        bias: [B] of the classifier.
        levels: [B, 6] of the scores on the supports: the cut, means of foreground and background,
            their standard deviations, and the share of foreground.
        shots: the supports and further views of them.
    """

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor
    levels: Tensor
    shots: tuple[FittedShot, ...] = ()

    @classmethod
    def of(cls, tensors: Sequence[Tensor]) -> TokenFit:
        """The inverse of `tensors`."""
        mean, scale, weight, bias, levels, *rest = tensors
        return cls(mean, scale, weight, bias, levels, tuple(map(FittedShot, rest[::2], rest[1::2])))

    @classmethod
    def cat(cls, parts: Sequence[TokenFit]) -> TokenFit:
        """The episodes of all parts, in their order."""
        return cls.of([*map(torch.cat, zip(*(part.tensors() for part in parts), strict=True))])

    def each(self, tokens: Tensor, ask: Callable[[Tensor, FittedShot], Tensor]) -> Tensor:
        """What queries get from each of the M shots: [M, B, ...].

        Args:
            tokens: of the queries, [B, ...].
            ask: gives [B, ...] of them and one shot.
        """
        return torch.stack([ask(tokens, shot) for shot in self.shots])

    def tensors(self) -> list[Tensor]:
        """All of them, in the order of the fields; of each shot, tokens and sides."""
        own = [self.mean, self.scale, self.weight, self.bias, self.levels]
        return own + [tensor for shot in self.shots for tensor in (shot.tokens, shot.sides)]

    def map(self, change: Callable[[Tensor], Tensor]) -> TokenFit:
        """The same with every tensor changed."""
        return self.of([*map(change, self.tensors())])


@dataclass(frozen=True)
class SupportFeatures:
    """K shots as a forward pass takes them.

    Attributes:
        foreground: [B, C] prototype, averaged over shots.
        background: [B, C] likewise.
        shots: one per annotated image; their grids may differ.
        fit: for models with a training-free score, else None.
    """

    foreground: Tensor
    background: Tensor
    shots: Sequence[Shot]
    fit: TokenFit | None = None

    @classmethod
    def of(cls, shots: Sequence[PooledShot], fit: TokenFit | None) -> SupportFeatures:
        """The prototypes are averaged, the shots kept apart."""
        return cls(
            torch.stack([shot.foreground for shot in shots], 1).mean(1),
            torch.stack([shot.background for shot in shots], 1).mean(1),
            shots,
            fit,
        )

    def each(self, query: Features, ask: Callable[[Features, Shot], Tensor]) -> Tensor:
        """What queries get from each of the K shots: [K, B, ...].

        Args:
            query: B queries.
            ask: gives [B, ...] of them and one shot.
        """
        return torch.stack([ask(query, shot) for shot in self.shots])

    def tensors(self) -> list[Tensor]:
        """All tensors: prototypes, tokens, masks and what was fitted to them."""
        shots = [t for shot in self.shots for t in (*shot.correlation, *shot.masks)]
        fit = [] if self.fit is None else self.fit.tensors()
        return [self.foreground, self.background, *shots, *fit]


def masked_mean(tokens: Tensor, weight: Tensor) -> Tensor:
    """Masked average pooling: [B, C, h, w] and [B, h, w] -> [B, C]; 0 where the weight is 0."""
    total = torch.einsum("bchw,bhw->bc", tokens.float(), weight.float())
    return total / weight.float().sum((1, 2)).clamp_min(1e-6)[:, None]


def token_mask(masks: Tensor, grid: tuple[int, int]) -> Tensor:
    """Masks [B, H, W] in [0, 1] to the token grid, [B, h, w]: the share of each token.

    Scaled so that the best covered token counts as foreground entirely: else an object smaller
    than a token would be background by 2m - 1. Empty masks stay empty.

    Args:
        masks: at the size of the model's input, or on the grid already (`resizing.area_share`).
        grid: h and w.
    """
    share = area_shares(masks, grid)
    return share / share.amax((1, 2), keepdim=True).clamp_min(1e-6)


def positions(mask: Tensor) -> Tensor:
    """Horizontal positions in [0, 1) of the tokens of a mask [..., h, w]: [h, w]."""
    height, width = mask.shape[-2:]
    columns = (torch.arange(width, device=mask.device) + 0.5) / width
    return columns.expand(height, width)
