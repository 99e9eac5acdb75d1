"""Segmenting files into a folder: what is written, and that interruptions cost nothing."""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino import images as pixels
from fsdino import overlay
from fsdino.commands.segment import output, stream
from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import Outcome, segment_files
from fsdino.errors import DataError, FsdinoError, UsageError
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
    assert image.convert("RGB").getpixel((int(x), int(y))) == overlay.label_color(label)
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
    monkeypatch.setattr(stream, "_BATCH_BYTES", 7 * 5000)
    sizes = [40 * 70, 41 * 68, 42 * 66, 43 * 64, 44 * 62]
    with stream.Progress("test", 5) as progress:
        paths = find_queries([queries])[:5]
        task = stream._Task({}, progress)
        batches = [[len(i.array) for i in b] for b in stream._batches([paths], task, 7)]
        assert sizes[0] + sizes[1] > 5000 > sizes[0]
        assert batches == [[40, 41], [42, 43], [44]]
        Image.fromarray(picture(100, 50)).save(paths[1])
        batches = [[len(i.array) for i in b] for b in stream._batches([paths], task, 7)]
        assert batches == [[40], [100], [42, 43], [44]]  # what fills a batch alone is alone
        batches = [[len(i.array) for i in b] for b in stream._batches([paths], task, 3 + 4 * 9)]
        assert batches == [[40], [100], [42], [43], [44]]  # nine classes take more


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
        assert 0 <= row["scores"]["foreground"] <= 1
        assert row["found"] == {"foreground": row["scores"]["foreground"] >= 0.1}
        assert set(row) == {
            "query",
            "mask",
            "overlay",
            "foreground",
            "classes",
            "scores",
            "found",
            "seconds",
        }


# ------------------------------------------------------------------------- damage and hard edges


class Broken(FSDINO):
    """A model whose logits are NaN for images of 41 rows."""

    def _probabilities(self, arrays: Any, supports: Any) -> Any:
        if any(len(array) == 41 for array in arrays):
            raise DataError("the model's output is not finite")
        return super()._probabilities(arrays, supports)


def test_a_query_without_finite_logits_fails_alone(model, support, queries, tmp_path):
    """Those in its batch are done; it has a reason, and no mask."""
    model = copy.deepcopy(model)
    model.__class__ = Broken
    outcome = run(model, support, queries, tmp_path / "out")
    assert outcome.failed == {
        str(queries / "01.png"): f"query ({queries / '01.png'}): the model's output is not finite"
    }
    assert [Path(row.query).name for row in outcome.rows] == [
        f"{i:02d}.png" for i in range(11) if i != 1
    ]
    assert not (tmp_path / "out" / "masks" / "01.png").exists()


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't")])
def test_a_query_that_does_not_fit_into_memory_fails_alone(
    error, model, support, queries, tmp_path, monkeypatch
):
    """In the model, or while its overlay is drawn."""
    original, drawn = overlay.overlay, FSDINO._probabilities

    def full(self, arrays, supports):
        if any(len(array) == 42 for array in arrays):
            raise error
        return drawn(self, arrays, supports)

    def draw(image, labels):
        if len(image) == 44:
            raise error
        return original(image, labels)

    monkeypatch.setattr(FSDINO, "_probabilities", full)
    monkeypatch.setattr(overlay, "overlay", draw)
    outcome = run(model, support, queries, tmp_path / "out")
    assert [Path(query).name for query in outcome.failed] == ["02.png", "04.png"]
    assert all("does not fit into memory" in reason for reason in outcome.failed.values())
    assert len(list((tmp_path / "out" / "masks").iterdir())) == 9


def test_a_query_of_too_many_tiles_fails_alone(model, queries, tmp_path):
    """What is wrong with one image does not stop the others."""
    small = model.encode_support([picture(20, 20, 9)], [box_mask(20, 20)])
    Image.fromarray(picture(540, 540)).save(queries / "05.png")
    supports = {"foreground": small}
    files = find_queries([queries / "04.png", queries / "05.png"])
    outcome = segment_files(model, supports, files, Output(tmp_path / "out", CALL), tiles=True)
    assert [Path(row.query).name for row in outcome.rows] == ["04.png"]
    assert "more than 2500" in outcome.failed[str(queries / "05.png")]


