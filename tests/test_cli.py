"""The command line: exit codes, one line per error, and what is left behind."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import fsdino
from command_line import command, environment, error_line, furnish, offline, segment
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


SUPPORT = ("segment", "--support", "a.png", "mask.png")
QUERY = ("--query", "queries", "--out", "out")
# Arguments by what the line must name.
USAGE_ERRORS = {
    "unknown command 'segmet': did you mean segment? Else choose demo": ("segmet", *QUERY),
    "unknown command 'photos/': choose demo, segment": ("photos/",),
    "no support given": ("segment", *QUERY),
    "several supports need names": (
        *SUPPORT, "--support", "b.png", "mask.png", *QUERY,
    ),
    "'x' is given twice": (
        "segment", "--support", "x=a.png", "mask.png", "--support", "x=b.png", "mask.png", *QUERY,
    ),
    "3 files, which are not pairs": ("segment", "--support", "a.png", "mask.png", "b.png", *QUERY),
    "support gone.png: no such file": ("segment", "--support", "gone.png", "mask.png", *QUERY),
    "a saved support stands alone": (*SUPPORT, "model.safetensors", *QUERY),
    "no query given": (*SUPPORT, "--out", "out"),
    "query gone: no such file": (*SUPPORT, "--query", "gone", "--out", "out"),
    "no --out given": (*SUPPORT, "--query", "queries"),
    "--out a.png: a folder is needed": (*SUPPORT, "--query", "queries", "--out", "a.png"),
    "/a.png is a file": (*SUPPORT, "--query", "queries", "--out", "a.png/out"),
    "--threshold must lie between 0 and 1": (*SUPPORT, *QUERY, "--threshold", "2"),
    "--max-megapixels must lie": (*SUPPORT, *QUERY, "--max-megapixels", "0"),
    "unknown dtype 'half'": (*SUPPORT, *QUERY, "--dtype", "half"),
    "unknown device 'tpu'": (*SUPPORT, *QUERY, "--device", "tpu"),
    "unknown model 'nope'": (*SUPPORT, *QUERY, "--model", "nope"),
    "--weights w.pth needs a --model": (*SUPPORT, *QUERY, "--weights", "w.pth"),
    "--weights w.pth: no such file": (
        *SUPPORT, *QUERY, "--model", "dinov2-s", "--weights", "w.pth",
    ),
    "--image-size 500: dinov2-s takes": (
        *SUPPORT, *QUERY, "--model", "dinov2-s", "--image-size", "500",
    ),
    "the name must end in .safetensors": (*SUPPORT, *QUERY, "--save-support", "s.pt"),
    "create gone first": (*SUPPORT, *QUERY, "--save-support", "gone/s.safetensors"),
    "no data set 'ade20k'": ("evaluate", "--data", "ade20k"),
    "pass --root, the folder that coco20i is in": ("evaluate", "--data", "coco20i"),
    "--root gone: no such folder": ("evaluate", "--data", "coco20i", "--root", "gone"),
    "no pascal5i there": ("evaluate", "--data", "pascal5i", "--root", "queries"),
    "fold 9: choose one of 0..3": ("evaluate", "--fold", "9"),
    "shots 0: use at least 1": ("evaluate", "--shots", "0"),
    "episodes 0: use at least 1": ("evaluate", "--episodes", "0"),
    "seeds must be different numbers": ("evaluate", "--seeds", "3", "3"),
    "unknown protocol 'best'": ("evaluate", "--protocol", "best"),
    "not defined for fss1000": (
        "evaluate", "--data", "fss1000", "--protocol", "joint-original", "--root", "queries",
    ),
    "layout: only for your own folder": ("evaluate", "--layout", "pairs"),
    "--threshold must lie": ("evaluate", "--threshold", "1"),
    "--batch-size must be at least 1": ("evaluate", "--batch-size", "0"),
    "--workers must be at least 0": ("evaluate", "--workers", "-1"),
    "unknown dtype 'int3'": ("evaluate", "--dtype", "int3"),
    "unknown device 'gpu'": ("evaluate", "--device", "gpu"),
    "unknown model 'nothing'": ("evaluate", "nothing"),
    "does not take --shots": ("evaluate", "--data", "davis17", "--shots", "5"),
    "does not take --memory": ("evaluate", "--memory", "2"),
    "davis17 needs --out": ("evaluate", "--data", "davis17", "--root", "queries"),
    "--save-pictures writes next to": ("evaluate", "--save-pictures", "2"),
    "--out queries is a folder": ("evaluate", "--out", "queries"),
    "a.json": ("evaluate", "--compare", "a.json", "b.json"),
    "no data set 'nope' on disk": ("data", "check", "nope", "--root", "queries"),
    "--root nowhere": ("data", "check", "coco20i", "--root", "nowhere"),
    "--splits gone": ("data", "check", "coco20i", "--root", "queries", "--splits", "gone"),
    "no coco20i there": ("data", "prepare", "coco20i", "--root", "queries"),
    "unknown recipe 'nope'": ("train", "nope", "--out", "run"),
    "unknown recipe 'last'": ("train", "--out", "run", "last"),
    "recipe 'distill-dinov2-s' is for fsdino distill": (
        "train", "distill-dinov2-s", "--out", "run",
    ),
    "augment must be in [0, 1]": ("train", "fsdino-tiny-base", "--out", "run", "--augment", "2"),
    "patience counts validations": (
        "train", "fsdino-tiny-base", "--out", "run", "--patience", "2", "--no-validation",
    ),
    "unknown data 'davis17'": ("train", "fsdino-tiny-base", "--out", "run", "--data", "davis17"),
    "pass --root, the folder that pascal5i": (
        "train", "fsdino-tiny-base", "--out", "run", "--data", "pascal5i",
    ),
    "--decoder-weights sam: no such file": (
        "train", "fsdino-tiny-base", "--out", "run", "--decoder-weights", "sam",
    ),
    "the encoder is frozen and has random weights": (
        "train", "dinov2-b-coco20i", "--root", "queries", "--out", "run",
    ),
    "unknown model 'before'": (
        "train", "fsdino-tiny-base", "--out", "run", "--start-from", "before",
    ),
    "pass a recipe, --model, or": ("distill", "--images", "queries", "--out", "run"),
    "no images: pass --images": ("distill", "distill-dinov2-s", "--out", "run"),
    "no teacher: pass --teacher-checkpoint": (
        "distill", "distill-dinov2-s", "--images", "queries", "--out", "run",
    ),
    "the encoder has random weights": (
        "distill", "distill-dinov2-s", "--images", "queries", "--out", "run",
        "--teacher-checkpoint", "sam.pth",
    ),
    "--teacher-checkpoint gone.pth: no such file": (
        "distill", "distill-dinov2-s", "--images", "queries", "--out", "run",
        "--encoder-weights", "sam.pth", "--teacher-checkpoint", "gone.pth",
    ),
    "epochs must be one number": (
        "distill", "distill-dinov2-s", "--images", "queries", "--out", "run", "--epochs", "0",
    ),
    "leave out --model": ("distill", "distill-dinov2-s", "--model", "model", "--out", "run"),
    "unknown workload 'W5'": ("benchmark", "--workloads", "W5"),
    "unknown part 'all'": ("benchmark", "--parts", "all"),
    "--foreground must be between 0 and 1": ("benchmark", "--foreground", "2"),
    "--rounds must be at least 1": ("benchmark", "--rounds", "0"),
    "--threads must be at least 1": ("benchmark", "--threads", "0"),
    "unknown dtype 'int8'": ("benchmark", "--dtype", "int8"),
    "unknown device 'npu'": ("benchmark", "--device", "npu"),
    "unknown model 'it'": ("info", "it"),
    "unknown model 'gpt'": ("models", "--download", "gpt"),
    "unknown model 'drawer'": ("demo", "--out", "demo", "--drawn-model", "drawer"),
    "--episodes must be at least 1": ("demo", "--out", "demo", "--episodes", "0"),
    "--pictures must be at least 1": ("demo", "--out", "demo", "--pictures", "0"),
    "unknown workload 'W7'": ("demo", "--out", "demo", "--workload", "W7"),
    "--out mask.png: a folder is needed": ("demo", "--out", "mask.png"),
}  # fmt: skip

# Runs commands in one interpreter, where importing PyTorch is an error.
WITHOUT_TORCH = """
import contextlib, io, json, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ImportError("torch was imported")

