"""Images are found wherever they lie, and divided in the same way everywhere."""

from __future__ import annotations

import hashlib
import logging
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest

from fsdino.errors import DataError, UsageError
from fsdino.images import read_image
from fsdino.training.distillation.corpus import Corpus, ImageFile, find_images, stable_hash
from tar_shards import NAMES, jpeg, write_shard


def write_folder(folder: Path, names: list[str] = NAMES) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        (folder / name).write_bytes(jpeg(seed))
    return folder


def keys(corpus: Corpus) -> tuple[list[str], list[str]]:
    return [f.key for f in corpus.training], [f.key for f in corpus.held_out]


def test_a_shard_a_folder_and_a_list_hold_the_same_images(tmp_path: Path) -> None:
    """However images are packed: the same keys, the same division, the same bytes and pixels."""
    shard = write_shard(tmp_path / "sa_000000.tar")
    folder = write_folder(tmp_path / "images")
    (folder / "list.txt").write_text("\n".join(reversed(NAMES)) + "\n\n")
    packed, loose, listed = (
        find_images([source], percent=60, held_out=0.2)
        for source in (shard, folder, folder / "list.txt")
    )
    assert keys(packed) == keys(loose) == keys(listed)
    for inside, outside in zip(packed.training, loose.training, strict=True):
        assert inside.read() == outside.path.read_bytes()
        assert np.array_equal(inside.decode(inside.read()), read_image(outside.path))
    assert packed.training[0].name.startswith(f"{shard}/sa_2237")


def test_folders_are_searched_through(tmp_path: Path) -> None:
    """Subfolders and the shards in them; not what is hidden, nor annotations."""
    write_folder(tmp_path / "a" / "b", ["1.png", "2.JPG"])
    write_folder(tmp_path / ".cache", ["3.jpg"])
    write_folder(tmp_path / "a", [".4.jpg"])
    (tmp_path / "a" / "notes.md").write_text("no image")
    write_shard(tmp_path / "c.tar", ["5.jpg"])
    found = find_images([tmp_path])
    names = sorted(f.key for f in (*found.training, *found.held_out))
    assert names == ["5.jpg", "a/b/1.png", "a/b/2.JPG"]


def test_percentages_are_nested_and_near_what_they_say(tmp_path: Path) -> None:
    """2 % of the images is part of 20 %, each near its share, in the order of names."""
    (tmp_path / "list.txt").write_text("\n".join(f"{i}.jpg" for i in range(5000)))
    chosen = {}
    for percent in (2.0, 20.0, 100.0):
        found = find_images([tmp_path / "list.txt"], percent=percent, held_out=0.05)
        training, held_out = keys(found)
        chosen[percent] = {*training, *held_out}
        expected = 5000 * percent / 100
        assert abs(len(found) - expected) <= 4 * expected**0.5
        assert abs(len(held_out) - 0.05 * len(found)) <= 4 * (0.05 * len(found)) ** 0.5
        assert not set(training) & set(held_out)
        assert training == sorted(training)
    assert chosen[2.0] < chosen[20.0] < chosen[100.0]
    # Held out at one percentage is held out at every other.
    kept = {p: set(keys(find_images([tmp_path / "list.txt"], percent=p))[1]) for p in (20.0, 100.0)}
    assert kept[20.0] == kept[100.0] & chosen[20.0]


def test_the_hash_is_the_documented_one() -> None:
    """The first 6 bytes of SHA-256, as another program would compute it."""
    digest = hashlib.sha256(b"percent/sa_223750.jpg").hexdigest()
    assert stable_hash("percent", "sa_223750.jpg") == int(digest[:12], 16) / 16**12


def test_few_images_keep_one_back(tmp_path: Path) -> None:
    """Three images and a share of 1 %: the nearest one is held out, so a number can be reported."""
    folder = write_folder(tmp_path, ["a.jpg", "b.jpg", "c.jpg"])
    found = find_images([folder])
    assert (len(found.training), len(found.held_out)) == (2, 1)


def test_damaged_shards_are_named_and_give_what_they_have(tmp_path: Path, caplog) -> None:
    """Half a download: its whole images are used; an image that is cut off at the end is not."""
    shard = write_shard(tmp_path / "sa_000001.tar")
    with tarfile.open(shard) as archive:
        cut = archive.getmember(f"./{NAMES[20]}").offset_data + 100
    content = shard.read_bytes()
    shard.write_bytes(content[:cut])
    (tmp_path / "sa_000002.tar").write_bytes(b"no tar file" * 100)
    with caplog.at_level(logging.WARNING):
        found = find_images([tmp_path])
    assert set(found.unreadable) == {str(shard), str(tmp_path / "sa_000002.tar")}
    assert "sa_000001.tar" in caplog.text
    files = {f.key: f for f in (*found.training, *found.held_out)}
    assert set(NAMES[:20]) <= set(files) <= set(NAMES[:21])
    with pytest.raises(DataError, match=r"sa_000001\.tar/sa_223770\.jpg: the shard ends before"):
        ImageFile(NAMES[20], shard, cut - 100, 5000).read()


