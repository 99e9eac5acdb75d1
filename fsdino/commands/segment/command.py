"""`fsdino segment`: its options and its table."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from fsdino.commands.options import (
    Device,
    File,
    Flag,
    Integer,
    InvertMask,
    Json,
    MaskThreshold,
    MaskValue,
    Model,
    Number,
    Out,
    Overwrite,
    Threshold,
    Weights,
    WeightsDtype,
    check_folder,
    check_model,
    check_threshold,
    wait_without_spinning,
)
from fsdino.commands.segment import mark_options, supports
from fsdino.commands.segment.formats import Formats
from fsdino.commands.segment.mark_options import BoxOption, PointOption, ScribbleOption
from fsdino.devices import check_device, check_dtype, find_device
from fsdino.errors import DataError, UsageError, counted, printable, shown_path
from fsdino.models.names import DEFAULT as DEFAULT_MODEL
from fsdino.models.names import DRAWN as DRAWN_MODEL
from fsdino.tables import print_table

if TYPE_CHECKING:
    from fsdino.commands.segment.output import Output, Row
    from fsdino.commands.segment.queries import Queries
    from fsdino.commands.segment.stream import Outcome
    from fsdino.commands.segment.supports import SupportFiles
    from fsdino.models.segmenting import Segmenting
    from fsdino.models.supports import Support
    from fsdino.processes import Processes

logger = logging.getLogger("fsdino.commands")

_MOST_ROWS, _MOST_COLUMNS = 20, 6  # of the table: queries, and classes with a column of their own


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Segment images, or folders of images, by a few marked examples.

    One class: fsdino segment --support cat.jpg cat.png --query photos/ --out found/

    A box, points or a scribble can take the place of a mask: --support cat.jpg --box 10,20,200,220

    Several, each with a name: --support cat=a.jpg a.png --support dog=b.jpg b.png c.jpg c.png

    Reports how well each support finds itself, and warns if that is low;
    --check-support does only this.

    Writes masks/NAME.png (0 and 255, or one label per class), overlays/NAME.jpg (or .png if an
    image is too long for JPEG) and results.jsonl; --format adds files for other tools. The same
    command resumes where it was interrupted. With `torchrun --nproc-per-node N -m fsdino segment
    ...` processes share the queries.
    """

    support: Annotated[
        tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]],
        tyro.conf.arg(
            metavar="[NAME=]IMAGE [MASK] ...|FOLDER|JSON", help_behavior_hint="(required)"
        ),
    ] = ()
    """Marked examples of a class, or a file from --save-support; again for every further class. Or
    labelled images: a folder (images with masks, LabelMe, COCO, YOLO segments) or a JSON file."""
    box: BoxOption = ()
    """Instead of a mask, a box around the object in the image of the --support before it, in
    pixels; X1 and Y1 lie just outside. Several are joined."""
    point: PointOption = ()
    """Instead of a mask, a point on the object in the image of the --support before it."""
    not_point: PointOption = ()
    """A point that is not on the object, beside --point."""
    scribble: ScribbleOption = ()
    """Instead of a mask, an image file of the size of the --support before it: 0 unknown, 1 object,
    2 background."""
    mask_threshold: MaskThreshold = None
    mask_value: MaskValue = None
    invert_mask: InvertMask = False
    query: Annotated[
        tuple[Path, ...], tyro.conf.arg(metavar="IMAGE|FOLDER ...", help_behavior_hint="(required)")
    ] = ()
    """Images to segment; folders are searched with their subfolders."""
    out: Out = None
    check_support: Flag = False
    """Only report how well each support finds itself; needs no --query and no --out."""
    model: Model = None
    runtime: Annotated[
        tuple[str, ...], tyro.conf.arg(metavar="onnx|openvino DIR", help_behavior_hint="")
    ] = ()
    """Instead of --model, a folder of `fsdino export --format onnx`, run by onnxruntime or OpenVINO
    on the CPU."""
    weights: Weights = None
    image_size: Integer = None
    """Side in pixels that --model dinov2-b and the like resize images to (default: 518)."""
    device: Device = "auto"
    dtype: WeightsDtype = "float32"
    threshold: Threshold = None
    tiles: Flag = False
    """Cut large queries into overlapping tiles of the support images' size."""
    max_megapixels: Number = None
    """Size up to which images are read; default: Pillow's limit of 179."""
    format: Annotated[
        str, tyro.conf.arg(metavar="NAME,NAME,...", help_behavior_hint="(default: png)")
    ] = "png"
    """What to write: png (masks and overlays, always written), coco (annotations.json), yolo
    (yolo/NAME.txt and classes.txt), labelme (labelme/NAME.json), probability
    (probabilities/NAME.npz)."""
    split: Annotated[str, tyro.conf.arg(metavar="connected|watershed")] = "connected"
    """What an object is for --format: connected pixels; watershed also cuts touching objects."""
    min_area: Annotated[int, tyro.conf.arg(metavar="INT")] = 1
    """Number of pixels from which an object counts for --format."""
    save_support: File = None
    """Also save the encoded support, to pass as --support FILE.safetensors later."""
    overwrite: Overwrite = False
    as_json: Json = False
    """Print the results as one JSON object."""

    def run(self) -> int:
        """Run the command; returns the exit code."""
        wait_without_spinning()
        check_dtype(self.dtype)
        check_device(self.device)
        check_threshold(self.threshold)
        if self.runtime:
            self._check_runtime()
        else:
            check_model(self.model or DEFAULT_MODEL, self.weights, self.image_size)
        formats = Formats.parse(self.format, self.split, self.min_area)
        marks = mark_options.by_owner(
            "--support",
            len(self.support),
            box=self.box,
            point=self.point,
            not_point=self.not_point,
            scribble=self.scribble,
        )
        if self.runtime and any(marks):
            raise UsageError(
                "--box, --point and --scribble are for models of PyTorch: pass a mask beside "
                "--runtime; `fsdino segment` with the mark and without --runtime makes one"
            )
        rule = supports.mask_rule(self.mask_threshold, self.mask_value, self.invert_mask)
        files = supports.parse(self.support, rule, marks)
        if self.save_support is not None:
            supports.check_saving(self.save_support, files)
        with contextlib.ExitStack() as stack:
            if self.max_megapixels is not None:
                stack.enter_context(self._pixel_limit(self.max_megapixels))
            queries = None if self.check_support else self._find_queries()
            from fsdino import processes as sharing

            processes = stack.enter_context(sharing.processes())
            if queries is None:
                self._check_support(files, processes.is_first)
                return 0
            return self._run(files, queries, formats, processes, stack)

    def _find_queries(self) -> Queries:
        from fsdino.commands.segment.queries import find_queries

        if self.out is None:
            raise UsageError("no --out given: pass --out with a folder for the results")
        check_folder(self.out)
        return find_queries(self.query, self.out)

    def _run(
        self,
        files: Sequence[SupportFiles],
        queries: Queries,
        formats: Formats,
        processes: Processes,
        stack: contextlib.ExitStack,
    ) -> int:
        from fsdino.commands.segment import output as folder
        from fsdino.commands.segment import stream

        assert self.out is not None
        out, is_first = self.out, processes.is_first
        if queries.left_out and is_first:
            logger.warning("%s", queries.summary())
        model, name, called = self._load()
        encoded, threshold = self._encode(model, files, is_first)
        call = {
            "format": folder.FORMAT,
            "model": model.fingerprint(),
            "support": {support.name: support.digest() for support in files},
            "threshold": threshold,
            "tiles": self.tiles,
            "dtype": self.dtype,
            **called,
            **formats.call(),
        }
        if self.save_support is not None and is_first:
            stack.enter_context(supports.saving(self.save_support))
        overwrite = self.overwrite and is_first
        output = stack.enter_context(
            contextlib.closing(
                processes.in_turn(
                    lambda: folder.Output(
                        out, call, overwrite=overwrite, first=is_first, formats=formats
                    )
                )
            )
        )
        if self.save_support is not None and is_first:
            encoded[files[0].name].save(self.save_support)
        outcome = stream.segment_files(
            model,
            encoded,
            queries,
            output,
            threshold=threshold,
            tiles=self.tiles,
            processes=processes,
        )
        if is_first:
            found = {"model_name": name, "quality": _qualities(encoded)}
            self._report(outcome, {**call, **found}, queries, output, formats)
        return 0

    def _report(
        self,
        outcome: Outcome,
        call: Mapping[str, object],
        queries: Queries,
        output: Output,
        formats: Formats,
    ) -> None:
        """Print what was found.

        Raises:
            DataError: some queries failed; says which and why.
        """
        if self.as_json:
            left_out = [{"file": f, "reason": reason} for f, reason in queries.left_out.items()]
            rest = {**outcome.to_dict(output.folder), "left_out": left_out}
            print(json.dumps({**call, **rest}))
        else:
            _print_segments(outcome, output.folder, formats, len(queries.left_out))
        if outcome.failed:
            reasons = "; ".join(outcome.failed.values())
            others = f", the others are in {output.folder}" if outcome.rows else ""
            failed = f"{len(outcome.failed)} of {len(queries)} queries failed{others}"
            raise DataError(f"{failed}: {reasons}")

    def _encode(
        self, model: Segmenting[Any], files: Sequence[SupportFiles], is_first: bool
    ) -> tuple[dict[str, Support], float]:
        """The supports and the threshold, both checked; tells the supports' quality."""
        encoded = {support.name: support.encode(model) for support in files}
        threshold = model.default_threshold if self.threshold is None else self.threshold
        model.segment([], encoded, threshold=threshold)  # checks both before anything is written
        for name, support in encoded.items() if is_first else ():
            if not self.as_json:
                print(supports.quality(name, support), flush=True)
            warning = supports.warning(name, support)
            if warning is not None:
                logger.warning("%s", warning)
        return encoded, threshold

    def _check_support(self, files: Sequence[SupportFiles], is_first: bool) -> None:
        """Tell the supports' quality, and save what --save-support asks for."""
        model, name, _ = self._load()
        encoded, _ = self._encode(model, files, is_first)
        if not is_first:
            return
        if self.save_support is not None:
            with supports.saving(self.save_support):
                encoded[files[0].name].save(self.save_support)
        if self.as_json:
            called = {"model": model.fingerprint(), "model_name": name}
            digests = {support.name: support.digest() for support in files}
            print(json.dumps({**called, "support": digests, "quality": _qualities(encoded)}))

    def _pixel_limit(self, megapixels: float) -> contextlib.AbstractContextManager[None]:
        from fsdino import image_files

        if not 0 < megapixels < 1e6:
            raise UsageError(
                f"--max-megapixels must lie between 0 and a million, got {megapixels:g}"
            )
        return image_files.pixel_limit(max(int(megapixels * 1e6), 1))

    def _check_runtime(self) -> None:
        """Refuse a --runtime without its folder, and options that an exported model does not take.

        Raises:
            UsageError: names the option.
        """
        from fsdino.export.folder import RUNTIMES

        if len(self.runtime) != 2 or self.runtime[0] not in RUNTIMES:
            given = printable(" ".join(self.runtime))
            raise UsageError(
                f"--runtime {given}: pass {' or '.join(RUNTIMES)}, and a folder of `fsdino export`"
            )
        for option, refused in (
            ("--model", self.model is not None),
            ("--weights", self.weights is not None),
            ("--image-size", self.image_size is not None),
            ("--device", self.device != "auto"),
            ("--dtype", self.dtype != "float32"),
        ):
            if refused:
                raise UsageError(
                    f"{option} is for models of PyTorch: leave it out beside --runtime, which runs "
                    "an exported model on the CPU in float32"
                )

    def _load(self) -> tuple[Segmenting[Any], str, dict[str, Any]]:
        """The model, its name, and what a call notes about it beside its fingerprint."""
        if self.runtime:
            from fsdino.export.segmenter import ExportedSegmenter

            exported = ExportedSegmenter(self.runtime[1], self.runtime[0])
            described = exported.exported
            return exported, described.model, {
                "runtime": self.runtime[0], "image_size": [*described.size],
            }  # fmt: skip
        from fsdino.models import zoo
        from fsdino.processes import local_device

        name = self.model or DEFAULT_MODEL
        if name == DRAWN_MODEL:
            logger.info(
                "%s was trained on generated drawings; for photographs, leave out --model, or "
                "pass another one",
                name,
            )
        model = zoo.load(
            name,
            device=local_device(find_device(self.device)),
            dtype=self.dtype,
            weights=self.weights,
            image_size=self.image_size,
        )
        return model, name, {}


