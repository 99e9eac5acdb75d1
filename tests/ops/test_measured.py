"""The table of measurements: what it says, and where `auto` follows it."""

from __future__ import annotations

import json

import pytest
import torch

from fsdino import contract, ops
from fsdino.ops import backends, measured

CONV = "center_pivot_conv4d"


def volume(count: int) -> torch.Tensor:
    return torch.zeros(1, count, 1, 1, 1, 1)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine eager is the fastest for 8 to 15 elements in float32."""
    name = measured.instruction_set()
    rows = (
        ("float32", name, 4, "eager"),
        ("bfloat16", name, 4, "eager"),
        ("float32", name, 9, "gone"),
        ("float32", "sm_90", 2, "cpp"),
    )
    keys = ("dtype", "architecture", "size_class", "backend")
    entries = [{"op": CONV, **dict(zip(keys, row, strict=True))} for row in rows]
    monkeypatch.setattr(measured, "MEASURED", measured.read(entries))


def test_classes_of_sizes(table: None) -> None:
    """By hand: 8 to 15 elements, and neither another op, type or architecture."""
    found = {count for count in range(40) if measured.fastest(CONV, volume(count)) == "eager"}
    assert found == {*range(8, 16)}
    assert measured.size_class(8) == measured.size_class(15) == 4
    assert measured.fastest("correlation4d", volume(8)) is None
    assert measured.fastest(CONV, volume(8).double()) is None
    assert measured.fastest(CONV, volume(8).to("meta")) is None
    assert measured.fastest(CONV, volume(3)) is None


def test_neighbouring_classes_are_one_range() -> None:
    """By hand: 4 to 15 elements on one backend, 16 to 31 on another, then one again."""
    backends_of = {3: "eager", 7: "eager", 5: "cpp", 4: "eager"}
    entries = [
        {"op": CONV, "dtype": "float32", "architecture": "AVX2", "size_class": c, "backend": b}
        for c, b in backends_of.items()
    ]
    ranges = [(4, 16, "eager"), (16, 32, "cpp"), (64, 128, "eager")]
    assert measured.read(entries) == {(CONV, torch.float32, "AVX2"): ranges}


def test_auto_follows_it(table: None) -> None:
    """Where the backend can run the call; a name and `use_backend` win over it."""
    default = backends.select(CONV, volume(1))
    assert default != "eager"
    assert backends.select(CONV, volume(8)) == "eager"
    assert backends.select(CONV, volume(16)) == default
    assert backends.select(CONV, volume(8).bfloat16()) != "eager"  # which it refuses
    assert backends.select(CONV, volume(300)) == default  # a backend of another version
    assert backends.select(CONV, volume(8), "reference") == "reference"
    with ops.use_backend("reference"):
        assert backends.select(CONV, volume(8)) == "reference"


def test_compiled_code_is_not_bound_to_a_size(table: None) -> None:
    """Within a class one graph serves all sizes, and the op is in it."""
    graphs: list[int] = []

    def count(graph: torch.fx.GraphModule, _: object) -> object:
        graphs.append(1)
        return graph.forward

    @torch.compile(backend=count, fullgraph=True, dynamic=True)
    def choose(x: torch.Tensor) -> torch.Tensor:
        return x + (backends.select(CONV, x) == "eager")

    for size in (9, 11, 14):
        assert choose(volume(size)).sum() == size
    assert len(graphs) == 1
    assert choose(volume(20)).sum() == 0


def test_every_entry_names_what_there_is() -> None:
    """Of the file that is installed."""
    for entry in json.loads(measured.FILE.read_text(encoding="utf-8")):
        assert entry["op"] in contract.OPS | contract.COMPOSED
        assert entry["backend"] in backends.names() and entry["size_class"] > 0
        assert getattr(torch, entry["dtype"]).is_floating_point


def test_instruction_set() -> None:
    """PyTorch's own word, or a finer one."""
    capability = torch.backends.cpu.get_cpu_capability()
    finer = ("AVX512_BF16", "AMX") if capability == "AVX512" else ()
    assert measured.instruction_set() in (capability, *finer)