def test_a_query_that_vanishes_fails_alone(model, support, queries, tmp_path):
    """Also one that was done before: its row is not believed without the file."""
    files = find_queries([queries])
    run(model, support, queries, tmp_path / "out")
    (queries / "03.png").unlink()
    outcome = segment_files(model, {"foreground": support}, files, Output(tmp_path / "out", CALL))
    assert [Path(query).name for query in outcome.failed] == ["03.png"]
    assert outcome.resumed == 10


def test_a_file_that_the_system_cuts_short_is_not_done(model, support, queries, tmp_path):
    """A real limit on file sizes: the overlay that passes it fails, alone, and leaves nothing."""
    Image.fromarray(picture(600, 600)).save(queries / "05.png")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        outcome = run(model, support, queries, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [Path(query).name for query in outcome.failed] == ["05.png"]
    assert "File too large" in outcome.failed[str(queries / "05.png")]
    assert len(list((tmp_path / "out").glob("*s/*"))) == 2 * 10
    assert not list((tmp_path / "out").rglob("05.*"))
    assert len(run(model, support, queries, tmp_path / "out").rows) == 11


@pytest.mark.parametrize("kind", ["masks", "overlays"])
@pytest.mark.parametrize("change", [lambda b: b[:-20], lambda b: b"", lambda b: b + b"\0"])
def test_results_of_another_size_are_done_again(kind, change, model, support, queries, tmp_path):
    """A mask or overlay that was cut off does not count as done."""
    whole = run(model, support, queries, tmp_path / "out")
    expected = content(tmp_path / "out" / kind)
    damaged = sorted((tmp_path / "out" / kind).iterdir())[4]
    damaged.write_bytes(change(damaged.read_bytes()))
    outcome = run(model, support, queries, tmp_path / "out")
    assert (outcome.resumed, len(outcome.rows)) == (10, len(whole.rows))
    assert content(tmp_path / "out" / kind) == expected


def test_a_query_too_long_for_jpeg_gets_a_png(model, support, tmp_path, monkeypatch):
    """JPEG ends at 65,500 pixels; the rest of the folder goes on, and a second run keeps it."""
    source = tmp_path / "queries"
    source.mkdir()
    for name, size in (("a", (40, 40)), ("b", (2, 65_501)), ("c", (2, 65_500))):
        Image.fromarray(picture(*size)).save(source / f"{name}.png")
    outcome = run(model, support, source, tmp_path / "out")
    assert [row.overlay for row in outcome.rows] == [
        "overlays/a.jpg", "overlays/b.png", "overlays/c.jpg",
    ]  # fmt: skip
    for kind in ("mask", "overlay"):
        assert read(tmp_path / "out" / getattr(outcome.rows[1], kind)).size == (65_501, 2)
    assert run(model, support, source, tmp_path / "out").resumed == 3
    Image.fromarray(picture(40, 40, 3)).save(source / "b.png")
    assert run(model, support, source, tmp_path / "out").rows[1].overlay == "overlays/b.jpg"
    assert not (tmp_path / "out" / "overlays" / "b.png").exists()


def test_names_as_long_as_names_can_be(model, support, tmp_path):
    """Two of 255 bytes that differ at their end get results; their endings do not fit on top."""
    source = tmp_path / "queries"
    source.mkdir()
    for name in ("é" * 125 + "a.png", "é" * 125 + "b.png"):
        Image.fromarray(picture(20, 20)).save(source / name)
    outcome = run(model, support, source, tmp_path / "out")
    assert (len(outcome.rows), outcome.failed) == (2, {})
    assert len({row.mask for row in outcome.rows}) == 2


def test_names_that_are_not_utf8(model, support, tmp_path):
    """Bytes of another encoding in a file's name come through, into the rows as well."""
    source = tmp_path / "queries"
    source.mkdir()
    name = os.fsdecode(b"caf\xe9.png")
    Image.fromarray(picture(20, 20)).save(source / name)
    outcome = run(model, support, source, tmp_path / "out")
    assert outcome.rows[0].query == str(source / name)
    assert (tmp_path / "out" / "masks" / name).is_file()
    assert run(model, support, source, tmp_path / "out").resumed == 1


def test_two_calls_into_one_folder(tmp_path, monkeypatch):
    """The second is told who is there, before anything is read or removed; the first goes on."""
    out = tmp_path / "out"
    first = Output(out, CALL)
    (out / "results.jsonl").write_text("half a li")
    before = content(out)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=rf"out is in use by process {os.getpid()} on .*--out"):
            Output(out, {**CALL, "threshold": 0.1}, **options)
    assert content(out) == before
    with monkeypatch.context() as patch:
        patch.setattr(output, "is_first", lambda: False)  # of a process that shares the work
        Output(out, CALL).close()
    assert content(out) == before
    first.close()
    Output(out, CALL).close()
    assert set(content(out)) == {"segment.json", "results.jsonl"}


