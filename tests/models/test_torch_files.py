"""Files of torch.save's: read as PyTorch reads them, without running or inflating anything."""

from __future__ import annotations

import argparse
import collections
import io
import pickle
import resource
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fsdino.errors import CheckpointError
from fsdino.models.torch_files import Inert, Storage, TorchFile, View
from fsdino.models.weight_files import read_state_dict

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32),
    *(torch.int16, torch.int8, torch.uint8, torch.bool),
)
LEGACY = [False, True]


def state_of_every_kind() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(2, 3, 4)
    state = {str(dtype): (base % 2 if dtype == torch.bool else base).to(dtype) for dtype in DTYPES}
    return {
        **state,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(0, 4),
        "empty int": torch.zeros(3, 0, dtype=torch.int64),
        "transposed": base.permute(2, 0, 1),
        "slice": torch.arange(100.0)[10:30:2],
        "first of two": base[0],
        "second of two": base[1],
        "parameter": nn.Parameter(torch.ones(2)),
        "channels last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
    }


@pytest.mark.parametrize("legacy", LEGACY)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_tensors_are_those_that_pytorch_reads(protocol: int, legacy: bool, tmp_path: Path) -> None:
    """Every type, layout and pickle protocol, in both of PyTorch's formats."""
    path, state = tmp_path / "weights.pth", state_of_every_kind()
    torch.save(state, path, pickle_protocol=protocol, _use_new_zipfile_serialization=not legacy)
    found, expected = read_state_dict(path), torch.load(path, weights_only=False)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert (found[name].dtype, found[name].stride()) == (tensor.dtype, tensor.stride()), name


@pytest.mark.parametrize("legacy", LEGACY)
def test_state_dicts_of_modules_are_read(legacy: bool, tmp_path: Path) -> None:
    """They are OrderedDicts with versions as an attribute, and shared tensors."""
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(3, 2))
    module[2].weight = module[0].weight
    path = tmp_path / "weights.pth"
    torch.save(module.state_dict(), path, _use_new_zipfile_serialization=not legacy)
    found = read_state_dict(path)
    assert found.keys() == module.state_dict().keys()
    assert all(torch.equal(found[name], t) for name, t in module.state_dict().items())


@pytest.mark.parametrize("legacy", LEGACY)
def test_training_checkpoints_are_read_around_what_is_not_tensors(
    legacy: bool, tmp_path: Path
) -> None:
    """Arguments, counters and NumPy numbers are common beside weights, and are not interpreted."""
    module = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = tmp_path / "checkpoint.pth"
    torch.save(
        {
            "model": module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, path=Path("a")),
            "best": np.float64(0.5),
            "history": collections.defaultdict(list, {"loss": [0.5, 0.25]}),
            "classes": {"a", "b"},
            "epoch": 3,
        },
        path,
        _use_new_zipfile_serialization=not legacy,
    )
    found = read_state_dict(path)
    assert found.keys() == {"weight", "bias"}
    assert torch.equal(found["weight"], module.weight)
    with path.open("rb") as file:
        content = TorchFile(file).content
    assert isinstance(content["args"], Inert) and isinstance(content["model"]["weight"], View)
    assert content["epoch"] == 3


# --------------------------------------------------------------------- files that claim too much


def refused(path: Path) -> str:
    """The message for a file, which costs neither memory nor more than one line."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError) as caught:
        read_state_dict(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB
    message = str(caught.value)
    assert str(path) in message and message.isprintable() and "weights_only" not in message
    return message


def rewritten(path: Path, compression: int = zipfile.ZIP_STORED, **records: bytes) -> None:
    """Write an archive again, with other records or another compression."""
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    for name, data in records.items():
        content[next(key for key in content if key.endswith(name))] = data
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def test_small_parts_of_large_storages_are_refused(tmp_path: Path) -> None:
    """All of a storage is read for the tensors in it; many that fill one may share it."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1)}, path)
    storage = Storage("0", torch.float32, 2**30)
    part = View(storage, 0, (2**25,), (1,))
    with path.open("rb") as file:
        source = TorchFile(file)
        with pytest.raises(ValueError, match="small part of 4,294,967,296 bytes"):
            source.check([part])
        source.check([part, View(storage, 2**25, (2**25,), (1,))])
        source.check([View(Storage("1", torch.float32, 2**20), 0, (1,), (1,))])


