"""Split lists: read as published, and trusted with nothing."""

from __future__ import annotations

import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

import expected_hsnet
from fsdino.data import lists
from fsdino.data.coco import Coco
from fsdino.data.lists import Lists
from fsdino.data.pascal import Pascal
from fsdino.errors import DataError, FsdinoError, UsageError


class Runs:
    """Unpickling this calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def splits(tmp_path: Path) -> Path:
    expected_hsnet.write_lists(tmp_path)
    return tmp_path


@pytest.mark.parametrize("fold", range(4))
@pytest.mark.parametrize("source", [Pascal, Coco])
def test_no_novel_class_is_ever_trained_on(source: Any, fold: int, splits: Path) -> None:
    """PASCAL's trn/fold{i} holds fold i's own classes, COCO's those of all others.

    Read alike, one of the two trains on the classes that it is tested on.
    """
    data = source(splits, splits)
    if source is Pascal:
        novel = {5 * fold + k for k in (1, 2, 3, 4, 5)}
        everything = set(range(1, 21))
    else:
        novel, everything = set(range(fold, 80, 4)), set(range(80))
    tested = data.lists(fold, "val")
    assert set(data.classes(fold, "val")) == novel and set(tested.by_class) <= novel
    for split in ("train", "base_val"):
        trained = data.lists(fold, split)
        assert set(data.classes(fold, split)) == everything - novel
        assert trained.items and not {class_id for _, class_id in trained.items} & novel
    images = {name for name, _ in data.lists(fold, "train").items}
    assert not images & {name for name, _ in data.lists(fold, "base_val").items}
    assert not images & {name for name, _ in tested.items}


def test_training_reads_every_list_of_the_other_folds(splits: Path) -> None:
    """Lists of fewer folds would train on less than was published."""
    assert len(Pascal(splits, splits).lists(2, "train").items) == 45
    classes = set(range(80)) - set(range(1, 80, 4))
    assert set(Coco(splits, splits).lists(1, "train").by_class) == classes


def test_lists_of_the_other_convention_are_refused(splits: Path) -> None:
    """Somebody's rearranged lists must not pass for the published ones."""
    fold0, fold1 = (splits / "pascal" / "trn" / f"fold{i}.txt" for i in (0, 1))
    fold0.write_text(fold1.read_text())
    with pytest.raises(DataError, match=r"fold0\.txt, line 1: class 6 is not of classes 1, 2, 3"):
        Pascal(splits, splits).lists(3, "train")
    own = splits / "coco" / "val" / "fold2.pkl"
    (splits / "coco" / "trn" / "fold2.pkl").write_bytes(own.read_bytes())
    with pytest.raises(DataError, match=r"trn/fold2\.pkl: lists images of class 2, which is not"):
        Coco(splits, splits).lists(2, "train")