def _qualities(encoded: Mapping[str, Support]) -> dict[str, float | None]:
    """How well each support finds itself; None where that is not known."""
    return {name: support.quality for name, support in encoded.items()}


def _print_segments(outcome: Outcome, folder: Path, formats: Formats, left_out: int) -> None:
    from fsdino.commands.segment.formats import relative_names

    rows = outcome.rows
    if 0 < len(rows) <= _MOST_ROWS:
        classes = [*rows[0].classes]
        each = 1 < len(classes) <= _MOST_COLUMNS
        shares = [f"{printable(name)} %" for name in classes] if each else ["foreground %"]
        names = relative_names([row.query for row in rows])
        print_table(
            ["query", *shares, "seconds"],
            [
                [shown_path(name), *_shares(row, each), f"{row.seconds:.2f}"]
                for name, row in zip(names, rows, strict=True)
            ],
        )
    again = f", {outcome.resumed} of them from before" if outcome.resumed else ""
    rest = f"; {counted(left_out, 'file')} left out" if left_out else ""
    made = f"{counted(len(rows), 'mask')} and {'overlay' if len(rows) == 1 else 'overlays'}"
    print(f"{made} in {folder}{again}{rest}")
    if rows and formats.results:
        print(f"beside them: {', '.join(formats.results)}")


def _shares(row: Row, each: bool) -> list[str]:
    """Percentages of a row's pixels: of each class, or of all together."""
    return [f"{100 * share:.1f}" for share in (row.classes.values() if each else [row.foreground])]
