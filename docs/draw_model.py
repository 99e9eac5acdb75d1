"""The figure of the model: `python docs/draw_model.py` writes docs/model.svg.

Boxes name the code that they stand for, arrows the shape of what they carry;
tests/test_model_figure.py compares both with the package, and the file with what this draws.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from drawing import (
    INK,
    PANEL,
    PAPER,
    QUERY,
    SOFT,
    STEP,
    SUPPORT,
    TITLE,
    rectangle,
    sheet,
    text,
)

FILE = Path(__file__).resolve().parent / "model.svg"
SIZE = (960, 1046)
FROZEN, LEARNS = "#e3e9f2", "#ffffff"
FOLDERS = ("fsdino/models/", "fsdino/training/distillation/", "fsdino/")  # not drawn
MASK = "#b85400"


@dataclass(frozen=True)
class Box:
    """A part of the model.

    Attributes:
        place: left, top, right, bottom.
        title: its name in the paper or in words.
        lines: what it does.
        code: the object that does it, by its dotted name in the package.
        narrow: draw file and object on lines of their own.
        frozen: whether its weights are frozen in stage 2.
        dashed: whether it takes part in stage 1 only.
    """

    place: tuple[int, int, int, int]
    title: str
    lines: tuple[str, ...] = ()
    code: str = ""
    narrow: bool = False
    frozen: bool = False
    dashed: bool = False

    def named(self) -> list[str]:
        """The lines that name the code: its file, without the folders of FOLDERS, and its name."""
        if not self.code:
            return []
        module, _, name = self.code.rpartition(".")
        file = f"{module.replace('.', '/')}.py"
        for folder in FOLDERS:
            file = file.removeprefix(folder)
        return [file, name] if self.narrow else [f"{file}: {name}"]


@dataclass(frozen=True)
class Arrow:
    """A tensor on its way.

    Attributes:
        points: corners of the line; the last one has the head.
        label: lines of text; the last one is the shape.
        at: where the label begins.
        colour: of the line and of the label's first line.
        dashed: stage 1 only.
        over: y of a line that it crosses, where it is drawn as a bridge.
    """

    points: tuple[tuple[int, int], ...]
    label: tuple[str, ...] = ()
    at: tuple[int, int] = (0, 0)
    colour: str = SOFT
    dashed: bool = False
    over: int | None = None


GENERATOR = (24, 292, 748, 718)
BUS = 272  # where the masks go over to the prototype

BOXES = {
    "masks": Box((24, 24, 196, 80), "Support masks", ("[B, H, W], K shots",)),
    "supports": Box((228, 24, 574, 80), "Support images", ("[B, 3, H, W], K shots",)),
    "query": Box((590, 24, 936, 80), "Query image", ("[B, 3, H, W]",)),
    "token_masks": Box(
        (24, 112, 196, 190),
        "Token masks m",
        ("share of foreground",),
        "fsdino.models.shots.token_mask",
    ),
    "encoder": Box(
        (228, 112, 936, 190),
        "One frozen DINOv2 encoder for supports and query",
        ("ViT-B/14: C = 768, L = 6; at 518 pixels h × w = 37 × 37 tokens",),
        "fsdino.models.encoders.vit.ViTEncoder",
        frozen=True,
    ),
    "correlation": Box(
        (44, 318, 430, 416),
        "4D correlation of L layers",
        ("cosine of every pair of tokens, cut at 0,", "times 2m − 1: contrastive enhancement (CE)"),
        "fsdino.ops.correlation.correlation4d",
    ),
    "blocks": Box(
        (44, 462, 430, 560),
        "Three center-pivot 4D blocks",
        ("channels L → 16 → 64 → 128", "support 37 → 19 → 10 → 5, then the mean over it"),
        "fsdino.models.hypercorrelation.CenterPivotBlock4d",
    ),
    "prototype": Box(
        (586, 318, 732, 416),
        "Prototype",
        ("mean where m",),
        "fsdino.models.shots.masked_mean",
        narrow=True,
    ),
    "pcs": Box(
        (444, 462, 576, 560),
        "PCS",
        ("cosine in [−1, 1]",),
        "fsdino.models.prompts.cosine_map",
        narrow=True,
    ),
    "svp": Box(
        (586, 462, 732, 560),
        "SVP",
        ("MLP C → 64 → 256",),
        "fsdino.models.prompts.VisualPrompt",
        narrow=True,
    ),
    "dense": Box(
        (250, 614, 576, 692),
        "Fused dense maps",
        ("3 × 3 and 1 × 1 convolution",),
        "fsdino.models.prompts.DensePrompt",
    ),
    "teacher": Box(
        (794, 318, 936, 396),
        "SAM's encoder",
        ("teacher in stage 1",),
        "fsdino.training.distillation.teacher.Teacher",
        frozen=True,
        dashed=True,
    ),
    "adapter": Box(
        (764, 442, 936, 560),
        "Adapter",
        ("1 × 1, 3 × 3, 1 × 1 conv", "2 attention blocks", "1 × 1 conv to 256"),
        "fsdino.models.adapter.Adapter",
        frozen=True,
    ),
    "decoder": Box(
        (250, 774, 936, 852),
        "SAM's mask decoder",
        ("two-way transformer, one prompt for each image; upsamples by 4",),
        "fsdino.models.decoder.MaskDecoder",
    ),
    "mask": Box(
        (250, 906, 936, 984),
        "Mask",
        ("[H, W]: logits resized to the image, cut at a threshold",),
        "fsdino.models.segmenter.Segmenter",
    ),
}

ARROWS = {
    "weight_too": Arrow(((110, BUS), (620, BUS), (620, 318)), colour=MASK),
    "masks": Arrow(((110, 80), (110, 112)), colour=MASK),
    "supports": Arrow(((401, 80), (401, 112)), colour=SUPPORT),
    "query": Arrow(((763, 80), (763, 112)), colour=QUERY),
    "support_layers": Arrow(
        ((250, 190), (250, 318)),
        ("support", "L blocks", "[B, L, C, h, w]"), (257, 210), SUPPORT, over=BUS,
    ),
    "query_layers": Arrow(
        ((364, 190), (364, 318)),
        ("query", "L blocks", "[B, L, C, h, w]"), (371, 210), QUERY, over=BUS,
    ),
    "query_last": Arrow(
        ((480, 190), (480, 462)),
        ("query", "last block", "[B, C, h, w]"), (487, 210), QUERY, over=BUS,
    ),
    "support_last": Arrow(
        ((660, 190), (660, 318)), ("support", "last block", "[B, C, h, w]"), (667, 210), SUPPORT
    ),
    "shallow": Arrow(
        ((779, 190), (779, 442)), ("query", "block 3", "[B, C, h, w]"), (786, 210), QUERY
    ),
    "weight": Arrow(((110, 190), (110, 318)), ("[B, h, w]",), (117, 210), MASK),
    "correlation": Arrow(((237, 416), (237, 462)), ("[B, L, h, w, h, w]",), (245, 444)),
    "prior": Arrow(((340, 560), (340, 614)), ("prior [B, 128, h, w]",), (348, 592)),
    "to_cosine": Arrow(((586, 367), (540, 367), (540, 462)), ("[B, C]",), (546, 444)),
    "to_prompt": Arrow(((659, 416), (659, 462)), ("[B, C]",), (666, 444)),
    "cosine": Arrow(((510, 560), (510, 614)), ("[B, 1, h, w]",), (517, 592)),
    "dense": Arrow(((413, 692), (413, 774)), ("dense prompt", "[B, 256, h, w]"), (421, 740)),
    "sparse": Arrow(((659, 560), (659, 774)), ("sparse prompt", "[B, 1, 256]"), (667, 740)),
    "image": Arrow(
        ((800, 560), (800, 774)), ("image embedding", "[B, 256, h, w]"), (808, 740)
    ),
    "teaches": Arrow(((865, 396), (865, 442)), ("MSE",), (872, 424), dashed=True),
    "logits": Arrow(((593, 852), (593, 906)), ("logits [B, 1, 4h, 4w]",), (601, 884)),
}  # fmt: skip

LEGEND = (
    ("line", SUPPORT, "supports"),
    ("line", QUERY, "query"),
    ("line", MASK, "support masks"),
    ("box", FROZEN, "frozen in stage 2"),
    ("dashed", FROZEN, "stage 1 only"),
)
NOTES = (
    "B episodes, K shots, C encoder width, L correlation layers, h × w token grid. Prototypes and "
    "priors are averaged over shots.",
    "Files are in fsdino/models, ops/correlation.py in fsdino, teacher.py in "
    "fsdino/training/distillation. Numbers are the defaults.",
)


def draw_box(box: Box) -> list[str]:
    """Its rectangle, and its lines in the middle of it."""
    left, top, right, bottom = box.place
    lines = [*box.lines, *box.named()]
    x, y = (left + right) / 2, (top + bottom) / 2 - STEP * len(lines) / 2 + 6
    drawn = [rectangle(box.place, FROZEN if box.frozen else LEARNS, dashed=box.dashed)]
    drawn.append(text(x, y, box.title, size=TITLE, more=' font-weight="bold" text-anchor="middle"'))
    for number, line in enumerate(lines, start=1):
        colour = INK if number <= len(box.lines) else SOFT
        drawn.append(text(x, y + STEP * number, line, colour=colour, more=' text-anchor="middle"'))
    return drawn


def draw_arrow(arrow: Arrow) -> list[str]:
    """Its line, its head and its label."""
    points = " ".join(f"{x},{y}" for x, y in arrow.points)
    dash = ' stroke-dasharray="6 4"' if arrow.dashed else ""
    (x0, y0), (x, y) = arrow.points[-2:]
    dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
    head = f"{x},{y} {x - 10 * dx - 5 * dy},{y - 10 * dy - 5 * dx} "
    head += f"{x - 10 * dx + 5 * dy},{y - 10 * dy + 5 * dx}"
    drawn = []
    if arrow.over is not None:
        drawn.append(
            f'<line x1="{x}" y1="{arrow.over - 6}" x2="{x}" y2="{arrow.over + 6}" '
            f'stroke="{PAPER}" stroke-width="10"/>'
        )
    drawn += [
        f'<polyline points="{points}" fill="none" stroke="{arrow.colour}" stroke-width="2"{dash}/>',
        f'<polygon points="{head}" fill="{arrow.colour}"/>',
    ]
    for number, line in enumerate(arrow.label):
        colour = arrow.colour if number == 0 and len(arrow.label) == 3 else INK
        drawn.append(text(arrow.at[0], arrow.at[1] + STEP * number, line, colour=colour))
    return drawn


def draw_legend(x: int, y: int) -> list[str]:
    """What colours and dashes mean, from the top left corner on."""
    drawn = []
    for number, (kind, colour, words) in enumerate(LEGEND):
        middle = y + 26 * number
        if kind == "line":
            drawn.append(
                f'<line x1="{x}" y1="{middle}" x2="{x + 32}" y2="{middle}" stroke="{colour}" '
                f'stroke-width="2"/>'
            )
        else:
            place = (x, middle - 8, x + 32, middle + 8)
            drawn.append(rectangle(place, colour, dashed=kind == "dashed"))
        drawn.append(text(x + 42, middle + 5, words))
    return drawn


def draw() -> str:
    """The whole file."""
    parts = [rectangle(GENERATOR, PANEL)]
    left, _, _, bottom = GENERATOR
    for number, words in enumerate(("Meta-visual", "prompt generator")):
        y = bottom - 58 + 22 * number
        parts.append(text(left + 22, y, words, size=TITLE, more=' font-weight="bold"'))
    for arrow in ARROWS.values():
        parts += draw_arrow(arrow)
    for box in BOXES.values():
        parts += draw_box(box)
    parts += draw_legend(24, 786)
    for number, words in enumerate(NOTES):
        parts.append(text(24, 1012 + STEP * number, words, colour=SOFT))
    label = "FS-DINO: one frozen encoder, a prompt generator, an adapter and SAM's mask decoder"
    return sheet(SIZE, label, parts)


def main() -> None:
    """Write the file."""
    FILE.write_text(draw(), encoding="utf-8")
    print(FILE)


if __name__ == "__main__":
    main()
