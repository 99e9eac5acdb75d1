"""What a reader of an exported folder gets: its README, and examples that run."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterable
from pathlib import Path

from fsdino import files
from fsdino.export.folder import DESCRIPTION, LIBRARY, Exported, Slot

README = "README.md"
EXAMPLES = "examples"
_SOURCES = Path(__file__).with_name(EXAMPLES)
_BY_FORMAT = {
    "onnx": (
        "onnxruntime_example.py",
        "openvino.cpp",
        "onnxruntime.cpp",
        "netpbm.h",
        "onnxruntime_web.mjs",
    ),
    "pt2": ("torch_example.py",),
    "aoti": ("torch_example.py", "aoti.cpp", "netpbm.h"),
}
ALL_EXAMPLES = frozenset(name for names in _BY_FORMAT.values() for name in names)
_FORMATS = {"onnx": "ONNX", "pt2": "`torch.export`", "aoti": "AOTInductor"}


def write(found: Exported, folder: Path) -> None:
    """Write the README and the examples of an export into its folder."""
    files.write_text(folder / README, readme(found))
    (folder / EXAMPLES).mkdir()
    for name in _BY_FORMAT[found.format]:
        shutil.copyfile(_SOURCES / name, folder / EXAMPLES / name)


def readme(found: Exported) -> str:
    """The README, in Markdown."""
    parts = [
        _introduction(found), _quick_start(found), _cpp(found),
        _JAVASCRIPT if found.format == "onnx" else "", _tensors(found), _inputs(found),
        _results(found), _metadata(found), _portability(found), _licence(found),
    ]  # fmt: skip
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _introduction(found: Exported) -> str:
    height, width = found.size
    support, query = (found.graphs[name].file for name in ("support", "query"))
    rows = [
        (f"`{support}`", "graph: annotated photographs of a class → the tensors of a support"),
        (f"`{query}`", "graph: a photograph and supports → probabilities of its pixels"),
    ]
    if "weights.data" in found.hashes:
        rows.append(("`weights.data`", f"weights of both graphs; keep it beside `{query}`"))
    if LIBRARY in found.hashes:
        rows.append((f"`{LIBRARY}`", "fsdino's C++ kernels, which the graphs call"))
    rows += [
        (f"`{DESCRIPTION}`", "names and shapes of all tensors, SHA-256 of the files, versions"),
        (f"`{EXAMPLES}/`", "the programs below"),
    ]
    return f"""
# {found.model}, exported as {_FORMATS[found.format]}

