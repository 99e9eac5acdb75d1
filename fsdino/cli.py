"""The `fsdino` command: parses, words errors as one line each, and sets up logging.

The commands import heavy modules in their functions, so that `fsdino --help` answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import inspect
import io
import logging
import operator
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Protocol

import tyro

from fsdino.commands.benchmark import Benchmark
from fsdino.commands.build import Build
from fsdino.commands.data.command import DataCommand
from fsdino.commands.demo.command import Demo
from fsdino.commands.distill import Distill
from fsdino.commands.evaluate import Evaluate
from fsdino.commands.export import Export
from fsdino.commands.info import Info
from fsdino.commands.models import Models
from fsdino.commands.segment.command import Segment
from fsdino.commands.segment.mark_options import owned
from fsdino.commands.serve.command import Serve
from fsdino.commands.settings import optional_values
from fsdino.commands.train import Train
from fsdino.commands.video.command import Video
from fsdino.errors import FsdinoError, UsageError, is_out_of_memory, one_line, shown
from fsdino.version import __version__

_INTERRUPTED = 130  # exit code

_DESCRIPTION = """\
Few-shot segmentation: mark an object in one image, find it in others.

With every command: --debug shows the traceback of an error, --verbose logs details.
fsdino NAME --help explains a command; fsdino --version prints the version.
"""


class _Command(Protocol):
    def run(self) -> int:
        """Run the command; returns the exit code."""
        ...


_DATA = "Check and prepare benchmarks on disk."
_COMMANDS: dict[str, Any] = {
    "demo": Demo,
    "segment": Segment,
    "serve": Serve,
    "video": Video,
    "export": Export,
    "distill": Distill,
    "train": Train,
    "evaluate": Evaluate,
    "data": DataCommand,
    "models": Models,
    "benchmark": Benchmark,
    "build": Build,
    "info": Info,
}
_RUNS: dict[str, type[Train | Distill]] = {"train": Train, "distill": Distill}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0, 1 for a failure, 2 for a usage error, 130 for an interruption (128 + SIGINT, as shells say).
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may be of any bytes
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _main(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:  # outside of a command's own work
        print(f"fsdino: {_one_line(KeyboardInterrupt())}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of our output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _main(given: list[str]) -> int:
    debug, verbose = "--debug" in given, "--verbose" in given
    given = [argument for argument in given if argument not in {"--debug", "--verbose"}]
    if given == ["--version"]:
        print(f"fsdino {__version__}")
        return 0
    with _logging_to_stderr(logging.DEBUG if verbose else logging.INFO), _warnings(verbose):
        try:
            return parse(given).run()
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 2
        except BrokenPipeError:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            print(f"fsdino: {_one_line(error)}", file=sys.stderr)
            if isinstance(error, KeyboardInterrupt):
                return _INTERRUPTED
            return error.exit_code if isinstance(error, FsdinoError) else 1


def parse(given: Sequence[str]) -> _Command:
    """The command that is asked for; options of a run begin with what its recipe says.

    Raises:
        UsageError: an unknown command.
    """
    given = owned(given)
    name, rest = (given[0], given[1:]) if given else ("", ())
    if name and not name.startswith("-") and name not in _COMMANDS:
        near = difflib.get_close_matches(name[:256], _COMMANDS, n=1)
        raise UsageError(
            f"unknown command {shown(name)}: "
            + (f"did you mean {near[0]}? Else " if near else "")
            + f"choose {', '.join(_COMMANDS)}"
        )
    if name not in _RUNS:
        commands = _subcommands(brief=name not in _COMMANDS)
        command: _Command = tyro.cli(commands, prog="fsdino", description=_DESCRIPTION, args=given)
        return command
    kind = _RUNS[name]
    with optional_values():
        return tyro.cli(kind, prog=f"fsdino {name}", args=rest, default=kind.begin(rest))


def _subcommands(*, brief: bool) -> Any:
    """The type of all commands; `brief` keeps the first paragraph of what each says of itself."""
    kinds: list[Any] = []
    for name, kind in _COMMANDS.items():
        about = _DATA if kind is DataCommand else inspect.getdoc(kind) or ""
        first = " ".join(about.partition("\n\n")[0].split())
        subcommand = tyro.conf.subcommand(name, description=first if brief else about)
        kinds.append(Annotated[kind, subcommand])
    return functools.reduce(operator.or_, kinds)


def _one_line(error: BaseException) -> str:
    """What happened and what to do about it."""
    message = one_line(error)
    if isinstance(error, FsdinoError):
        return f"error: {message}"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted: {message or 'the same command starts again'}"
    if is_out_of_memory(error):
        return (
            "error: out of memory: use smaller images, a smaller model or batch, --dtype bfloat16, "
            "or another --device"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return f"error: {error.filename or 'output'}: {error.strerror}{_remedy(error)}"
    return f"internal error: {type(error).__name__}: {message} (run with --debug for the traceback)"


def _remedy(error: OSError) -> str:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return "; free some space and run the same command again"
    if isinstance(error, PermissionError):
        return "; choose another place, or change its permissions"
    return ""


class _Stderr(logging.Handler):
    """Writes to whatever sys.stderr is now, which a live progress bar replaces."""

    def emit(self, record: logging.LogRecord) -> None:
        kind = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        print(f"fsdino: {kind}{record.getMessage()}", file=sys.stderr)


@contextlib.contextmanager
def _logging_to_stderr(level: int) -> Iterator[None]:
    logger, handler = logging.getLogger("fsdino"), _Stderr()
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
        logger.removeHandler(handler)


@contextlib.contextmanager
def _warnings(shown: bool) -> Iterator[None]:
    """Other libraries' warnings address programmers: they are shown with --verbose."""
    with warnings.catch_warnings():
        if not shown:
            warnings.filterwarnings("ignore", module=r"(torch|timm|huggingface_hub|PIL)(\.|$)")
        yield
