"""HSNet's own formulation beside this package's: `python benchmarks/hsnet_speed.py`.

Correlation, squeezing, mixing and decoder of HSNet on ResNet-50 at 400 pixels, the backbone left
out (random features and weights: the time is the same), with support masks that cover all of the
image and a fifth of it. Implementations: the model as it is used, on the backend that is selected;
HSNet's formulation in plain PyTorch, as its public code has it; torch.compile of that. They take
turns in one process; medians and minima. Peak memory is that of a process of its own, beyond inputs
and results. Prints a table and writes a JSON file, unless the answers differ.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import command
from torch import Tensor

from fsdino import processes as sharing
from fsdino.bench import memory
from fsdino.bench.record import machine, write_record
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.encoders import Features
from fsdino.models.hsnet import HSNet
from fsdino.models.hypercorrelation import CenterPivotBlock4d
from fsdino.models.shots import Shot
from fsdino.ops import eager

AGREEMENT = 1e-5  # largest relative difference of the answers, in norm
OURS, PLAIN, COMPILED = "fsdino", "plain", "compiled"

Levels = Sequence[Tensor]
Head = Callable[[Levels, Levels, Levels], Tensor]


def build(side: int) -> HSNet:
    """HSNet on ResNet-50 with random weights."""
    torch.manual_seed(0)
    model = zoo.assemble(ModelConfig("resnet50", variant="hsnet", image_size=side)).eval()
    assert isinstance(model, HSNet)
    return model


def inputs(model: HSNet, share: float) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Levels of a query and of a support [1, L, C, h, w], and the support's masks [1, h, w].

    Args:
        model: tells the levels.
        share: of the support's image that a square in its middle covers.
    """
    torch.manual_seed(1)
    side = model.config.image_size
    shapes = [
        (1, *level, *grid)
        for level, grid in zip(
            model.encoder.levels, model.encoder.level_grids(side, side), strict=True
        )
    ]
    query, support = ([torch.randn(shape) for shape in shapes] for _ in range(2))
    length = round(side * share**0.5)
    start = (side - length) // 2
    mask = torch.zeros(1, side, side)
    mask[:, start : start + length, start : start + length] = 1
    features = Features(query[1][:, 0], query[1][:, 0], tuple(support), mask)
    return query, support, [*model.level_masks(mask, features)]


def ours(model: HSNet) -> Head:
    """The model's own."""

    def run(query: Levels, support: Levels, masks: Levels) -> Tensor:
        features = Features(query[1][:, 0], query[1][:, 0], tuple(query), query[1][:, 0])
        return model.channels(features, Shot(tuple(support), tuple(masks)))

    return run


def plain(model: HSNet) -> Head:
    """HSNet's: masked features, bmm and clamp, each 4D convolution as two of Conv2d."""

    def run(query: Levels, support: Levels, masks: Levels) -> Tensor:
        mixed: Tensor | None = None
        for index in (2, 1, 0):
            masked = support[index] * masks[index][:, None, None]
            x = blocks(model.squeeze[index], eager.correlation4d(query[index], masked))
            if mixed is not None:
                x = blocks(model.mix[index], x + upsampled(mixed, x.shape[2:4]))
            mixed = x
        assert mixed is not None
        maps = model.before(mixed.mean((4, 5)))
        size = [2 * side for side in maps.shape[2:]]
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=True)
        return model.after(maps)

    return run


def blocks(layers: Any, x: Tensor) -> Tensor:
    layer: CenterPivotBlock4d
    for layer in layers:
        *parameters, stride = layer.arguments()
        x = eager.center_pivot_block4d(x, *parameters, support_stride=stride)
    return x


def upsampled(volume: Tensor, size: Sequence[int]) -> Tensor:
    """The query dims of [B, C, hq, wq, hs, ws] at another size, as HSNet's code does it."""
    if volume.shape[2:4] == tuple(size):
        return volume
    maps = volume.permute(0, 4, 5, 1, 2, 3)
    found = F.interpolate(maps.flatten(0, 2), list(size), mode="bilinear", align_corners=True)
    return found.unflatten(0, maps.shape[:3]).permute(0, 3, 4, 5, 1, 2)


