"""Segmenting files into a folder: what is written, and that interruptions cost nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino import images as pixels
from fsdino.apps import folder
from fsdino.apps.folder import Outcome, Output, find_queries, segment_files
from fsdino.errors import UsageError
from fsdino.models.fsdino import FSDINO
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model

CALL = {"model": "m", "threshold": 0.5}


@pytest.fixture(scope="module")
def model() -> FSDINO:
    return tiny_model()


@pytest.fixture(scope="module")
def support(model: FSDINO) -> Support:
    return model.encode_support([picture(60, 80, 9)], [box_mask(60, 80)])


@pytest.fixture
def queries(tmp_path: Path) -> Path:
    """A folder of eleven pictures of different sizes: more than one batch."""
    source = tmp_path / "queries"
    source.mkdir()
    for i in range(11):
        Image.fromarray(picture(40 + i, 70 - 2 * i, i)).save(source / f"{i:02d}.png")
    return source


def run(model: FSDINO, support: Any, queries: Path, out: Path, **options: Any) -> Outcome:
    supports = support if isinstance(support, dict) else {"foreground": support}
    return segment_files(model, supports, find_queries([queries]), Output(out, CALL, **options))


def read(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.copy()


def content(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*.*"))}


def test_masks_are_what_the_model_says(model, support, queries, tmp_path):
    """Files hold the masks of the Python interface, 0 and 255, at the queries' own sizes."""
    outcome = run(model, support, queries, tmp_path / "out")
    assert [Path(row.query).name for row in outcome.rows] == [f"{i:02d}.png" for i in range(11)]
    for i, row in enumerate(outcome.rows):
        expected = model.segment(picture(40 + i, 70 - 2 * i, i), support).mask
        found = np.array(read(tmp_path / "out" / row.mask))
        assert found.dtype == np.uint8
        assert np.array_equal(found, np.where(expected, 255, 0))
        assert row.foreground == pytest.approx(expected.mean(), abs=1e-6)
        assert read(tmp_path / "out" / row.overlay).size == (70 - 2 * i, 40 + i)


def test_every_query_is_encoded_once(model, support, queries, tmp_path, monkeypatch):
    """Two classes share one encoder pass per image."""
    encoded = []
    original = FSDINO.encode_list

    def counting(self: FSDINO, images: Any) -> Any:
        encoded.extend(images)
        return original(self, images)

    monkeypatch.setattr(FSDINO, "encode_list", counting)
    run(model, {"a": support, "b": support}, queries, tmp_path / "out")
    assert len(encoded) == 11


def test_labels_of_several_classes(model, support, queries, tmp_path):
    """N-way results are palette images: the values are labels, the colours the overlays'."""
    other = model.encode_support([picture(50, 50, 20)], [box_mask(50, 50)])
    supports = {"cat": support, "dog": other}
    outcome = run(model, supports, queries, tmp_path / "out")
    expected = model.segment(picture(40, 70, 0), supports).labels
    image = read(tmp_path / "out" / outcome.rows[0].mask)
    assert image.mode == "P"
    assert np.array_equal(np.array(image), expected)
    label = int(expected.max())
    assert label > 0
    y, x = np.argwhere(expected == label)[0]
    assert image.convert("RGB").getpixel((int(x), int(y))) == pixels.label_color(label)
    shares = {"cat": (expected == 1).mean(), "dog": (expected == 2).mean()}
    assert outcome.rows[0].classes == pytest.approx(shares, abs=1e-6)
    assert outcome.rows[0].foreground == pytest.approx((expected > 0).mean(), abs=1e-6)


