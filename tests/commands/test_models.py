"""`fsdino models`: the list, and downloads."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

import fake_hub
import fsdino
from command_line import nothing, offline
from fsdino import cli

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


BAD_INPUT = {
    "a model to download": (
        offline, ["models", "--download", "dinov2-l"], 2, ["'dinov2-l'", "HF_HUB_OFFLINE"]
    ),
    "an unknown model to download": (
        nothing, ["models", "--download", "dinov3-l"], 2, ["'dinov3-l'", "dinov2-l"]
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files."""
    assert_refused(BAD_INPUT[case])


def test_models_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A table and addresses to copy, or JSON with all that Python says."""
    offline(monkeypatch)
    assert cli.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps([dataclasses.asdict(m) for m in fsdino.list_models()]))
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    for model in fsdino.list_models():
        here = "yes" if model.present else "no"
        [row] = [line.split() for line in lines if line.split()[:2] == [model.name, here]]
        assert f"{model.size / 1e6:,.0f}" in row and model.licence in row
        assert any(line.startswith(model.name) and line.endswith(model.source) for line in lines)


def test_models_are_downloaded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """By their name, from a hub: then they are here, and a second call fetches nothing."""
    monkeypatch.setenv("HF_HUB_CACHE", "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub.serve(b"weights") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        for _ in range(2):
            assert cli.main(["models", "--download", "dinov2-g", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["present"] and Path(found["file"]).read_bytes() == b"weights"
        assert server.asked == [("HEAD", None), ("GET", None)]
    assert cli.main(["models", "--download", "fsdino-tiny"]) == 0
    assert "fsdino-tiny is here" in capsys.readouterr().out
