"""The `fsdino` command: options, one class per command, and errors as one line.

Heavy modules are imported inside the commands, so that `fsdino --help` answers at once.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
import shlex
import sys
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fsdino import __version__
from fsdino.errors import DataError, FsdinoError, UsageError

if TYPE_CHECKING:
    import torch

    from fsdino.apps.benchmark import Comparison
    from fsdino.apps.demo import Results
    from fsdino.apps.folder import Outcome, Output
    from fsdino.models.fsdino import FSDINO

logger = logging.getLogger("fsdino.cli")

DEFAULT_MODEL = "fsdino-tiny"
RECIPES = Path(__file__).resolve().parent / "recipes"

Json = Annotated[bool, tyro.conf.arg(name="json", help_behavior_hint="")]
Integer = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Number = Annotated[float | None, tyro.conf.arg(metavar="FLOAT", help_behavior_hint="")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
Name = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint="")]
Dtype = Literal["float32", "float16", "bfloat16"]

_DESCRIPTION = """\
Few-shot segmentation: mark an object in one image, find it in others.

With every command: --debug shows the traceback of an error, --verbose logs details.
fsdino --version prints the version.
"""


@dataclass(frozen=True, kw_only=True)
class Demo:
    """See what it does: a report with pictures, offline, in about a minute.

    Segments the first episodes of the generated data set's held-out fold with the bundled model
    and with its encoder alone, compares both with the truth, and times the kernels. Builds the C++
    kernels first, where they are not built and a compiler is there.
    """

    out: Path
    """Folder for report.html, demo.json and overlays/."""
    model: str = DEFAULT_MODEL
    """Name, folder or hub id of a model trained without the data set's fold 3."""
    episodes: int = 48
    """How many episodes to segment and score."""
    pictures: int = 5
    """How many of them to show for each number of shots."""
    workload: str = "W6"
    """Workload of the kernel table; see `fsdino benchmark`."""
    repeats: int = 3
    """Rounds of the kernel timing."""
    as_json: Json = False
    """Print the numbers as one JSON object instead of tables."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import build, demo, demo_report, report

        build.run_if_possible()
        settings = demo.Settings(
            self.model, self.episodes, self.pictures, self.workload, self.repeats,
            command=shlex.join(["fsdino", *sys.argv[1:]]),
        )  # fmt: skip
        results = demo.run(settings, self.out)
        report.write(self.out / "report.html", demo_report.render(results))
        if self.as_json:
            print(json.dumps(results.to_dict()))
        else:
            _print_demo(results)
            print(f"\n{self.out / 'report.html'}: open it in a browser ({results.seconds:.0f} s)")
        return _check_passed([results.kernels])


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images, or folders of images, by a few marked examples.

    One class: fsdino segment --support cat.jpg cat.png --query photos/ --out found/

    Several, each with a name: --support cat=a.jpg a.png --support dog=b.jpg b.png c.jpg c.png

    Writes masks/NAME.png (0 and 255, or one label per class), overlays/NAME.jpg and results.jsonl.
    The same command goes on where it was interrupted.
    """

    support: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(metavar="[NAME=]IMAGE MASK ...", help_behavior_hint="(required)"),
    ] = ()
    """Marked examples of a class, or a file from --save-support; again for every further class."""
    query: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="IMAGE|FOLDER ...", help_behavior_hint="(required)")
    ] = ()
    """What to segment."""
    out: Path
    """Folder for the results."""
    model: str = DEFAULT_MODEL
    """Name, folder or hub id (owner/name) of a model."""
    encoder: Name = None
    """Instead of --model: a timm ViT such as vit_base_patch14_dinov2.lvd142m, without training."""
    encoder_weights: File = None
    """Its weights: one of Meta's dinov2_vit*14*_pretrain.pth (Apache-2.0)."""
    image_size: int = 518
    """Side in pixels that images are resized to, with --encoder; a model brings its own."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    dtype: Dtype = "float32"
    """Floating type of the weights."""
    threshold: Number = None
    """Probability from which a pixel belongs to a mask; default: the model's own."""
    tiles: Flag = False
    """Cut large queries into overlapping tiles of the support images' size."""
    save_support: File = None
    """Also save the encoded support, to pass as --support FILE.safetensors later."""
    overwrite: Flag = False
    """Start anew in a folder that holds the results of another call."""
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import folder, supports

        files = supports.parse(self.support)
        if self.save_support is not None:
            supports.check_saving(self.save_support, files)
        queries = folder.find_queries(self.query)
        model = self._load()
        encoded = {support.name: support.encode(model) for support in files}
        threshold = model.config.threshold if self.threshold is None else self.threshold
        model.segment([], encoded, threshold=threshold)  # checks both before anything is written
        if self.save_support is not None:
            encoded[files[0].name].save(self.save_support)
        call = {
            "format": folder.FORMAT,
            "model": model.fingerprint(),
            "support": {support.name: support.digest() for support in files},
            "threshold": threshold,
            "tiles": self.tiles,
            "dtype": self.dtype,
        }
        output = folder.Output(self.out, call, overwrite=self.overwrite)
        outcome = folder.segment_files(
            model, encoded, queries, output, threshold=threshold, tiles=self.tiles
        )
        if self.as_json:
            print(
                json.dumps({**call, "model_name": self._model_name(), **outcome.to_dict(self.out)})
            )
        else:
            _print_segments(outcome, output)
        if outcome.failed:
            reasons = "; ".join(outcome.failed.values())
            raise DataError(
                f"{len(outcome.failed)} of {len(queries)} queries failed, the others are in "
                f"{self.out}: {reasons}"
            )
        return 0

    def _model_name(self) -> str:
        return self.model if self.encoder is None else self.encoder

    def _load(self) -> FSDINO:
        import torch

        from fsdino.models import zoo
        from fsdino.models.config import ModelConfig
        from fsdino.models.fsdino import FSDINO

        device, dtype = _device(self.device), getattr(torch, self.dtype)
        if self.encoder is None:
            if self.model == DEFAULT_MODEL:
                logger.info(
                    "%s was trained on generated drawings; for photographs, pass another --model, "
                    "or --encoder and --encoder-weights",
                    DEFAULT_MODEL,
                )
            if self.encoder_weights is not None:
                raise UsageError("--encoder-weights needs --encoder, the name of the architecture")
            return zoo.load(self.model, device=device, dtype=dtype)
        if self.encoder_weights is None:
            raise UsageError("--encoder needs --encoder-weights: random features find nothing")
        if self.model != DEFAULT_MODEL:
            raise UsageError("--model and --encoder exclude each other: pass one of them")
        config = ModelConfig(self.encoder, variant="training_free", image_size=self.image_size)
        model = FSDINO(config).eval()
        zoo.load_dinov2(model.encoder, self.encoder_weights)
        model.fingerprint()  # of the weights as stored: the same for every dtype and device
        return model.to(device=device, dtype=dtype)


