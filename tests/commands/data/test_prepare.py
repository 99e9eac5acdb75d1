"""Masks and lists that are made once: where they lie, and that they are found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from data_sets import write_coco, write_fss, write_voc
from fsdino.commands.data.check import check
from fsdino.commands.data.prepare import prepare
from fsdino.data.catalog import open_episodes
from fsdino.errors import UsageError


@pytest.mark.parametrize("there", ["train2014", "val2014"])
def test_one_year_of_coco_is_prepared(
    there: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Who evaluates needs no training images; what was left is said."""
    other = "val2014" if there == "train2014" else "train2014"
    write_coco(tmp_path)
    shutil.rmtree(tmp_path / other)
    made = prepare("coco20i", tmp_path)
    assert set(made) == {f"masks of {there}", "lists", "index"}
    assert f"{other}/ has no images, get {other}.zip" in caplog.text
    index = json.loads(made["index"].read_text())
    split = "val" if there == "val2014" else "train"
    assert [fold["split"] for fold in index["folds"]] == [split] * 4
    (tmp_path / "annotations" / f"instances_{other}.json").unlink()
    assert set(prepare("coco20i", tmp_path)) == set(made)
    shutil.rmtree(tmp_path / there)
    with pytest.raises(UsageError, match=r"train2014/ has no images.*val2014/ has no images"):
        prepare("coco20i", tmp_path)


def test_lists_of_a_part_of_coco_are_not_those_of_the_whole(tmp_path: Path) -> None:
    """Images that were unpacked later were missing in derived lists for ever."""
    write_coco(tmp_path)
    late = sorted((tmp_path / "val2014").iterdir())[:40]
    for path in late:
        path.rename(tmp_path / path.name)
    prepare("coco20i", tmp_path)
    for path in late:
        (tmp_path / path.name).rename(path)
    prepare("coco20i", tmp_path)
    assert set(check("coco20i", tmp_path).folds[0].classes.values()) == {4}


def test_coco_is_prepared_once_and_then_found(
    tmp_path: Path, cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Masks, lists and an index, in the cache, where evaluation looks for them."""
    write_coco(tmp_path / "data")
    made = prepare("coco20i", tmp_path / "data")
    assert set(made) == {"masks of train2014", "masks of val2014", "lists", "index"}
    assert all(cache in path.parents and path.exists() for path in made.values())
    index = json.loads(made["index"].read_text())
    assert index["folds"][0]["classes"]["person"] == 4 and len(index["folds"]) == 8
    caplog.set_level("INFO", logger="fsdino.data")
    caplog.clear()
    assert prepare("coco20i", tmp_path / "data") == made
    episodes = open_episodes("coco20i", root=tmp_path / "data", split="base_val", fold=2)
    assert episodes.provenance.lists_hash and not caplog.records


def test_prepared_lists_are_read_as_derived_ones(tmp_path: Path) -> None:
    """Lists that were written here must not pass for HSNet's."""
    write_voc(tmp_path / "voc", tmp_path / "published")
    made = prepare("pascal5i", tmp_path / "voc", tmp_path / "out")
    assert made == {"lists": tmp_path / "out", "index": tmp_path / "out" / "index.json"}
    options = {"root": tmp_path / "voc", "fold": 3, "episodes": 5}
    found = open_episodes("pascal5i", splits=tmp_path / "out", **options)  # type: ignore[arg-type]
    assert found.provenance.lists == "derived"
    write_fss(tmp_path / "fss", [f"class{i}" for i in range(8)])
    made = prepare("fss1000", tmp_path / "fss", tmp_path / "division")
    found = open_episodes("fss1000", root=tmp_path / "fss", splits=tmp_path / "division")
    assert found.provenance.lists == "derived"
    assert prepare("folder", tmp_path / "fss") == {}


def test_prepare_needs_the_data(tmp_path: Path) -> None:
    """Nothing is made from nothing."""
    with pytest.raises(UsageError, match=r"no coco20i there.*annotations_trainval2014"):
        prepare("coco20i", tmp_path)


def test_published_lists_are_not_overwritten(tmp_path: Path) -> None:
    """Derived ones differ from them, and could not be told apart afterwards."""
    write_voc(tmp_path / "voc", tmp_path / "lists")
    file = tmp_path / "lists" / "pascal" / "val" / "fold0.txt"
    file.write_text("".join(f"{line}\n" for line in file.read_text().splitlines()[::-1]))
    published = file.read_bytes()
    with pytest.raises(UsageError, match=r"lists/pascal exists .*pass another --out"):
        prepare("pascal5i", tmp_path / "voc", tmp_path / "lists")
    assert file.read_bytes() == published
