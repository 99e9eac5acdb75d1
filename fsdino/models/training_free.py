"""Masks from an encoder's features alone, without any trained part.

What concerns the supports is done once (`TrainingFree.fit`): their tokens are standardised, a
ridge classifier in closed form tells the object's tokens from the others, and how well it does on
parts of the supports that it was not fitted to sets the threshold. A query then costs one product
with the classifier and one correlation with the supports (`TrainingFree.score`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdino.models.encoders import Features
from fsdino.models.hypercorrelation import correlate
from fsdino.models.prompts import cosine_map
from fsdino.models.supports import Shot, SupportFeatures, TokenFit, positions

_FOLDS = 4  # vertical strips of a single support
_PLATEAU = 0.95  # of the best IoU: thresholds that do as well
_ROUNDS = 5  # of expectation and maximisation
_TRUST = 0.025  # in the support's levels, as a share of the query's tokens
_SPREAD = 0.05  # least standard deviation of scores
_TOP = 4  # tokens by which a query is said to show the object
_EVEN, _STEEP = 0.4, 2.0  # mean of their scores at which that is as likely as not; its slope
_TINY = 1e-6


def prototype_score(query: Features, support: SupportFeatures) -> Tensor:
    """Cosine to the foreground prototype minus cosine to the background's: [B, 1, h, w].

    As in PANet (Wang et al., ICCV 2019); in [-2, 2].
    """
    foreground = cosine_map(query.last, support.foreground)
    return foreground - cosine_map(query.last, support.background)


@dataclass(frozen=True)
class TrainingFree:
    """The training-free score of query tokens, and what it keeps of the supports.

    A token's score is that of a ridge classifier on the standardised tokens of all correlation
    layers, plus `matches` times (best foreground match minus best background match), the mean over
    layers of cosines between standardised tokens. Standardising takes away what all tokens of the
    supports share, which tells no class. The threshold is the one that segments held-out parts of
    the supports best; each query moves it by the levels of its own tokens.

    Attributes:
        widths: channels of each correlation layer before zeros fill them up.
        ridge: strength of the classifier's penalty, as a share of the tokens' variance.
        matches: weight of the matches; 0 leaves them out.
        border: tokens whose share of foreground is above `border` and below 1 - border are left
            out as ambiguous; 0.5 leaves none out.
        held_out: set the threshold by parts of the supports that the classifier has not seen;
            otherwise by all tokens.
        adapt: move the threshold by each query's own tokens.
    """

    widths: tuple[int, ...]
    ridge: float = 0.2
    matches: float = 2.0
    border: float = 0.2
    held_out: bool = True
    adapt: bool = True

    @torch.no_grad()
    def fit(self, shots: Sequence[Shot], places: Sequence[Tensor] | None = None) -> TokenFit:
        """What is known of the supports alone, for B episodes.

        Args:
            shots: the supports, and other views of them.
            places: [h, w] of each: where its tokens lie, as the number of their image plus their
                horizontal position in it, in [0, 1). Tokens of one place are held out together.
                None takes every shot for an image of its own.
        """
        if places is None:
            places = [k + positions(shot.mask) for k, shot in enumerate(shots)]
        rows = [
            [Shot(s.correlation[b : b + 1], s.mask[b : b + 1]) for s in shots]
            for b in range(len(shots[0].mask))
        ]
        return TokenFit.cat([self._fit(row, places) for row in rows])

    @torch.no_grad()
    def score(self, query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor]:
        """Where the object is likely, and how likely it is that the queries show it at all.

        Args:
            query: B queries.
            support: with the `fit` of this object.

        Returns:
            Scores of the queries' tokens [B, 1, h, w], positive where the object is likely; and
            [B] in [0, 1], by the mean of the best tokens' scores before the cut.
        """
        fit = support.fit
        assert fit is not None
        with torch.autocast(query.correlation.device.type, enabled=False):
            tokens = _standardise(query.correlation, fit)  # [B, L, C, h, w]
            score = torch.einsum("blchw,blc->bhw", tokens, fit.weight) + fit.bias[:, None, None]
            if self.matches:
                shots = (*support.shots, *support.views)
                score = score + self.matches * self._matches(tokens, shots, fit)
            cut = _adapted(score.flatten(1), fit) if self.adapt else fit.levels[:, 0]
            best = score.flatten(1).topk(min(_TOP, score[0].numel())).values.mean(1)
            return (score - cut[:, None, None])[:, None], ((best - _EVEN) * _STEEP).sigmoid()

    def _fit(self, shots: Sequence[Shot], places: Sequence[Tensor]) -> TokenFit:
        """Of one episode, whose shots have B = 1."""
        with torch.autocast(shots[0].mask.device.type, enabled=False):
            raw = torch.cat([s.correlation[0].float().flatten(2) for s in shots], 2)  # [L, C, N]
            share = torch.cat([s.mask.flatten() for s in shots]).float()  # [N]
            mean, spread = raw.mean(2), raw.std(2, correction=0)
            scale = torch.where(spread > _TINY, 1 / spread.clamp_min(_TINY), 0)  # [L, C]
            tokens = ((raw - mean[..., None]) * scale[..., None]).flatten(0, 1)  # [L * C, N]
            sides = torch.cat([_sides(s.mask, self.border).flatten() for s in shots])
            classifier = _Classifier(tokens[scale.flatten() > 0], sides, self.ridge, len(raw))
            weight = raw.new_zeros(scale.numel())
            weight[scale.flatten() > 0], bias = classifier.solve()
            partial = TokenFit(
                mean[None], scale[None], weight.view_as(scale)[None], bias[None],
                raw.new_zeros(1, len(_LEVELS)),
            )  # fmt: skip
            folds = _folds(places, sides) if self.held_out else None
            scores = classifier.held_out(folds)
            if self.matches:
                scores = scores + self.matches * self._own_matches(shots, partial, folds)
            return replace(partial, levels=_levels(scores, share)[None])

    def _matches(self, tokens: Tensor, shots: Sequence[Shot], fit: TokenFit) -> Tensor:
        """Best foreground minus best background match of standardised tokens: [B, h, w]."""
        found = []
        for shot in shots:
            others = _standardise(shot.correlation, fit)
            found.append(_best(self._correlate(tokens, others, shot.mask)))
        return _contrast(found).view(len(tokens), *tokens.shape[-2:])

    def _own_matches(self, shots: Sequence[Shot], fit: TokenFit, folds: Tensor | None) -> Tensor:
        """The same for the supports' own tokens [N], matches within a token's fold left out."""
        maps = [_standardise(shot.correlation, fit) for shot in shots]
        parts = None if folds is None else folds.split([shot.mask.numel() for shot in shots])
        scores = []
        for k, tokens in enumerate(maps):
            found = []
            for n, others in enumerate(maps):
                volume = self._correlate(tokens, others, shots[n].mask)
                if parts is not None:
                    same = (parts[k][:, None] == parts[n]) & (parts[k] >= 0)[:, None]
                    volume = volume.masked_fill(same, 0)
                found.append(_best(volume))
            scores.append(_contrast(found)[0])
        return torch.cat(scores)

    def _correlate(self, query: Tensor, support: Tensor, mask: Tensor) -> Tensor:
        """Correlation weighted by the support's sides: [B, L, n, m]."""
        volume = correlate(query, support, _sides(mask, self.border), self.widths)
        return volume.flatten(4).flatten(2, 3)