@pytest.mark.parametrize("trouble", ["another call", "damaged", "foreign"])
def test_a_refused_folder_is_not_held(trouble, tmp_path):
    """The lock is released on every way out, while the error is still at hand."""
    out = tmp_path / "out"
    Output(out, CALL).close()
    if trouble == "damaged":
        (out / "segment.json").write_bytes(b"\0\xff")
    elif trouble == "foreign":
        (out / "segment.json").unlink()
        (out / "masks" / "a.png").touch()
    with pytest.raises(UsageError) as error:
        Output(out, {**CALL, "threshold": 0.1})
    assert not (out / "segment.lock").exists()
    Output(out, CALL, overwrite=True).close()
    assert error.value is not None


def test_segmenting_ends_the_lock(model, support, queries, tmp_path):
    """With or without an error, whoever still has the Output."""
    output = Output(tmp_path / "out", CALL)
    with pytest.raises(UsageError, match="threshold"):
        segment_files(model, {"a": support}, [], output, threshold=2.0)
    again = Output(tmp_path / "out", CALL)
    segment_files(model, {"foreground": support}, find_queries([queries]), again)
    Output(tmp_path / "out", CALL).close()


@pytest.mark.parametrize(
    "change",
    [
        {"mask": "../../secret.png"},
        {"mask": "masks/../../secret.png"},
        {"mask": "/etc/passwd"},
        {"mask": "masks/sub/a.png"},
        {"mask": "masks/..png", "overlay": "overlays/..jpg"},
        {"mask": "masks/01.png"},  # another row's
        {"overlay": "overlays/01.jpg"},
        {"overlay": "masks/00.png"},
        {"query": "relative.png"},
        {"query": 7},
        {"query": "/a\0b"},
        {"stamp": [1]},
        {"stamp": [1, "2"]},
        {"stamp": None},
        {"sizes": [True, 1]},
        {"sizes": []},
        {"foreground": "x"},
        {"foreground": float("nan")},
        {"classes": []},
        {"classes": {"a": None}},
        {"seconds": [1]},
        {"more": 1},
        {"mask": None},
    ],
)
def test_damaged_rows_are_done_again(change, model, support, queries, tmp_path, caplog):
    """Whatever is in them; nothing outside is read, written or removed, and the rest is kept."""
    (tmp_path / "secret.png").write_text("mine")
    out = tmp_path / "out"
    run(model, support, queries, out)
    lines = (out / "results.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), **change})
    (out / "results.jsonl").write_text("\n".join(lines[1:] + lines[:1]) + "\n")
    outcome = run(model, support, queries, out)
    assert (outcome.resumed, len(outcome.rows)) == (10, 11)
    assert outcome.rows[0].mask == "masks/00.png"
    assert "1 damaged lines are dropped" in caplog.text
    assert len(list((out / "masks").iterdir())) == 11
    run(model, support, queries, out)
    Output(out, {**CALL, "threshold": 0.1}, overwrite=True).close()
    assert (tmp_path / "secret.png").read_text() == "mine"
    assert set(content(out)) == {"segment.json"}


@pytest.mark.parametrize(
    "damage", [b"\0" * 500, b"\xff\xfe{", b"[" * 100_000, b"[]\n7\nnull\n", b""]
)
def test_damaged_rows_files(damage, model, support, queries, tmp_path):
    """Binary, deep or foreign lines cost a repetition, and --overwrite an error of no kind."""
    out = tmp_path / "out"
    first = run(model, support, queries, out)
    (out / "results.jsonl").write_bytes(damage)
    outcome = run(model, support, queries, out)
    assert outcome.resumed == 0
    assert [row.mask for row in outcome.rows] == [row.mask for row in first.rows]
    (out / "results.jsonl").write_bytes(damage)
    again = run(model, support, queries, out, overwrite=True)
    assert [row.mask for row in again.rows] == [row.mask for row in first.rows]
    assert len(list((out / "masks").iterdir())) == 11


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"\0" * 50, b"[1]", b'"x"', b"{\xff}", b"[" * 100_000, b'{"others": 7}']
)
def test_a_damaged_call_is_named(damage, model, support, queries, tmp_path):
    """With the remedy, which works, and keeps files that no row names."""
    out = tmp_path / "out"
    run(model, support, queries, out)
    (out / "masks" / "mine.png").write_text("mine")
    (out / "segment.json").write_bytes(damage)
    with pytest.raises(UsageError, match=r"segment\.json is damaged .*: pass .*or --overwrite"):
        run(model, support, queries, out)
    outcome = run(model, support, queries, out, overwrite=True)
    assert [Path(row.mask).stem for row in outcome.rows] == [f"{i:02d}" for i in range(11)]
    assert (out / "masks" / "mine.png").read_text() == "mine"


