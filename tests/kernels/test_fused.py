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
    """One query row at a time: values and all six gradients are those of the formulation.

    With the interpreter's block sizes, and with a GPU's.
    """
    monkeypatch.setattr(tiles, "CHUNK_BYTES", 0)
    assert_formulated("correlation_center_pivot4d", case, backend, 2e-6)


def test_rows_fit_the_promise() -> None:
    """A chunk and its halo take no more than they may, or one row is all they hold."""
    for rows, halo, row_bytes in ((74, 1, 9_724_928), (37, 1, 10**6), (148, 2, 10**8)):
        chunk = tiles.fused_rows(rows, halo, row_bytes)
        assert 1 <= chunk <= rows
        assert chunk == 1 or (chunk + 2 * halo) * row_bytes <= tiles.CHUNK_BYTES