# What a fit knows of the scores on the supports, in the order of `TokenFit.levels`.
_LEVELS = ("cut", "foreground", "background", "foreground_spread", "background_spread", "share")


class _Classifier:
    """Ridge regression of the sides on tokens, solved again without parts of them.

    Solved in the space of the channels or of the tokens, whichever is smaller.

    Args:
        tokens: [D, N], standardised.
        sides: [N] in {-1, 0, 1}; both sides weigh the same together, 0 nothing.
        ridge: see `TrainingFree`.
        layers: L; tokens are divided by its root, so that a penalty means the same for any L.
    """

    def __init__(self, tokens: Tensor, sides: Tensor, ridge: float, layers: int) -> None:
        self.root = layers**0.5
        self.tokens, self.sides, self.ridge = tokens / self.root, sides, ridge
        count = (sides != 0).sum()
        halves = [(sides == side).sum().clamp_min(1) for side in (-1, 1)]
        self.weights = (count / 2) * ((sides < 0) / halves[0] + (sides > 0) / halves[1])
        self.by_tokens = len(self.sides) < len(self.tokens)
        if self.by_tokens:
            self.products = self.tokens.T @ self.tokens
        else:
            self.sums = self._sums(self.weights)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Weights of the channels [D] and bias, from all tokens."""
        if not self.by_tokens:
            weight, bias = self._by_channels(self.sums)
        else:
            share = self.weights / self.weights.sum()
            alpha, _ = self._by_tokens(share)
            weight = self.tokens @ (alpha - share * alpha.sum())
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
                alpha, kernel = self._by_tokens(share)
                scores[inside] = (kernel @ alpha)[inside] + (share * self.sides).sum()
            else:
                sums = self.sums
                if fold >= 0:
                    gone = self._sums(self.weights * inside, inside)
                    sums = tuple(a - b for a, b in zip(sums, gone, strict=True))
                weight, bias = self._by_channels(sums)
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

    def _by_channels(self, sums: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        products, tokens, mixed, sides, total = sums
        mean, side = tokens / total, sides / total
        system = products / total - torch.outer(mean, mean)
        system.diagonal().add_(self.ridge)
        weight: Tensor = torch.linalg.solve(system, mixed / total - mean * side)
        return weight, side - weight @ mean

    def _by_tokens(self, share: Tensor) -> tuple[Tensor, Tensor]:
        """Coefficients of the tokens [N] and their centred products [N, N]."""
        row = self.products @ share
        kernel = self.products - row - row[:, None] + share @ row
        root = share.sqrt()
        system = root[:, None] * kernel * root
        system.diagonal().add_(self.ridge)
        target = root * (self.sides - (share * self.sides).sum())
        return root * torch.linalg.solve(system, target), kernel


def _standardise(tokens: Tensor, fit: TokenFit) -> Tensor:
    """[B, L, C, h, w] by the supports' mean and spread, in float32."""
    shape = (*fit.mean.shape, 1, 1)
    return (tokens.float() - fit.mean.view(shape)) * fit.scale.view(shape)


