"""Where the files of a tar shard lie in it, without unpacking, and whatever its headers claim.

`tarfile` follows sizes that are negative or beyond the end (one such header keeps it busy for ever)
and reads records of any length into memory. Here every header is checked, and each takes the reader
at least 512 bytes on. The format: POSIX.1-2001 (`pax`), "ustar Interchange Format" and "pax Header
Block", and the GNU tar manual, "Basic Tar Format".
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

BLOCK = 512
_MOST_RECORDS = 2**20  # bytes of a long name, or of a member's PAX records
_OCTAL = re.compile(rb"[0-7]*")
_WITHOUT_DATA = frozenset(b"123456")  # links, devices, folders, pipes: their size says nothing
_LONG_NAME, _LONG_LINK, _SPARSE, _PAX, _PAX_SOLARIS, _PAX_GLOBAL = b"LKSxXg"
_REGULAR = frozenset(b"0\x007S")
_PAX_RECORDS = (_PAX, _PAX_SOLARIS, _PAX_GLOBAL)


@dataclass(frozen=True)
class Member:
    """A regular file in a shard.

    Attributes:
        name: its path, as the archive has it.
        offset, size: where its content lies, in bytes.
        sparse: whether that is a map of holes and what lies between, and not the content itself.
    """

    name: str
    offset: int
    size: int
    sparse: bool = False


def members(file: BinaryIO) -> Iterator[Member]:
    """The regular files of a tar archive, in its order.

    Args:
        file: the archive, not compressed; it can seek.

    Raises:
        ValueError: a header that is damaged, or claims what the archive cannot hold; a reason of
            one line. What was yielded before is right.
        OSError: as the file raises it.
    """
    length = file.seek(0, io.SEEK_END)
    place = 0
    common: dict[bytes, bytes] = {}  # PAX records of all members that follow
    own: dict[bytes, bytes] = {}  # and of the next one; a long name is kept as a path, too
    while True:
        header = _read(file, place, BLOCK)
        if not header or header == bytes(BLOCK):  # the end, with its mark or without
            return
        _check(header, place)
        kind, size = header[156], _number(header[124:136], place)
        data = place + BLOCK
        if kind in (_LONG_NAME, _LONG_LINK, *_PAX_RECORDS):
            if size > _MOST_RECORDS:
                raise ValueError(f"the header at byte {place} has {size:,} bytes of names")
            content = _read(file, data, size)
            if len(content) < size:
                raise ValueError(f"it ends within the header at byte {place}")
            if kind == _LONG_NAME:
                own.setdefault(b"path", content.partition(b"\0")[0])
            elif kind == _PAX_GLOBAL:
                common |= _records(content, place)
            elif kind != _LONG_LINK:
                own = {**_records(content, place), **own}
            place = data + _padded(size)
            continue
        said = common | own
        own = {}
        name = said.get(b"path") or _name(header)
        if b"size" in said:
            size = _decimal(said[b"size"], place)
        if kind == _SPARSE:
            data = _after_map(file, header, data)
        if kind in _WITHOUT_DATA or (kind == 0 and name.endswith(b"/")):
            size = 0
        elif data + size > length:
            raise ValueError(f"it ends before {_text(name)}, of {size:,} bytes, does")
        elif kind in _REGULAR:
            sparse = kind == _SPARSE or any(key.startswith(b"GNU.sparse.") for key in said)
            yield Member(_text(name), data, size, sparse)
        place = data + _padded(size)


def _read(file: BinaryIO, place: int, size: int) -> bytes:
    file.seek(place)
    return file.read(size)


def _check(header: bytes, place: int) -> None:
    """Refuse a header whose sum is not the one it states; old programs summed signed bytes."""
    if len(header) < BLOCK:
        raise ValueError(f"it ends within the header at byte {place}")
    plain = header[:148] + b" " * 8 + header[156:]
    total = sum(plain)
    stated = _number(header[148:156], place)
    if stated not in (total, total - 256 * sum(byte > 127 for byte in plain)):
        raise ValueError(f"there is no valid header at byte {place}")


def _number(field: bytes, place: int) -> int:
    """A number in octal digits, or to the base of 256 as GNU tar writes large ones."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    if not _OCTAL.fullmatch(digits):
        raise ValueError(f"the header at byte {place} holds an invalid number")
    return int(digits or b"0", 8)


def _decimal(text: bytes, place: int) -> int:
    if not text.isdigit() or len(text) > 20:
        raise ValueError(f"the header at byte {place} has an invalid size")
    return int(text)


def _records(content: bytes, place: int) -> dict[bytes, bytes]:
    """PAX records: "LENGTH KEY=VALUE" and a line's end, where the length counts all of it."""
    found: dict[bytes, bytes] = {}
    start = 0
    while start < len(content) and content[start]:
        space = content.find(b" ", start, start + 20)
        digits = content[start:space] if space > 0 else b""
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = content[space + 1 : max(end - 1, 0)].partition(b"=")
        if not space + 1 < end <= len(content) or content[end - 1] != ord("\n") or not equals:
            raise ValueError(f"the header at byte {place} has damaged records")
        found[key] = value
        start = end
    return found


def _after_map(file: BinaryIO, header: bytes, data: int) -> int:
    """Where the data of a sparse file of old GNU tar begin: after further blocks of its map."""
    more = header[482]
    while more:
        block = _read(file, data, BLOCK)
        if len(block) < BLOCK:
            raise ValueError("it ends within the map of a sparse file")
        more = block[504]
        data += BLOCK
    return data


def _name(header: bytes) -> bytes:
    name, prefix = (part.partition(b"\0")[0] for part in (header[:100], header[345:500]))
    return prefix + b"/" + name if prefix and header[156] != _SPARSE else name


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