def test_images_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Missing, truncated, and no image at all: an error of one line each, with the name."""
    whole = jpeg(1, 60, 80)
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("no image")
    for name, reason in (("cut", "truncated"), ("text", "no image in a format")):
        file = ImageFile(f"{name}.jpg", tmp_path / f"{name}.jpg")
        with pytest.raises(DataError, match=rf"{name}\.jpg.*{reason}"):
            file.decode(file.read())
    with pytest.raises(DataError, match=r"gone\.jpg: cannot be read \(No such file"):
        ImageFile("gone.jpg", tmp_path / "gone.jpg").read()


def test_special_files_are_named_and_not_waited_for(tmp_path: Path) -> None:
    """In a list: a pipe, a device, a folder, a file of 30 GB, a NUL. The others are used."""
    write_folder(tmp_path, ["a.jpg", "b.jpg"])
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.jpg").mkdir()
    with (tmp_path / "large.jpg").open("wb") as file:
        file.truncate(30 * 10**9)
    lines = ["a.jpg", "pipe.jpg", "pipe.tar", "/dev/zero", "folder.jpg", "large.jpg", "x\0y.jpg"]
    (tmp_path / "list.txt").write_text("\ufeff" + "\n".join([*lines, "b.jpg"]))
    found = find_images([tmp_path / "list.txt"])
    assert found.unreadable == {
        f"{tmp_path}/list.txt, line 7": "it holds a NUL, which no path has",
        f"{tmp_path}/pipe.tar": "not a whole tar file (it is not a regular file); images "
        "before the damage are used",
    }
    usable, reasons = [], {}
    for file in (*found.training, *found.held_out):
        try:
            file.decode(file.read())
            usable.append(file.key)
        except DataError as error:
            reasons[file.key] = str(error)
    assert sorted(usable) == ["a.jpg", "b.jpg"]
    assert sorted(reasons) == ["/dev/zero", "folder.jpg", "large.jpg", "pipe.jpg"]
    assert "not a regular file" in reasons["/dev/zero"] and "30,000,000,000" in reasons["large.jpg"]


def test_lists_are_bounded(tmp_path: Path) -> None:
    """Neither 10 GB nor one endless line is read; a device is not a list."""
    path = tmp_path / "list.txt"
    with path.open("wb") as file:
        file.truncate(10 * 10**9)
    with pytest.raises(UsageError, match=r"list\.txt: the list cannot be read \(it has 10,000"):
        find_images([path])
    path.write_text("a" * 10**6)
    with pytest.raises(UsageError, match="line 1 is too long for a path"):
        find_images([path])
    path.unlink()
    path.symlink_to("/dev/zero")
    with pytest.raises(UsageError, match=r"list\.txt: not a regular file"):
        find_images([path])


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """A name that is not UTF-8 has a hash, too: of its bytes."""
    write_folder(tmp_path, ["a.jpg", os.fsdecode(b"caf\xe9.jpg")])
    found = find_images([tmp_path])
    keys = [os.fsencode(f.key) for f in (*found.training, *found.held_out)]
    assert sorted(keys) == [b"a.jpg", b"caf\xe9.jpg"]
    digest = hashlib.sha256(b"percent/caf\xe9.jpg").hexdigest()
    assert stable_hash("percent", os.fsdecode(b"caf\xe9.jpg")) == int(digest[:12], 16) / 16**12


def test_images_are_found_by_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever they are called; what is not an image is counted."""
    caplog.set_level(logging.INFO)
    write_folder(tmp_path, ["a.JFIF", "b", "c.jpg"])
    (tmp_path / "notes.doc").write_text("no image")
    found = find_images([tmp_path])
    assert sorted(f.key for f in (*found.training, *found.held_out)) == ["a.JFIF", "b", "c.jpg"]
    assert "1 files are left out, such as" in caplog.text and "notes.doc" in caplog.text


@pytest.mark.parametrize(
    "source, options, message",
    [
        ("nowhere", {}, "nowhere: no such file or folder"),
        ("weights.pth", {}, r"weights\.pth: pass a folder, a \.tar shard, an image, or"),
        ("empty", {}, "0 of 0 images .*at least two"),
        ("empty/1.jpg", {}, "1 of 1 images"),
        ("images", {"percent": 0}, "percent must be greater than 0"),
        ("images", {"percent": 101}, "at most 100, got 101"),
        ("images", {"held_out": 1.0}, "held_out must lie between 0 and 1"),
        ("images", {"held_out": 0.9999}, "all 3 images are held out"),
        ("binary.txt", {}, r"binary\.txt: the list cannot be read"),
    ],
)  # fmt: skip
def test_sources_that_cannot_be_meant(tmp_path: Path, source, options, message) -> None:
    """Refused before anything else is done, with what to pass instead."""
    write_folder(tmp_path / "images", ["a.jpg", "b.jpg", "c.jpg"])
    (tmp_path / "weights.pth").touch()
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    if source == "empty/1.jpg":
        (tmp_path / source).write_bytes(jpeg(0))
    with pytest.raises(UsageError, match=message):
        find_images([tmp_path / source], **options)
