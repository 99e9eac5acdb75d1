"""Classes that are asked for together: each has the others' objects as its background."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from fsdino.models.shots import Shot, TokenFit
from fsdino.models.supports import Support

_SAMPLE = 256  # values of a photograph's tokens that tell it from others
_NEAR = 1e-3  # relative difference of these, below which two photographs are one

# Of each support the last classifier beside others: these, where it was fitted, weight and bias.
_Kept = tuple[tuple[ref[Support], ...], tuple[torch.device, torch.dtype], Tensor, Tensor]
_kept: WeakKeyDictionary[Support, _Kept] = WeakKeyDictionary()


class Fitting(Protocol):
    """A model, as far as its fit to supports counts; see `FewShotModel`."""

    @property
    def fits(self) -> bool:
        """Whether it fits something to its supports."""

    def fit_beside(self, fit: TokenFit, others: Sequence[Sequence[Shot]]) -> TokenFit:
        """A fit for which the objects of other classes are background, too."""


def others(supports: Mapping[str, Support]) -> dict[str, list[Sequence[Shot]]]:
    """For each class the photographs of every other one, but for those that are its own, too.

    In a photograph that two classes share, each has the other one as background already, or their
    masks overlap on purpose.
    """
    shots = {name: support.pooled() for name, support in supports.items()}
    numbers = iter(_photographs([shot.correlation[0] for own in shots.values() for shot in own]))
    seen = {name: [next(numbers) for _ in own] for name, own in shots.items()}
    found: dict[str, list[Sequence[Shot]]] = {}
    for name in shots:
        rest = [
            [s for s, k in zip(shots[other], seen[other], strict=True) if k not in seen[name]]
            for other in shots
            if other != name
        ]
        found[name] = [chosen for chosen in rest if chosen]
    return found


def beside(
    model: Fitting, given: Mapping[str, Support], moved: Mapping[str, Support]
) -> dict[str, Support]:
    """Supports whose classifiers have the objects of the others as background.

    The last classifier is kept as long as its support, so that only the first query costs time.

    Args:
        model: what fits; supports of models that fit nothing stay as they are.
        given: the supports, as they are known to the caller.
        moved: the same on the model's device, in the type of its weights.
    """
    if len(given) < 2 or not model.fits:
        return dict(moved)
    found: dict[str, Support] = {}
    rest: dict[str, list[Sequence[Shot]]] | None = None
    for name, support in moved.items():
        around = tuple(ref(given[other]) for other in given if other != name)
        assert support.fit is not None
        tokens = support.correlation[0][0]
        where = (tokens.device, tokens.dtype)
        kept = _kept.get(given[name])
        if kept is None or kept[:2] != (around, where):
            rest = others(moved) if rest is None else rest
            fit = model.fit_beside(support.fit, rest[name])
            kept = _kept[given[name]] = (around, where, fit.weight, fit.bias)
        found[name] = replace(support, fit=replace(support.fit, weight=kept[2], bias=kept[3]))
    return found


def _photographs(tokens: Sequence[Tensor]) -> list[int]:
    """A number for each photograph, the same for the same one, by its tokens [B, L, C, h, w]."""
    known: list[tuple[torch.Size, Tensor]] = []
    numbers = []
    for part in tokens:
        flat = part.flatten()
        places = torch.arange(_SAMPLE, device=part.device) * (len(flat) - 1) // (_SAMPLE - 1)
        sample = flat[places].float()
        same = (
            number
            for number, (shape, other) in enumerate(known)
            if shape == part.shape and torch.dist(sample, other) <= _NEAR * sample.norm()
        )
        number = next(same, len(known))
        if number == len(known):
            known.append((part.shape, sample))
        numbers.append(number)
    return numbers