A model of [fsdino](https://github.com/fsdino/fsdino) {found.versions["fsdino"]} for few-shot
segmentation. Show it a class of objects by one or more annotated photographs, and it finds the
class in others. Neither training nor another export is needed for a new class. The graphs take
photographs of any size and resize them to a width of {width} and a height of {height} pixels; the
aspect ratio is not kept.

{_table(("file", "what it is"), rows)}
"""


def _quick_start(found: Exported) -> str:
    name = _BY_FORMAT[found.format][0]
    code = (_SOURCES / name).read_text(encoding="utf-8").strip()
    packages = "onnxruntime" if found.format == "onnx" else f"torch=={found.versions['torch']}"
    return f"""
## Python

Take a photograph `support.jpg`, its mask `support-mask.png` (black where the object is not) and
another photograph `query.jpg`. fsdino is not needed:

```sh
pip install numpy pillow {packages}
```

```sh
python {EXAMPLES}/{name} . support.jpg support-mask.png query.jpg mask.png
```

The program:

```python
{code}
```
"""


_CONVERSION = """
To convert photographs and masks:

```sh
python -c "
from PIL import Image, ImageOps
for name, mode in ('support', 'RGB'), ('query', 'RGB'):
    ImageOps.exif_transpose(Image.open(name + '.jpg')).convert(mode).save(name + '.ppm')
Image.open('support-mask.png').convert('L').save('support-mask.pgm')
"
```
"""


def _cpp(found: Exported) -> str:
    if found.format == "pt2":
        return ""
    if found.format == "aoti":
        return f"""
## C++

The program runs without Python; PyTorch's wheel has the headers and libraries. It reads binary PPM
and PGM files, so that it needs no image library.
{_CONVERSION}
```sh
TORCH=$(python -c 'import torch; print(torch.__path__[0])')
g++ -std=c++20 -O2 {EXAMPLES}/aoti.cpp -o find-aoti \\
    -I$TORCH/include -I$TORCH/include/torch/csrc/api/include \\
    -L$TORCH/lib -ltorch -ltorch_cpu -lc10 -ldl -Wl,-rpath,$TORCH/lib
./find-aoti . support.ppm support-mask.pgm query.ppm mask.pgm
```
"""
    return f"""
## C++

The examples in C++ and JavaScript read binary PPM and PGM files, so that they need no image
library.
{_CONVERSION}
With OpenVINO, whose wheel (`pip install openvino`) has the headers and libraries:

```sh
OPENVINO=$(python -c 'import openvino; print(openvino.__path__[0])')
g++ -std=c++17 -O2 {EXAMPLES}/openvino.cpp -o find-openvino \\
    -I$OPENVINO/include $OPENVINO/libs/libopenvino.so.* -Wl,-rpath,$OPENVINO/libs
./find-openvino . support.ppm support-mask.pgm query.ppm mask.pgm
```

With onnxruntime, where `ONNXRUNTIME_ROOT` is the folder of a release of it for C++ (its Python
wheel has no headers), or `/usr` with Debian's package `libonnxruntime-dev`:

```sh
g++ -std=c++17 -O2 {EXAMPLES}/onnxruntime.cpp -o find-onnxruntime \\
    -I$ONNXRUNTIME_ROOT/include -I$ONNXRUNTIME_ROOT/include/onnxruntime \\
    -L$ONNXRUNTIME_ROOT/lib -lonnxruntime -Wl,-rpath,$ONNXRUNTIME_ROOT/lib
./find-onnxruntime . support.ppm support-mask.pgm query.ppm mask.pgm
```
"""


_JAVASCRIPT = f"""
## JavaScript

With onnxruntime-web under Node.js, in one thread:

```sh
npm install onnxruntime-web
```

```sh
node {EXAMPLES}/onnxruntime_web.mjs . support.ppm support-mask.pgm query.ppm mask.pgm
```
"""


def _tensors(found: Exported) -> str:
    order = "The order is that of the arguments and results." if found.format != "onnx" else ""
    text = f"""
## Inputs and outputs

A name among the lengths stands for any number. {order}
""".rstrip()
    for name, graph in found.graphs.items():
        for kind, slots in (("inputs", graph.inputs), ("outputs", graph.outputs)):
            rows = (
                (f"`{slot.name}`", slot.dtype, _shape(slot), _meaning(slot, name, kind))
                for slot in slots
            )
            table = _table(("name", "type", "shape", "what it is"), rows)
            text += f"\n\n`{graph.file}`, {kind}:\n\n{table}"
    return text


_MEANINGS = {
    "mask": "0 is background, anything else the object",
    "sizes": "height and width in pixels of each photograph",
    "places": "number of the photograph, and the columns of its left and right edges",
    "foreground": "mean token of the object",
    "background": "mean token of the background",
    "correlation": "tokens that the query's are compared with",
    "masks": "share of the object in each token",
    "probability": "of each pixel, that it belongs to the class",
    "score": "how likely it is that the class is in the photograph, 0 to 1",
    "fit_mean": "means of the tokens",
    "fit_scale": "inverse standard deviations of the tokens",
    "fit_weight": "weights of the classifier that was fitted to the photographs",
    "fit_bias": "its bias",
    "fit_levels": "its scores at which pixels count as object or background",
    "fit_tokens": "standardised tokens of the photographs",
    "fit_sides": "of each token, object (positive) or background (negative)",
}


def _meaning(slot: Slot, graph: str, kind: str) -> str:
    if slot.name == "image":
        if graph == "support":
            return "RGB; each photograph lies at the top left"
        return "RGB"
    name = slot.name.rstrip("_0123456789")
    if graph == "query" and kind == "inputs":
        return "of the support, one row for each class"
    return _MEANINGS[name]


def _shape(slot: Slot) -> str:
    return "[" + ", ".join(map(str, slot.dims)) + "]"


def _inputs(found: Exported) -> str:
    text = """
## Preparing inputs

* **Several photographs of a class** go into one run of `support`. Where their sizes differ, take a
  canvas as high and wide as the largest, put each photograph and its mask at the top left, and pass
  each one's height and width in `sizes`. The rest of the canvas does not count.
* **Several classes** need a run of `support` each. Stack their tensors along a new first dim of
  classes for one run of `query`; all must have the same number of photographs. Otherwise run
  `query` once for each class. A single class has a first dim of length 1.
* **Keep the tensors of a support**: they serve any number of queries. Both graphs must be of one
  export, or of exports with the same `fsdino.fingerprint` and `fsdino.size`.
* **Objects of other classes as background** are added by the Python package only.
* **Orientation**: turn photographs upright first where their EXIF data says so, as the examples do.
"""
    if found.fits:
        text += """\
* **`places`** has a row `[k, 0, 1]` for photograph k: the whole width, from left to right.
* **Small objects** (below 2 % of a single photograph) are found better with a close-up, which the
  Python package adds by itself. Crop a window around the object, mirror it, and pass it as a second
  photograph with `places` `[0, right, left]`, the columns of the window's edges as shares of the
  photograph's width; right comes first, since it is mirrored. The close-up's row is for the fit
  alone: leave it out of `foreground`, `background`, `correlation` and `masks`.
"""
    return text


def _results(found: Exported) -> str:
    whole = (
        "`probability` has the size of the photograph."
        if found.output == "image"
        else "`probability` has the size of the model's own maps: resize it to the photograph's, "
        "bilinearly. The examples write a mask of that smaller size."
    )
    return f"""
## Reading results

{whole} A pixel belongs to the class from a probability of {found.threshold:g}
(`fsdino.threshold`) on. A class with a `score` below 0.1 is not found, and its mask is empty. With
several classes, a pixel belongs to the one with the highest probability among those found.
"""


def _metadata(found: Exported) -> str:
    shared = found.metadata("query")
    meanings = {
        "fsdino.format": "version of this layout",
        "fsdino.graph": "`support` or `query`",
        "fsdino.fingerprint": "of the model's weights and settings",
        "fsdino.licence": "of the weights",
        "fsdino.threshold": "probability from which a pixel belongs to a mask",
        "fsdino.size": "height and width in pixels that photographs are resized to",
        "fsdino.output": "whose size `probability` has: the `image`'s or the `model`'s own",
        "fsdino.inputs": "names of the inputs, in their order",
        "fsdino.outputs": "names of the outputs, in their order",
    }
    rows = ((f"`{key}`", f"`{shared[key]}`", meanings[key]) for key in shared)
    place = {
        "onnx": "Metadata properties of both ONNX files",
        "pt2": "Extra files of both programs (`extra_files` of `torch.export.load`)",
        "aoti": "Metadata of both packages (`get_metadata()`), beside PyTorch's own keys",
    }[found.format]
    return f"""
## Metadata

{place}, as text. The values are those of `{found.graphs["query"].file}`:

{_table(("key", "value", "meaning"), rows)}
"""


def _portability(found: Exported) -> str:
    torch, machine = found.versions["torch"], platform.machine()
    system = f"{platform.system()} on {machine}"
    kernels = f" `{LIBRARY}` is for {system} and torch {torch}."
    text = {
        "onnx": "The graphs run on any system and processor with a runtime for ONNX opset 20. "
        "onnxruntime, onnxruntime-web and OpenVINO are tested.\n\nOpenVINO computes in bfloat16 on "
        "processors that have it, with other results: set the precision to f32 as in the example.",
        "pt2": f"The programs need torch {torch}"
        + ("." if LIBRARY in found.hashes else " or newer, on any system and processor."),
        "aoti": f"The packages hold machine code for {system}"
        + (" with AVX2 and FMA" if machine in {"x86_64", "AMD64"} else "")
        + f", and need torch {torch}. PyTorch may warn that another instruction set was "
        "found than on the machine that compiled them.",
    }[found.format]
    return "## Portability\n\n" + text + (kernels if LIBRARY in found.hashes else "")


def _licence(found: Exported) -> str:
    known = (
        f"The licence of the weights is {found.licence}."
        if found.licence != "not recorded"
        else "The licence of the weights is not recorded: see where they came from."
    )
    return f"## Licence\n\n{known} fsdino, and so the examples, are under Apache-2.0."


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
