"""Pickled plain values from strangers: read opcode by opcode, and nothing in them is called.

Python's own unpickler creates any object, and recurses in C on nested keys until the process
crashes. Here keys are texts, bytes or whole numbers, and there are no objects.
"""

from __future__ import annotations

import io
import pickletools
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fsdino.errors import DataError, first_line, shown
from fsdino.files import read_bytes

_OPCODES = {opcode.code.encode("latin-1"): opcode for opcode in pickletools.opcodes}
_PUSHED = frozenset(
    {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT"}
    | {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"}
    | {"STRING", "SHORT_BINSTRING", "BINSTRING"}
    | {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
)
_STORED = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
_FETCHED = frozenset({"GET", "BINGET", "LONG_BINGET"})
_EMPTY: dict[str, type] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_FILLED: dict[str, type] = {"DICT": dict, "LIST": list, "TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MANY = frozenset({"SETITEMS", "APPENDS"})
_ONE = {"SETITEM": 2, "APPEND": 1}
_CALLS = frozenset({"GLOBAL", "STACK_GLOBAL", "INST"})
_SKIPPED = frozenset({"PROTO", "FRAME"})
_KEYS = (str, int, bytes)
_NUMBERS = frozenset({int, float})
_FLOAT_BYTES = 9  # an opcode and eight bytes
_MOST_FLOATS = 1000  # that a pickler appends at once
_MARK = object()


def read_pickle(file: Path, most: int, remedy: str) -> Any:
    """Read a pickle of dict, list, tuple, str, bytes, int, float, bool and None.

    A list of numbers that has a float among its first thousand is an `array("d")`, a quarter of the
    list's memory: files of polygons hold tens of millions of them.

    Args:
        file: the file.
        most: bytes that it may have.
        remedy: what to do about a file that cannot be read, for the error.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: damaged, too large, or another content; a global, which could run code, is named.
    """
    try:
        return _Reader(read_bytes(file, most)).read()
    except FileNotFoundError:
        raise
    except _NamesGlobalError as error:
        raise DataError(
            f"{file}: names {error}, which could run code, and is not read; it should hold plain "
            f"values alone: {remedy}"
        ) from error
    except Exception as error:  # a damaged pickle raises nearly every type
        raise DataError(f"{file}: damaged ({first_line(error)}); {remedy}") from error


def filled(kind: type[Any], value: Any, name: str) -> Any:
    """Return a value of a type that holds something.

    Args:
        kind: dict or list.
        value: the value, of any origin.
        name: what it is, for the error.

    Raises:
        ValueError: another type, or empty; a reason of one line.
    """
    if type(value) is not kind or not value:
        raise ValueError(f"{name} is {shown(value)} and not a filled {kind.__name__}")
    return value


class _NamesGlobalError(Exception):
    """A pickle that names a global: its name."""


class _Reader:
    """The machine that a pickle is a program of, with what plain values need.

    Args:
        content: the pickle.
    """

    def __init__(self, content: bytes) -> None:
        self._bytes = np.frombuffer(content, np.uint8)
        self._stream = io.BytesIO(content)
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._last = -1  # the place in the memo that was filled last

    def read(self) -> Any:
        """The value.

        Raises:
            _NamesGlobalError: it names a global.
            Exception: any; it is damaged or has another content.
        """
        stream, stack = self._stream, self._stack
        while code := stream.read(1):
            if code == b"G":
                self._push_floats()
                continue
            opcode = _OPCODES.get(code)
            if opcode is None:
                raise ValueError(f"{code!r} is not an opcode")
            value: Any = opcode.arg.reader(stream) if opcode.arg is not None else None
            name = opcode.name
            if name in _PUSHED:
                stack.append(value)
            elif name in _STORED:
                self._last = len(self._memo) if value is None else value
                self._memo[self._last] = stack[-1]
            elif name in _FETCHED:
                stack.append(self._memo[value])
            elif name == "STOP":
                (found,) = stack
                if found is _MARK:
                    raise ValueError("it holds nothing")
                return found
            elif name in _CALLS:
                words = value.split(" ", 1) if value else stack[-2:]
                raise _NamesGlobalError(".".join(map(str, words))[:200])
            elif name not in _SKIPPED:
                self._build(name)
        raise ValueError("it has no end")

    def _push_floats(self) -> None:
        """Push a float, and those that follow it immediately."""
        first = self._stream.tell() - 1
        count = min((len(self._bytes) - first) // _FLOAT_BYTES, _MOST_FLOATS)
        if count == 0:
            raise ValueError("a float is cut off")
        rows = self._bytes[first : first + count * _FLOAT_BYTES].reshape(count, _FLOAT_BYTES)
        others = np.flatnonzero(rows[:, 0] != ord("G"))
        rows = rows[: others[0]] if others.size else rows
        self._stack += np.ascontiguousarray(rows[:, 1:]).view(">f8")[:, 0].tolist()
        self._stream.seek(first + len(rows) * _FLOAT_BYTES)

    def _build(self, name: str) -> None:
        """Make or fill a dict, list or tuple, or push a mark or a constant."""
        stack = self._stack
        if name == "MARK":
            stack.append(_MARK)
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in _MANY:
            self._fill(self._above_mark())
        elif name in _ONE:
            self._fill(self._popped(_ONE[name]))
        elif name in _FILLED:
            items = self._above_mark()
            stack.append(tuple(items) if name == "TUPLE" else _FILLED[name]())
            if name != "TUPLE":
                self._fill(items)
        elif name in _TUPLES:
            stack.append(tuple(self._popped(_TUPLES[name])))
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        else:
            raise ValueError(f"{name}, but it should hold plain values alone")

    def _popped(self, count: int) -> list[Any]:
        items = self._stack[-count:]
        if len(items) < count or any(item is _MARK for item in items):
            raise ValueError("an opcode without its values")
        del self._stack[-count:]
        return items

    def _above_mark(self) -> list[Any]:
        """Take what lies above the topmost mark, and the mark."""
        stack = self._stack
        place = len(stack) - 1
        while stack[place] is not _MARK:
            place -= 1
            if place < 0:
                raise ValueError("an opcode without its mark")
        items = stack[place + 1 :]
        del stack[place:]
        return items

    def _fill(self, items: Sequence[Any]) -> None:
        """Put items into the dict or list on top of the stack."""
        target = self._stack[-1]
        if type(target) is list:
            kinds = set(map(type, items))
            if not target and float in kinds and kinds <= _NUMBERS:
                self._replace(target, array("d", items))
            else:
                target += items
        elif type(target) is array:
            target.extend(items)
        elif type(target) is dict:
            for key, value in zip(items[::2], items[1::2], strict=True):
                if type(key) not in _KEYS:
                    raise ValueError(f"a dict with a key of type {type(key).__name__}")
                target[key] = value
        else:
            raise ValueError("an opcode without its dict or list")

    def _replace(self, target: list[Any], packed: array[float]) -> None:
        """Put an array in the place of an empty list, which the stack and the memo alone hold."""
        self._stack[-1] = packed
        if self._memo.get(self._last) is target:
            self._memo[self._last] = packed
