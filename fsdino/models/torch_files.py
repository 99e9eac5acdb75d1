"""Read files of `torch.save` without PyTorch's unpickler: no code runs, no size is trusted.

A file is a pickle that describes tensors, and their bytes. The few instructions that describe
tensors are interpreted here and no function is ever called; every size is compared with what the
file has before memory is taken for it.
"""

from __future__ import annotations

import io
import math
import pickletools
import struct
import zipfile
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch
from torch import Tensor

_MOST_PICKLE = 2**22  # bytes of a description; SAM's largest has 60 thousand
_MOST_UNUSED = 2**28  # bytes that a file's tensors may be a small part of
_MAGIC = 0x1950A86A20F9469CFC6C  # of the format before PyTorch 1.6
_DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16,
    "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
    "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool,
}  # fmt: skip
# What training checkpoints hold beside weights; it is left out, so it is not interpreted.
_INERT = frozenset({
    "argparse.Namespace", "builtins.bytearray", "builtins.complex", "builtins.set",
    "_codecs.encode", "collections.Counter", "collections.defaultdict", "numpy.dtype",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "pathlib.PosixPath",
    "torch.device", "torch.serialization._get_layout",
})  # fmt: skip


class NotTensorsError(ValueError):
    """An intact file that holds something other than tensors; the message says what."""


@dataclass(frozen=True)
class Inert:
    """An object that is not interpreted."""

    kind: str


@dataclass(frozen=True)
class Storage:
    """Bytes of the file by their key, as `elements` of one type."""

    key: str
    dtype: torch.dtype
    elements: int


