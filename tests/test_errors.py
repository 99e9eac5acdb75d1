"""What errors show of values that may come from anywhere: a few words, on one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fsdino.errors import first_line, listed, one_line, printable, shown, shown_path

ENDLESS: list[Any] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\nb\x1b[31m", r"'a\nb\x1b[31m'"),
        (7, "7"),
        (float("nan"), "nan"),
        (None, "None"),
        ([1, [2, "x"]], "[1, [2, 'x']]"),
        (np.zeros((2, 2)), "array([[0., 0.], [0., 0.]])"),
        (10**5000, "a value of type int"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_of_any_type(value: object, text: str) -> None:
    """As Python writes them, without control characters."""
    assert shown(value) == text


@pytest.mark.parametrize(
    "value",
    ["x" * 10**6, 10**400, list(range(10**6)), {i: i for i in range(999)}, ENDLESS, b"\0" * 999],
    ids=lambda value: type(value).__name__,
)
def test_values_of_any_size(value: object) -> None:
    """Hundreds of entries or digits would hide what a message says about them."""
    text = shown(value)
    assert "..." in text and len(text) < 120 and text.isprintable()


def test_texts_and_paths() -> None:
    """As they are where that is one line; paths whole, other texts cut."""
    assert printable("layer.0") == "layer.0" and printable("") == "''"
    assert printable("a\nb") == r"'a\nb'"
    assert printable("x" * 300) == "x" * 200 + "..."
    assert shown_path(Path("b" * 300)) == "b" * 300
    assert shown_path("a\udcff") == r"'a\udcff'"


def test_errors_in_a_line() -> None:
    """The first line or all of them; an error without words has its type."""
    error = ValueError("two\n  lines")
    assert (first_line(error), one_line(error)) == ("two", "two lines")
    assert first_line(KeyError()) == "KeyError"
    with pytest.raises(OSError) as caught:
        Path("no such file").read_bytes()
    assert first_line(caught.value) == "No such file or directory"


def test_names_of_many() -> None:
    """A hundred in order, and how many there are besides."""
    assert listed(["b", "a\n"]) == r"'a\n', b"
    assert listed(map(str, range(1000, 2101))).endswith("1099 and 1,001 more")
