"""The README in the folder of an exported model."""

from __future__ import annotations

from fsdino.export.folder import Exported


def readme(found: Exported) -> str:
    """Its text."""
    return f"# {found.model}\n"
