"""Compiling the extension with a progress line, for `fsdino build` and the demo."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from fsdino.errors import BackendError
from fsdino.ops import native
from fsdino.progress import Progress

logger = logging.getLogger("fsdino.apps")


def run(*, force: bool = False) -> native.Extension:
    """Build the extension unless it is built; with `force`, in any case.

    Raises:
        BackendError: it cannot be built, with the reason.
    """
    with ExitStack() as stack:
        line: Progress | None = None

        def report(done: int, total: int) -> None:
            nonlocal line
            if line is None:
                line = stack.enter_context(Progress("compile", total, unit="files"))
            line.advance(done - line.done)

        return native.build(force=force, report=report)


def run_if_possible() -> None:
    """Build the extension, or say why that is not possible and leave it at that."""
    try:
        run()
    except BackendError as error:
        logger.warning("the C++ kernels cannot be used, the slower reference runs: %s", error)