@dataclass(frozen=True)
class View:
    """A tensor as the file describes it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def check(self) -> None:
        """Compare a tensor with its storage.

        Raises:
            ValueError: it reaches beyond, or has more elements than the storage has.
        """
        sizes = (self.offset, *self.shape, *self.stride)
        if len(self.shape) != len(self.stride) or len(self.shape) > 64:
            raise ValueError("a tensor's shape does not fit its strides")
        if any(type(size) is not int or not 0 <= size < 2**62 for size in sizes):
            raise ValueError("a tensor has an invalid shape")
        elements = math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.stride, strict=True))
        if elements > self.storage.elements or (elements and last >= self.storage.elements):
            raise ValueError(
                f"a tensor of shape {list(self.shape)[:8]} is larger than what the file has for it"
            )


@dataclass(frozen=True)
class Global:
    """A class or function by its name; never imported."""

    name: str


class TorchFile:
    """An open file of `torch.save`'s.

    Args:
        file: open for reading, at its start.

    Attributes:
        content: what was saved: dicts, lists, tuples and plain values; tensors are `View`s.

    Raises:
        ValueError: the file is damaged, or sizes in it are invalid.
        NotTensorsError: it was not written by `torch.save`, or needs code to be read.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._size = file.seek(0, io.SEEK_END)
        file.seek(0)
        self._zip: zipfile.ZipFile | None = None
        self._records: dict[str, zipfile.ZipInfo] = {}
        self._places: dict[str, tuple[int, int]] = {}  # offset and bytes, in the older format
        self._loaded: dict[str, Tensor] = {}
        self._prefix = ""
        is_zip = file.read(4) == b"PK\x03\x04"
        file.seek(0)
        try:
            self.content = self._open_zip() if is_zip else self._open_legacy()
        except NotTensorsError:
            raise
        except zipfile.BadZipFile as error:
            raise ValueError(f"the archive is incomplete: {error}") from error
        except (LookupError, TypeError, ArithmeticError, struct.error, RuntimeError) as error:
            raise ValueError(f"its description of tensors is invalid: {error}") from error

    def check(self, views: Iterable[View]) -> None:
        """Compare all tensors that may be read with their storages.

        Raises:
            ValueError: one of them does not fit into its storage, or they are only a small part of
                a large one, which would be read whole.
        """
        used: dict[Storage, int] = {}
        for view in views:
            view.check()
            used[view.storage] = used.get(view.storage, 0) + math.prod(view.shape)
        for storage, elements in used.items():
            size = storage.elements * storage.dtype.itemsize
            if size > _MOST_UNUSED and storage.elements > 16 * elements:
                raise ValueError(f"a tensor is a small part of {size:,} bytes; clone() such ones")

    def tensor(self, view: View) -> Tensor:
        """Read a tensor; those that share memory in the file share it here.

        Raises:
            ValueError: the file is damaged.
        """
        view.check()
        key = view.storage.key
        if key not in self._loaded:
            try:
                data = self._read(view.storage)
            except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
                raise ValueError(f"a tensor's bytes cannot be read: {error}") from error
            flat = torch.frombuffer(data, dtype=view.storage.dtype) if data else torch.empty(0)
            self._loaded[key] = flat.to(view.storage.dtype)
        return self._loaded[key].as_strided(view.shape, view.stride, view.offset)

    def _read(self, storage: Storage) -> bytearray:
        wanted = storage.elements * storage.dtype.itemsize
        if self._zip is None:
            offset, size = self._places[storage.key]
            if size != wanted:
                raise ValueError("a tensor's size is not that of its bytes")
            self._file.seek(offset)
            data = bytearray(size)
            if self._file.readinto(data) != size:  # type: ignore[attr-defined]
                raise EOFError("the file ends too early")
            return data
        info = self._records.get(f"{self._prefix}data/{storage.key}")
        if info is None or info.file_size != wanted:
            raise ValueError("a tensor's size is not that of its bytes")
        return self._record(info)

    # -------------------------------------------------------------- since PyTorch 1.6: an archive

    def _open_zip(self) -> Any:
        self._zip = zipfile.ZipFile(self._file)
        infos = self._zip.infolist()
        self._records = {info.filename: info for info in infos}
        names = [name for name in self._records if f"/{name}".endswith("/data.pkl")]
        if len(names) != 1:
            found = ", ".join(info.filename for info in infos[:3]) or "nothing"
            raise NotTensorsError(f"they are a zip archive of other things ({found})")
        self._prefix = names[0].removesuffix("data.pkl")
        if f"{self._prefix}constants.pkl" in self._records:
            raise NotTensorsError("they are a TorchScript program: save its state_dict() instead")
        # torch.save compresses nothing and no two records share bytes: all fit into the file.
        packed = [i for i in infos if i.compress_type != zipfile.ZIP_STORED or i.flag_bits & 1]
        if packed or any(i.compress_size != i.file_size for i in infos):
            raise ValueError("its records are compressed, which torch.save never does")
        if len(self._records) != len(infos) or sum(i.file_size for i in infos) > self._size:
            raise ValueError("its records claim more bytes than the file has")
        order = self._records.get(f"{self._prefix}byteorder")
        if order is not None and order.file_size < 16 and self._record(order) != b"little":
            raise NotTensorsError("they were written on a big-endian machine")
        description = self._records[names[0]]
        if description.file_size > _MOST_PICKLE:
            raise ValueError(f"its description of tensors has {description.file_size:,} bytes")
        return Machine().run(io.BytesIO(self._record(description)))

    def _record(self, info: zipfile.ZipInfo) -> bytearray:
        assert self._zip is not None
        data = bytearray(info.file_size)
        view, count = memoryview(data), 0
        with closing(self._zip.open(info)) as stream:
            while count < len(data):
                part = stream.read(min(2**24, len(data) - count))
                if not part:
                    raise EOFError("the file ends too early")
                view[count : count + len(part)] = part
                count += len(part)
            stream.read(1)  # the end, where the checksum is compared
        return data

    # ---------------------------------------------------------- before PyTorch 1.6: pickles, bytes

    def _open_legacy(self) -> Any:
        head = io.BytesIO(self._file.read(_MOST_PICKLE))
        if Machine().run(head) != _MAGIC:
            raise NotTensorsError("they are a pickle, and not one of torch.save's")
        Machine().run(head)  # version of the format
        Machine().run(head)  # sizes of integers where it was written
        machine = Machine()
        content = machine.run(head)
        keys = Machine().run(head)
        if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
            raise ValueError("the list of its storages is invalid")
        offset = head.tell()
        for key in keys:
            storage = machine.storages[key]
            self._file.seek(offset)
            elements = int.from_bytes(self._file.read(8), "little")
            offset += 8
            size = elements * storage.dtype.itemsize
            if offset + size > self._size:
                raise ValueError("its tensors claim more bytes than the file has")
            self._places[key] = offset, size
            offset += size
        return content


