"""`fsdino build`: compile the extension with a progress line, which the demo does, too."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fsdino.commands.options import Flag, Json
from fsdino.errors import BackendError
from fsdino.progress import Progress
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.ops import native

logger = logging.getLogger("fsdino.commands")


@dataclass(frozen=True, kw_only=True)
class Build:
    """Compile the C++ kernels for the installed PyTorch.

    Takes a C++ compiler and a minute or two, once: the result is kept in ~/.cache/fsdino, or in
    the folder that FSDINO_CACHE names, and is used from then on. MAX_JOBS limits how many
    compilers run at once.
    """

    force: Flag = False
    """Compile again even if a build exists."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        extension = build(force=self.force)
        if self.as_json:
            print(json.dumps(extension.to_dict()))
        else:
            print_extension(extension.to_dict())
        return 0


def build(*, force: bool = False) -> native.Extension:
    """Build the extension unless it is built; with `force`, in any case.

    Raises:
        BackendError: it cannot be built, with the reason.
    """
    from fsdino.ops import native

    with Progress("compile", unit="files") as progress:
        return native.build(force=force, report=progress.report)


def build_if_possible() -> None:
    """Build the extension, or say why that is not possible and leave it at that."""
    try:
        build()
    except BackendError as error:
        logger.warning("the C++ kernels cannot be used, the slower reference runs: %s", error)


def print_extension(extension: Mapping[str, Any]) -> None:
    """A table on stdout: where the extension is, and what it was built with."""
    seconds = extension["seconds"]
    how = "with the package" if seconds is None else f"in {seconds:.0f} s"
    print(f"C++ kernels, compiled {how}: {extension['path']}")
    facts = [
        [key, "none" if value in (None, []) else str(value)]
        for key, value in extension["build_info"].items()
    ]
    if extension.get("without_cuda"):
        facts.append(["without CUDA", extension["without_cuda"]])
    print_table(["", ""], facts, numbers=False)
