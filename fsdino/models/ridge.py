"""Ridge regression in closed form: which side each token is on, from its channels.

With tokens X [D, N] and sides y [N], both centred by weights w that sum to 1, the solution is the
b that minimises sum w (y - b X)^2 + ridge |b|^2. Two systems of equations have it, one over the D
channels and one over the N tokens; the smaller one is solved.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fitted_scores(tokens: Tensor, sides: Tensor, share: Tensor, ridge: float) -> Tensor:
    """Scores [B, N] that tokens get by what is fitted to themselves.

    Args:
        tokens: [B, D, N].
        sides: [B, N], what the scores come near to.
        share: [B, N], weights of the tokens; those of a query sum to 1, or all are 0.
        ridge: strength of the penalty.
    """
    level = (share * sides).sum(1, keepdim=True)
    tokens = tokens - tokens @ share[:, :, None]
    if tokens.shape[2] < tokens.shape[1]:
        kernel = tokens.mT @ tokens
        found = _over_tokens(kernel, share, sides - level, ridge)
        scores: Tensor = torch.einsum("bnm,bm->bn", kernel, found) + level
        return scores
    covariance = (tokens * share[:, None]) @ tokens.mT
    mixed = tokens @ (share * (sides - level))[:, :, None]
    return (tokens.mT @ _over_channels(covariance, mixed, ridge))[:, :, 0] + level


def even_weights(sides: Tensor) -> Tensor:
    """Weights [N] by which both sides have the same total, of tokens with sides [N].

    Their sum is the number of tokens on a side; those on none weigh nothing.
    """
    count = (sides != 0).sum()
    halves = [(sides == side).sum().clamp_min(1) for side in (-1, 1)]
    return (count / 2) * ((sides < 0) / halves[0] + (sides > 0) / halves[1])


class Classifier:
    """A classifier of one set of tokens, solved again without parts of them.

    Args:
        tokens: [D, N], standardised.
        sides: [N] in {-1, 0, 1}; 0 counts nothing.
        ridge: strength of the penalty.
        layers: L; tokens are divided by its root, so that a penalty means the same for any L.
        weights: [N] of the tokens, 0 where the side is; None weighs the tokens of a side equally,
            and both sides together the same.
    """

    def __init__(
        self,
        tokens: Tensor,
        sides: Tensor,
        ridge: float,
        layers: int,
        weights: Tensor | None = None,
    ) -> None:
        self.root = layers**0.5
        self.tokens, self.sides, self.ridge = tokens / self.root, sides, ridge
        self.weights = even_weights(sides) if weights is None else weights
        self.by_tokens = len(self.sides) < len(self.tokens)
        if self.by_tokens:
            self.products = self.tokens.T @ self.tokens
        else:
            self.sums = self._sums(self.weights)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights of the channels [D] and bias, from all tokens."""
        if not self.by_tokens:
            weight, bias = self._from_sums(self.sums)
        else:
            share = self.weights / self.weights.sum()
            found, _ = self._from_products(share)
            weight = self.tokens @ (found - share * found.sum())
            bias = (share * self.sides).sum() - weight @ (self.tokens @ share)
        return weight / self.root, bias

    def held_out(self, folds: Tensor | None) -> Tensor:
        """Scores [N] of each token, from tokens of other folds; of fold -1, from all."""
        scores = torch.empty_like(self.weights)
        for fold in [-1] if folds is None else folds.unique().tolist():
            inside = (
                torch.ones_like(self.sides, dtype=torch.bool) if folds is None else folds == fold
            )
            left = self.weights if fold < 0 else self.weights * ~inside
            if self.by_tokens:
                share = left / left.sum()
                found, kernel = self._from_products(share)
                scores[inside] = (kernel @ found)[inside] + (share * self.sides).sum()
            else:
                sums = self.sums
                if fold >= 0:
                    gone = self._sums(self.weights * inside, inside)
                    sums = tuple(a - b for a, b in zip(sums, gone, strict=True))
                weight, bias = self._from_sums(sums)
                scores[inside] = weight @ self.tokens[:, inside] + bias
        return scores

    def _sums(self, weights: Tensor, chosen: Tensor | None = None) -> tuple[Tensor, ...]:
        """Weighted sums over tokens: products, tokens, tokens times sides, sides, ones."""
        tokens, sides = self.tokens, self.sides
        if chosen is not None:
            tokens, sides, weights = tokens[:, chosen], sides[chosen], weights[chosen]
        weighted = tokens * weights
        total = weights.sum()
        return (weighted @ tokens.T, weighted.sum(1), weighted @ sides, weights @ sides, total)

    def _from_sums(self, sums: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """Weights of the channels [D] and bias."""
        products, tokens, mixed, sides, total = sums
        mean, side = tokens / total, sides / total
        covariance = products / total - torch.outer(mean, mean)
        weight = _over_channels(covariance, mixed / total - mean * side, self.ridge)
        return weight, side - weight @ mean

    def _from_products(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the tokens [N] and their centred products [N, N]."""
        row = self.products @ share
        kernel = self.products - row - row[:, None] + share @ row
        target = self.sides - (share * self.sides).sum()
        return _over_tokens(kernel, share, target, self.ridge), kernel


def _over_channels(covariance: Tensor, mixed: Tensor, ridge: float) -> Tensor:
    """Weights of the channels [..., D] or [..., D, 1].

    Args:
        covariance: [..., D, D] of the tokens; changed in place.
        mixed: of the tokens with the sides, [..., D] or [..., D, 1].
        ridge: strength of the penalty.
    """
    return _solve(_penalised(covariance, ridge), mixed)


def _over_tokens(kernel: Tensor, share: Tensor, sides: Tensor, ridge: float) -> Tensor:
    """Coefficients of the tokens [..., N]: the weights of the channels are tokens times them.

    Args:
        kernel: [..., N, N], products of the centred tokens.
        share: [..., N], weights of the tokens.
        sides: [..., N], centred.
        ridge: strength of the penalty.
    """
    root = share.sqrt()
    system = root[..., :, None] * kernel * root[..., None, :]
    return root * _solve(_penalised(system, ridge), root * sides)


def _penalised(systems: Tensor, ridge: float) -> Tensor:
    """Systems [..., D, D] with `ridge` on their diagonals: changed in place, but in exports."""
    if torch.compiler.is_exporting():
        return systems + ridge * torch.eye(systems.shape[-1])
    systems.diagonal(dim1=-2, dim2=-1).add_(ridge)
    return systems


def _solve(systems: Tensor, sides: Tensor) -> Tensor:
    """`torch.linalg.solve`, for systems on a CPU one after another.

    Two threads that each solve a large system fail inside of oneMKL on some processors ("Pivots
    given to lu_solve must all be greater or equal to 1", PyTorch 2.14). Exported graphs have one
    call for any number of systems.
    """
    whole = systems.ndim == 2 or systems.device.type != "cpu" or torch.compiler.is_exporting()
    if whole:
        found: Tensor = torch.linalg.solve(systems, sides)
        return found
    return torch.stack([_solve(*pair) for pair in zip(systems, sides, strict=True)])