@pytest.mark.parametrize(
    "payload",
    [
        Runs(os.system, "touch executed"),
        Runs(eval, "open('executed', 'w')"),
        Runs(exec, "open('executed', 'w')"),
        {0: Runs(os.mkdir, "executed")},
        {0: ["a", Runs(sys.setrecursionlimit, 100000)]},
        {0: [Path("a")]},
        {0: [b"a", bytearray(b"b")]},
        {0: [{1}]},
        {0: [1.5]},
        {0: [True]},
        {False: ["a"]},
        {0: [["val2014/a.jpg"]]},
        {0: ("val2014/a.jpg",)},
        {"0": ["val2014/a.jpg"]},
        ["val2014/a.jpg"],
        {80: []},
        {-4: []},
        {0: ["../../etc/passwd"]},
        {0: ["/etc/passwd"]},
        {0: ["val2014\\..\\..\\a.jpg"]},
        {0: ["C:/a.jpg"]},
        {0: ["elsewhere/a.jpg"]},
        {0: [""]},
        {0: ["val2014x/a.jpg"]},
        {0: ["val2014/sub/a.jpg"]},
        {0: ["val2014//a.jpg"]},
        {0: ["a.jpg"]},
        {0: ["val2014/a\0.jpg"]},
        {0: ["val2014/a\n.jpg"]},
        {0: ["val2014/\ud800.jpg"]},
        {0: ["val2014/" + "a" * 300]},
        {2**70: []},
    ],
    ids=lambda payload: repr(payload)[:40],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_executes_nothing_and_holds_only_names(
    payload: object, protocol: int, splits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lists come from strangers' drives; a pickle can run any code when it is loaded."""
    monkeypatch.chdir(splits)
    file = splits / "coco" / "val" / "fold0.pkl"
    file.write_bytes(pickle.dumps(payload, protocol=protocol))
    with pytest.raises(DataError, match=r"fold0\.pkl"):
        Coco(splits, splits).lists(0, "val")
    assert not Path("executed").exists()


def test_a_global_is_named(splits: Path) -> None:
    """Who meets a malicious list should learn what it tried."""
    file = splits / "coco" / "val" / "fold0.pkl"
    file.write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")
    with pytest.raises(DataError, match=r"names posix\.system, which could run code"):
        Coco(splits, splits).lists(0, "val")


def nested(opening: bytes, closing: bytes, depth: int = 200_000) -> bytes:
    return opening * depth + closing * depth + b"."


@pytest.mark.parametrize(
    "content",
    [
        nested(b"]", b"a"),
        nested(b"(", b"t"),
        nested(b"(", b"l"),
        b"}" + b"(" * 200_000 + b"t" * 200_000 + b"]s.",
        b"}" + b")" + b"\x85" * 200_000 + b"]s.",
        nested(b"}K\0", b"s"),
        b"]q\0h\0a.",
        b"}q\0K\0h\0s.",
        b"(" * 1_000_000 + b".",
        b"\x8d" + b"\xff" * 7 + b"\x7f" + b"a.",
        b"X\xff\xff\xff\x7fa.",
        b"\x8b\xff\xff\xff\x7f.",
        b"I" + b"9" * 5000 + b"\n.",
        b"h\0.",
        b"r\xff\xff\xff\xff.",
        b"a.",
        b"e.",
        b"K\1K\1s.",
        b".",
        b"}]}.",
        b"P1\n.",
        b"}(K\0K\0u.",
        b"}(K\0u.",
        b"](K\0e.",
    ],
    ids=lambda content: repr(content[:20]),
)
def test_a_hostile_pickle_is_one_error(content: bytes, splits: Path) -> None:
    """Deep nesting ran Python's unpickler into the end of the C stack; sizes may be absurd."""
    file = splits / "coco" / "val" / "fold0.pkl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=r"fold0\.pkl: .*; replace it by the published list"):
        Coco(splits, splits).lists(0, "val")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_any_protocol_is_read(protocol: int, splits: Path) -> None:
    """Names that several classes share are stored once, and fetched from a memo."""
    shared = [f"val2014/{'ü' * n}.jpg" for n in (1, 2, 100)]
    whole = {c: [*shared, f"val2014/{c}.jpg"] if c % 4 == 0 else [] for c in range(80)}
    file = splits / "coco" / "val" / "fold0.pkl"
    file.write_bytes(pickle.dumps(whole, protocol=protocol))
    assert lists.read_class_pickle(file, range(0, 80, 4)) == whole


@pytest.mark.parametrize("reader", ["pkl", "txt"])
def test_special_and_huge_files_are_not_read(
    reader: str, splits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe never ends and a device neither; a list has a few megabytes."""
    file = splits / ("coco/val/fold0.pkl" if reader == "pkl" else "pascal/val/fold0.txt")
    source = Coco(splits, splits) if reader == "pkl" else Pascal(splits, splits)
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(DataError, match="not a regular file"):
        source.lists(0, "val")
    file.unlink()
    file.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="not a regular file"):
        source.lists(0, "val")
    file.unlink()
    with file.open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(DataError, match="has 1,099,511,627,776 bytes"):
        source.lists(0, "val")
    file.unlink()
    file.mkdir()
    with pytest.raises(DataError, match=r"fold0"):
        source.lists(0, "val")


@pytest.mark.parametrize("size", [0, 1, 100, -1])
def test_a_damaged_pickle_is_one_error(size: int, splits: Path) -> None:
    """Downloads end early."""
    file = splits / "coco" / "val" / "fold0.pkl"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DataError, match=r"fold0\.pkl: damaged .*; replace it"):
        Coco(splits, splits).lists(0, "val")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("2007_000033", "is not IMAGE__CLASS"),
        ("2007_000033__x", "is not IMAGE__CLASS"),
        ("2007_000033__-1", "is not IMAGE__CLASS"),
        ("2007_000033__00", "class 0 is not of"),
        ("2007_000033__21", "class 21 is not of"),
        ("../../../secret__01", "leaves the data set's folder"),
        ("/etc/secret__01", "leaves the data set's folder"),
        ("a" * 300 + "__01", "cannot be the name of a file"),
        ("a\tb__01", "cannot be the name of a file"),
        ("a\x1cb__01", "cannot be the name of a file"),
        ("2007_000033__" + "1" * 5000, "is not IMAGE__CLASS"),
        ("2007_000033__\uff11", "is not IMAGE__CLASS"),
        ("__01", "leaves the data set's folder"),
        ("sub/2007_000033__01", "is not like NAME"),
        ("./2007_000033__01", "is not like NAME"),
    ],
)
def test_a_line_that_cannot_be_meant_is_named(line: str, words: str, splits: Path) -> None:
    """A path out of the root reads a stranger's files, another class is another benchmark."""
    file = splits / "pascal" / "val" / "fold0.txt"
    file.write_text(f"2007_000001__01\n{line}\n")
    with pytest.raises(DataError, match=rf"fold0\.txt, line 2.*{words}"):
        Pascal(splits, splits).lists(0, "val")


def test_line_ends_and_blank_lines_do_not_matter(splits: Path) -> None:
    """Lists that went through Windows, or an editor, are the same lists and have the same hash."""
    file = splits / "pascal" / "val" / "fold0.txt"
    before = Pascal(splits, splits).lists(0, "val")
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    after = Pascal(splits, splits).lists(0, "val")
    assert after.items == before.items and after.hash == before.hash


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfe\x00"])
def test_an_empty_or_binary_list_is_an_error(content: bytes, splits: Path) -> None:
    """An empty list is not a benchmark."""
    (splits / "pascal" / "val" / "fold0.txt").write_bytes(content)
    with pytest.raises(DataError, match=r"fold0\.txt"):
        Pascal(splits, splits).lists(0, "val")


@pytest.mark.parametrize("source", [Pascal, Coco])
def test_a_missing_list_is_named_with_the_remedy(source: Any, tmp_path: Path) -> None:
    """A folder that is not HSNet's must not silently turn into derived lists."""
    with pytest.raises(UsageError, match=r"fold0.*no such split list; pass the folder of HSNet's"):
        source(tmp_path, tmp_path).lists(0, "val")


@pytest.mark.parametrize("fold", [-1, 4, None])
@pytest.mark.parametrize("source", [Pascal, Coco])
def test_a_fold_out_of_range_is_an_error(source: Any, fold: int | None, splits: Path) -> None:
    """Fold -1 would be the last one in many a list."""
    with pytest.raises(UsageError, match=f"fold {fold}"):
        source(splits, splits).lists(fold, "val")


def test_the_hash_is_over_order_names_and_classes() -> None:
    """The order decides the draws, so lists in another order are other lists."""
    items = (("a", 1), ("b", 1), ("c", 2))
    hashes = {
        Lists(changed, False).hash
        for changed in (items, items[::-1], items[:2], (*items[:2], ("c", 3)))
    }
    assert len(hashes) == 4 and Lists(items, True).hash in hashes


def test_written_lists_are_read_again(tmp_path: Path) -> None:
    """Derived lists go through the reader of the published ones."""
    names = {3: ["val2014/a.jpg", "val2014/b.jpg"], 7: ["val2014/ü.jpg"]}
    lists.write_class_pickle(tmp_path / "fold3.pkl", names)
    found = lists.read_class_pickle(tmp_path / "fold3.pkl", [3, 7])
    assert len(found) == 80 and {c: v for c, v in found.items() if v} == names
    plain = pickle._Unpickler(io.BytesIO((tmp_path / "fold3.pkl").read_bytes())).load()  # type: ignore[attr-defined]
    assert plain == found
    lists.write_pairs(tmp_path / "fold0.txt", [("2007_1", 1), ("2007_2", 5)])
    assert (tmp_path / "fold0.txt").read_text() == "2007_1__01\n2007_2__05\n"
    assert not lists.is_derived(tmp_path)
    lists.mark_derived(tmp_path, dataset="x")
    assert lists.is_derived(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    """A home folder that is full or read-only gives an error, not a traceback."""
    (tmp_path / "file").touch()
    with pytest.raises(FsdinoError, match=r"cannot create .* or set FSDINO_CACHE"):
        lists.make_folder(tmp_path / "file" / "folder")