def test_files_in_the_place_of_others_are_named(tmp_path):
    """A folder for segment.json or results.jsonl, a file for masks/."""
    for number, (name, make) in enumerate(
        [("segment.json", Path.mkdir), ("results.jsonl", Path.mkdir), ("masks", Path.touch)]
    ):
        out = tmp_path / str(number)
        if name != "segment.json":
            Output(out, CALL).close()
        if name == "masks":
            (out / "masks").rmdir()
        out.mkdir(exist_ok=True)
        make(out / name)
        with pytest.raises(FsdinoError, match=name) as error:
            Output(out, CALL)
        assert "\n" not in str(error.value)
        with pytest.raises(FsdinoError, match=name):
            Output(out, CALL, overwrite=True)
        assert (out / name).exists()


def test_other_programs_files_keep_their_names(model, support, queries, tmp_path):
    """--overwrite beside somebody's masks/: theirs stay, and ours get other names, every time."""
    out = tmp_path / "out"
    (out / "masks").mkdir(parents=True)
    (out / "overlays").mkdir()
    (out / "masks" / "03.png").write_text("truth")
    (out / "overlays" / "04.jpg").write_text("truth")
    for options in ({"overwrite": True}, {}, {"overwrite": True}):
        outcome = run(model, support, queries, out, **options)
        assert [Path(row.mask).stem for row in outcome.rows[2:6]] == [
            "02", "03-png", "04-png", "05",
        ]  # fmt: skip
        assert (out / "masks" / "03.png").read_text() == "truth"
        assert (out / "overlays" / "04.jpg").read_text() == "truth"
    assert outcome.resumed == 0


def test_other_programs_rows_are_kept(tmp_path):
    """A results.jsonl that fsdino did not write is neither appended to nor removed."""
    (tmp_path / "results.jsonl").write_text('{"loss": 1}\n')
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=r"file results\.jsonl of another program"):
            Output(tmp_path, CALL, **options)
    assert (tmp_path / "results.jsonl").read_text() == '{"loss": 1}\n'


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


def test_names_stay_when_queries_join(model, support, queries, tmp_path):
    """Files of equal stems that come before the ones that are done do not take their names."""
    (queries / "z").mkdir()
    Image.fromarray(picture(20, 20)).save(queries / "z" / "00.png")
    first = run(model, support, queries, tmp_path / "out")
    (queries / "0").mkdir()
    Image.fromarray(picture(25, 20)).save(queries / "0" / "00.png")
    second = run(model, support, queries, tmp_path / "out")
    masks = {row.query: row.mask for row in second.rows}
    assert second.resumed == 12
    assert len(set(masks.values())) == 13
    assert {row.query: row.mask for row in first.rows}.items() < masks.items()
    again = run(model, support, queries, tmp_path / "again")
    assert [row.mask for row in again.rows] == [
        row.mask for row in run(model, support, queries, tmp_path / "third").rows
    ]


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


def test_more_classes_than_labels(model, support, tmp_path):
    """256 would wrap around to background in an 8-bit label image."""
    supports = {str(i): support for i in range(256)}
    with pytest.raises(UsageError, match="256 supports: at most 255"):
        segment_files(model, supports, [], Output(tmp_path / "out", CALL))
