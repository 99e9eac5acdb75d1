"""Protocol names, HSNet's vote by hand, and its resizing."""

from __future__ import annotations

import pytest
import torch

from fsdino.errors import UsageError
from fsdino.evaluation.protocols import PROTOCOLS, SYSTEMS, Protocol, find, fuse


def test_every_combination_has_one_name() -> None:
    """A name says all choices, and names are what results record."""
    assert len(PROTOCOLS) == 12 and all(p.name == name for name, p in PROTOCOLS.items())
    assert find("hsnet") == Protocol("vote", False, "hsnet")
    assert find("hsnet-original") == Protocol("vote", True, "hsnet")
    assert find("joint") == Protocol("joint", False, "hsnet")
    assert find("joint-rounded-original") == Protocol("joint", True, "hsnet", resized_by_pil=True)
    assert find("joint-rounded", fusion="vote").name == "hsnet"


def test_changes_become_siblings() -> None:
    """What is not the published protocol does not keep its name."""
    assert find("hsnet", fusion="joint").name == "joint"
    assert find("hsnet", seeded=True).name == "hsnet-seeded"
    assert find("joint-original", fusion="vote", seeded=True).name == "hsnet-original-seeded"
    with pytest.raises(UsageError, match="unknown protocol 'pfenet'"):
        find("pfenet")


@pytest.mark.parametrize("dataset", ["fss1000", "deepglobe", "isic", "lung"])
def test_some_sets_have_no_original_size(dataset: str) -> None:
    """The published code scores them at the square only."""
    find("hsnet-original").check("pascal5i")
    find("hsnet").check(dataset)
    with pytest.raises(UsageError, match=f"not defined for {dataset}: use hsnet"):
        find("hsnet-original").check(dataset)


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


@pytest.mark.parametrize("name", PROTOCOLS)
def test_which_protocols_align_corners(name: str) -> None:
    """0, 1 -> 0, 1/3, 2/3, 1 where corners keep their values; else pixels' centres meet."""
    logits = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    centred = name.startswith("joint") and "original" not in name
    row = [0, 0.25, 0.75, 1] if centred else [0, 1 / 3, 2 / 3, 1]
    found = PROTOCOLS[name].resize(logits, (3, 4))
    torch.testing.assert_close(found, torch.tensor(row).expand(1, 1, 3, 4))


def test_ties_are_background_by_vote() -> None:
    """The published argmax takes the first of equal classes; other thresholds shift the logit."""
    logits = torch.tensor([-1e-6, 0.0, 1e-6])
    assert find("hsnet").decide(logits, 0.5).tolist() == [False, False, True]
    assert find("joint").decide(logits, 0.5).tolist() == [False, True, True]
    around = torch.tensor([0.69, 0.71]).logit()
    assert find("hsnet-original").decide(around, 0.7).tolist() == [False, True]


def test_only_the_published_pixels_are_rounded() -> None:
    """HSNet's loader resizes PIL images; results say which pixels they come from."""
    found = {name: protocol.pixels for name, protocol in PROTOCOLS.items()}
    rounded = ("hsnet", "joint-rounded")
    assert found == {n: "rounded" if n.startswith(rounded) else "float" for n in PROTOCOLS}


def test_published_systems_have_protocols() -> None:
    """By their names, with the size of their images."""
    assert all(protocol in PROTOCOLS for protocol, _ in SYSTEMS.values())
    assert SYSTEMS["matcher"] == ("joint-rounded", 518)