_Handler = Callable[["Machine", Any], None]


@dataclass
class Machine:
    """An interpreter of the pickle instructions that describe tensors.

    Attributes:
        storages: those that were described, by key.
    """

    storages: dict[str, Storage] = field(default_factory=dict)
    _stack: list[Any] = field(default_factory=list)
    _memo: dict[int, Any] = field(default_factory=dict)

    def run(self, stream: BinaryIO) -> Any:
        """The object that a pickle describes; leaves the stream behind it.

        Raises:
            NotTensorsError: it needs code.
            ValueError, IndexError, KeyError, TypeError: it is damaged.
        """
        for code, argument, _ in pickletools.genops(stream):
            if code.name == "STOP":
                return self._stack.pop()
            if code.name in _LITERALS:
                self._stack.append(argument)
            elif code.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[code.name])
            elif code.name in _HANDLERS:
                _HANDLERS[code.name](self, argument)
            elif code.name not in ("PROTO", "FRAME"):
                raise NotTensorsError(f"they hold a pickle that needs {code.name}")
        raise ValueError("it ends too early")

    def _since_mark(self) -> list[Any]:
        index = len(self._stack) - 1
        while self._stack[index] is not _MARK:
            index -= 1
            if index < 0:
                raise ValueError("a mark is missing")
        items = self._stack[index + 1 :]
        del self._stack[index:]
        return items

    def _tuple(self, count: int) -> None:
        items = tuple(self._stack[len(self._stack) - count :]) if count else ()
        if len(items) != count:
            raise IndexError("the stack is empty")
        del self._stack[len(self._stack) - count :]
        self._stack.append(items)

    def _extend(self, items: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(items)
        elif not isinstance(target, Inert):
            raise TypeError("values are added to what is not a list")

    def _set(self, items: list[Any]) -> None:
        target = self._stack[-1]
        pairs = list(zip(items[::2], items[1::2], strict=True))
        if isinstance(target, dict):
            target.update(_checked(pairs))
        elif not isinstance(target, Inert):
            raise TypeError("entries are added to what is not a dict")

    def _call(self, arguments: Any, function: Any) -> None:
        self._stack.append(_called(function, arguments))

    def _storage(self, identity: Any) -> None:
        kind, storage_type, key, _, elements, *view = identity
        if kind != "storage" or not isinstance(storage_type, Global) or (view and view[0]):
            raise NotTensorsError("they hold a pickle that refers to other objects")
        name = storage_type.name.removeprefix("torch.").removesuffix("Storage")
        if name not in _DTYPES:
            raise NotTensorsError(f"they hold tensors of a kind that weights are not ({name})")
        if not isinstance(key, str) or type(elements) is not int or not 0 <= elements < 2**62:
            raise ValueError("a tensor has an invalid size")
        storage = Storage(key, _DTYPES[name], elements)
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("a tensor's bytes are described twice")
        self._stack.append(storage)

    def _put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]


