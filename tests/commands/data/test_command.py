"""`fsdino data check` and `fsdino data prepare`: what they print."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import data_sets
from command_line import error_line
from fsdino import cli

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


def test_data_check_says_what_is_there_and_what_to_fetch(capsys, tmp_path):
    """Every part with its state, counts, damaged files; exit code 1 in one line when incomplete."""
    data_sets.write_voc(tmp_path / "voc", tmp_path / "lists")
    call = ["data", "check", "pascal5i", "--root", "voc", "--splits", "lists"]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert "there      JPEGImages" in out and "fold 1: bus 3, car 3, cat 3, chair 3, cow 3" in out
    assert "not there  SegmentationClass" in out and "get VOCtrainval_11-May-2012.tar" in out
    assert "72 images read with their masks, 0 cannot be used" in out
    Path("voc/JPEGImages/2007_000020.jpg").write_bytes(b"")
    assert cli.main(call) == 1
    captured = capsys.readouterr()
    assert captured.out.count("JPEGImages/2007_000020.jpg: ") == 1
    assert "72 images read (71 of them with a mask), 1 cannot be used" in captured.out
    assert "error: pascal5i is not complete: 1 images cannot be used" in captured.err
    assert cli.main([*call, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found["bad"]) == ["JPEGImages/2007_000020.jpg"] and found["passed"] is False
    assert cli.main(["data", "check", "coco20i", "--root", "queries"]) == 1
    assert "http://images.cocodataset.org/zips/val2014.zip" in error_line(capsys)
    assert cli.main(["data", "check", "nope", "--root", "voc"]) == 2
    assert "no data set 'nope'" in error_line(capsys)


def test_data_prepare_writes_lists(capsys, tmp_path):
    """What was made, and where, so that it can be passed on as --splits."""
    data_sets.write_voc(tmp_path / "voc", tmp_path / "lists")
    call = ["data", "prepare", "pascal5i", "--root", "voc", "--out", "made"]
    assert cli.main(call) == 0
    assert "made/index.json" in capsys.readouterr().out
    assert Path("made/pascal/trn/fold3.txt").read_text().count("__") == 15
    assert cli.main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lists": "made", "index": "made/index.json"}
    assert cli.main(["data", "prepare", "folder", "--root", "voc"]) == 0
    assert "nothing to prepare" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data check", "data prepare"])
def test_data_commands_explain_themselves(name, capsys):
    """--help of the commands below a command, too."""
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: fsdino {name}" in out and "--root" in out and "{None}" not in out
