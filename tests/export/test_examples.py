"""The README of an exported folder: its commands run, and find the mask that PyTorch finds."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.export import manual, write
from fsdino.export.folder import Exported
from fsdino.models.fsdino import FSDINO
from tiny_models import picture

NEAR = 1e-3  # of the threshold, where rounding decides
QUERIES = ("query", "other")


@pytest.fixture(scope="module")
def model(training_free: FSDINO) -> FSDINO:
    """One that fits something to its supports, and so has every input."""
    return training_free


def add_photographs(folder: Path) -> Path:
    """Lay photographs beside an export: `query` has the object, `other` has not."""
    box = np.zeros((90, 120), bool)
    box[20:70, 25:88] = True
    shown, asked = picture(90, 120, 1), picture(100, 80, 2)
    shown[box] //= 4
    asked[30:70, 20:60] //= 4
    Image.fromarray(shown).save(folder / "support.jpg", quality=95)
    Image.fromarray(box).save(folder / "support-mask.png")
    Image.fromarray(asked).save(folder / "query.jpg", quality=95)
    Image.fromarray(picture(50, 60, 11)).save(folder / "other.jpg", quality=95)
    if "PPM" in (folder / manual.README).read_text(encoding="utf-8"):
        for query in QUERIES:
            run(folder, ".ppm'", query)
    return folder


@pytest.fixture(scope="module")
def onnx_folder(tiny_export, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, which the commands write to."""
    folder = tmp_path_factory.mktemp("onnx")
    shutil.copytree(tiny_export.folder, folder, dirs_exist_ok=True)
    return add_photographs(folder)


