"""Image files: what a folder holds, by content; what is left out, and why; special files."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from fsdino import image_files
from fsdino.errors import DataError, FsdinoError, UsageError
from fsdino.image_files import scan_folder
from fsdino.images import read_image
from fsdino.masks import read_mask

PICTURE = np.arange(40 * 30 * 3, dtype=np.uint32).reshape(40, 30, 3).astype(np.uint8)
HEIC = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(64)
MP4 = struct.pack(">I", 32) + b"ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(64)


def write(path: Path, format: str, **options: Any) -> Path:
    with path.open("wb") as file:
        Image.fromarray(PICTURE).save(file, format, **options)
    return path


def test_suffixes_in_any_case_and_hidden_entries(tmp_path: Path) -> None:
    """What is called an image is one; hidden files and other folders are passed over."""
    for name in ("b.JPG", "a.png", "c.TiFf", ".hidden.png", "._b.JPG", "notes.txt", "png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "folder.png" / "inner.png").write_bytes(b"")
    found = scan_folder(tmp_path)
    assert [file.name for file in found.images] == ["a.png", "b.JPG", "c.TiFf"]
    assert found.left_out == {"notes.txt": "empty", "png": "empty"}
    assert scan_folder(tmp_path / "folder.png").images[0].name == "inner.png"


def test_without_a_folder(tmp_path: Path) -> None:
    """A missing folder and a file are worded; a folder without images is an empty list."""
    with pytest.raises(UsageError, match="no such folder"):
        scan_folder(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="this is a file"):
        scan_folder(tmp_path / "file")
    with pytest.raises(UsageError, match=r"'a\\x00b': cannot be read"):
        scan_folder("a\0b")
    (tmp_path / "empty").mkdir()
    assert scan_folder(tmp_path / "empty") == image_files.Listing([], {})


def test_images_under_any_name(tmp_path: Path) -> None:
    """Pillow's formats are found by their content: rare suffixes, wrong ones and none."""
    write(tmp_path / "a.jfif", "JPEG")
    write(tmp_path / "b.jpe", "JPEG")
    write(tmp_path / "c.pnm", "PPM")
    write(tmp_path / "d.mpo", "MPO")
    write(tmp_path / "e", "JPEG")
    write(tmp_path / "f.jpg_large", "JPEG")
    write(tmp_path / "g.jp2", "JPEG2000")
    write(tmp_path / "h.tga", "TGA")
    write(tmp_path / "i.pcx", "PCX")
    write(tmp_path / "j.img", "PNG")
    if features.check("avif"):
        write(tmp_path / "k.avif", "AVIF")
    found = scan_folder(tmp_path)
    assert [file.name for file in found.images] == sorted(os.listdir(tmp_path))
    assert found.left_out == {}
    for file in found.images:
        assert read_image(file).shape == (40, 30, 3), file.name


def test_an_mpo_is_its_first_frame(tmp_path: Path) -> None:
    """Two photographs in one file, as stereo cameras write them: the first one."""
    second = Image.new("RGB", (30, 40))
    write(tmp_path / "3d.mpo", "MPO", save_all=True, append_images=[second])
    write(tmp_path / "one.jpg", "JPEG")
    assert np.array_equal(read_image(tmp_path / "3d.mpo"), read_image(tmp_path / "one.jpg"))


