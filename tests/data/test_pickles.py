"""Pickles of plain values: what is read, and what is refused."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest

from fsdino.data.pickles import read_pickle
from fsdino.errors import DataError

PLAIN: dict[Any, Any] = {
    "a": [1, True, False, None, (), (1,), ("x", b"y"), (1, 2, 3), (1, 2, 3, 4)],
    b"key": {"nested": {"deeper": [{"": "ü"}, 2**70, -1, 70_000]}},
    3: "text",
    -(2**40): b"\0\xff" * 300,
    "float": 1.5,
    "shared": ["x" * 300] * 3,
    "mixed": ["x", 1.5, None],
    "many": [[i] for i in range(2500)],
}


def read(value: object, folder: Path, protocol: int = 4) -> Any:
    file = folder / "values.pkl"
    file.write_bytes(pickle.dumps(value, protocol=protocol))
    return read_pickle(file, 2**24, "get it again")


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_are_read(protocol: int, tmp_path: Path) -> None:
    """As Python reads them, types and order included."""
    found = read(PLAIN, tmp_path, protocol)
    assert found == PLAIN and repr(found) == repr(PLAIN)
    assert found["shared"][0] is found["shared"][2]


@pytest.mark.parametrize("protocol", range(3))
def test_early_protocols_are_read(protocol: int, tmp_path: Path) -> None:
    """Which have no opcode for bytes."""
    plain = {key: value for key, value in PLAIN.items() if type(key) is not bytes}
    plain["a"], plain[-(2**40)] = [1, True, None, (), (1, 2)], {}
    assert repr(read(plain, tmp_path, protocol)) == repr(plain)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("length", [1, 2, 999, 1000, 1001, 4567])
def test_lists_of_numbers_are_packed(length: int, protocol: int, tmp_path: Path) -> None:
    """Floats alone, and mixed with whole numbers, also where a pickle names the list twice."""
    floats = [0.1 * i - 3 for i in range(length)]
    mixed = [i if i % 3 else i / 7 for i in range(length)]
    found = read({"floats": floats, "mixed": mixed, "again": floats}, tmp_path, protocol)
    assert found["floats"] == array("d", floats) and found["mixed"] == array("d", mixed)
    assert found["again"] is found["floats"]
    assert read(list(range(length)), tmp_path, protocol) == list(range(length))


@pytest.mark.parametrize("value", [float("inf"), -0.0, 5e-324, 1.7976931348623157e308])
def test_floats_are_exact(value: float, tmp_path: Path) -> None:
    """To the bit."""
    assert repr(read((value, [value, value]), tmp_path)) == repr((value, array("d", [value] * 2)))


@pytest.mark.parametrize(
    "value", [{(1, 2): 3}, {None: 1}, {1.5: 1}, {True: 1, "a": {2.5: 0}}, {1}, bytearray(b"x"), 1j]
)
def test_other_values_are_one_error(value: object, tmp_path: Path) -> None:
    """A nested key could end the process; anything else is made by a call."""
    with pytest.raises(DataError, match=r"values\.pkl: .*get it again"):
        read(value, tmp_path)


def test_a_call_is_refused_by_its_name(tmp_path: Path) -> None:
    """And nothing is executed, wherever it stands."""
    for content in (
        b"cos\nsystem\n(S'x'\ntR.",
        b"(S'x'\nios\nsystem\n.",
        b"\x8c\2os\x8c\6system\x93.",
    ):
        (tmp_path / "calls.pkl").write_bytes(content)
        with pytest.raises(DataError, match=r"names os\.system, which could run code"):
            read_pickle(tmp_path / "calls.pkl", 99, "get it again")
    with pytest.raises(DataError, match=r"names (posix|nt)\.getcwd"):
        read([[1.5, os.getcwd]], tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"G\0\0\0.",
        b"]G" + b"\0" * 8,
        b"](G" + b"\0" * 8 + b"eX\1\0\0\0ae.",
        b"](G" + b"\0" * 8 + b"e(X\1\0\0\0ae.",
        b"](G" + b"\0" * 8 + b"(eee.",
        b"}(K\1(u.",
        b"}K\1(s.",
        b"(.",
        b"(\x85.",
        b"\x86.",
        b"\xff.",
    ],
)
def test_a_damaged_file_is_one_error(content: bytes, tmp_path: Path) -> None:
    """Cut off, or with opcodes in the wrong places."""
    (tmp_path / "damaged.pkl").write_bytes(content)
    with pytest.raises(DataError, match=r"damaged\.pkl: damaged .*; get it again"):
        read_pickle(tmp_path / "damaged.pkl", 99, "get it again")


def test_a_file_of_polygons_takes_little_memory(tmp_path: Path) -> None:
    """Python's lists of floats take 32 bytes a number, of which such a file has 9."""
    polygons = [[[float(i + j) for j in range(200)]] for i in range(1000)]
    file = tmp_path / "polygons.pkl"
    file.write_bytes(pickle.dumps(polygons))
    size = file.stat().st_size
    assert size > 9 * 200_000
    tracemalloc.start()
    found = read_pickle(file, 2 * size, "get it again")
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found[999][0][199] == 1198.0
    assert kept < 1.2 * size and peak < 2.4 * size
