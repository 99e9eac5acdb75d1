"""Every public name has an example in its docstring, and it runs as it is printed."""

from __future__ import annotations

import doctest
import functools
import inspect
from typing import Any

import pytest

import fsdino
from fsdino import ops

NAMES = [f"fsdino.{name}" for name in fsdino.__all__ if name != "__version__"]
NAMES += [f"fsdino.ops.{name}" for name in ops.__all__]


@pytest.fixture(scope="module")
def load() -> Any:
    """`fsdino.load`, which reads the default model once."""
    return functools.cache(fsdino.load)


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_a_name(name, load, tmp_path, monkeypatch, one_thread):
    """In an empty folder, with nothing imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fsdino, "load", load)
    place = ops if name.startswith("fsdino.ops.") else fsdino
    last = name.rpartition(".")[2]
    thing = getattr(place, last)
    example = doctest.DocTestParser().get_doctest(inspect.getdoc(thing) or "", {}, name, None, None)
    assert example.examples, f"{name} has no example"
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example, out=output.append, clear_globs=False)
    assert not runner.failures, "".join(output)
    named = any(last in each.source + each.want for each in example.examples)
    made = inspect.isclass(thing) and any(isinstance(v, thing) for v in example.globs.values())
    assert named or made, f"the example of {name} does not show it"