@dataclass(frozen=True, kw_only=True)
class Train:
    """Train a segmenter on episodes.

    The run folder keeps the configuration, checkpoints and metrics.jsonl; the result is in its
    folder model/. An interrupted run goes on with --resume. Options that are not given come from
    the recipe.
    """

    recipe: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RECIPE")]
    """A YAML file, or the name of a recipe that ships with fsdino."""
    out: Path
    """Folder of the run."""
    resume: Flag = False
    """Continue the run in that folder."""
    steps: Integer = None
    """Optimiser steps."""
    images_per_step: Integer = None
    """Distinct images in a step."""
    learning_rate: Number = None
    """Peak learning rate."""
    fold: Integer = None
    """Fold that is held out of training."""
    seed: Integer = None
    """Of weights, episodes and schedule."""
    workers: Integer = None
    """Processes that prepare episodes."""
    threads: Integer = None
    """CPU threads of the training process."""
    validate_every: Integer = None
    """Steps between validations, on base classes."""
    validation_episodes: Integer = None
    """Episodes of one validation."""
    checkpoint_every: Integer = None
    """Steps between checkpoints."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        import dataclasses

        from fsdino.apps.progress import Progress
        from fsdino.training.meta import TrainConfig, Trainer

        config = TrainConfig.from_yaml(_find_recipe(self.recipe))
        known = {field.name for field in dataclasses.fields(config)}
        given = {k: v for k, v in vars(self).items() if k in known and v is not None}
        trainer = Trainer(dataclasses.replace(config, **given), self.out, resume=self.resume)
        steps = trainer.config.steps
        _print_parameters(trainer.model)
        try:
            with Progress("train", steps, done=trainer.start, unit="steps") as progress:

                def report(step: int, loss: float, miou: float | None) -> None:
                    quality = "" if miou is None else f", base mIoU {miou:.1f} %"
                    progress.advance(note=f"loss {loss:.3f}{quality}")

                trainer.report = report
                trainer.fit()
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_kept_run(self.out)) from None
        print(f"trained model: {self.out / 'model'}")
        return 0


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Time the 4D ops on standard workloads: every backend beside the eager baseline.

    Results are checked against float64 first; backends take turns in one process, and medians
    are compared. W4, W6 and W12 have 4, 6 and 12 layers, W12x8 a batch of 8, HR a 74 x 74 grid;
    T... are the same with a backward pass. GFLOP/s count the operations of the eager formulation;
    sgemm is a large matrix product, timed in the same turns.
    """

    workloads: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("W6",)
    """Which workloads."""
    parts: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")] = ("chain",)
    """Of chain, correlation, blocks, blocks-contiguous, fused-block and fused-chain."""
    backends: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="NAME ...", help_behavior_hint="")
    ] = ()
    """Only these backends; default: all that can run here."""
    threads: Annotated[
        tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")
    ] = ()
    """CPU threads; several are timed one after the other. Default: as PyTorch chooses."""
    foreground: Number = None
    """Share of support tokens of weight 1, the rest 0; default: weights +1 and -1."""
    memory: Flag = False
    """Also measure peak memory on the CPU, each backend in a process of its own."""
    device: str = "auto"
    """cpu, cuda or cuda:N; auto takes a GPU where there is one."""
    dtype: Dtype = "float32"
    """Floating type of all inputs."""
    repeats: int = 5
    """Rounds in which every backend runs once."""
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        import torch

        from fsdino.apps import benchmark
        from fsdino.environment import environment

        device, dtype = _device(self.device), getattr(torch, self.dtype)
        if self.foreground is not None and not 0 <= self.foreground <= 1:
            raise UsageError(f"--foreground must be between 0 and 1, got {self.foreground}")
        comparisons = []
        for workload in benchmark.find_workloads(self.workloads):
            bench = benchmark.Bench(
                workload, device=device, dtype=dtype, foreground=self.foreground
            )
            for part, threads in itertools.product(self.parts, self.threads or (None,)):
                comparison = bench.compare(
                    part,
                    threads=threads,
                    repeats=self.repeats,
                    only=self.backends,
                    measure_memory=self.memory,
                )
                comparisons.append(comparison)
                if not self.as_json:
                    print_comparison(comparison)
        if self.as_json:
            rows = [comparison.to_dict() for comparison in comparisons]
            print(json.dumps({"environment": environment(), "workloads": rows}))
        return _check_passed(comparisons)


