"""The safeguards of tests/conftest.py work: otherwise they would be lost without a sound."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest_plugins = ["pytester"]

CONFTEST = Path(__file__).with_name("conftest.py")
SKIPS = """
import pytest

@pytest.mark.parametrize("side", [1, 2])
@pytest.mark.skip(reason="no GPU")
def test_marked(side):
    pass

def test_called():
    pytest.skip("no compiler")
"""
SKIPPED_FILE = """
import pytest

pytest.importorskip("no_such_library")
"""


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    """Return a function that runs tests under this conftest and a list of expected skips."""

    def run(source: str, *, ci: str, expected: str = "") -> pytest.RunResult:
        monkeypatch.setenv("CI", ci)
        pytester.makeconftest(CONFTEST.read_text(encoding="utf-8"))
        pytester.path.joinpath("expected_skips.txt").write_text(expected, encoding="utf-8")
        pytester.makepyfile(test_skips=source)
        return pytester.runpytest_inprocess("-p", "no:cacheprovider")

    return run


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_uninitialised_memory_holds_nan(dtype):
    """A kernel that reads or leaves unwritten memory cannot pass by luck."""
    assert torch.empty(64, dtype=dtype).isnan().all()
    assert torch.ones(3, dtype=dtype).new_empty(64).isnan().all()
    assert torch.empty_strided((8, 8), (1, 8), dtype=dtype).isnan().all()


def test_skip_outside_ci_is_a_skip(session):
    """Where CI is not set, a test without its GPU or compiler is skipped as usual."""
    session(SKIPS, ci="").assert_outcomes(skipped=3)


def test_unexpected_skip_fails_in_ci(session):
    """A skip that nobody committed fails, and says which line would allow it."""
    result = session(SKIPS, ci="1")
    result.assert_outcomes(errors=2, failed=1)  # a mark skips while a test is set up
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "test_skips.py::test_marked | no GPU" in result.outlines
    assert "test_skips.py::test_called | no compiler" in result.outlines


def test_expected_skip_passes_in_ci(session):
    """A line of the list covers all parameters of one test, for one reason and no other."""
    expected = "test_skips.py::test_marked | no GPU\ntest_skips.py::test_called | another reason\n"
    session(SKIPS, ci="1", expected=expected).assert_outcomes(skipped=2, failed=1)


def test_skipped_file_fails_in_ci(session):
    """A file that skips itself as a whole does not bypass the list."""
    result = session(SKIPPED_FILE, ci="1")
    result.assert_outcomes(errors=1)
    assert result.ret == pytest.ExitCode.INTERRUPTED
