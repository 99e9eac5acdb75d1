"""Split lists: which images are drawn for which class, in the layout of HSNet's published lists.

`pascal/{trn,val}/fold{i}.txt` has lines `IMAGE__CLASS` (1-based), `coco/{trn,val}/fold{i}.pkl` a
pickled dict of 80 classes, `fss/{trn,val,test}.txt` names of classes. Lists are untrusted
input: a pickle must not name anything executable, and a name must not leave the root.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import pickle
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fsdino import files
from fsdino.data.pickles import read_pickle
from fsdino.errors import DataError, UsageError, shown
from fsdino.files import read_bytes, write_bytes, write_json

# In a folder of lists: they were derived from annotations, and are not the published ones.
DERIVED_FILE = "derived.json"
DERIVED_FORMAT = "fsdino-lists-1"  # part of the cache's keys: another rule is another number

# Images with fewer pixels of a class are left out of derived lists: a rule common since PFENet.
MIN_PIXELS = 2 * 32 * 32

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_MOST_NAME = 255  # bytes between two "/"
_MOST_BYTES = 2**26  # of a list; COCO's have some hundred thousand names

Item = tuple[str, int]  # an image's name, "/"-separated and relative to the root, and its class


@dataclass(frozen=True)
class Lists:
    """The images that episodes are drawn from.

    Attributes:
        items: (image, class) in the order of the lists.
        derived: whether they were derived from the annotations rather than published.
    """

    items: tuple[Item, ...]
    derived: bool

    @cached_property
    def by_class(self) -> dict[int, tuple[str, ...]]:
        """Images of each class, in the order of the lists; classes in ascending order."""
        found: dict[int, list[str]] = {}
        for name, class_id in self.items:
            found.setdefault(class_id, []).append(name)
        return {class_id: tuple(found[class_id]) for class_id in sorted(found)}

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the items in order, hexadecimal; line ends and file formats do not count."""
        digest = hashlib.sha256()
        for name, class_id in self.items:
            line = json.dumps([name, class_id], ensure_ascii=False)
            digest.update(line.encode("utf-8", "surrogateescape") + b"\n")  # of any bytes
        return digest.hexdigest()

    def without(self, other: Lists) -> Lists:
        """These lists without any image of another one, whatever its class."""
        names = {name for name, _ in other.items}
        kept = tuple(item for item in self.items if item[0] not in names)
        return Lists(kept, self.derived or other.derived)


def safe_name(name: str, source: str, depth: int = 1) -> str:
    """Return a relative, "/"-separated name that lies `depth` - 1 folders deep.

    Raises:
        DataError: an absolute path, "..", a separator of other systems, or another depth.
    """
    if not _is_file_name(name):
        raise DataError(
            f"{source}: {shown(name)} cannot be the name of a file; fix or replace the list"
        )
    parts = name.split("/")
    if name in ("", ".") or parts[0] == "" or ".." in parts or "\\" in name or ":" in name:
        raise DataError(
            f"{source}: {shown(name)} leaves the data set's folder; fix or replace the list"
        )
    if len(parts) != depth or "" in parts or "." in parts:
        expected = "/".join(["FOLDER"] * (depth - 1) + ["NAME"])
        raise DataError(f"{source}: {shown(name)} is not like {expected}; fix or replace the list")
    return name


def _is_file_name(name: str) -> bool:
    """Whether a file can have this name: no control characters, and not too long for any system."""
    try:
        parts = name.encode("utf-8", "surrogateescape").split(b"/")
    except UnicodeEncodeError:
        return False
    return max(map(len, parts)) <= _MOST_NAME and _CONTROL.search(name) is None


def is_derived(folder: Path) -> bool:
    """Whether a folder of lists was written by `write_pairs` and its like."""
    return (folder / DERIVED_FILE).is_file()


def mark_derived(folder: Path, **facts: Any) -> None:
    """Mark a folder of lists as derived, with the origin.

    Raises:
        FsdinoError: it cannot be written.
    """
    write_json(folder / DERIVED_FILE, {"format": DERIVED_FORMAT, **facts})


def make_folder(folder: Path) -> None:
    """Create a folder for prepared files, with its parents.

    Raises:
        FsdinoError: it cannot be created.
    """
    files.make_folder(
        folder,
        "pass another --out to `fsdino data prepare`, or set FSDINO_CACHE to a folder that can be "
        "written",
    )


