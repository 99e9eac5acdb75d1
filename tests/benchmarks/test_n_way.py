"""The benchmark of several classes in one call: its draws, and how an answer is judged."""

from __future__ import annotations

import n_way
import numpy as np
import pytest
from photo_pairs import Pair, Photograph

from fsdino.models.segmentation import Segmentation

BLANK = np.zeros((2, 5, 3), np.uint8)


def pair(name: str, kind: str, supports: int = 1, shown: tuple[str, ...] = ()) -> Pair:
    mask = np.zeros((2, 5), np.bool_)
    mask[0, :3] = True
    photograph = Photograph(BLANK, mask)
    own = frozenset({name})
    return Pair(name, (photograph,) * supports, photograph, name, own, kind, frozenset(shown))


def test_draws_have_each_class_once_and_single_supports() -> None:
    """The same again for a seed; no surfaces, no pairs of several supports."""
    pairs = [pair(f"{kind} {k}", kind) for kind in ("cup", "mill", "sky", "cow") for k in (1, 2)]
    pairs += [pair("two", "dog", supports=2), pair("none", "")]
    drawn = n_way.calls(pairs, 3, 8)
    assert drawn == n_way.calls(pairs, 3, 8) != n_way.calls(pairs, 3, 8, seed=1)
    assert all({p.kind for p in call} == {"cup", "mill", "cow"} for call in drawn)
    assert {p.name for call in drawn for p in call} == {p.name for p in pairs[:4] + pairs[6:8]}


def test_an_answer_by_hand() -> None:
    """Two of four pixels of the cup; a mill that is not there on three, a cow that is on one."""
    chosen = np.array([[1, 1, 2, 2, 0], [1, 2, 3, 0, 0]])
    maps = np.stack([(chosen == n).astype(np.float32) for n in (1, 2, 3)])
    found = Segmentation(BLANK, maps, ("cup", "mill", "cow"), 0.5, (0.9, 0.95, 0.2))
    answer = n_way.judged(found, pair("a", "cup", shown=("cow",)))
    assert answer == {"iou": 0.5, "others": pytest.approx(0.3), "false": [True], "first": False}
    better = {"iou": 1.0, "others": 0.1, "false": [False, False], "first": True}
    expected = {"iou": 75, "others": 20, "false": 100 / 3, "first": 50}
    assert n_way.summary([answer, better]) == pytest.approx(expected)