def heads(model: HSNet, names: Sequence[str]) -> dict[str, Head]:
    """The implementations by name; torch.compile's compiles at its first call."""
    torch._dynamo.reset()
    made: dict[str, Callable[[], Head]] = {
        OURS: lambda: ours(model),
        PLAIN: lambda: plain(model),
        COMPILED: lambda: torch.compile(
            plain(model), dynamic=False, options={"cpp.threads": torch.get_num_threads()}
        ),
    }
    return {name: made[name]() for name in names}


def call(model: HSNet, head: Head, given: Sequence[Levels], backward: bool) -> Tensor:
    """One forward pass, or one of training: gradients of the head's weights."""
    if not backward:
        with torch.no_grad():
            return head(*given)
    model.zero_grad(set_to_none=True)
    found = head(*given)
    found.square().mean().backward()
    return found.detach()


def peak(name: str, side: int, share: float, backward: bool, threads: int) -> int | None:
    """Peak bytes of one call, beyond inputs, weights and their gradients, and the answer."""
    with sharing.threads(threads):
        small = build(64)
        call(small, heads(small, [name])[name], inputs(small, 1.0), backward)
        model = build(side)
        given = inputs(model, share)
        head = heads(model, [name])[name]

        def run() -> list[Tensor]:
            found = call(model, head, given, backward)
            return [found, *(p.grad for p in model.parameters() if p.grad is not None)]

        return memory.peak_bytes(run)


def compare(
    share: float, backward: bool, names: Sequence[str], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """A row for each implementation, after their answers were compared.

    Raises:
        SystemExit: the answers differ.
    """
    with sharing.threads(options.threads):
        model = build(options.size)
        given = inputs(model, share)
        found = heads(model, names)
        answers = {name: call(model, head, given, backward) for name, head in found.items()}
        expected = answers[PLAIN]
        for name, answer in answers.items():
            error = float((answer - expected).norm() / expected.norm())
            if not error <= AGREEMENT:
                raise SystemExit(f"{name} differs from the plain formulation by {error:.1e}")
        seconds: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(options.rounds):
            for name, head in found.items():
                start = time.perf_counter()
                call(model, head, given, backward)
                seconds[name].append(time.perf_counter() - start)
    rows = []
    for name in names:
        most = None
        if name != COMPILED:
            arguments = (name, options.size, share, backward, options.threads)
            most = memory.in_new_process(peak, *arguments)
        rows.append({
            "implementation": name,
            "foreground": share,
            "backward": backward,
            "median_seconds": statistics.median(seconds[name]),
            "fastest_seconds": min(seconds[name]),
            "slowest_seconds": max(seconds[name]),
            "peak_bytes": most,
        })  # fmt: skip
    return rows


def report(rows: Sequence[dict[str, Any]]) -> None:
    """Print a comparison: milliseconds, ratios of minima and medians to ours, peak memory."""
    first = rows[0]
    what = "forward and backward" if first["backward"] else "forward"
    print(f"\n{what}, {first['foreground']:.0%} foreground")
    print(f"{'':10} {'median, ms':>10} {'min, ms':>8} {'x median':>8} {'x min':>6} {'peak, MB':>9}")
    for row in rows:
        ratios = [row[key] / first[key] for key in ("median_seconds", "fastest_seconds")]
        most = "" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e6:.0f}"
        print(
            f"{row['implementation']:10} {1e3 * row['median_seconds']:10.0f} "
            f"{1e3 * row['fastest_seconds']:8.0f} {ratios[0]:8.2f} {ratios[1]:6.2f} {most:>9}",
            flush=True,
        )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=400, help="side in pixels")
    parser.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.2])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/hsnet.json"))
    return parser.parse_args()


def main() -> None:
    """Measure, compare, print, write."""
    options = parse()
    names = [OURS, PLAIN, *([] if options.no_compile else [COMPILED])]
    rows: list[dict[str, Any]] = []
    for backward in (False, True):
        for share in options.shares:
            rows += compare(share, backward, names, options)
            report(rows[-len(names) :])
    write_record(
        options.out,
        command(),
        backbone="resnet50",
        size=options.size,
        dtype="float32",
        threads=options.threads,
        rounds=options.rounds,
        machine=machine(),
        results=rows,
    )


if __name__ == "__main__":
    main()
