"""The fused op in chunks of query rows: the seams between them leave no trace."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from formulated import assert_formulated
from fsdino.bench.cases import Case
from fsdino.kernels import tiles

CASES = (
    Case("narrow halo", batch=1, query=(3, 2), support=(3, 2), weight="soft"),
    Case("no halo", batch=2, query=(2, 2), support=(2, 3), kernel_query=1, layers=5),
)


@pytest.fixture
def planned(request: pytest.FixtureRequest) -> Iterator[None]:
    """Block sizes of an architecture."""
    from fsdino.kernels import layout

    token = layout.planned.set(request.param)
    yield
    layout.planned.reset(token)


@pytest.mark.parametrize("planned", [tiles.INTERPRETER, 90], indirect=True)
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
@pytest.mark.parametrize("backend", ["triton"])
def test_chunks(case: Case, backend: str, planned: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query row of a sample at a time: values and all gradients are those of the formulation.

    With the interpreter's block sizes, and with a GPU's.
    """
    monkeypatch.setattr(tiles, "chunk", lambda *_: (1, 1))
    assert_formulated("correlation_center_pivot4d", case, backend, 2e-6)


def test_chunks_fit_the_promise() -> None:
    """A chunk and its halo take no more than they may, or one row is all they hold."""
    for batch, rows, halo, row_bytes in (
        (1, 74, 1, 9_724_928), (8, 37, 1, 10**6), (1, 148, 2, 10**8), (64, 37, 1, 10**6),
    ):  # fmt: skip
        samples, chunk = tiles.chunk(batch, rows, halo, row_bytes)
        most = max(tiles.CHUNK_BYTES, batch * rows * row_bytes / tiles.CHUNK_SHARE)
        assert 1 <= samples <= batch and 1 <= chunk <= rows
        if chunk == rows:
            assert samples * rows * row_bytes <= most
        else:
            assert samples == 1 and (chunk + 2 * halo) * row_bytes <= most


def test_a_grid_of_148_is_not_computed_three_times() -> None:
    """12 layers in half precision: a sixth of the rows twice, not each row in three chunks."""
    samples, chunk = tiles.chunk(1, 148, 1, 12 * 148**3 * 2)
    assert samples == 1 and (chunk + 2) / chunk <= 1.2
