"""Memory by recipe: the episode's part grows with it, the weights' part is what a file holds."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import training_memory
import yaml
from safetensors.torch import save

from fsdino.models import zoo
from training_work import FROZEN, MODEL


def test_a_table_of_recipes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Twice an episode's activations must fit into 80 % of what the weights leave."""
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(FROZEN.to_dict()))
    monkeypatch.setattr(training_memory, "RECIPES", tmp_path)
    out = tmp_path / "memory.json"
    monkeypatch.setattr(
        sys, "argv", ["", "--recipes", "small", "--shots", "1", "3", "--out", str(out)]
    )
    training_memory.main()
    one, three = json.loads(out.read_text())["results"]
    assert [one["shots"], three["shots"]] == [1, 3]
    assert three["activation_bytes"] > 1.5 * one["activation_bytes"] > 0
    weights = {name: p.detach() for name, p in zoo.assemble(MODEL).named_parameters()}
    file = len(save(weights))  # each tensor's entry in its header takes less than 200 bytes
    for row in (one, three):
        assert 0 < file - row["weight_bytes"] < 200 * len(weights)
        rest = row["least_bytes"] - row["weight_bytes"]
        assert 0.8 * rest == pytest.approx(2 * row["activation_bytes"], rel=1e-6)
