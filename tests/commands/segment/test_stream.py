"""Segmenting many files: what is written, and what one bad query costs."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fsdino import images as pixels
from fsdino import overlay
from fsdino.commands.segment.output import Output
from fsdino.commands.segment.queries import find_queries
from fsdino.commands.segment.stream import segment_files
from fsdino.errors import DataError, UsageError
from fsdino.models.fsdino import FSDINO
from segmenting import CALL, content, read, run
from tiny_models import box_mask, picture

# ------------------------------------------------------------------------- damage and hard edges


class Broken(FSDINO):
    """A model whose logits are NaN for images of 41 rows."""

    def _probabilities(self, arrays: Any, supports: Any) -> Any:
        if any(len(array) == 41 for array in arrays):
            raise DataError("the model's output is not finite")
        return super()._probabilities(arrays, supports)


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


def test_unreadable_queries_do_not_stop_the_others(model, support, queries, tmp_path):
    """Each is named with its reason, and gets no output."""
    whole = (queries / "02.png").read_bytes()
    (queries / "02.png").write_bytes(whole[: len(whole) // 2])
    (queries / "07.png").write_text("no image")
    outcome = run(model, support, queries, tmp_path / "out")
    assert [Path(path).name for path in outcome.failed] == ["02.png", "07.png"]
    assert "truncated" in outcome.failed[str(queries / "02.png")]
    assert len(outcome.rows) == len(list((tmp_path / "out" / "masks").iterdir())) == 9


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
            "annotations",
        }


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


def test_segmenting_ends_the_lock(model, support, queries, tmp_path):
    """With or without an error, whoever still has the Output."""
    output = Output(tmp_path / "out", CALL)
    with pytest.raises(UsageError, match="threshold"):
        segment_files(model, {"a": support}, [], output, threshold=2.0)
    again = Output(tmp_path / "out", CALL)
    segment_files(model, {"foreground": support}, find_queries([queries]), again)
    Output(tmp_path / "out", CALL).close()


def test_more_classes_than_labels(model, support, tmp_path):
    """256 would wrap around to background in an 8-bit label image."""
    supports = {str(i): support for i in range(256)}
    with pytest.raises(UsageError, match="256 supports: at most 255"):
        segment_files(model, supports, [], Output(tmp_path / "out", CALL))