def test_equal_stems_get_names_of_their_own(model, support, tmp_path):
    """a.png, a.jpg, A.bmp and x/a.png keep four results, also where the system ignores case."""
    for i, name in enumerate(("a.png", "a.jpg", "A.bmp", "x/a.png")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(picture(30 + i, 30)).save(path)
    paths = [tmp_path / name for name in ("a.png", "a.jpg", "A.bmp", "x/a.png")]
    output = Output(tmp_path / "out", CALL)
    rows = segment_files(model, {"foreground": support}, paths, output).rows
    masks = [row.mask for row in rows]
    assert len({mask.casefold() for mask in masks}) == 4
    assert masks[:2] == ["masks/a.png", "masks/a-jpg.png"]
    for i, row in enumerate(rows):
        assert read(tmp_path / "out" / row.mask).size == (30, 30 + i)


def test_an_interrupted_run_goes_on(model, support, queries, tmp_path, monkeypatch):
    """Ctrl-C keeps what is done; the same call does the rest, once, and the results are equal."""
    run(model, support, queries, tmp_path / "whole")
    original, opened = pixels.read_image, []

    def interrupted(image: Any, name: str) -> Any:
        if isinstance(image, Path):
            opened.append(image.name)
        if len(opened) == 10:
            raise KeyboardInterrupt
        return original(image, name)

    monkeypatch.setattr(pixels, "read_image", interrupted)
    with pytest.raises(KeyboardInterrupt, match=r"8 of 11 queries are done and kept in .*out"):
        run(model, support, queries, tmp_path / "out")
    assert len(content(tmp_path / "out")) == 2 * 8 + 2
    before = content(tmp_path / "out" / "masks")

    outcome = run(model, support, queries, tmp_path / "out")
    assert (len(outcome.rows), outcome.resumed) == (11, 8)
    assert opened[10:] == ["08.png", "09.png", "10.png"]
    after = content(tmp_path / "out" / "masks")
    assert before.items() <= after.items()
    assert after == content(tmp_path / "whole" / "masks")


def test_a_line_that_was_cut_off_is_done_again(model, support, queries, tmp_path):
    """A crash while a row was written loses that row and no other."""
    run(model, support, queries, tmp_path / "out")
    rows = tmp_path / "out" / "results.jsonl"
    rows.write_text(rows.read_text()[:-30])
    outcome = run(model, support, queries, tmp_path / "out")
    assert (len(outcome.rows), outcome.resumed) == (11, 10)
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len({line["query"] for line in lines}) == len(lines) == 11
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 11


def test_what_changed_is_done_again(model, support, queries, tmp_path):
    """An edited query and a deleted result are redone under the same name; the rest is kept."""
    first = run(model, support, queries, tmp_path / "out")
    Image.fromarray(picture(33, 44)).save(queries / "03.png")
    (tmp_path / "out" / first.rows[5].mask).unlink()
    second = run(model, support, queries, tmp_path / "out")
    assert second.resumed == 9
    assert [row.mask for row in second.rows] == [row.mask for row in first.rows]
    assert read(tmp_path / "out" / second.rows[3].mask).size == (44, 33)


def test_unreadable_queries_do_not_stop_the_others(model, support, queries, tmp_path):
    """Each is named with its reason, and gets no output."""
    whole = (queries / "02.png").read_bytes()
    (queries / "02.png").write_bytes(whole[: len(whole) // 2])
    (queries / "07.png").write_text("no image")
    outcome = run(model, support, queries, tmp_path / "out")
    assert [Path(path).name for path in outcome.failed] == ["02.png", "07.png"]
    assert "truncated" in outcome.failed[str(queries / "02.png")]
    assert len(outcome.rows) == len(list((tmp_path / "out" / "masks").iterdir())) == 9


def test_batches_are_bounded_by_pixels(queries, monkeypatch):
    """Large images are not collected until there are eight of them."""
    monkeypatch.setattr(folder, "_BATCH_PIXELS", 5000)
    sizes = [40 * 70, 41 * 68, 42 * 66, 43 * 64, 44 * 62]
    with folder.Progress("test", 5) as progress:
        paths = find_queries([queries])[:5]
        batches = [[len(i.array) for i in b] for b in folder._batches([paths], {}, progress)]
    assert sizes[0] + sizes[1] > 5000 > sizes[0]
    assert batches == [[40, 41], [42, 43], [44]]


def test_another_call_needs_another_folder(tmp_path):
    """Results of two calls never mix; the message names what differs."""
    Output(tmp_path / "out", CALL)
    Output(tmp_path / "out", CALL)
    with pytest.raises(UsageError, match=r"differs in threshold\): pass another --out"):
        Output(tmp_path / "out", {**CALL, "threshold": 0.4})
    (tmp_path / "out" / "segment.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        Output(tmp_path / "out", CALL)


def test_folders_of_other_programs_are_left_alone(tmp_path):
    """A data set's own masks/ is not written into, unless that is asked for."""
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "truth.png").touch()
    with pytest.raises(UsageError, match="masks/ of another program"):
        Output(tmp_path, CALL)
    Output(tmp_path, CALL, overwrite=True)
    assert (tmp_path / "masks" / "truth.png").exists()


def test_overwrite_removes_what_the_other_call_wrote(model, support, queries, tmp_path):
    """And nothing else."""
    run(model, support, queries, tmp_path / "out")
    (tmp_path / "out" / "masks" / "mine.png").touch()
    Output(tmp_path / "out", {**CALL, "threshold": 0.4}, overwrite=True)
    assert set(content(tmp_path / "out")) == {"segment.json", "masks/mine.png"}


def test_out_must_be_a_folder(tmp_path):
    """A file of that name stays as it is."""
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UsageError, match="a folder is needed, this is a file"):
        Output(tmp_path / "out", CALL)
    assert (tmp_path / "out").read_text() == "mine"


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


def test_outcome_as_json_has_paths_that_exist(model, support, queries, tmp_path, monkeypatch):
    """A script can open what the JSON names, from the folder where the command ran."""
    monkeypatch.chdir(tmp_path)
    data = json.loads(json.dumps(run(model, support, queries, Path("out")).to_dict(Path("out"))))
    assert len(data["queries"]) == 11
    for row in data["queries"]:
        assert all(os.path.isfile(row[kind]) for kind in ("query", "mask", "overlay"))
        assert set(row) == {"query", "mask", "overlay", "foreground", "classes", "seconds"}
