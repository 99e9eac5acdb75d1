"""YAML of any origin, as plain data and within bounds."""

from __future__ import annotations

from typing import Any

import yaml

from fsdino.errors import one_line
from fsdino.files import AnyPath, read_bytes, write_text

_MOST_YAML = 2**20  # bytes
_MOST_NODES = 100_000  # values of a YAML file, those of each alias counted again


def parse_yaml(content: str | bytes) -> Any:
    """YAML of any origin as plain data; no tag runs code.

    Aliases are counted as what they stand for, so that a few lines cannot become billions of values
    where the data are written or compared.

    Raises:
        ValueError: not YAML, not UTF-8, nested too deeply, too large, or a value that its tag or
            form does not allow; a reason of one line.
    """
    if len(content) > _MOST_YAML:
        raise ValueError(f"it has {len(content):,} characters, at most {_MOST_YAML:,} can be right")
    try:
        text = content if isinstance(content, str) else content.decode("utf-8-sig")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is None:
            return None
        _count_nodes(node, {})
        return _construct(node)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML ({one_line(error)})") from None


def read_yaml(path: AnyPath) -> Any:
    """A YAML file as plain data; see `parse_yaml`.

    Raises:
        ValueError: its content cannot be used; a reason of one line.
        OSError: it cannot be read.
    """
    return parse_yaml(read_bytes(path, _MOST_YAML))


def as_yaml(value: Any) -> str:
    """Plain data as YAML, in the order of its mappings."""
    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    return text


def write_yaml(path: AnyPath, value: Any) -> None:
    """Write a YAML file, whole or not at all; see `fsdino.files.write_bytes`."""
    write_text(path, as_yaml(value))


def _count_nodes(node: yaml.Node, counts: dict[int, int]) -> int:
    """Values below a node, itself included; ValueError where they are too many, or endless."""
    known = counts.get(id(node))
    if known is not None:
        if not known:
            raise ValueError("an alias refers to what it is a part of")
        return known
    counts[id(node)] = 0  # being counted
    total = 1
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for part in child if isinstance(child, tuple) else (child,):
                total += _count_nodes(part, counts)
    if total > _MOST_NODES:
        raise ValueError(f"it has more than {_MOST_NODES:,} values")
    counts[id(node)] = total
    return total


def _construct(node: yaml.Node) -> Any:
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        # such as the 99th of a month, or a tag on what it does not fit
        raise ValueError(f"it holds a value that cannot be read ({error})") from None
    finally:
        loader.dispose()