def test_records_that_share_bytes_are_refused(tmp_path: Path) -> None:
    """A thousand names for the same bytes are more than the file has."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(1000)}, path)
    with zipfile.ZipFile(path, "a") as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
        for index in range(1, 1000):
            twin = zipfile.ZipInfo(info.filename[:-1] + str(index))
            for field in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(twin, field, getattr(info, field))
            archive.filelist.append(twin)
            archive.NameToInfo[twin.filename] = twin
        archive._didModify = True  # type: ignore[attr-defined]
    assert "more bytes than the file has" in refused(path)


def pickled(opcodes: bytes) -> bytes:
    return b"\x80\x02" + opcodes + b"."


def tensor_opcodes(shape: tuple[int, ...], stride: tuple[int, ...], elements: int) -> bytes:
    """{"a": a tensor of float32}, as torch.save describes it."""

    def number(value: int) -> bytes:
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += number(elements) + b"tQ"
    view = b"(" + storage + number(0) + numbers(shape) + numbers(stride)
    view += b"\x89ccollections\nOrderedDict\n)Rt"
    return b"}" + text("a") + b"ctorch._utils\n_rebuild_tensor_v2\n" + view + b"Rs"


def test_an_archive_that_inflates_is_refused(tmp_path: Path) -> None:
    """300 MB of zeros in a file of 300 KB: PyTorch itself would take the memory."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(4)}, path)
    elements = 75_000_000
    description = pickled(tensor_opcodes((elements,), (1,), elements))
    with zipfile.ZipFile(path) as archive:
        content = {info.filename: archive.read(info) for info in archive.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, data in content.items():
            with archive.open(name, "w") as record:
                if not name.endswith("data/0"):
                    record.write(description if name.endswith("data.pkl") else data)
                    continue
                for _ in range(0, elements * 4, 10**6):
                    record.write(bytes(10**6))
    assert path.stat().st_size < 2_000_000
    assert "compressed" in refused(path)


@pytest.mark.parametrize(
    ("shape", "stride", "elements"),
    [
        ((10**9,), (0,), 1),  # one number seen a billion times
        ((10**9,), (1,), 1),
        ((2, 2), (1, 10**9), 4),
        ((4,), (1,), 10**12),  # more than its record has
        ((4,), (1,), 3),
        ((-4,), (1,), 4),
        ((4,), (-1,), 4),
        ((2**40, 2**40), (0, 0), 4),
        ((2**63, 0), (1, 1), 4),
        ((2, 2), (1,), 4),
        ((1,) * 2000, (1,) * 2000, 4),
        ((4,), (1,), -1),
    ],
    ids=str,
)
def test_tensors_larger_than_their_bytes_are_refused(
    shape: tuple[int, ...], stride: tuple[int, ...], elements: int, tmp_path: Path
) -> None:
    """Expanded, out of bounds, negative: before any memory is taken."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(4)}, path)
    rewritten(path, **{"data.pkl": pickled(tensor_opcodes(shape, stride, elements))})
    assert "damaged" in refused(path)


def test_the_handmade_description_is_right(tmp_path: Path) -> None:
    """With sizes that fit, the same bytes are a tensor: the sizes are what is refused above."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.arange(4.0)}, path)
    rewritten(path, **{"data.pkl": pickled(tensor_opcodes((2, 2), (1, 2), 4))})
    assert read_state_dict(path)["a"].tolist() == [[0, 2], [1, 3]]
    assert torch.load(path, weights_only=True)["a"].tolist() == [[0, 2], [1, 3]]


def test_an_older_file_that_claims_too_much_is_refused(tmp_path: Path) -> None:
    """The format before PyTorch 1.6 has sizes of its own before the bytes."""
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.zeros(4)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    size = struct.pack("<q", 4)
    assert data.count(size + bytes(16)) == 1
    for wrong in (2**40, 5, 3, -1):
        path.write_bytes(data.replace(size + bytes(16), struct.pack("<q", wrong) + bytes(16)))
        assert "damaged" in refused(path)
    path.write_bytes(data[:-3])
    assert "damaged" in refused(path)


def nested_tuple(depth: int) -> bytes:
    return b")" + b"\x85" * depth


@pytest.mark.parametrize(
    ("opcodes", "told"),
    [
        (b"}" + nested_tuple(200_000) + b"Ns", "neither names nor numbers"),  # its hash recurses
        (nested_tuple(200_000), "tuple"),
        (b"]" * 200_000 + b"a" * 199_999, "list"),
        (b"cposix\nsystem\nX\x04\x00\x00\x00true\x85R", "posix.system"),
        (b"cbuiltins\nbytearray\n\x8a\x09" + (10**12).to_bytes(9, "little") + b"\x85R", "Inert"),
        (b"ctorch\nFloatTensor\n\x8a\x09" + (10**12).to_bytes(9, "little") + b"\x85R", "code"),
        (b"Nr\xff\xff\xff\xff", "NoneType"),  # a memo of four billion entries
        (b"X\xff\xff\xff\x7fabc", "damaged"),
        (b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc", "damaged"),
        (b"]" * 10, "list"),
        (b"R", "damaged"),
        (b"t", "damaged"),
        (b"h\x05", "damaged"),
        (b"N" * 3 + b"s", "damaged"),
        (b"NQ", "damaged"),
        (b"Pabc\n", "PERSID"),
        (b"c\x1b[31m\nred\n)R", "code"),
    ],
    ids=range(17),
)
@pytest.mark.parametrize("legacy", LEGACY)
def test_pickles_that_were_made_to_harm(
    opcodes: bytes, told: str, legacy: bool, tmp_path: Path
) -> None:
    """No instruction runs code, takes memory, or ends the process; the answer is one line."""
    path = tmp_path / "weights.pth"
    if legacy:
        header = io.BytesIO()
        torch.save({}, header, _use_new_zipfile_serialization=False)
        start = header.getvalue().index(pickle.dumps({}, protocol=2))
        keys = pickle.dumps([], protocol=2)
        path.write_bytes(header.getvalue()[:start] + pickled(opcodes) + keys)
    else:
        torch.save({"a": torch.zeros(4)}, path)
        rewritten(path, **{"data.pkl": pickled(opcodes)})
    assert told in refused(path)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.eye(3).to_sparse(), "sparse"),
        (torch.zeros(3, dtype=torch.complex64), "Complex"),
    ],
    ids=["sparse", "complex"],
)
def test_tensors_of_a_kind_that_weights_are_not(
    tensor: torch.Tensor, told: str, tmp_path: Path
) -> None:
    """Named, and not read."""
    torch.save({"a": tensor}, tmp_path / "weights.pth")
    assert told in refused(tmp_path / "weights.pth")


def test_every_bit_flip_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """A checksum guards each record of an archive; nothing but a named error comes out."""
    path, state = tmp_path / "weights.pth", {"a": torch.arange(64.0), "b": torch.zeros(3)}
    torch.save(state, path)
    data = path.read_bytes()
    generator = np.random.default_rng(0)
    for place in generator.integers(0, len(data), 150):
        changed = bytearray(data)
        changed[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(changed)
        try:
            found = read_state_dict(path)
        except CheckpointError as error:
            assert str(error).isprintable()
        else:
            assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


def test_scripted_programs_and_other_archives_are_named(tmp_path: Path) -> None:
    """Both begin like a checkpoint."""
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:  # as torch.jit.save lays it out
        for name in ("data.pkl", "code/__torch__.py", "constants.pkl", "version"):
            archive.writestr(f"weights/{name}", b"x")
    assert "TorchScript" in refused(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/cat.jpg", b"x")
    assert "zip archive of other things (images/cat.jpg)" in refused(path)


def test_pickles_of_other_programs_are_named(tmp_path: Path) -> None:
    """A split list, say."""
    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps([1, 2, 3], protocol=2))
    assert "a pickle, and not one of torch.save's" in refused(path)
