"""Supports of any number of shots as one batch, for graphs without loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from fsdino.models.encoders import Features
from fsdino.models.shots import FittedShot, Shot, SupportFeatures, TokenFit


@dataclass(frozen=True)
class StackedFit(TokenFit):
    """A fit whose M shots are tensors with a dim of their own.

    Attributes:
        tokens: [B, M, L, C, h, w].
        sides: [B, M, h, w].
    """

    tokens: Tensor = field(kw_only=True)
    sides: Tensor = field(kw_only=True)

    def each(self, tokens: Tensor, ask: Callable[[Tensor, FittedShot], Tensor]) -> Tensor:
        """What queries get from each of the M shots: [M, B, ...]."""
        count = self.sides.shape[1]
        shots = FittedShot(self.tokens.flatten(0, 1), self.sides.flatten(0, 1))
        return _by_shot(ask(_repeated(tokens, count), shots), count)


@dataclass(frozen=True)
class StackedSupport(SupportFeatures):
    """A support whose K shots are tensors with a dim of their own.

    Attributes:
        stacked: with levels [B, K, L_i, C_i, h_i, w_i] and masks [B, K, h_i, w_i].
    """

    stacked: Shot = field(kw_only=True)

    def each(self, query: Features, ask: Callable[[Features, Shot], Tensor]) -> Tensor:
        """What queries get from each of the K shots: [K, B, ...]."""
        count = self.stacked.masks[0].shape[1]
        queries = Features.of([_repeated(tokens, count) for tokens in query.tensors()])
        found = ask(queries, self.stacked.map(lambda part: part.flatten(0, 1)))
        return _by_shot(found, count)


def _repeated(tokens: Tensor, count: int) -> Tensor:
    """[B, ...] -> [B * count, ...], the copies of a query side by side."""
    return tokens[:, None].expand(-1, count, *tokens.shape[1:]).flatten(0, 1)


def _by_shot(found: Tensor, count: int) -> Tensor:
    """[B * count, ...] -> [count, B, ...]."""
    apart: Tensor = found.unflatten(0, (-1, count))
    return apart.transpose(0, 1)