sys.meta_path.insert(0, Refuse())
from fsdino.cli import main
answers = {}
for key, arguments in json.load(sys.stdin).items():
    with contextlib.redirect_stderr(io.StringIO()) as err:
        answers[key] = [main(arguments), err.getvalue()]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def without_torch(
    tmp_path_factory: pytest.TempPathFactory, models: Path
) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of each of the usage errors, from an interpreter without PyTorch."""
    folder = tmp_path_factory.mktemp("without_torch")
    furnish(folder, models)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH],
        input=json.dumps(USAGE_ERRORS),
        env={**environment(), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("words", USAGE_ERRORS)
def test_usage_errors_are_found_before_torch_is_imported(words, without_torch):
    """Importing it takes seconds; what can be said at once is."""
    code, said = without_torch[words]
    assert said.startswith("fsdino: error: ") and words in said and said.count("\n") == 1
    assert code == 2


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


def test_the_list_of_commands_fits_a_screen(monkeypatch, capsys):
    """--help has a line or two for each command, and all of it is with the command itself."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    for name in cli._COMMANDS:
        assert f"• {name}" in out
    assert len(out.splitlines()) <= 45
    assert cli.main(["segment", "--help"]) == 0
    assert "The same command resumes" in capsys.readouterr().out


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
        assert "squeeze4d runs on reference" in capsys.readouterr().err
