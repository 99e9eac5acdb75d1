"""The command line: exit codes, one line per error, and what is left behind."""

from __future__ import annotations

import errno
import subprocess
from typing import Any

import pytest
import torch

import fsdino
from command_line import command, environment, error_line, offline, segment
from fsdino import cli, ops
from fsdino.commands.info import Info

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


@pytest.mark.parametrize("given", [("info", "--json"), ("train", "--help")])
def test_a_reader_that_leaves_is_no_error(given, workplace):
    """`fsdino info --json | head -c 1` ends without a word."""
    process = subprocess.Popen(
        command(*given),
        env=environment(),
        cwd=workplace,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert errors == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["models"], 0),
        (["segment", "--support", "a.png", "mask.png", "--query", "b.png", "--out", "out",
          "--model", "dinov2-b"], 2),
        (["evaluate", "dinov2-b"], 2),
        (["info", "dinov2-b"], 2),
        (["demo", "--model", "dinov2-b", "--out", "out"], 2),
        (["distill", "--model", "dinov2-b", "--out", "out"], 2),
        (["train", "fsdino-tiny", "--start-from", "dinov2-b", "--out", "out"], 2),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)  # fmt: skip
def test_what_needs_no_network_imports_nothing_slow(arguments, code, monkeypatch):
    """The list, and the line about what is missing, come before PyTorch and the hub's library."""
    offline(monkeypatch)
    slow = "{'torch', 'timm', 'torchvision', 'numpy', 'huggingface_hub'}"
    check = (
        "import atexit, os; atexit.register(lambda: "
        f"print('imported', *sorted({slow} & sys.modules.keys())))"
    )
    finished = subprocess.run(
        command(*arguments, code=check),
        check=False,
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert finished.returncode == code, finished.stderr
    assert finished.stdout.splitlines()[-1] == "imported"
    assert finished.stderr.count("\n") == bool(code)


def test_an_interruption_while_the_command_is_read(capsys, monkeypatch):
    """Ctrl-C before there is any work is one line, too."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.tyro, "cli", interrupted)
    assert cli.main(["info"]) == 130
    assert error_line(capsys) == "fsdino: interrupted: the same command starts again"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nto allocate"), "out of memory: use"),
        (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate"), "out of memory: use"),
        (MemoryError(), "out of memory: use"),
        (OSError(errno.EIO, "Input/output error", "file"), "error: file: Input/output error"),
        (PermissionError(errno.EACCES, "Permission denied", "f"), "f: Permission denied; choose"),
        (OSError(errno.ENOSPC, "No space left on device", "f"), "f: No space left on device; free"),
        (KeyError("boom"), "internal error: KeyError: 'boom' (run with --debug for the traceback)"),
    ],
    ids=["GPU memory", "CPU memory", "memory", "I/O", "permission", "disk", "unexpected"],
)
def test_other_errors_are_one_line(error, words, capsys, monkeypatch):
    """Whatever happens: one line, exit code 1, and a traceback only with --debug."""

    def fails(*_: Any) -> None:
        raise error

    monkeypatch.setattr(Info, "run", fails)
    assert cli.main(["info"]) == 1
    assert words in error_line(capsys)
    assert cli.main(["info", "--debug"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
    assert cli.main(["--debug", "info"]) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["nope"], ["segment"], ["demo", "--out"], ["demo", "--out", "x", "--episodes", "many"],
     ["train", "--out", "x"], ["benchmark", "--dtype", "float8"]],
    ids=" ".join,
)  # fmt: skip
def test_usage_errors_exit_with_2(arguments, capsys):
    """What the options themselves cannot mean is caught before anything runs."""
    assert cli.main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["demo", "segment", "train", "evaluate", "models", "benchmark", "build", "info"]
)
def test_every_command_explains_itself(name, capsys):
    """--help of each command names its options, and no placeholder of the parser's is left."""
    assert cli.main([name, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: fsdino {name}" in out
    assert "{None}" not in out
    assert cli.main(["--help"]) == 0
    assert name in capsys.readouterr().out


def test_version(capsys):
    """The package's version, and nothing else."""
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"fsdino {fsdino.__version__}\n"


def test_verbose_logs_details(capsys):
    """--verbose shows what the library logs for those who look closely; else it is quiet."""
    with ops.use_backend("reference"):
        assert cli.main(segment("--query", "b.png")) == 0
        assert "runs on reference" not in capsys.readouterr().err
        assert cli.main([*segment("--query", "b.png", "--out", "two"), "--verbose"]) == 0
        assert "correlation4d runs on reference" in capsys.readouterr().err
