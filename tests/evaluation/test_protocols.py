"""Protocol names, HSNet's vote by hand, and its resizing."""

from __future__ import annotations

import pytest
import torch

from fsdino.errors import UsageError
from fsdino.evaluation.protocols import PROTOCOLS, Protocol, find, fuse, resize


def test_every_combination_has_one_name() -> None:
    """A name says all three choices, and names are what results record."""
    assert len(PROTOCOLS) == 8 and all(p.name == name for name, p in PROTOCOLS.items())
    assert find("hsnet") == Protocol("vote", False, "hsnet")
    assert find("hsnet-original") == Protocol("vote", True, "hsnet")
    assert find("joint") == Protocol("joint", False, "hsnet")


def test_changes_become_siblings() -> None:
    """What is not the published protocol does not keep its name."""
    assert find("hsnet", fusion="joint").name == "joint"
    assert find("hsnet", seeded=True).name == "hsnet-seeded"
    assert find("joint-original", fusion="vote", seeded=True).name == "hsnet-original-seeded"
    with pytest.raises(UsageError, match="unknown protocol 'pfenet'"):
        find("pfenet")


def test_fss1000_has_no_original_size() -> None:
    """The published code scores it at the square only."""
    find("hsnet-original").check("pascal5i")
    with pytest.raises(UsageError, match="not defined for fss1000: use hsnet"):
        find("hsnet-original").check("fss1000")


def test_vote_divides_by_the_images_own_maximum() -> None:
    """Five shots: 3 of 5 votes pass where 5 agree somewhere; where 2 is the most, 1 passes."""
    votes = torch.zeros(3, 5, 1, 4, dtype=torch.bool)
    for image, counts in enumerate([[5, 3, 2, 0], [2, 1, 0, 0], [0, 0, 0, 0]]):
        for pixel, count in enumerate(counts):
            votes[image, :count, 0, pixel] = True
    assert fuse(votes)[:, 0].tolist() == [
        [True, True, False, False],
        [True, True, False, False],
        [False, False, False, False],
    ]


def test_one_pass_keeps_its_mask() -> None:
    """Joint fusion and one shot go the same way."""
    mask = torch.tensor([[[True, False]]])
    assert torch.equal(fuse(mask[:, None]), mask)


def test_original_size_aligns_corners() -> None:
    """Corner pixels keep their values: 0, 1 -> 0, 1/3, 2/3, 1, unlike with half-pixel centres."""
    maps = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    expected = torch.tensor([0, 1 / 3, 2 / 3, 1]).expand(1, 3, 4)
    torch.testing.assert_close(resize(maps, (3, 4)), expected)