def test_what_is_left_out_has_a_reason(tmp_path: Path) -> None:
    """Videos, HEIC without its library, documents and whatever else lies in folders."""
    contents = {
        "a.mp4": MP4,
        "b.mkv": b"\x1a\x45\xdf\xa3" + bytes(40),
        "c.avi": b"RIFF\0\0\0\0AVI LIST",
        "d.heic": HEIC,
        "e.pdf": b"%PDF-1.7\n",
        "f.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "g.svg": b"<?xml version='1.0'?>\n<svg width='9' height='9'/>",
        "h.json": b'{"shapes": []}\n',
        "i.bin": bytes(range(128, 256)),
        "j.py": b"Python = 1\n" * 200,
        "k.dng": b"II*\0" + bytes(40),
        "l.cr3": struct.pack(">I", 24) + b"ftypcrx \0\0\0\1crx isom" + bytes(8),
        "m.jxl": b"\xff\x0a" + bytes(40),
        "n": "Größe und Übung, ".encode() * 80,
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    with zipfile.ZipFile(tmp_path / "o.zip", "w") as archive:
        archive.writestr("a.txt", "a")
    np.save(tmp_path / "p.npy", PICTURE)
    write(tmp_path / "photo.jpg", "JPEG")
    (tmp_path / "q.lnk").symlink_to(tmp_path / "nowhere")
    found = scan_folder(tmp_path)
    assert [file.name for file in found.images] == ["photo.jpg"]
    expected = {
        "a.mp4": "video", "b.mkv": "video", "c.avi": "video", "d.heic": "pip install pillow-heif",
        "e.pdf": "PDF", "f.eps": "PostScript", "g.svg": "SVG", "h.json": "text",
        "i.bin": "not an image", "j.py": "text", "k.dng": "raw", "l.cr3": "raw",
        "m.jxl": "JPEG XL", "n": "text", "o.zip": "archive", "p.npy": "NumPy",
        "q.lnk": "No such file",
    }  # fmt: skip
    assert list(found.left_out) == list(expected)
    for name, part in expected.items():
        assert part in found.left_out[name], name
    assert found.summary() == (
        "17 of 18 files left out: a.mp4 (a video), b.mkv (a video), c.avi (a video) and 14 more"
    )
    one = image_files.Listing([Path("a.png")], {"a\nb.mp4": "a video"})
    assert one.summary() == "1 of 2 files left out: 'a\\nb.mp4' (a video)"


def test_reading_a_file_that_is_no_image_says_what_it_is(tmp_path: Path) -> None:
    """The same words where the file was named by the user."""
    for name, content, part in (("a.heic", HEIC, "pillow-heif"), ("b.mp4", MP4, "a video")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=part):
            read_image(tmp_path / name)


def test_heic_is_read_once_its_library_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pillow-heif is asked to register itself when the first such file is met (a stand-in)."""
    (tmp_path / "pillow_heif.py").write_text(
        "from PIL import Image\n"
        "def register_heif_opener():\n"
        "    Image.register_open('HEIF', lambda file, name: Image.new('RGB', (4, 3)),\n"
        "                        lambda head: head[8:12] == b'heic')\n"
    )
    folder = tmp_path / "photographs"
    folder.mkdir()
    (folder / "IMG_1.HEIC").write_bytes(HEIC)
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys\n"
            "from fsdino.image_files import scan_folder\n"
            "from fsdino.images import read_image\n"
            "found = scan_folder(sys.argv[1]).images\n"
            "print(len(found), read_image(found[0]).shape)",
            str(folder),
        ],
        env={**os.environ, "PYTHONPATH": f"{Path(__file__).parents[1]}:{tmp_path}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert run.stdout == "1 (3, 4, 3)\n", run.stderr


def test_subfolders(tmp_path: Path) -> None:
    """All below the folder, by path; hidden ones passed over, links to folders followed once."""
    for name in ("z.png", "a/2.png", "a/b/1.png", "c/1.png", ".git/1.png", "a/.x.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "a" / "clip.mp4").write_bytes(MP4)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to(tmp_path / "c")
    (tmp_path / "self").symlink_to("self")
    elsewhere = tmp_path.parent / f"{tmp_path.name}-elsewhere"
    elsewhere.mkdir()
    (elsewhere / "far.png").write_bytes(b"")
    (tmp_path / "link").symlink_to(elsewhere)
    found = scan_folder(tmp_path, recursive=True)
    names = [file.relative_to(tmp_path).as_posix() for file in found.images]
    assert names == ["a/2.png", "a/b/1.png", "c/1.png", "link/far.png", "z.png"]
    assert list(found.left_out) == ["a/clip.mp4", "self"]
    assert [file.name for file in scan_folder(tmp_path).images] == ["z.png"]


def test_a_subfolder_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named among what was left out (root may read all: simulated)."""
    (tmp_path / "private").mkdir()
    (tmp_path / "a.png").write_bytes(b"")
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path).name == "private":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = scan_folder(tmp_path, recursive=True)
    assert [file.name for file in found.images] == ["a.png"]
    assert found.left_out == {"private/": "cannot be read: Permission denied"}


