"""Queries as a command line names them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import segment_files
from fsdino.errors import UsageError
from segmenting import CALL
from tiny_models import picture


def test_find_queries(queries, tmp_path, monkeypatch):
    """Files as named, folders in order of names, everything once; mistakes are named."""
    monkeypatch.chdir(tmp_path)
    (queries / "notes.txt").touch()
    found = find_queries([Path("queries/03.png"), queries])
    assert found[0] == Path("queries/03.png")
    assert [path.name for path in found[1:4]] == ["00.png", "01.png", "02.png"]
    assert len(found) == 11
    (tmp_path / "empty").mkdir()
    for paths, words in (
        ([], "no query given"),
        ([Path("gone")], "gone: no such file or folder"),
        ([Path("empty")], "no image in this folder"),
    ):
        with pytest.raises(UsageError, match=words):
            find_queries(paths)


def test_queries_in_subfolders(queries, tmp_path):
    """Found at any depth; what is left out is counted and named with the reason."""
    (queries / "a" / "b").mkdir(parents=True)
    for name in ("a/01.png", "a/b/x.png"):
        Image.fromarray(picture(20, 20)).save(queries / name)
    (queries / "a" / "clip.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 40)
    (queries / "notes.txt").write_text("hello")
    found = find_queries([queries])
    assert len(found) == 13
    assert {queries / "a" / "01.png", queries / "a" / "b" / "x.png"} < set(found)
    assert found.left_out == {
        str(queries / "a" / "clip.mp4"): "a video",
        str(queries / "notes.txt"): "text",
    }
    assert found.summary().startswith("2 of 15 files left out: ")
    assert find_queries([queries / "00.png"]).left_out == {}
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42" + b"\0" * 40)
    with pytest.raises(UsageError, match=r"no image in this folder \(1 of 1 .*a\.mp4 \(a video\)"):
        find_queries([tmp_path / "films"])


def test_results_are_not_queries(model, support, queries):
    """An --out inside of the query folder, or the folder itself, is not segmented again."""
    for out in (queries / "found", queries):
        for resumed in (0, 11):
            found = find_queries([queries], out)
            assert len(found) == 11
            outcome = segment_files(model, {"foreground": support}, found, Output(out, CALL))
            assert (len(outcome.rows), outcome.resumed) == (11, resumed)
        for own in (out / "masks", out / "overlays" / "00.jpg"):
            with pytest.raises(UsageError, match="where the results of this call are written"):
                find_queries([own], out)
        if out != queries:
            shutil.rmtree(out)
