"""YAML: whatever it holds, plain data or a reason of one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsdino.yaml_files import parse_yaml, read_yaml, write_yaml


def bomb(levels: int) -> str:
    """A few lines that stand for 9 ** levels values."""
    lines = ["l0: &l0 [x]"]
    for level in range(1, levels):
        lines.append(f"l{level}: &l{level} [{', '.join([f'*l{level - 1}'] * 9)}]")
    return "\n".join(lines)


@pytest.mark.parametrize(
    "content, message",
    [
        ("a: [", "it is not YAML"),
        ("a: 1\n---\nb: 2", "it is not YAML"),
        ("a\0b", "it is not YAML"),
        (b"\xff\xfe\x00\x00", "it is not UTF-8"),
        ("[" * 3000, "it is nested too deeply"),
        ("{a: " * 3000, "it is nested too deeply"),
        ("- " * 3000, "it is nested too deeply"),
        (bomb(7), "it has more than 100,000 values"),
        ("a: &a {b: *a}", "an alias refers to what it is a part of"),
        ("a: &a {<<: *a}", "an alias refers to what it is a part of"),
        ("a: 2001-99-99", "a value that cannot be read"),
        ("a: !!int ''", "a value that cannot be read"),
        ("a: !!timestamp x", "a value that cannot be read"),
        ("a: " + "9" * 9000, "a value that cannot be read"),
        ("{[a]: 1}", "it is not YAML"),
        ("!!python/object/apply:os.getcwd []", "it is not YAML"),
        ("x" * (2**20 + 1), "it has 1,048,577 characters"),
    ],
)
def test_yaml_of_any_origin(content: str | bytes, message: str) -> None:
    """A reason of one line, soon, whatever it holds."""
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(content)
    assert "\n" not in str(caught.value)


def test_yaml_that_people_write(tmp_path: Path) -> None:
    """Aliases and merged sections within reason, a byte order mark, nothing at all."""
    text = "a: &a {x: 1, y: [2.5, true, null]}\nb: *a\nc:\n  <<: *a\n  x: 3\n"
    values = {"x": 1, "y": [2.5, True, None]}
    assert parse_yaml(text) == {"a": values, "b": values, "c": {**values, "x": 3}}
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert read_yaml(path)["b"] == values
    write_yaml(path, {"z": ["ä", 1e-5], "a": values})
    assert path.read_text(encoding="utf-8").startswith("z:\n- ä\n")
    assert read_yaml(path) == {"z": ["ä", 1e-5], "a": values}
    assert parse_yaml("") is None and len(parse_yaml(bomb(4))) == 4
    with pytest.raises(ValueError, match="not a regular file"):
        read_yaml("/dev/zero")
