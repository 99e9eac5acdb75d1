"""Masks from an encoder's features alone, without any trained part.

The supports are fitted once (`TrainingFree.fit`): their tokens are standardised, a ridge classifier
in closed form tells the object's tokens from the others, and its scores on parts of the supports
that it was not fitted to set the threshold. A query then takes one product with the classifier, one
correlation with the supports, and a classifier of its own, fitted to the scores of these two
(`TrainingFree.score`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fsdino.models.encoders import Features
from fsdino.models.hypercorrelation import correlations
from fsdino.models.prompts import cosine_map
from fsdino.models.ridge import Classifier, fitted_scores
from fsdino.models.shots import FittedShot, Shot, SupportFeatures, TokenFit, positions

FOLDS = 4  # vertical strips of a single support
_PLATEAU = 0.95  # of the best IoU: thresholds that do as well
_ROUNDS = 5  # of expectation and maximisation
_TRUST = 0.025  # in the support's levels, as a share of the query's tokens
_SPREAD = 0.05  # least standard deviation of scores
_OTHERS = 0.3  # share of the background that objects of other classes make up together
_MOST_OTHERS = 4096  # tokens of these, which bound the time that a class takes among many
_OWN_RIDGE = 1.0  # of the classifier fitted to a query
_LEAST_CLEAR = 1.0  # clear tokens of a side, below which it weighs less than the other
_SURE = 0.3  # score of a query's token at which the odds of its side are e to one
_TOP = 4  # best tokens, which tell whether a query shows the object
# Their mean above the support's background at which presence is even odds, and the slope there.
_EVEN, _STEEP = 1.25, 7.0
TINY = 1e-6
ROUNDING = 1e-5  # a share within this of a limit lies on it, however a runtime rounds


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
    layers of cosines between standardised tokens. Standardising removes what all tokens of the
    supports share, which does not tell classes apart; each layer's tokens then have one length. The
    threshold is the one that segments held-out parts of the supports best; each query moves it by
    the levels of its own tokens. A second classifier learns from what is above and below it, on the
    query's tokens alone: the object looks more like itself in one image than in two (Fan et al.,
    Self-Support Few-Shot Semantic Segmentation, ECCV 2022, with prototypes).

    Attributes:
        widths: channels of each correlation layer before zeros fill them up.
        ridge: strength of the classifier's penalty, as a share of the tokens' variance.
        matches: weight of the matches; 0 leaves them out.
        border: tokens whose share of foreground is above `border` and below 1 - border are left
            out as ambiguous; 0.5 leaves none out.
        held_out: set the threshold by parts of the supports that the classifier has not seen;
            otherwise by all tokens.
        adapt: move the threshold by each query's own tokens.
        own: share of the query's own classifier in its score; 0 leaves it out.
    """

    widths: tuple[int, ...]
    ridge: float = 0.2
    matches: float = 1.0
    border: float = 0.2
    held_out: bool = True
    adapt: bool = True
    own: float = 0.3

    @torch.no_grad()
    def fit(self, shots: Sequence[Shot], places: Sequence[Tensor] | None = None) -> TokenFit:
        """Fit the classifier and the threshold to the supports of B episodes.

        Args:
            shots: the supports, and other views of them.
            places: [h, w] of each: where its tokens lie, as the number of their image plus their
                horizontal position in it, in [0, 1). Tokens of one place are held out together.
                None takes every shot for an image of its own.
        """
        if places is None:
            places = [k + positions(shot.masks[0]) for k, shot in enumerate(shots)]
        rows = [[shot[b : b + 1] for shot in shots] for b in range(len(shots[0].masks[0]))]
        return TokenFit.cat([self._fit(row, places) for row in rows])

    @torch.no_grad()
    def score(self, query: Features, support: SupportFeatures) -> tuple[Tensor, Tensor]:
        """Where the object is likely, and how likely it is that the queries show it at all.

        Args:
            query: B queries.
            support: with the `fit` of this object.

        Returns:
            Scores of the queries' tokens [B, 1, h, w], positive where the object is likely; and
            [B] in [0, 1], by how far the best tokens' scores lie above the support's background.
        """
        fit = support.fit
        assert fit is not None
        with torch.autocast(query.correlation[0].device.type, enabled=False):
            tokens = standardise(query.correlation[0], fit.mean, fit.scale)  # [B, L, C, h, w]
            score = torch.einsum("blchw,blc->bhw", tokens, fit.weight) + fit.bias[:, None, None]
            if self.matches:
                best = fit.each(tokens, self._best)
                score = score + self.matches * _contrast(best).view_as(score)
            flat = score.flatten(1)
            top = flat.topk(min(_TOP, flat.shape[1])).values.mean(1) - fit.levels[:, _BACKGROUND]
            cut = _adapted(flat, fit) if self.adapt else fit.levels[:, 0]
            flat = flat - cut[:, None]
            if self.own:
                flat = torch.lerp(flat, self._own_score(query.correlation[0], flat), self.own)
            return flat.view_as(score)[:, None], ((top - _EVEN) * _STEEP).sigmoid()

    @torch.no_grad()
    def fit_beside(self, fit: TokenFit, others: Sequence[Sequence[Shot]]) -> TokenFit:
        """Fit the classifier again, with the objects of other classes as further background.

        What else is around them stays out of it, since it may show the class. Threshold and matches
        stay as they are, and so does the fit where there are no others.

        Args:
            fit: of this object, with B = 1.
            others: the supports of each other class, with B = 1; each class weighs the same.
        """
        if not others:
            return fit
        with torch.autocast(fit.mean.device.type, enabled=False):
            own = torch.cat([shot.tokens[0].flatten(2) for shot in fit.shots], 2)  # [L, C, N]
            sides = torch.cat([shot.sides.flatten() for shot in fit.shots])
            most = max(_MOST_OTHERS // len(others), 1)
            beside = [self._objects(shots, fit, most) for shots in others]
            inside, outside = (sides > 0).float(), (sides < 0).float()
            parts = [
                inside / inside.sum().clamp_min(1)
                + (1 - _OTHERS) * outside / outside.sum().clamp_min(1)
            ]
            for tokens in beside:
                share = _OTHERS / len(beside) / tokens.shape[2]
                parts.append(own.new_full(tokens.shape[2:], share))
            varied = fit.scale.flatten() > 0
            found = Classifier(
                torch.cat([own, *beside], 2).flatten(0, 1)[varied],
                torch.cat([sides, *(-torch.ones_like(part) for part in parts[1:])]),
                self.ridge,
                len(own),
                torch.cat(parts),
            )
            weight = own.new_zeros(fit.scale.numel())
            weight[varied], bias = found.solve()
            return replace(fit, weight=weight.view_as(fit.scale), bias=bias[None])

    def _objects(self, shots: Sequence[Shot], fit: TokenFit, most: int) -> Tensor:
        """Tokens of a class's objects, standardised as those of a fit: [L, C, n], n <= most."""
        inside = [sides_of(shot.masks[0], self.border).flatten() > 0 for shot in shots]
        rows = [shot.correlation[0][0].flatten(2) for shot in shots]
        found = torch.cat([row[..., chosen] for row, chosen in zip(rows, inside, strict=True)], 2)
        count = found.shape[2]
        if count > most:  # evenly drawn
            found = found[..., torch.arange(most, device=found.device) * count // most]
        return standardise(found[None, ..., None], fit.mean, fit.scale)[0, ..., 0]

    def _fit(self, shots: Sequence[Shot], places: Sequence[Tensor]) -> TokenFit:
        """Fit to one episode, whose shots have B = 1."""
        with torch.autocast(shots[0].masks[0].device.type, enabled=False):
            raw = torch.cat([s.correlation[0][0].float().flatten(2) for s in shots], 2)  # [L, C, N]
            share = torch.cat([s.masks[0].flatten() for s in shots]).float()  # [N]
            mean, spread = raw.mean(2), raw.std(2, correction=0)
            scale = torch.where(spread > TINY, 1 / spread.clamp_min(TINY), 0)  # [L, C]
            own = [
                FittedShot(
                    standardise(s.correlation[0], mean[None], scale[None]),
                    sides_of(s.masks[0], self.border),
                )
                for s in shots
            ]
            tokens = torch.cat([s.tokens[0].flatten(2) for s in own], 2).flatten(0, 1)
            sides = torch.cat([s.sides.flatten() for s in own])
            classifier = Classifier(tokens[scale.flatten() > 0], sides, self.ridge, len(raw))
            weight = raw.new_zeros(scale.numel())
            weight[scale.flatten() > 0], bias = classifier.solve()
            folds = _folds(places, sides) if self.held_out else None
            scores = classifier.held_out(folds)
            if self.matches:
                scores = scores + self.matches * self._own_matches(own, folds)
            levels = levels_of(scores, share)
            return TokenFit(
                mean[None], scale[None], weight.view_as(scale)[None], bias[None], levels[None],
                tuple(own),
            )  # fmt: skip

    def _own_matches(self, shots: Sequence[FittedShot], folds: Tensor | None) -> Tensor:
        """Best foreground minus best background match of the supports' own tokens: [N].

        Matches within a token's fold are left out.
        """
        parts = None if folds is None else folds.split([shot.sides.numel() for shot in shots])
        scores = []
        for k, asked in enumerate(shots):
            found = []
            for n, shot in enumerate(shots):
                same = None
                if parts is not None:
                    same = (parts[k][:, None] == parts[n]) & (parts[k] >= 0)[:, None]
                found.append(self._best(asked.tokens, shot, same))
            scores.append(_contrast(torch.stack(found))[0])
        return torch.cat(scores)

    def _own_score(self, tokens: Tensor, score: Tensor) -> Tensor:
        """Score [B, N] of tokens [B, L, C, h, w] by a ridge classifier fitted to their first score.

        Every second layer is read, always including the last: the others only add time.
        Each token is weighted by how clear its score is; both sides have the same total weight,
        unless one of them has not even one clear token.
        """
        chosen = range(len(self.widths))[1 - len(self.widths) % 2 :: 2]
        layers = [tokens[:, n, : self.widths[n]].flatten(2) for n in chosen]
        rows = torch.cat(layers, 1).float()  # [B, D, N]
        rows = rows - rows.mean(2, keepdim=True)
        spread = rows.square().mean(2, keepdim=True).sqrt()
        rows = rows / spread.where(spread > TINY, torch.inf) / len(layers) ** 0.5
        clear = (score / (2 * _SURE)).tanh()  # in [-1, 1]
        halves = torch.stack([clear, -clear]).clamp_min(0)
        weight = (halves / halves.sum(2, keepdim=True).clamp_min(_LEAST_CLEAR)).sum(0)
        weight = weight / weight.sum(1, keepdim=True).clamp_min(TINY)
        side = clear.sign()
        return fitted_scores(rows, side, weight, _OWN_RIDGE)

    def _best(self, query: Tensor, shot: FittedShot, unseen: Tensor | None = None) -> Tensor:
        """Cosines of the best foreground and the best background match: [B, 2, L, n].

        Args:
            query: standardised tokens [B, L, C, h, w].
            shot: of a fit.
            unseen: bool [n, m], pairs of tokens that do not count.
        """
        found = []
        for volume in correlations(query, shot.tokens, shot.sides, self.widths):
            signed = volume.flatten(4).flatten(2, 3)  # [B, l, n, m]; the sign tells the side
            if unseen is not None:
                signed = signed.masked_fill(unseen, 0)
            found.append(torch.stack([signed.amax(3), -signed.amin(3)], 1))
        return torch.cat(found, 2).clamp_min(0)


# Statistics of the scores on the supports, in the order of `TokenFit.levels`.
_LEVELS = ("cut", "foreground", "background", "foreground_spread", "background_spread", "share")
_BACKGROUND = _LEVELS.index("background")


def standardise(tokens: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """[B, L, C, h, w] by mean and 1 / spread [B, L, C]; each token is then as long as unit noise.

    That is the root of the number of its layer's channels that vary. In float32.
    """
    centred = (tokens.float() - mean[..., None, None]) * scale[..., None, None]
    length = (scale > 0).sum(2).sqrt()[:, :, None, None, None]
    found: Tensor = centred * (length / centred.norm(dim=2, keepdim=True).clamp_min(TINY))
    return found


def sides_of(mask: Tensor, border: float) -> Tensor:
    """Sides [B, h, w] by shares of foreground: 1 foreground, -1 background, 0 ambiguous.

    The token with the least foreground is background, unless that is as good as covered.
    """
    share = mask.float()
    covered = share >= 1 - border - ROUNDING
    sides = torch.where(share <= border + ROUNDING, -1.0, covered.float())
    clearest = (share <= share.amin((1, 2), keepdim=True) + ROUNDING) & ~covered
    return torch.where(clearest, -1.0, sides)


def _folds(places: Sequence[Tensor], sides: Tensor) -> Tensor:
    """Fold of each token [N]: its image, or a vertical strip where there is only one.

    -1 where one of the sides would have no tokens left outside the fold.
    """
    where = torch.cat([place.flatten() for place in places])
    folds = where.floor()
    if folds.max() == folds.min():
        folds = strips_of(where - folds)
    for fold in folds.unique().tolist():
        left = sides[folds != fold]
        if not ((left > 0).any() and (left < 0).any()):
            folds[folds == fold] = -1
    return folds


def strips_of(columns: Tensor) -> Tensor:
    """Numbers of the vertical strips that columns in [0, 1) lie in."""
    return (columns * FOLDS + ROUNDING).floor()


def _contrast(best: Tensor) -> Tensor:
    """Best foreground minus best background cosine over all shots, mean over layers: [B, n].

    Args:
        best: [M, B, 2, L, n], of each shot, see `TrainingFree._best`.
    """
    foreground, background = best.amax(0).mean(2).unbind(1)
    return foreground - background


def levels_of(scores: Tensor, share: Tensor) -> Tensor:
    """The statistics of `_LEVELS` of the scores [N] of tokens with these shares of foreground."""
    order = scores.argsort(descending=True, stable=True)
    ordered, inside = scores[order], share[order].cumsum(0)
    counts = torch.arange(1, scores.shape[0] + 1, device=scores.device)
    iou = inside / (share.sum() + counts - inside)
    good = iou >= (_PLATEAU - ROUNDING) * iou.max()
    highest = ordered.where(good, -torch.inf).amax(0)
    upper, lower = (
        (scores * weight).sum() / weight.sum().clamp_min(TINY) for weight in (share, 1 - share)
    )
    # Where even the lowest score is good, there is no background that could bound the cut.
    least = torch.where(good[-1], lower, ordered.where(good, torch.inf).amin(0))
    found = [(highest + least) / 2, upper, lower]
    for weight, level in zip((share, 1 - share), found[1:], strict=True):
        variance = ((scores - level) ** 2 * weight).sum() / weight.sum().clamp_min(TINY)
        found.append(variance.sqrt().clamp_min(_SPREAD))
    return torch.stack([*found, share.mean().clamp(0.02, 0.9)])


def _adapted(scores: Tensor, fit: TokenFit) -> Tensor:
    """The cut for the scores [B, N] of queries: [B].

    Two normal distributions, begun at the support's levels and held to them by prior tokens, are
    fitted to the scores by expectation and maximisation; the cut keeps its place between them. A
    support that does not find itself again may have its levels anywhere: the place stays between.
    """
    cut, upper, lower, upper_spread, lower_spread, share = fit.levels[:, :, None].unbind(1)
    place = ((cut - lower) / (upper - lower).clamp_min(_SPREAD)).clamp(0, 1)
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