def _called(function: Any, arguments: Any) -> Any:
    """The result of a call, for the few functions that describe data."""
    if isinstance(function, Inert):
        return function
    if not isinstance(function, Global) or not isinstance(arguments, tuple):
        raise TypeError("what is called is not a function")
    name = function.name.replace("__builtin__.", "builtins.")  # Python 2's, in protocol 2
    if name == "collections.OrderedDict":
        return dict(_checked(arguments[0])) if arguments else {}
    if name == "torch.Size":
        return tuple(arguments[0])
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor"):
        storage, offset, shape, stride = arguments[:4]
        if not isinstance(storage, Storage):
            raise TypeError("a tensor has no storage")
        return View(storage, offset, tuple(shape), tuple(stride))
    if name.startswith("torch._utils._rebuild_parameter"):
        return arguments[0]
    if name == "torch._tensor._rebuild_from_type_v2":
        return _called(arguments[0], arguments[2])
    if name in _INERT:
        return Inert(name)
    if name.startswith("torch._utils._rebuild_"):
        kind = name.removeprefix("torch._utils._rebuild_")
        raise NotTensorsError(f"they hold tensors of a kind that weights are not ({kind})")
    raise NotTensorsError(f"they hold code, which is never run ({name})")


def _checked(pairs: Iterable[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Entries of a dict. Hashing a deeply nested key would crash the process."""
    found = [(key, value) for key, value in pairs]
    if not all(isinstance(key, str | int | float | bytes | None) for key, _ in found):
        raise NotTensorsError("they hold a dict whose keys are neither names nor numbers")
    return found


def _joined(module: Any, name: Any) -> Global:
    if not isinstance(module, str) or not isinstance(name, str):
        raise TypeError("a class has no name")
    return Global(f"{module}.{name}")


_MARK = object()
_LITERALS = frozenset({
    "BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT",
    "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8",
})  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
_HANDLERS: dict[str, _Handler] = {
    "EMPTY_TUPLE": lambda m, _: m._stack.append(()),
    "EMPTY_LIST": lambda m, _: m._stack.append([]),
    "EMPTY_DICT": lambda m, _: m._stack.append({}),
    "EMPTY_SET": lambda m, _: m._stack.append(Inert("set")),
    "TUPLE": lambda m, _: m._stack.append(tuple(m._since_mark())),
    "TUPLE1": lambda m, _: m._tuple(1),
    "TUPLE2": lambda m, _: m._tuple(2),
    "TUPLE3": lambda m, _: m._tuple(3),
    "LIST": lambda m, _: m._stack.append(m._since_mark()),
    "APPEND": lambda m, _: m._extend([m._stack.pop()]),
    "APPENDS": lambda m, _: m._extend(m._since_mark()),
    "ADDITEMS": lambda m, _: m._extend(m._since_mark()),
    "SETITEM": lambda m, _: m._set([m._stack.pop(-2), m._stack.pop()]),
    "SETITEMS": lambda m, _: m._set(m._since_mark()),
    "POP": lambda m, _: m._stack.__delitem__(-1),
    "POP_MARK": lambda m, _: m._since_mark().clear(),
    "DUP": lambda m, _: m._stack.append(m._stack[-1]),
    "PUT": lambda m, index: m._put(index),
    "BINPUT": lambda m, index: m._put(index),
    "LONG_BINPUT": lambda m, index: m._put(index),
    "MEMOIZE": lambda m, _: m._put(len(m._memo)),
    "GET": lambda m, index: m._stack.append(m._memo[index]),
    "BINGET": lambda m, index: m._stack.append(m._memo[index]),
    "LONG_BINGET": lambda m, index: m._stack.append(m._memo[index]),
    "GLOBAL": lambda m, name: m._stack.append(Global(name.replace(" ", "."))),
    "STACK_GLOBAL": lambda m, _: m._stack.append(_joined(m._stack.pop(-2), m._stack.pop())),
    "REDUCE": lambda m, _: m._call(m._stack.pop(), m._stack.pop()),
    "NEWOBJ": lambda m, _: m._call(m._stack.pop(), m._stack.pop()),
    "BUILD": lambda m, _: m._stack.__delitem__(-1),  # attributes, such as versions of modules
    "BINPERSID": lambda m, _: m._storage(m._stack.pop()),
}
