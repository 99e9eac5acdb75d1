"""Gradio, imported so that it asks no other host for anything."""

from __future__ import annotations

import importlib
import os
from typing import Any

from fsdino.errors import FsdinoError


def import_gradio() -> Any:
    """The module, with its analytics switched off.

    Raises:
        FsdinoError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read at the import
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        return importlib.import_module("gradio")
    except ImportError as error:
        raise FsdinoError('the page needs Gradio: pip install "fsdino[page]"') from error
