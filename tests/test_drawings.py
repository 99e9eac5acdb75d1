"""Drawings in docs/: what their scripts draw, from the records and with the ops' values."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import draw_correlation
import draw_numbers
import pytest
import torch

from fsdino import ops

DRAWINGS = {draw_correlation.FILE: draw_correlation.draw()}
DRAWINGS |= {draw_numbers.HERE / name: text for name, text in draw_numbers.drawings().items()}


@pytest.mark.parametrize("file", DRAWINGS, ids=lambda file: file.name)
def test_the_file_is_what_the_script_draws(file):
    """A change of a record, of a script or of the file without the others: draw it again."""
    assert file.read_text(encoding="utf-8") == DRAWINGS[file], "run the docs/draw_*.py again"
    ElementTree.fromstring(DRAWINGS[file])


def test_the_volume_is_the_correlation():
    """The drawn values are those of the op, on tokens of these directions."""

    def tokens(directions):
        angles = torch.tensor(directions, dtype=torch.float64) * math.pi / 180
        return torch.stack([angles.cos(), angles.sin()])[None, None]

    mask = torch.tensor(draw_correlation.SUPPORT_MASK, dtype=torch.float64)[None]
    query, support = (
        tokens(of) for of in (draw_correlation.QUERY_TOKENS, draw_correlation.SUPPORT_TOKENS)
    )
    volume = ops.correlation4d(query, support, mask, eps=1e-12)[0, 0]
    drawn = draw_correlation.correlation()
    assert len(drawn) == volume.numel()
    for place, value in drawn.items():
        assert value == pytest.approx(volume[place].item(), abs=1e-9)


def test_the_taps_are_those_of_the_convolution():
    """A 1 at one place of the volume reaches the places from which a tap leads there."""
    side = draw_correlation.K
    volume = torch.zeros(1, 1, side, side, side, side, dtype=torch.float64)
    middle = (side // 2,) * 4
    volume[(0, 0, *middle)] = 1
    weight = torch.ones(1, 1, side, side, dtype=torch.float64)
    out = ops.center_pivot_conv4d(volume, weight, weight)[0, 0]
    taps = draw_correlation.taps()
    assert {tuple(place) for place in out.nonzero().tolist()} == set(taps)
    assert [place for place, kind in taps.items() if kind == "both"] == [middle]
    assert out[middle] == 2 and out.sum() == 2 * side**2
    text = draw_correlation.draw()
    assert f">{len(taps)} taps" in text and f"= {side**4} taps" in text
