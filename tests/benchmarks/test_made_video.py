"""The made sequence: its truth is what is seen, and it has what makes a video hard."""

from __future__ import annotations

import numpy as np
from made_video import FRAMES, HEIGHT, OBJECTS, WIDTH, MadeVideo, Object


def test_the_truth_is_what_is_drawn() -> None:
    """Without objects the background remains; with them, it changes exactly where labels are."""
    for index in (0, 30):
        made = MadeVideo()
        bare, full = MadeVideo(0).frame(index), made.frame(index)
        labels = made.annotation(index)
        assert full.shape == (HEIGHT, WIDTH, 3) and labels.shape == (HEIGHT, WIDTH)
        assert not (bare != full).any(2)[labels == 0].any()
        assert (bare != full).any(2)[labels > 0].mean() > 0.95


def test_what_makes_it_hard() -> None:
    """One passes behind another, one leaves, sizes change; and a frame is the same again."""
    shares = [
        [(MadeVideo().annotation(k) == n).mean() for n in (1, 2, 3)] for k in (0, 30, FRAMES - 1)
    ]
    alone = (MadeVideo(1).annotation(30) == 1).mean()
    assert shares[1][0] < 0.9 * alone  # the astronaut, behind a cup
    assert shares[2][2] == 0 and shares[1][2] > 0  # the other cup, gone at the end
    assert shares[2][1] > 2 * shares[0][1]
    assert np.array_equal(MadeVideo().frame(7), MadeVideo().frame(7))
    assert len(OBJECTS) == 3 and all(isinstance(thing, Object) for thing in OBJECTS)
