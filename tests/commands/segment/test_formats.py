"""`--format`: what is written for other tools, resumed and refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as api
from pycocotools.coco import COCO

from fsdino.commands.segment.formats import PLACES, Formats
from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import Outcome, segment_files
from fsdino.errors import DataError, UsageError
from segmenting import CALL, content, read
from tiny_models import box_mask, picture

ALL = "coco,yolo,labelme,probability"
CLASSES = ("cat", "dog")


def run(model: Any, support: Any, queries: Path, out: Path, text: str = ALL) -> Outcome:
    """Segment by two classes."""
    formats = Formats.parse(text, min_area=2)
    output = Output(out, {**CALL, **formats.call()}, formats=formats)
    other = model.encode_support([picture(50, 70, 4)], [box_mask(50, 70)])
    supports = dict(zip(CLASSES, (support, other), strict=True))
    return segment_files(model, supports, find_queries([queries]), output)


def test_every_format_of_a_folder(model, support, queries, tmp_path):
    """Each has the pixels of the masks, but for objects below the least area."""
    out = tmp_path / "out"
    outcome = run(model, support, queries, out)
    assert (out / "classes.txt").read_text() == "cat\ndog\n"
    coco = COCO(out / "annotations.json")
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    images = coco.loadImgs(coco.getImgIds())
    assert [image["file_name"] for image in images] == [f"{i:02d}.png" for i in range(11)]
    assert sum(image["width"] * image["height"] for image in images) > 0
    assert sorted(coco.anns) == list(range(1, len(coco.anns) + 1))
    objects = 0
    for image, row in zip(images, outcome.rows, strict=True):
        labels = np.asarray(read(out / row.mask))
        assert labels.shape == (image["height"], image["width"])
        found = coco.loadAnns(coco.getAnnIds(imgIds=image["id"]))
        drawn = np.zeros(labels.shape, int)
        for part in found:
            drawn += part["category_id"] * coco.annToMask(part)
        assert ((drawn == labels) | (drawn == 0)).all()
        assert 0 <= (labels > 0).sum() - (drawn > 0).sum() < 0.1 * labels.size
        objects += len(found)
        lines = (out / "yolo" / f"{row.name}.txt").read_text().splitlines()
        marked = json.loads((out / "labelme" / f"{row.name}.json").read_text())
        assert len(lines) == len(marked["shapes"]) == len(found)
        opened = out / "labelme" / marked["imagePath"]
        assert opened.samefile(row.query)
        for part, line, shape in zip(found, lines, marked["shapes"], strict=True):
            assert int(line.split()[0]) + 1 == part["category_id"]
            assert CLASSES[part["category_id"] - 1] == shape["label"]
            if part["area"] >= 32 * 32:
                polygon = [np.array(shape["points"]).ravel().tolist()]
                other = api.frPyObjects(polygon, *labels.shape)
                assert api.iou([part["segmentation"]], other, [0])[0, 0] >= 0.97
        with np.load(out / "probabilities" / f"{row.name}.npz") as stored:
            assert stored["names"].tolist() == ["cat", "dog"]
            assert stored["probabilities"].dtype == np.float16
            assert stored["probabilities"].shape == (2, *labels.shape)
    assert objects > 0
    assert {part["category_id"] for part in coco.anns.values()} == {1, 2}


def test_a_run_with_formats_is_resumed(model, support, queries, tmp_path):
    """What was lost or cut off is done again; the collected files are the same as in one run."""
    out, whole = tmp_path / "out", tmp_path / "whole"
    run(model, support, queries, whole)
    for path in sorted(queries.iterdir())[6:]:
        path.rename(tmp_path / path.name)
    assert len(run(model, support, queries, out).rows) == 6
    for path in tmp_path.glob("*.png"):
        path.rename(queries / path.name)
    (out / "yolo" / "01.txt").unlink()
    (out / "coco" / "02.json").write_bytes(b"{")
    (out / "probabilities" / "03.npz").write_bytes(b"")
    outcome = run(model, support, queries, out)
    assert (outcome.resumed, len(outcome.rows)) == (3, 11)
    ends = (".json", ".txt", ".png")
    skipped = {"segment.json", "results.jsonl"}
    first, second = (
        {k: v for k, v in content(folder).items() if k.endswith(ends) and k not in skipped}
        for folder in (whole, out)
    )
    assert first.keys() == second.keys()
    assert [k for k in first if first[k] != second[k]] == []


def test_file_names_from_the_folder_that_all_share(model, support, queries, tmp_path):
    """So that equal names in two folders stay apart."""
    (queries / "x").mkdir()
    Image.new("RGB", (20, 30)).save(queries / "x" / "00.png")
    run(model, support, queries, tmp_path / "out", "coco")
    images = json.loads((tmp_path / "out" / "annotations.json").read_text())["images"]
    assert [image["file_name"] for image in images][-1] == "x/00.png"
    assert len({image["file_name"] for image in images}) == 12
    assert (images[-1]["width"], images[-1]["height"]) == (20, 30)


def test_labelme_finds_the_images_through_links(model, support, queries, tmp_path):
    """LabelMe follows the path from the file: the system resolves links before each `..`."""
    (tmp_path / "disk" / "deep").mkdir(parents=True)
    (tmp_path / "out").symlink_to(tmp_path / "disk" / "deep")
    (tmp_path / "photos").symlink_to(queries)
    run(model, support, tmp_path / "photos", tmp_path / "out" / "found", "labelme")
    file = tmp_path / "out" / "found" / "labelme" / "00.json"
    image = file.parent / json.loads(file.read_text())["imagePath"]
    assert image.is_file() and image.samefile(queries / "00.png")


def test_yolo_files_without_their_images_names_are_announced(
    model, support, queries, tmp_path, caplog
):
    """Programs find a label file by the image's name and subfolder, and say nothing without it."""
    with caplog.at_level(logging.WARNING, "fsdino"):
        run(model, support, queries, tmp_path / "flat", "yolo")
    assert caplog.text == ""
    (queries / "x").mkdir()
    Image.new("RGB", (20, 30)).save(queries / "x" / "a.png")
    Image.new("RGB", (20, 30)).save(queries / "x" / "00.png")
    with caplog.at_level(logging.WARNING, "fsdino"):
        run(model, support, queries, tmp_path / "out", "yolo")
    [record] = [r for r in caplog.records if "YOLO" in r.getMessage()]
    assert "2 of 13 photographs" in record.getMessage()
    assert f"{queries / 'x' / 'a.png'} is a.txt" in record.getMessage()


