"""`fsdino evaluate`: its options and its tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from fsdino.commands.options import (
    Device,
    Dtype,
    File,
    Flag,
    Folder,
    Integer,
    Json,
    Layout,
    Threshold,
    Value,
    check_model,
    check_range,
    check_threshold,
    wait_without_spinning,
)
from fsdino.data.names import DATASETS, VIDEO_PROTOCOLS
from fsdino.devices import check_device, check_dtype, find_device, find_dtype
from fsdino.errors import UsageError
from fsdino.evaluation.protocols import SYSTEMS
from fsdino.models.names import DRAWN as DRAWN_MODEL
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.evaluation.comparison import Difference
    from fsdino.evaluation.evaluate import Settings
    from fsdino.evaluation.protocols import Protocol
    from fsdino.evaluation.request import Request
    from fsdino.models.segmenter import Segmenter
    from fsdino.processes import Processes

_VIDEOS = "davis17"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Score a model on a benchmark, or compare two results.

    Every number states its protocol: hsnet (HSNet's published episodes, K shots by vote), joint
    (the same episodes, one pass with K supports), joint-rounded (that on images resized by PIL),
    with -original (scored at the images' own sizes) and -seeded (other seeds or numbers of
    episodes). davis17 has first-frame, and first-frame-official, which counts objects as the
    official code does. Interrupted runs resume where they stopped.
    With `torchrun --nproc-per-node N -m fsdino evaluate ...` processes share the work.
    """

    model: Annotated[
        tyro.conf.Positional[str], tyro.conf.arg(metavar="[MODEL]", help_behavior_hint="")
    ] = DRAWN_MODEL
    """Name (see `fsdino models`), folder or hub id (hf:owner/name) of a model."""
    weights: File = None
    """Weights of dinov2-b and the like, instead of a download: Meta's dinov2_vit*14*_pretrain.pth
    or timm's model.safetensors."""
    trained_on: Annotated[str | None, tyro.conf.arg(metavar="TEXT", help_behavior_hint="")] = None
    """What a checkpoint was trained on, for the record, if its file does not say, as HSNet's."""
    data: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(DATASETS)}.")] = "procedural"
    root: Folder = None
    """The data set's folder."""
    splits: Folder = None
    """Folder of HSNet's lists; default: lists derived from the annotations."""
    layout: Layout = "auto"
    """How --data folder is read; see `fsdino data check`."""
    ignore: Value = None
    """Of its label maps: value of undecided pixels, or none; default: 255."""
    background: Value = None
    """Of its label maps: 0 (the default), or none if 0 is a class."""
    fold: Integer = None
    """Fold whose classes are novel; default: 0, of the procedural set 3."""
    shots: int = 1
    """Supports per episode."""
    protocol: str = "joint"
    """Rules of the evaluation; see above."""
    as_system: Annotated[
        str | None,
        tyro.conf.arg(name="as", metavar="|".join(SYSTEMS), help_behavior_hint=""),
    ] = None
    """Published evaluation whose protocol and image size are taken."""
    fusion: Annotated[Literal["joint", "vote"] | None, tyro.conf.arg(help_behavior_hint="")] = None
    """Fusion of K shots, in place of the protocol's."""
    average: Annotated[
        tuple[Literal["classes", "episodes"], ...],
        tyro.conf.arg(metavar="classes|episodes ...", help_behavior_hint="(default: classes)"),
    ] = ("classes",)
    """What the printed mean is taken over, where papers differ; the result has both."""
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="INT ...", help_behavior_hint="")] = ()
    """Seeds of the draws; the protocol becomes its -seeded variant."""
    episodes: Integer = None
    """Episodes of each seed; the protocol becomes its -seeded variant."""
    out: File = None
    """result.json to write; the rows of its episodes are written next to it."""
    overwrite: Flag = False
    """Replace the result of another call."""
    save_pictures: int = 0
    """Number of best and of worst episodes to draw, next to the result."""
    skip_bad: Flag = False
    """Leave out episodes with unusable files; they are counted and named."""
    compare: Annotated[
        tuple[Path, Path] | None, tyro.conf.arg(metavar="A B", help_behavior_hint="")
    ] = None
    """Two results on the same episodes: print their differences, and evaluate nothing."""
    matcher: Annotated[
        Literal["correspondence", "prototype"] | None, tyro.conf.arg(help_behavior_hint="")
    ] = None
    """The model's encoder alone: 4D matching or prototypes, training-free."""
    memory: int = 0
    """Of davis17: number of last frames that join the first one as supports."""
    image_size: Integer = None
    """Side in pixels that images are stretched to; default: the model's own."""
    threshold: Threshold = None
    batch_size: int = 8
    """Episodes in a forward pass."""
    workers: Integer = None
    """Processes that read ahead; default: by the number of cores."""
    device: Device = "auto"
    dtype: Dtype = "float32"
    """Floating type of the forward pass; others than float32 run under autocast."""
    as_json: Json = False
    """Print the result as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        wait_without_spinning()
        if self.compare is not None:
            return self._compare(*self.compare)
        if self.as_system is not None:
            return self._as_published(self.as_system).run()
        self._check_options()
        protocol, request = self._find_protocol(), self._find_request()
        from fsdino import processes as sharing

        with sharing.processes() as processes:
            result = self._evaluate(protocol, request, processes)
            if processes.is_first:
                if self.as_json:
                    print(json.dumps(result))
                elif self.data == _VIDEOS:
                    _print_videos(result, self.out)
                else:
                    _print_result(result, self.average, self.out)
        return 0

    def _as_published(self, system: str) -> Evaluate:
        """The same call with the protocol and image size of a published evaluation."""
        if system not in SYSTEMS:
            raise UsageError(f"unknown --as {system!r}: choose from {', '.join(SYSTEMS)}")
        brought = {"--protocol": self.protocol != "joint", "--fusion": self.fusion is not None}
        brought["--image-size"] = self.image_size is not None
        given = [option for option, used in brought.items() if used]
        if self.data == _VIDEOS:
            raise UsageError(f"--data {self.data} does not take --as: leave it out")
        if given:
            raise UsageError(f"--as {system} brings {', '.join(given)}: leave it out")
        protocol, side = SYSTEMS[system]
        return replace(self, as_system=None, protocol=protocol, image_size=side)

    def _check_options(self) -> None:
        """Refuse options without effect, and values outside their range."""
        from fsdino.models.registry import REGISTERED

        episodic = {
            "--shots": self.shots != 1, "--seeds": bool(self.seeds),
            "--fold": self.fold is not None,
            "--episodes": self.episodes is not None,
            "--protocol": self.protocol not in ("joint", *VIDEO_PROTOCOLS),
            "--fusion": self.fusion is not None, "--splits": self.splits is not None,
            "--layout": self.layout != "auto", "--ignore": self.ignore is not None,
            "--background": self.background is not None,
            "--save-pictures": self.save_pictures > 0, "--skip-bad": self.skip_bad,
            "--image-size": self.image_size is not None and self.model not in REGISTERED,
        }  # fmt: skip
        videos = self.data == _VIDEOS
        given = [option for option, used in episodic.items() if used] if videos else []
        if self.memory and not videos:
            given = ["--memory"]
        if given:
            raise UsageError(f"--data {self.data} does not take {', '.join(given)}: leave it out")
        if videos and self.out is None:
            raise UsageError(f"{_VIDEOS} needs --out: masks are written next to the result")
        if self.save_pictures and self.out is None:
            raise UsageError("--save-pictures writes next to the result: pass --out, too")
        if self.out is not None and self.out.is_dir():
            raise UsageError(
                f"--out {self.out} is a folder: pass the name of a file, such as result.json"
            )
        check_range("--memory", self.memory, 0)
        check_range("--save-pictures", self.save_pictures, 0)
        check_range("--batch-size", self.batch_size, 1)
        check_range("--workers", self.workers, 0)
        check_threshold(self.threshold)
        check_dtype(self.dtype)
        check_device(self.device)
        check_model(self.model, self.weights, self.image_size if self.model in REGISTERED else None)

    def _find_protocol(self) -> Protocol:
        from fsdino.evaluation import protocols

        if self.data == _VIDEOS:
            return protocols.find("joint")  # of episodes; videos have protocols of their own
        seeded = bool(self.seeds) or self.episodes is not None
        protocol = protocols.find(self.protocol, fusion=self.fusion, seeded=seeded)
        protocol.check(self.data)
        return protocol

    def _find_request(self) -> Request:
        from fsdino.data.catalog import open_source
        from fsdino.evaluation.request import Request

        request = Request(
            self.data, self.root, self.splits, self.fold, self.shots, self.seeds or (0,),
            self.episodes, self.layout, self.ignore, self.background,
        )  # fmt: skip
        if self.data == _VIDEOS:
            open_source(self.data, self.root)
        else:
            request.check()
        return request

    def _compare(self, first: Path, second: Path) -> int:
        from fsdino.evaluation import comparison

        lines = comparison.compare(first, second)
        if self.as_json:
            print(json.dumps([line.to_dict() for line in lines]))
        else:
            _print_differences(lines, (first, second))
        return 0

    def _evaluate(
        self, protocol: Protocol, request: Request, processes: Processes
    ) -> dict[str, Any]:
        from fsdino import processes as sharing
        from fsdino.evaluation import run as evaluation
        from fsdino.evaluation.evaluate import Settings
        from fsdino.models import registry, zoo

        device = sharing.local_device(find_device(self.device))
        size = self.image_size if self.model in registry.REGISTERED else None
        model = zoo.load(self.model, device=device, weights=self.weights, image_size=size)
        if self.trained_on is not None:
            if model.provenance is not None:
                raise UsageError(
                    f"--trained-on {self.trained_on}: model {self.model} has a record of its "
                    "training: leave the option out"
                )
            model.provenance = {"trained_on": self.trained_on}
        if self.matcher is not None:
            model = zoo.training_free(model, self.matcher)
        settings = Settings(
            model.config.image_size if self.image_size is None else self.image_size,
            protocol,
            model.config.threshold if self.threshold is None else self.threshold,
            self.batch_size,
            device,
            find_dtype(self.dtype),
            min(sharing.cores() - 1, 4) if self.workers is None else self.workers,
            self.skip_bad,
        )
        with sharing.threads(max(sharing.cores() - settings.workers, 1)):
            if self.data == _VIDEOS:
                return self._evaluate_videos(model, settings, processes)
            return evaluation.run(
                model,
                self.model,
                request,
                settings,
                out=self.out,
                overwrite=self.overwrite,
                pictures=self.save_pictures,
                processes=processes,
            )

    def _evaluate_videos(
        self, model: Segmenter, settings: Settings, processes: Processes
    ) -> dict[str, Any]:
        from fsdino.evaluation import run as evaluation
        from fsdino.evaluation.video import VideoSettings

        assert self.out is not None
        official = self.protocol == "first-frame-official"
        return evaluation.run_videos(
            model,
            self.model,
            self.root,
            settings,
            videos=VideoSettings(self.memory, official=official),
            out=self.out,
            overwrite=self.overwrite,
            processes=processes,
        )


def _print_result(result: Mapping[str, Any], average: Sequence[str], out: Path | None) -> None:
    """A table on stdout: the metrics, then the classes."""
    seeds = len(result["miou_by_seed"])
    episodes = f"{result['episodes']} episodes" + (f" × {seeds} seeds" if seeds > 1 else "")
    fold = "" if result["fold"] is None else f", fold {result['fold']}"
    print(
        f"{result['model']} on {result['dataset']}{fold}, {result['shots']}-shot, protocol "
        f"{result['protocol']}, {episodes}, {result['lists']} lists"
    )
    rows = []
    if "classes" in average:
        rows.append(["mIoU", f"{result['miou']:.2f}{_plus_minus(result['miou_interval'])}"])
    if "episodes" in average:
        rows.append(["mean IoU of episodes", f"{result['episode_iou']:.2f}"])
    over_seeds = result["miou_interval_over_seeds"]
    if over_seeds is not None and "classes" in average:
        rows.append(["", f"{_plus_minus(over_seeds)} over seeds"])
    for key, name in (("fb_iou", "FB-IoU"), ("dice", "Dice"), ("boundary_iou", "boundary IoU")):
        rows.append([name, f"{result[key]:.2f}"])
    if result["skipped"]:
        rows.append(["skipped episodes", str(len(result["skipped"]))])
    print_table(["percent, 95 % interval over episodes", ""], rows)
    training = result["training"] or {}
    if training.get("selected_on", "base classes") != "base classes":
        print(f"the model was selected on the {training['selected_on']}")
    names, values = result["class_names"], result["per_class"]
    shown = 24
    if len(values) <= shown:
        print_table(["class", "IoU %"], [[names[c], f"{values[c]:.2f}"] for c in values])
    if out is not None:
        print(f"{out}: the result; {out.stem}.episodes.jsonl: its episodes")


def _print_videos(result: Mapping[str, Any], out: Path | None) -> None:
    """A table on stdout: J, F and J&F in total and of each sequence."""
    scores = {"all objects": result, **result["per_sequence"]}
    print_table(
        ["percent", "J&F", "J", "F"],
        [[n, *(f"{s[k]:.2f}" for k in ("j_and_f", "j", "f"))] for n, s in scores.items()],
        f"{result['model']} on {result['dataset']}, memory of {result['memory']} frames",
    )
    if out is not None:
        print(f"{out}: the result; {out.with_suffix('') / 'masks'}: the masks")


def _print_differences(lines: Sequence[Difference], files: tuple[Path, Path]) -> None:
    names = [file.stem for file in files]
    if names[0] == names[1]:
        names = list(map(str, files))
    print_table(
        ["", *names, "difference"],
        [
            [
                line.name, f"{line.first:.2f}", f"{line.second:.2f}",
                f"{line.difference:+.2f}{_plus_minus(line.half_width)}",
            ]
            for line in lines
        ],
        "percent on the same episodes, ± half of the 95 % interval over episodes",
    )  # fmt: skip


def _plus_minus(half_width: float | None) -> str:
    return "" if half_width is None else f" ± {half_width:.2f}"