def read_pairs(file: Path, classes: Sequence[int]) -> list[tuple[str, int]]:
    """Read lines `IMAGE__CLASS`, the class 1-based.

    Args:
        file: the list.
        classes: the classes that it may contain.

    Raises:
        UsageError: the file does not exist.
        DataError: an invalid line, another class, or a name that leaves the root.
    """
    pairs = []
    for number, line in enumerate(read_lines(file), 1):
        name, separator, class_id = line.rpartition("__")
        if not separator or not re.fullmatch("[0-9]{1,9}", class_id):
            raise DataError(
                f"{file}, line {number}: {shown(line)} is not IMAGE__CLASS; replace the list"
            )
        if int(class_id) not in classes:
            raise DataError(
                f"{file}, line {number}: class {int(class_id)} is not of {_span(classes)}; "
                "a list has its own fold's classes: replace it by the published one"
            )
        pairs.append((safe_name(name, f"{file}, line {number}"), int(class_id)))
    return pairs


def write_pairs(file: Path, pairs: Iterable[tuple[str, int]]) -> None:
    """Write what `read_pairs` reads."""
    _write_lines(file, (f"{name}__{class_id:02d}" for name, class_id in pairs))


def read_names(file: Path, *, allow_empty: bool = False) -> list[str]:
    """Read one name a line.

    Args:
        file: the list.
        allow_empty: whether the list may be empty.

    Raises:
        UsageError: there is no such file.
        DataError: it is not text, or empty, or a name leaves the root.
    """
    return [safe_name(line, str(file)) for line in read_lines(file, allow_empty=allow_empty)]


def write_names(file: Path, names: Iterable[str]) -> None:
    """Write what `read_names` reads."""
    _write_lines(file, names)


def _write_lines(file: Path, lines: Iterable[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    write_bytes(file, text.encode("utf-8", "surrogateescape"))  # as `read_lines` reads it


def read_class_pickle(file: Path, classes: Sequence[int], number: int = 80) -> dict[int, list[str]]:
    """Read a pickled dict of `number` classes -> list of names; nothing in it is executed.

    Args:
        file: the list.
        classes: those that may have images.
        number: number of all classes, which count from 0.

    Raises:
        UsageError: the file does not exist.
        DataError: anything but dict, list, str and int, another class, or a name that leaves the
            root.
    """
    remedy = "replace it by the published list"
    try:
        found = read_pickle(file, _MOST_BYTES, remedy)
    except FileNotFoundError as error:
        raise _missing(file) from error
    if type(found) is not dict or any(type(key) is not int for key in found):
        raise DataError(f"{file}: not a dict of class numbers; {remedy}")
    for class_id, names in found.items():
        if type(names) is not list or any(type(name) is not str for name in names):
            raise DataError(f"{file}: class {class_id} has no list of names; {remedy}")
        if not 0 <= class_id < number or (names and class_id not in classes):
            raise DataError(
                f"{file}: lists images of class {class_id}, which is not of {_span(classes)}; "
                f"{remedy}"
            )
        for name in names:
            safe_name(name, str(file), depth=2)
    return found


def write_class_pickle(file: Path, names: Mapping[int, Sequence[str]], number: int = 80) -> None:
    """Write what `read_class_pickle` reads, with an empty list for classes that have no images."""
    whole = {class_id: list(names.get(class_id, ())) for class_id in range(number)}
    write_bytes(file, pickle.dumps(whole, protocol=2))


def read_lines(file: Path, *, allow_empty: bool = False) -> list[str]:
    """Read a list's lines, without empty ones and the space around others.

    Names of files need not be UTF-8: other bytes are decoded by `os.fsdecode`. A byte order mark
    and the line ends of other systems are ignored.

    Raises:
        UsageError: the file does not exist.
        DataError: it is not a text, too large, or empty.
    """
    remedy = "replace the list"
    try:
        content = read_bytes(file, _MOST_BYTES)
    except FileNotFoundError as error:
        raise _missing(file) from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{file}: cannot be read as text ({error}); {remedy}") from error
    if b"\0" in content:
        raise DataError(f"{file}: cannot be read as text (it holds NUL); {remedy}")
    text = content.removeprefix(codecs.BOM_UTF8).decode("utf-8", "surrogateescape")
    found = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not found and not allow_empty:
        raise DataError(f"{file}: the list is empty; {remedy}")
    return found


def _missing(file: Path) -> UsageError:
    return UsageError(
        f"{file}: no such split list; pass the folder of HSNet's lists (with pascal/, coco/ and "
        "fss/ in it) as --splits, or no --splits to derive lists from the annotations"
    )


def _span(classes: Sequence[int]) -> str:
    return f"classes {', '.join(map(str, sorted(classes)[:6]))}{' …' if len(classes) > 6 else ''}"