def special_files(folder: Path) -> dict[str, str]:
    """Names in the folder, with what an error says of them."""
    (folder / "a.jpg").symlink_to("/dev/zero")
    os.mkfifo(folder / "b.jpg")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "c.jpg"))
    return {"a.jpg": "not a regular file", "b.jpg": "not a regular file", "c.jpg": "cannot be"}


def test_special_files_under_the_name_of_an_image(tmp_path: Path) -> None:
    """Devices never end, pipes never begin: neither is waited for."""
    expected = special_files(tmp_path)
    for name, part in expected.items():
        for read in (read_image, read_mask):
            with pytest.raises(FsdinoError, match=part) as error:
                read(tmp_path / name)
            assert name in str(error.value) and "\n" not in str(error.value)
    found = scan_folder(tmp_path)
    assert found.images == []
    assert found.left_out == dict.fromkeys(expected, "not a regular file")


@pytest.mark.parametrize("head", [b"", b"\xff\xd8\xff\xe0", b"RIFF\xff\xff\xff\x70WEBPVP8 "])
def test_a_sparse_file_of_thirty_gigabytes(tmp_path: Path, head: bytes) -> None:
    """Its size is looked at before its content, whatever format it claims to be."""
    path = tmp_path / "a.webp"
    path.write_bytes(head)
    os.truncate(path, 30 * 10**9)
    for read in (read_image, read_mask):
        with pytest.raises(DataError, match="30,000,000,000 bytes"):
            read(path)


def test_files_opened_in_two_threads_leave_the_filters_of_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first to begin ends first: each would restore the filters that it had found."""
    opened = {name: threading.Event() for name in ("first", "second")}
    go_on = {name: threading.Event() for name in opened}
    path = write(tmp_path / "a.png", "PNG")
    factory, accept = Image.OPEN["PNG"]

    def slow(file: Any, name: Any) -> Any:
        thread = threading.current_thread().name
        opened[thread].set()
        assert go_on[thread].wait(30)
        return factory(file, name)

    def open_in(name: str) -> tuple[int, int]:
        threading.current_thread().name = name
        with path.open("rb") as file:
            return image_files.open_image(file).size

    monkeypatch.setitem(Image.OPEN, "PNG", (slow, accept))
    with warnings.catch_warnings(), ThreadPoolExecutor(2) as pool:
        before = list(warnings.filters)
        first = pool.submit(open_in, "first")
        assert opened["first"].wait(30)
        second = pool.submit(open_in, "second")
        assert opened["second"].wait(30)
        during = list(warnings.filters)
        for name, asked in (("first", first), ("second", second)):
            go_on[name].set()
            assert asked.result(30) == (30, 40)
        assert during == before, "warnings of other threads are lost meanwhile"
        assert warnings.filters == before, "they stay lost"


def test_a_missing_decoder_is_a_reason_and_not_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow calls a format that it was built without by a text in the place of an answer."""
    monkeypatch.setitem(Image.OPEN, "WEBP", (None, lambda prefix: "WEBP support not installed"))
    path = tmp_path / "photograph"
    path.write_bytes(b"RIFF\0\0\0\0WEBPVP8 " + bytes(64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_files.why_not_image(path) == "not an image"