def test_png_alone_writes_what_it_did_before(model, support, queries, tmp_path):
    """No folder more, and the record of the call names no format: earlier folders go on."""
    assert Formats.parse("png") == Formats() and Formats().call() == {}
    outcome = run(model, support, queries, tmp_path / "out", "png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "masks", "overlays", "results.jsonl", "segment.json",
    }  # fmt: skip
    rows = (tmp_path / "out" / "results.jsonl").read_text().splitlines()
    earlier = [{k: v for k, v in json.loads(r).items() if k != "annotations"} for r in rows]
    (tmp_path / "out" / "results.jsonl").write_text("".join(json.dumps(r) + "\n" for r in earlier))
    assert run(model, support, queries, tmp_path / "out", "png").resumed == len(outcome.rows)


def test_other_formats_are_another_call(model, support, queries, tmp_path):
    """And overwriting removes what the former call wrote, and nothing else."""
    out = tmp_path / "out"
    run(model, support, queries, out)
    (out / "labelme" / "mine.json").write_text("mine")
    with pytest.raises(UsageError, match="differs in formats"):
        run(model, support, queries, out, "coco")
    formats = Formats.parse("png")
    Output(out, CALL, overwrite=True, formats=formats).close()
    assert set(content(out)) == {"segment.json", "labelme/mine.json"}


@pytest.mark.parametrize("file", ["annotations.json", "classes.txt", "yolo/a.txt", "coco/a.json"])
def test_files_of_other_programs_stay(file, model, support, queries, tmp_path):
    """They are refused; overwriting keeps those in folders, and refuses the others again."""
    out = tmp_path / "out"
    (out / file).parent.mkdir(parents=True)
    (out / file).write_text("mine")
    formats = Formats.parse(ALL)
    call = {**CALL, **formats.call()}
    with pytest.raises(UsageError, match=r"has a (file|folder) .* of another program"):
        Output(out, call, formats=formats)
    if "/" in file:
        Output(out, call, overwrite=True, formats=formats).close()
    else:
        Output(out, CALL).close()
        with pytest.raises(UsageError, match=rf"has a file {file} of another program"):
            Output(out, call, overwrite=True, formats=formats)
    assert (out / file).read_text() == "mine"


def test_a_damaged_part_is_named(model, support, queries, tmp_path):
    """Of the same size, and so noticed only when all are put together."""
    out = tmp_path / "out"
    run(model, support, queries, out, "coco")
    part = out / "coco" / "03.json"
    for damage in (b"[", b"{}"):
        part.write_bytes(damage + b" " * (part.stat().st_size - len(damage)))
        with pytest.raises(DataError, match=r"remove .* and repeat the command"):
            run(model, support, queries, out, "coco")


@pytest.mark.parametrize("damage", [7, {"../../a": 1}, {"yolo/01.txt": 1}, {"yolo/00.txt": "1"}])
def test_damaged_rows_of_formats(damage, model, support, queries, tmp_path):
    """They are done again."""
    out = tmp_path / "out"
    run(model, support, queries, out, "yolo")
    lines = (out / "results.jsonl").read_text().splitlines()
    lines[0] = json.dumps({**json.loads(lines[0]), "annotations": damage})
    (out / "results.jsonl").write_text("\n".join(lines) + "\n")
    assert run(model, support, queries, out, "yolo").resumed == 10


def test_options() -> None:
    """In any order, once each; what is unknown is named with what there is."""
    assert Formats.parse(" yolo, png,coco,coco").names == ("coco", "yolo")
    assert Formats.parse(ALL).names == tuple(PLACES)
    with pytest.raises(UsageError, match=r"--format 'svg' is unknown: choose from coco, labelme"):
        Formats.parse("coco,svg")
    with pytest.raises(UsageError, match="--format is empty"):
        Formats.parse(",")
    with pytest.raises(UsageError, match="--min-area must be at least 1 pixel, got 0"):
        Formats.parse("coco", min_area=0)


def test_results_are_no_queries(queries, tmp_path):
    """Nor files that are left out, where --out lies among the queries."""
    (queries / "labelme").mkdir()
    (queries / "labelme" / "00.json").touch()
    found = find_queries([queries], queries)
    assert (len(found), found.left_out) == (11, {})