@dataclass(frozen=True, kw_only=True)
class Build:
    """Compile the C++ kernels for the installed PyTorch.

    Takes a C++ compiler and a minute or two, once: the result is kept in ~/.cache/fsdino, or in
    the folder that FSDINO_CACHE names, and is used from then on. MAX_JOBS limits how many
    compilers run at once.
    """

    force: Flag = False
    """Compile again where a build is there."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import build

        extension = build.run(force=self.force)
        if self.as_json:
            print(json.dumps(extension.to_dict()))
        else:
            _print_extension(extension.to_dict())
        return 0


@dataclass(frozen=True, kw_only=True)
class Info:
    """Show versions, devices, and which backend would run each op here, and why.

    With a model: its configuration and the number of parameters of each part.
    """

    model: Annotated[
        tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = None
    """Name, folder or hub id of a model."""
    as_json: Json = False
    """Print everything as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        from fsdino.apps import info

        collected = info.collect(self.model)
        if self.as_json:
            print(json.dumps(collected))
        else:
            _print_info(collected)
        return 0


Command = (
    Annotated[Demo, tyro.conf.subcommand("demo")]
    | Annotated[Segment, tyro.conf.subcommand("segment")]
    | Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Benchmark, tyro.conf.subcommand("benchmark")]
    | Annotated[Build, tyro.conf.subcommand("build")]
    | Annotated[Info, tyro.conf.subcommand("info")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 1 for a failure, 2 for a usage error."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug, verbose = "--debug" in given, "--verbose" in given
    given = [argument for argument in given if argument not in {"--debug", "--verbose"}]
    if given == ["--version"]:
        print(f"fsdino {__version__}")
        return 0
    try:
        command: Demo | Segment | Train | Benchmark | Build | Info = tyro.cli(
            Command,
            prog="fsdino",
            description=_DESCRIPTION,
            args=given,
            config=(tyro.conf.FlagCreatePairsOff,),
        )
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    with _logging_to_stderr(logging.DEBUG if verbose else logging.INFO), _warnings(verbose):
        try:
            code = command.run()
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # whoever read our output, such as `head`, has left
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (Exception, KeyboardInterrupt) as error:
            if debug:
                traceback.print_exc()
            print(f"fsdino: {_one_line(error)}", file=sys.stderr)
            return error.exit_code if isinstance(error, FsdinoError) else 1


def _one_line(error: BaseException) -> str:
    """What happened and what to do about it."""
    message = " ".join(str(error).split())
    if isinstance(error, FsdinoError):
        return f"error: {message}"
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted: {message or 'the same command starts again'}"
    if _is_out_of_memory(error):
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


def _is_out_of_memory(error: BaseException) -> bool:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return cpu or isinstance(error, MemoryError)


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
            warnings.filterwarnings("ignore", module=r"(torch|timm|huggingface_hub)(\.|$)")
        yield


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}: choose auto, cpu, cuda or cuda:N") from error
    if device.type not in {"cpu", "cuda"}:
        raise UsageError(f"device {name!r} is not supported: choose auto, cpu, cuda or cuda:N")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"no device {name!r} here ({count} GPUs found): choose cpu or auto")
    return device


