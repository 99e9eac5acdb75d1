"""Members of tar shards: where `tarfile` finds them, and no further than the file goes."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from fsdino.errors import DataError
from fsdino.training.distillation.corpus import find_images
from fsdino.training.distillation.shards import BLOCK, Member, members
from tar_shards import jpeg, write_shard

LONG = "/".join(["a folder with a long name"] * 12) + "/sa_1.jpg"


def archive(form: int, names: list[str]) -> bytes:
    """A tar file with folders, links and files of odd sizes."""
    buffer = io.BytesIO()
    records = {"comment": "x" * 700} if form == tarfile.PAX_FORMAT else {}
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=records) as tar:
        folder = tarfile.TarInfo("images/")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for number, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 137 * number
            tar.addfile(info, io.BytesIO(bytes([number]) * info.size))
            link = tarfile.TarInfo(f"link{number}")
            link.type, link.linkname = tarfile.SYMTYPE, name if len(name) < 100 or form else "a.jpg"
            tar.addfile(link)
    return buffer.getvalue()


def expected(content: bytes) -> list[tuple[str, int, int]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        return [(m.name, m.offset_data, m.size) for m in tar if m.isreg()]


def found(content: bytes) -> list[tuple[str, int, int]]:
    return [(m.name, m.offset, m.size) for m in members(io.BytesIO(content))]


@pytest.mark.parametrize(
    ("form", "names"),
    [
        (tarfile.USTAR_FORMAT, ["a.jpg", "b", f"{'c' * 90}/{'d' * 80}.jpg"]),
        (tarfile.GNU_FORMAT, ["./a.jpg", LONG, "grün.jpg"]),
        (tarfile.PAX_FORMAT, ["./a.jpg", LONG, "grün.jpg", "b" * 99]),
    ],
    ids=["ustar", "gnu", "pax"],
)
def test_members_are_where_tarfile_finds_them(form: int, names: list[str]) -> None:
    """Names, places and sizes in each of the three formats, with and without the end's mark."""
    content = archive(form, names)
    assert found(content) == expected(content) and len(found(content)) == len(names)
    unmarked = content.rstrip(b"\0")
    unmarked += bytes(-len(unmarked) % BLOCK)
    assert found(unmarked) == expected(content)


def test_a_sparse_member_is_told_apart(tmp_path: Path) -> None:
    """Its map lies where its content would: old GNU tar's, with a further block, and PAX's."""
    old = tarfile.TarInfo("old.jpg")
    old.type, old.size = tarfile.GNUTYPE_SPARSE, 700
    header = bytearray(old.tobuf(tarfile.GNU_FORMAT))
    header[482] = 1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    new = tarfile.TarInfo("new.jpg")
    new.size, new.pax_headers = 5, {"GNU.sparse.major": "1"}
    content = bytes(header) + bytes(BLOCK) + bytes(2 * BLOCK)
    content += new.tobuf(tarfile.PAX_FORMAT) + bytes(BLOCK)
    assert list(members(io.BytesIO(content))) == [
        Member("old.jpg", 2 * BLOCK, 700, sparse=True),
        Member("new.jpg", len(content) - BLOCK, 5, sparse=True),
    ]
    shard = write_shard(tmp_path / "a.tar", ["1.jpg", "2.jpg"])
    shard.write_bytes(content + shard.read_bytes())
    bad = find_images([shard]).unreadable
    assert sorted(bad) == [f"{shard}/new.jpg", f"{shard}/old.jpg"]


def header(name: str = "c.jpg", size: int | bytes = 0, kind: bytes = b"0") -> bytes:
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(text: bytes) -> bytes:
    return header("x", len(text), b"x") + text + bytes(-len(text) % BLOCK) + header()


DAMAGE = {
    "negative": (header(size=b"\xff" * 10 + b"\xfc\x00"), "invalid number"),
    "back to itself": (header(size=b"\xff" * 10 + b"\xfe\x00"), "invalid number"),
    "negative octal": (header(size=b"-0000002000\0"), "invalid number"),
    "beyond the end": (header(size=8**11 - 1), r"ends before c\.jpg, of 8,589,934,591 bytes"),
    "absurd": (header(size=b"\x80" + b"\xff" * 11), r"ends before c\.jpg"),
    "no number": (header(size=b"many\0\0\0\0\0\0\0\0"), "invalid number"),
    "a long name of gigabytes": (header("l", 2**33 - 1, b"L"), "bytes of names"),
    "records of gigabytes": (header("x", 2**33 - 1, b"x"), "bytes of names"),
    "records cut": (header("x", 5000, b"x") + b"9 a=b", "ends within the header"),
    "a negative size in records": (pax(b"16 size=-100000\n"), "an invalid size"),
    "a size of a thousand digits": (pax(b"1011 size=" + b"9" * 1000 + b"\n"), "an invalid size"),
    "a record without an end": (pax(b"99 path=a\n"), "damaged records"),
    "a record of length 0": (pax(b"0 path=a\n"), "damaged records"),
    "a record of no length": (pax(b"path=a\n"), "damaged records"),
    "a map without an end": (header(kind=b"S")[:482] + b"\1" + header(kind=b"S")[483:], "no valid"),
    "noise": (np.random.default_rng(0).bytes(BLOCK), "invalid number|no valid header"),
    "half a header": (header()[:300], "ends within the header"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_ends_a_shard_and_is_named(tmp_path: Path, name: str) -> None:
    """The images before it are used; nothing is followed backwards or read beyond bounds."""
    content, message = DAMAGE[name]
    shard = write_shard(tmp_path / "a.tar", ["1.jpg", "2.jpg"])
    whole = shard.read_bytes().rstrip(b"\0")
    whole += bytes(-len(whole) % BLOCK)
    shard.write_bytes(whole + content)
    began = time.monotonic()
    with pytest.raises(ValueError, match=message):
        list(members(io.BytesIO(shard.read_bytes())))
    corpus = find_images([shard])
    assert sorted(f.key for f in (*corpus.training, *corpus.held_out)) == ["1.jpg", "2.jpg"]
    assert "images before the damage are used" in corpus.unreadable[str(shard)]
    assert time.monotonic() - began < 5


def test_a_sparse_file_of_gigabytes_is_read_in_no_time(tmp_path: Path) -> None:
    """Claims within the file's length, too, are only believed: nothing reads what they span."""
    shard = tmp_path / "a.tar"
    with shard.open("wb") as file:
        for name, seed in (("1.jpg", 0), ("2.jpg", 1)):
            content = jpeg(seed)
            file.write(header(name, len(content)) + content + bytes(-len(content) % BLOCK))
        file.write(header("3.jpg", b"\x80" + (2**34 - 2**20).to_bytes(11, "big")))
        file.truncate(2**34)
    corpus = find_images([shard])
    (large,) = (f for f in (*corpus.training, *corpus.held_out) if f.key == "3.jpg")
    with pytest.raises(DataError, match=r"a\.tar/3\.jpg: cannot be read \(it has 17,.* bytes"):
        large.read()