def blocks(folder: Path, language: str) -> list[str]:
    """What the README has in a language."""
    text = (folder / manual.README).read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(folder: Path, words: str, query: str) -> str:
    """Run the one command of the README that has these words; returns what it prints."""
    [command] = [block for block in blocks(folder, "sh") if words in block]
    command = command.replace("query", query)
    if (folder / command.partition(" -o ")[2].partition(" ")[0]).is_file():  # compiled before
        command = command[command.index("./find") :]
    # The commands' python is this one; it finds fsdino only if it is installed.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "-ec", command.replace("-O2", "-O0")], check=False, capture_output=True, text=True,
        cwd=folder, env={**os.environ, "PATH": path, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def check(folder: Path, model: FSDINO, words: str, query: str) -> None:
    """Compare what a command prints and writes with PyTorch's score and mask."""
    with Image.open(folder / "support.jpg") as image, Image.open(folder / "support-mask.png") as m:
        support = model.encode_support(image, m)
    with Image.open(folder / f"{query}.jpg") as image:
        wanted = model.segment(image, support)
    above = (wanted.probability > wanted.threshold).mean()
    assert wanted.found == (query == "query") and 0.01 < above < 0.95
    printed = run(folder, words, query)
    [result] = folder.glob("mask.p?[gm]")
    with Image.open(result) as image:
        found = np.asarray(image)
    result.unlink()
    assert found.dtype == np.uint8 and found.shape == wanted.mask.shape
    assert set(np.unique(found)) == ({0, 255} if wanted.found else {0})
    decided = abs(wanted.probability - wanted.threshold) > NEAR
    assert decided.mean() > 0.99
    assert ((found == 255) == wanted.mask)[decided].all()
    score, _, words = printed.strip().removeprefix("score ").partition(", ")
    assert float(score) == pytest.approx(wanted.score, rel=0.01)
    assert words == ("" if wanted.found else "not found")


def compiler() -> None:
    if shutil.which("g++") is None or sys.platform != "linux":
        pytest.skip("needs g++ on Linux")


@pytest.mark.parametrize("query", QUERIES)
def test_onnxruntime_in_python(onnx_folder: Path, model: FSDINO, query: str) -> None:
    pytest.importorskip("onnxruntime")
    check(onnx_folder, model, "onnxruntime_example.py", query)


@pytest.mark.parametrize("query", QUERIES)
def test_openvino_in_cpp(onnx_folder: Path, model: FSDINO, query: str) -> None:
    pytest.importorskip("openvino")
    compiler()
    check(onnx_folder, model, "openvino.cpp", query)


def onnxruntime_root() -> str | None:
    """Folder of onnxruntime's headers and library."""
    for place in filter(None, (os.environ.get("ONNXRUNTIME_ROOT"), "/usr/local", "/usr")):
        include = Path(place) / "include"
        for folder in (include, include / "onnxruntime"):  # the latter is Debian's
            if (folder / "onnxruntime_cxx_api.h").is_file():
                return place
    return None


@pytest.mark.parametrize("query", QUERIES)
def test_onnxruntime_in_cpp(
    onnx_folder: Path, model: FSDINO, query: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = onnxruntime_root()
    if root is None:
        pytest.skip("not compiled here: ONNXRUNTIME_ROOT has no onnxruntime_cxx_api.h")
    compiler()
    monkeypatch.setenv("ONNXRUNTIME_ROOT", root)
    check(onnx_folder, model, "onnxruntime.cpp", query)


@pytest.mark.parametrize("query", QUERIES)
def test_onnxruntime_web(onnx_folder: Path, model: FSDINO, query: str) -> None:
    """In one thread, with its loops. NODE_PATH is where .ci/run installs the package."""
    places = [Path(place) for place in os.environ.get("NODE_PATH", "").split(os.pathsep) if place]
    [modules, *_] = [*(p for p in places if (p / "onnxruntime-web").is_dir()), None]
    if modules is None or shutil.which("node") is None:
        pytest.skip("node is missing, or NODE_PATH has no onnxruntime-web")
    link = onnx_folder / "node_modules"
    link.unlink(missing_ok=True)
    link.symlink_to(modules)
    check(onnx_folder, model, "onnxruntime_web.mjs", query)


MISTAKES = {
    "support.ppm": (b"P6\n# smaller\n1 1\n255\n\0\0\0", "has another size than support.ppm"),
    "support-mask.pgm": (b"P6 120 90 255 ", "support-mask.pgm is not a"),
    "query.ppm": (b"P6 8 8 255\n\0\0\0", "query.ppm ends too early"),
}


@pytest.fixture(scope="module")
def programs(onnx_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder without graphs: what is wrong with the images is found before they are loaded."""
    folder = tmp_path_factory.mktemp("programs")
    for path in (*onnx_folder.glob("*.p?m"), *(onnx_folder / manual.EXAMPLES).iterdir()):
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.mark.parametrize("name", MISTAKES)
def test_an_image_that_is_not_right(programs: Path, name: str, tmp_path: Path) -> None:
    """What the C++ programs say of it."""
    compiler()
    if not (programs / "reads").is_file():
        source = '#include "netpbm.h"\n#include <iostream>\nint main() try {\n  Image a, b;\n'
        source += '  read_support("support.ppm", "support-mask.pgm", a, b);\n'
        source += '  read_netpbm("query.ppm", 3);\n} catch (std::exception& e) {\n'
        source += "  std::cerr << e.what();\n  return 1;\n}\n"
        (programs / "reads.cpp").write_text(source)
        flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
        subprocess.run(["g++", *flags, "reads.cpp", "-o", "reads"], check=True, cwd=programs)
    for path in programs.glob("*.p?m"):
        shutil.copyfile(path, tmp_path / path.name)
    reads = [programs / "reads"]
    assert subprocess.run(reads, check=False, cwd=tmp_path).returncode == 0
    content, words = MISTAKES[name]
    (tmp_path / name).write_bytes(content)
    done = subprocess.run(reads, check=False, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and words in done.stderr


def test_the_program_in_the_readme_is_the_example(onnx_folder: Path) -> None:
    [shown] = blocks(onnx_folder, "python")
    source = onnx_folder / manual.EXAMPLES / "onnxruntime_example.py"
    assert shown == source.read_text(encoding="utf-8")


def test_the_readme_names_every_tensor_and_key(onnx_folder: Path) -> None:
    """Those of the files, each in a row of a table."""
    onnx = pytest.importorskip("onnx")
    text = (onnx_folder / manual.README).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([^`]+)` \|", text, re.MULTILINE)
    for name in ("support", "query"):
        graph = onnx.load(onnx_folder / f"{name}.onnx", load_external_data=False)
        names = [*graph.graph.input, *graph.graph.output]
        assert {slot.name for slot in names} <= {*rows}
        keys = {entry.key: entry.value for entry in graph.metadata_props}
        assert keys.keys() <= {*rows}
        assert keys["fsdino.inputs"].split() == [slot.name for slot in graph.graph.input]
        assert keys["fsdino.outputs"].split() == [slot.name for slot in graph.graph.output]


def test_the_readme_is_of_this_export(onnx_folder: Path) -> None:
    """It speaks of what the export has, and of nothing else."""
    found = Exported.read(onnx_folder)
    text = manual.readme(found)
    assert "places" in text and "libfsdino_ops" not in text and "size of the photograph" in text
    other = dataclasses.replace(found, fits=False, output="model", licence="not recorded")
    text = manual.readme(other)
    assert "close-up" not in text and "resize it to the photograph's" in text
    assert "licence of the weights is not recorded" in text


def test_another_format_leaves_no_examples_behind(tmp_path: Path) -> None:
    """A file of the reader's stays."""
    folder, place = tmp_path / "folder", tmp_path / "folder" / ".fsdino-new"
    (folder / manual.EXAMPLES).mkdir(parents=True)
    for name in ("openvino.cpp", "torch_example.py", "own.py"):
        (folder / manual.EXAMPLES / name).write_text("old")
    (place / manual.EXAMPLES).mkdir(parents=True)
    (place / manual.EXAMPLES / "torch_example.py").write_text("new")
    write._take_over(folder, place)
    texts = {path.name: path.read_text() for path in (folder / manual.EXAMPLES).iterdir()}
    assert texts == {"torch_example.py": "new", "own.py": "old"}


@pytest.mark.slow
def test_a_program_of_pt2(model: FSDINO, tmp_path: Path) -> None:
    write.export_model(model, tmp_path, format="pt2")
    folder = add_photographs(tmp_path)
    for query in QUERIES:
        check(folder, model, "torch_example.py", query)


@pytest.mark.slow
@pytest.mark.usefixtures("compiles_packages")
def test_packages_of_aoti(model: FSDINO, tmp_path: Path) -> None:
    """In Python and in C++, with fsdino's kernels."""
    compiler()
    write.export_model(model, tmp_path, format="aoti", kernels="fsdino")
    folder = add_photographs(tmp_path)
    for query in QUERIES:
        check(folder, model, "torch_example.py", query)
        check(folder, model, "aoti.cpp", query)
