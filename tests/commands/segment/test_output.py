"""The output folder: names, rows, other calls and other programs' files."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest
from PIL import Image

from fsdino.commands.segment.output import Output
from fsdino.commands.segment.stream import segment_files
from fsdino.errors import FsdinoError, UsageError
from segmenting import CALL, content, read, run
from tiny_models import picture


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


def test_two_calls_into_one_folder(tmp_path):
    """The second is told who is there, before anything is read or removed; the first goes on."""
    out = tmp_path / "out"
    first = Output(out, CALL)
    (out / "results.jsonl").write_text("half a li")
    before = content(out)
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UsageError, match=rf"out is in use by process {os.getpid()} on .*--out"):
            Output(out, {**CALL, "threshold": 0.1}, **options)
    assert content(out) == before
    Output(out, CALL, first=False).close()  # of a process that shares the work
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
    assert "1 damaged lines are left out" in caplog.text
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