def _sides(mask: Tensor, border: float) -> Tensor:
    """Of shares of foreground [B, h, w]: 1 foreground, -1 background, 0 ambiguous.

    The token with the least foreground is background, unless that is as good as covered.
    """
    share = mask.float()
    sides = torch.where(share <= border, -1.0, (share >= 1 - border).float())
    clearest = (share == share.amin((1, 2), keepdim=True)) & (share < 1 - border)
    return torch.where(clearest, -1.0, sides)


def _folds(places: Sequence[Tensor], sides: Tensor) -> Tensor:
    """Fold of each token [N]: its image, or a vertical strip where there is only one.

    -1 where nothing would be left to learn one of the sides from.
    """
    where = torch.cat([place.flatten() for place in places])
    folds = where.floor()
    if folds.max() == folds.min():
        folds = ((where - folds) * _FOLDS).floor()
    for fold in folds.unique().tolist():
        left = sides[folds != fold]
        if not ((left > 0).any() and (left < 0).any()):
            folds[folds == fold] = -1
    return folds


def _best(volume: Tensor) -> Tensor:
    """Best foreground and background cosine [2, B, L, n] of a signed volume [B, L, n, m]."""
    return torch.stack([volume.amax(3), -volume.amin(3)]).clamp_min(0)


def _contrast(best: Sequence[Tensor]) -> Tensor:
    """Best foreground minus best background cosine over all shots, mean over layers: [B, n]."""
    foreground, background = torch.stack(list(best)).amax(0).mean(2)
    return foreground - background  # type: ignore[no-any-return]


def _levels(scores: Tensor, share: Tensor) -> Tensor:
    """What `_LEVELS` names, of scores [N] of tokens with these shares of foreground."""
    order = scores.argsort(descending=True, stable=True)
    ordered, inside = scores[order], share[order].cumsum(0)
    counts = torch.arange(1, len(scores) + 1, device=scores.device)
    iou = inside / (share.sum() + counts - inside)
    good = iou >= _PLATEAU * iou.max()
    upper, lower = (
        (scores * weight).sum() / weight.sum().clamp_min(_TINY) for weight in (share, 1 - share)
    )
    # Where even the lowest score is good, there is no background that could bound the cut.
    least = lower if good[-1] else ordered[good].min()
    found = [(ordered[good].max() + least) / 2, upper, lower]
    for weight, level in zip((share, 1 - share), found[1:], strict=True):
        variance = ((scores - level) ** 2 * weight).sum() / weight.sum().clamp_min(_TINY)
        found.append(variance.sqrt().clamp_min(_SPREAD))
    return torch.stack([*found, share.mean().clamp(0.02, 0.9)])


def _adapted(scores: Tensor, fit: TokenFit) -> Tensor:
    """The cut for the scores [B, N] of queries: [B].

    Two normal distributions, begun at the support's levels and held to them by prior tokens, are
    fitted to the scores by expectation and maximisation; the cut keeps its place between them.
    """
    cut, upper, lower, upper_spread, lower_spread, share = fit.levels[:, :, None].unbind(1)
    place = (cut - lower) / (upper - lower).clamp_min(_SPREAD)
    first_upper, first_lower, first_share = upper, lower, share
    prior = _TRUST * scores.shape[1]
    for _ in range(_ROUNDS):
        log_odds = (
            (share / (1 - share)).log() - (upper_spread / lower_spread).log()
            - ((scores - upper) / upper_spread) ** 2 / 2
            + ((scores - lower) / lower_spread) ** 2 / 2
        )  # fmt: skip
        inside = log_odds.sigmoid()
        upper = _mean(scores, inside, first_upper, prior)
        lower = _mean(scores, 1 - inside, first_lower, prior)
        share = 0.9 * inside.mean(1, keepdim=True) + 0.1 * first_share
    return (lower + place * (upper - lower))[:, 0]


def _mean(scores: Tensor, weight: Tensor, first: Tensor, prior: float) -> Tensor:
    """Weighted mean [B, 1], with `prior` further tokens at `first`."""
    total = (scores * weight).sum(1, keepdim=True) + prior * first
    return total / (weight.sum(1, keepdim=True) + prior)
