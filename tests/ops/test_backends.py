"""Which backend runs a call: names, precedence, reasons."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from fsdino import contract, ops
from fsdino.errors import BackendError, UsageError
from fsdino.ops import backends, reference

FEATURES = torch.randn(1, 1, 4, 3, 3)


@pytest.fixture
def double_backend(monkeypatch: pytest.MonkeyPatch) -> str:
    """A backend that joins from outside, runs only float32 correlations, and doubles them."""
    implementation = type(sys)("doubling")
    implementation.correlation4d = lambda *a: 2 * reference.correlation4d(*a)
    monkeypatch.setitem(sys.modules, "doubling", implementation)
    registry = {"reference": backends._registry["reference"]}
    monkeypatch.setattr(backends, "_registry", registry)

    def why_not(op: str, device: torch.device, dtype: torch.dtype) -> str | None:
        if op != "correlation4d":
            return f"it has no {op}"
        return None if dtype == torch.float32 else f"it runs float32 only, not {dtype}"

    backends.register(backends.Backend("doubling", 100, "doubling", why_not))
    return "doubling"


def test_reference_runs_by_default() -> None:
    """Without any other backend, auto is the reference; a name works, too."""
    assert backends.select("correlation4d", FEATURES.to("meta")) == "reference"
    assert backends.select("correlation4d", FEATURES, "reference") == "reference"


def test_a_backend_joins_without_touching_callers(double_backend: str) -> None:
    """`auto` takes the backend of the highest priority that can run the call."""
    expected = 2 * ops.correlation4d(FEATURES, FEATURES, backend="reference")
    assert torch.equal(ops.correlation4d(FEATURES, FEATURES), expected)
    doubles = FEATURES.double()
    assert torch.equal(
        ops.correlation4d(doubles, doubles),
        ops.correlation4d(doubles, doubles, backend="reference"),
    )


def test_precedence(double_backend: str) -> None:
    """The argument wins over use_backend, which wins over auto, and scopes nest."""
    select = backends.select
    with ops.use_backend("reference"):
        assert select("correlation4d", FEATURES) == "reference"
        assert select("correlation4d", FEATURES, double_backend) == double_backend
        with ops.use_backend("auto"):
            assert select("correlation4d", FEATURES) == double_backend
        assert select("correlation4d", FEATURES) == "reference"
    assert select("correlation4d", FEATURES) == double_backend


def test_an_explicit_request_never_falls_back(double_backend: str) -> None:
    """Asked for by name, a backend runs or says why not."""
    with pytest.raises(BackendError, match=r"'doubling' cannot run correlation4d .* float32 only"):
        ops.correlation4d(FEATURES.double(), FEATURES.double(), backend=double_backend)
    weight = torch.zeros(4, 1, 3, 3)
    x = torch.zeros(1, 1, 3, 3, 3, 3)
    with (
        ops.use_backend(double_backend),
        pytest.raises(BackendError, match="it has no center_pivot_conv4d"),
    ):
        ops.center_pivot_conv4d(x, weight, weight)


def test_unknown_names_are_refused() -> None:
    """A misspelt name lists the choices."""
    with pytest.raises(UsageError, match=r"unknown backend 'refrence': choose from auto, "):
        ops.correlation4d(FEATURES, FEATURES, backend="refrence")
    with pytest.raises(UsageError, match="unknown backend"), ops.use_backend("fast"):
        pass


@pytest.mark.parametrize("name, outcome", [("reference", "reference"), ("typo", "unknown backend")])
def test_environment_variable(name: str, outcome: str) -> None:
    """FSDINO_BACKEND forces a backend for a whole process."""
    code = (
        "import torch; from fsdino.ops import backends\n"
        "try: print(backends.select('correlation4d', torch.zeros(1)))\n"
        "except Exception as error: print(error)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "FSDINO_BACKEND": name},
        capture_output=True,
        text=True,
        check=True,
    )
    assert outcome in run.stdout


def test_reference_has_every_function() -> None:
    """A backend is a module with these eight functions; this one has the optional ones, too."""
    for function in (*contract.FUNCTIONS, *contract.OPTIONAL):
        assert callable(getattr(reference, function))