def _find_recipe(name: str) -> Path:
    shipped = {path.stem: path for path in sorted(RECIPES.glob("*.yaml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.is_dir():
        raise UsageError(f"recipe {name}: a YAML file is needed, this is a folder")
    if not path.is_file():
        known = ", ".join(shipped) or "none ships with this version"
        raise UsageError(f"unknown recipe {name!r}: pass a YAML file, or one of: {known}")
    return path


def _kept_run(folder: Path) -> str:
    steps = [int(path.stem) for path in (folder / "checkpoints").glob("[0-9]*.safetensors")]
    kept = f"step {max(steps)} is kept" if steps else "no checkpoint was due yet"
    return f"{kept} in {folder}; the same command with --resume goes on"


def _check_passed(comparisons: Sequence[Comparison]) -> int:
    """0, or an error that names the implementations whose results were wrong."""
    wrong = [
        f"{timing.name} on {comparison.workload} (error {timing.error:.2g} times the allowed)"
        for comparison in comparisons
        for timing in comparison.timings
        if not timing.passed
    ]
    if wrong:
        raise FsdinoError(f"wrong results, so not timed: {', '.join(wrong)}; please report this")
    return 0


def _print_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, numbers: bool = True
) -> None:
    """A table on stdout; columns of `numbers`, all but the first, are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=title or None, title_justify="left", box=box.SIMPLE_HEAD, show_header=any(headers)
    )
    for index, header in enumerate(headers):
        table.add_column(header, justify="right" if index and numbers else "left")
    for row in rows:
        table.add_row(*row)
    Console(markup=False, highlight=False).print(table)


def _print_demo(results: Results) -> None:
    _print_table(
        ["", "support images", "mIoU %", "FB-IoU %"],
        [
            [method, str(shots), f"{score.miou:.1f}", f"{score.fb_iou:.1f}"]
            for (method, shots), score in results.scores.items()
        ],
        f"IoU with the truth over {len(results.answers)} held-out episodes",
    )
    print_comparison(results.kernels)


def print_comparison(comparison: Comparison) -> None:
    """A table on stdout: time, ratio, speed and, where it was measured, memory."""
    from fsdino.apps import benchmark

    peak = f"; sgemm {comparison.peak / 1e9:.1f} GFLOP/s"
    _print_table(*benchmark.table(comparison), comparison.title + peak)


def _print_segments(outcome: Outcome, output: Output) -> None:
    shown = 20
    if len(outcome.rows) <= shown:
        _print_table(
            ["query", "foreground %", "seconds"],
            [
                [Path(r.query).name, f"{100 * r.foreground:.1f}", f"{r.seconds:.2f}"]
                for r in outcome.rows
            ],
        )
    again = f", {outcome.resumed} of them from before" if outcome.resumed else ""
    print(f"{len(outcome.rows)} masks and overlays in {output.folder}{again}")


def _print_parameters(model: FSDINO) -> None:
    from fsdino.models import zoo

    _print_parts(
        {part: dict(zip(("trained", "frozen"), counts, strict=True))
         for part, counts in zoo.parameter_table(model).items()}
    )  # fmt: skip


def _print_parts(parts: Mapping[str, Mapping[str, int]]) -> None:
    kinds = ("trained", "frozen")
    rows = [[part, *(f"{counts[kind]:,}" for kind in kinds)] for part, counts in parts.items()]
    totals = [f"{sum(counts[kind] for counts in parts.values()):,}" for kind in kinds]
    _print_table(["parameters", *kinds], [*rows, ["all", *totals]])


def _print_info(collected: Mapping[str, Any]) -> None:
    versions = {**collected["environment"], **collected["packages"]}
    facts = [[name, version or "not installed"] for name, version in versions.items()]
    facts.append(["bundled models", ", ".join(collected["models"]) or "none"])
    _print_table(["", ""], facts, numbers=False)
    for device, by_dtype in collected["backends"].items():
        for dtypes, table in _group_equal(by_dtype):
            names = list(next(iter(table.values())))
            rows = [[op, *(choices[name] for name in names)] for op, choices in table.items()]
            title = f"backends on {device}, {dtypes}, in the order in which auto asks"
            _print_table(["op", *names], rows, title, numbers=False)
    _print_native(collected["cpp"])
    if collected["forced_backend"]:
        print(f"FSDINO_BACKEND={collected['forced_backend']} forces that backend")
    model = collected.get("model")
    if model is not None:
        print(f"{model['name']}, fingerprint {model['fingerprint']}")
        facts = [[key, str(value)] for key, value in model["config"].items()]
        _print_table(["", ""], facts, numbers=False)
        _print_parts(model["parameters"])


def _print_native(cpp: Mapping[str, Any]) -> None:
    """The extension in use, and why others that were found are not."""
    if cpp["extension"] is not None:
        _print_extension(cpp["extension"])
    for problem in cpp["problems"]:
        print(f"C++ kernels, not used: {problem}")


def _print_extension(extension: Mapping[str, Any]) -> None:
    seconds = extension["seconds"]
    how = "with the package" if seconds is None else f"in {seconds:.0f} s"
    print(f"C++ kernels, compiled {how}: {extension['path']}")
    facts = [
        [key, "none" if value in (None, []) else str(value)]
        for key, value in extension["build_info"].items()
    ]
    if extension.get("without_cuda"):
        facts.append(["without CUDA", extension["without_cuda"]])
    _print_table(["", ""], facts, numbers=False)


def _group_equal(tables: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Tables by key, with the keys of equal tables joined."""
    groups: list[tuple[str, Any]] = []
    for key, table in tables.items():
        if groups and groups[-1][1] == table:
            groups[-1] = (f"{groups[-1][0]}, {key}", table)
        else:
            groups.append((key, table))
    return groups
