"""What is timed against HSNet's formulation is HSNet, and a wrong answer is not timed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import hsnet_speed
import pytest
import torch

from fsdino.models.hsnet import HSNet
from published_hsnet import SIDE, answers, asked, published


def test_the_plain_formulation_is_that_of_hsnets_own_code() -> None:
    """With the weights and inputs that HSNet's code was asked with, it answers the same."""
    model = published("resnet50")
    logits = answers("resnet50_logits")[0]
    with torch.no_grad():
        query, shots, _ = asked(model)
        shot = shots[0].shots[0]
        found = hsnet_speed.plain(model)(query.correlation, shot.correlation, shot.masks)
        found = model.resize(found, (SIDE, SIDE))
    assert (found - logits).norm() / logits.norm() < 3e-6


def test_masks_cover_the_share_that_is_asked_for() -> None:
    """A square in the middle; a coarse grid sees it at single points."""
    model = hsnet_speed.build(400)
    _, support, masks = hsnet_speed.inputs(model, 0.2)
    assert [tuple(mask.shape) for mask in masks] == [(1, 50, 50), (1, 25, 25), (1, 13, 13)]
    assert float((masks[0] > 0).float().mean()) == pytest.approx(0.2, abs=0.03)
    assert [tuple(s.shape[1:3]) for s in support] == [(4, 512), (6, 1024), (3, 2048)]


def test_the_record(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every implementation by mask and pass, with times and memory."""
    out = tmp_path / "hsnet.json"
    monkeypatch.setattr(hsnet_speed.memory, "in_new_process", lambda run, *args: 7)
    arguments = ["--size", "64", "--rounds", "2", "--no-compile", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["hsnet_speed.py", *arguments])
    hsnet_speed.main()
    rows = json.loads(out.read_text())["results"]
    found = [(row["implementation"], row["foreground"], row["backward"]) for row in rows]
    assert found == [
        (name, share, backward)
        for backward in (False, True)
        for share in (1.0, 0.2)
        for name in ("fsdino", "plain")
    ]
    assert all(row["fastest_seconds"] <= row["median_seconds"] for row in rows)
    assert {row["peak_bytes"] for row in rows} == {7}


def test_other_answers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that leaves a level out, for example."""

    def wrong(model: HSNet) -> hsnet_speed.Head:
        run = hsnet_speed.plain(model)
        return lambda query, support, masks: run([0 * query[0], *query[1:]], support, masks)

    monkeypatch.setattr(hsnet_speed, "ours", wrong)
    monkeypatch.setattr(sys, "argv", ["hsnet_speed.py", "--size", "64", "--rounds", "1"])
    options = hsnet_speed.parse()
    with pytest.raises(SystemExit, match="fsdino differs from the plain formulation"):
        hsnet_speed.compare(1.0, False, ["fsdino", "plain"], options)
