"""The command line: exit codes, one line per error, and what is left behind."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import signal
import stat
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import tyro
import yaml
from PIL import Image

import data_sets
import fake_hub
import fsdino
import stub_extension
import tiny_sam
from fsdino import cli, contract, ops
from fsdino.bench import eager, workloads
from fsdino.bench.workloads import Workload
from fsdino.commands import build, options
from fsdino.commands import evaluate as evaluate_command
from fsdino.commands.demo import command as demo_command
from fsdino.commands.demo import drawings
from fsdino.commands.demo import run as demo
from fsdino.commands.distill import Distill
from fsdino.commands.info import Info
from fsdino.commands.runs import RECIPES, find_recipe
from fsdino.commands.segment import command as segment_command
from fsdino.commands.segment import supports
from fsdino.commands.train import Train
from fsdino.evaluation import journal
from fsdino.models import segmenter, zoo
from fsdino.models.config import ModelConfig
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from fsdino.ops import native
from fsdino.training.distillation.config import DistillConfig
from fsdino.training.distillation.distill import ADAPTER_FILE
from fsdino.training.meta.config import TrainConfig
from tiny_models import SMALL, box_mask, picture, tiny_config, tiny_model

MINI = Workload("mini", batch=1, layers=2, grid=7, channels=16, block_channels=(8, 16))


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models with different weights, and support files made by each."""
    folder = tmp_path_factory.mktemp("models")
    tiny_sam.write(folder).rename(folder / "sam.pth")
    for name, seed in (("model", 0), ("other", 1)):
        model = tiny_model(seed)
        model.save_pretrained(folder / name)
        support = model.encode_support([picture(50, 60, 1)], [box_mask(50, 60)])
        support.save(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a support, ten queries, and every kind of bad file, as working folder."""
    monkeypatch.chdir(tmp_path)
    for link in ("model", "other", "model.safetensors", "other.safetensors", "sam.pth"):
        Path(link).symlink_to(models / link)
    Image.fromarray(picture(50, 60, 1)).save("a.png")
    Image.fromarray(box_mask(50, 60)).save("mask.png")
    Image.fromarray(picture(50, 60, 2)).save("b.png")
    Path("queries").mkdir()
    for i in range(10):
        Image.fromarray(picture(40, 50 + i, 10 + i)).save(f"queries/{i}.png")
    return tmp_path


def segment(*arguments: str, support: tuple[str, ...] = ("a.png", "mask.png")) -> list[str]:
    found = ["segment", "--support", *support, "--model", "model", "--device", "cpu"]
    if "--query" not in arguments:
        found += ["--query", "queries"]
    return [*found, "--out", "out", *arguments]


def visible_and_hidden(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    """The one error line; anything but log lines beside it is a failure."""
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("fsdino: ") for line in lines), lines
    errors = [line for line in lines if line.startswith(("fsdino: error:", "fsdino: inter"))]
    assert len(errors) == 1, lines
    assert lines[-1] == errors[0]
    return errors[0]


def command(*arguments: str, code: str = "") -> list[str]:
    """A fresh interpreter that runs some code and then the command."""
    main = f"import sys; {code}\nfrom fsdino.cli import main; sys.exit(main())"
    return [sys.executable, "-c", main, *arguments]


def environment() -> dict[str, str]:
    root = str(Path(fsdino.__file__).parent.parent)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def distill(*arguments: str) -> list[str]:
    found = ["distill", "--model", "model", "--device", "cpu", "--workers", "0", "--out", "out"]
    if "--images" not in arguments:
        found += ["--images", "queries", "--held-out", "0.2"]
    if "--teacher-checkpoint" not in arguments:
        found += ["--teacher-checkpoint", "sam.pth"]
    return [*found, "--batch-size", "4", "--image-sizes", "28", "70", "--epochs", "1", *arguments]


# Bad input: what is prepared, the arguments, the exit code, and what the line must name.
Prepare = Callable[[pytest.MonkeyPatch], object]


def nothing(patch: pytest.MonkeyPatch) -> None:
    pass


def offline(patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_HUB_OFFLINE", "1")
    patch.setenv("HF_HUB_CACHE", "cache")


def empty_mask(patch: pytest.MonkeyPatch) -> None:
    Image.fromarray(np.zeros((50, 60), np.uint8)).save("mask.png")


def mask_of_another_size(patch: pytest.MonkeyPatch) -> None:
    Image.fromarray(box_mask(50, 61)).save("mask.png")


def mask_of_labels(patch: pytest.MonkeyPatch) -> None:
    labels = box_mask(50, 60).astype(np.uint8)
    labels[:5] = 2
    labels[5:9] = 3
    Image.fromarray(labels).save("mask.png")


def truncated(name: str) -> Prepare:
    def prepare(patch: pytest.MonkeyPatch) -> None:
        content = Path(name).read_bytes()
        Path(name).unlink()
        Path(name).write_bytes(content[: len(content) // 2])

    return prepare


def bomb(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)


def own_model(change: Callable[[Path], object]) -> Prepare:
    def prepare(patch: pytest.MonkeyPatch) -> None:
        shutil.copytree(Path("model").resolve(), "mine")
        change(Path("mine"))

    return prepare


def set_variant(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "variant": "fulll"}))


def cut_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def foreign_weights(folder: Path) -> None:
    from safetensors.torch import save_file

    save_file({"layer.weight": torch.zeros(2)}, folder / "model.safetensors")


def weights_with_nan(folder: Path) -> None:
    state = safetensors.torch.load_file(folder / "model.safetensors")
    state["encoder.vit.norm.bias"][3] = torch.nan
    safetensors.torch.save_file(state, folder / "model.safetensors", {"format": "pt"})


def nan_in_support(patch: pytest.MonkeyPatch) -> None:
    support = tiny_model().encode_support([picture(50, 60, 1)], [box_mask(50, 60)])
    mask = support.masks[0] * torch.nan
    dataclasses.replace(support, masks=(mask,)).save("nan.safetensors")


def damaged_call(patch: pytest.MonkeyPatch) -> None:
    Path("out").mkdir()
    Path("out/segment.json").write_bytes(b"\0" * 20)


def foreign_pickle(patch: pytest.MonkeyPatch) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, ("touch executed",)

    Path("evil.pth").write_bytes(pickle.dumps({"weight": Evil()}))


MINE = ("--model", "mine")
BAD_INPUT = {
    "empty mask": (empty_mask, segment(), 1, ["mask.png", "no foreground"]),
    "mask of another size": (mask_of_another_size, segment(), 2, ["mask.png", "61", "60"]),
    "mask of labels": (mask_of_labels, segment(), 1, ["mask.png", "0, 1, 2, 3"]),
    "no support": (nothing, ["segment", "--query", "queries", "--out", "out"], 2, ["no support"]),
    "masks missing": (nothing, segment(support=("a.png", "mask.png", "b.png")), 2, ["3 files"]),
    "support of another model": (
        nothing,
        segment(support=("other.safetensors",)),
        2,
        ["another model", "encode it again"],
    ),
    "corrupt support image": (truncated("a.png"), segment(), 1, ["a.png", "truncated"]),
    "corrupt query": (truncated("queries/3.png"), segment(), 1, ["3.png", "truncated"]),
    "corrupt saved support": (
        truncated("model.safetensors"),
        segment(support=("model.safetensors",)),
        1,
        ["model.safetensors", "damaged"],
    ),
    "decompression bomb": (bomb, segment(), 1, ["a.png", "3000 pixels", "make it smaller"]),
    "folder for a support": (nothing, segment(support=("queries", "mask.png")), 2, ["queries"]),
    "file for --out": (nothing, segment("--out", "a.png"), 2, ["--out a.png", "folder"]),
    "folder for --save-support": (
        lambda patch: Path("s.safetensors").mkdir(),
        segment("--save-support", "s.safetensors"),
        2,
        ["s.safetensors", "folder"],
    ),
    "missing query": (nothing, segment("--query", "gone.png"), 2, ["gone.png", "no such file"]),
    "empty query folder": (
        lambda patch: Path("empty").mkdir(),
        segment("--query", "empty"),
        2,
        ["empty", "no image"],
    ),
    "unknown model": (nothing, segment("--model", "nope"), 2, ["'nope'", "choose"]),
    "unknown variant": (own_model(set_variant), segment(*MINE), 1, ["'fulll'", "training_free"]),
    "corrupt checkpoint": (own_model(cut_weights), segment(*MINE), 1, ["model.safetensors"]),
    "foreign checkpoint": (own_model(foreign_weights), segment(*MINE), 1, ["layer.weight"]),
    "foreign pickle": (
        foreign_pickle,
        ["segment", "--support", "a.png", "mask.png", "--query", "queries", "--out", "out",
         "--model", "dinov2-s", "--weights", "evil.pth"],
        1,
        ["evil.pth", "cannot be read safely"],
    ),
    "DINOv2 without weights": (
        offline,
        segment("--model", "dinov2-s"),
        2,
        ["'dinov2-s'", "HF_HUB_OFFLINE", "dinov2_vits14_pretrain.pth", "--weights FILE"],
    ),
    "DINOv2's missing file": (
        nothing, segment("--model", "dinov2-s", "--weights", "x.pth"), 2, ["x.pth", "no such file"]
    ),
    "a size beside a model": (
        nothing, segment("--image-size", "500"), 2, ["--image-size 500", "dinov2-b", "'model'"]
    ),
    "a size of the default model": (
        nothing,
        ["segment", "--support", "a.png", "mask.png", "--query", "queries", "--out", "out",
         "--image-size", "518"], 2, ["--image-size 518", "--model", "fsdino-photo"],
    ),
    "weights beside a model": (
        nothing, segment("--weights", "y.pth"), 2, ["--weights y.pth", "dinov2-b", "'model'"]
    ),
    "weights to evaluate beside a model": (
        nothing, ["evaluate", "model", "--weights", "y.pth"], 2, ["--weights y.pth", "dinov2-b"]
    ),
    "DINOv2 to evaluate without weights": (
        offline, ["evaluate", "dinov2-b-reg"], 2, ["'dinov2-b-reg'", "_reg4_pretrain.pth"]
    ),
    "DINOv2 to describe without weights": (offline, ["info", "dinov2-b"], 2, ["--weights FILE"]),
    "an encoder to train on that is not here": (
        offline, ["train", "dinov2-b-coco20i", "--out", "out", "--encoder-from", "dinov2-b"], 2,
        ["'dinov2-b'", "dinov2_vitb14_pretrain.pth"],
    ),
    "a model to download": (
        offline, ["models", "--download", "dinov2-l"], 2, ["'dinov2-l'", "HF_HUB_OFFLINE"]
    ),
    "an unknown model to download": (
        nothing, ["models", "--download", "dinov3-l"], 2, ["'dinov3-l'", "dinov2-l"]
    ),
    "a floating type": (
        nothing, segment("--dtype", "float8"), 2, ["'float8'", "float32, float16, bfloat16"]
    ),
    "a floating type to evaluate": (
        nothing, ["evaluate", "model", "--dtype", "float64"], 2, ["'float64'", "bfloat16"]
    ),
    "a floating type to time": (nothing, ["benchmark", "--dtype", "int8"], 2, ["'int8'"]),
    "no pixels at most": (nothing, segment("--max-megapixels", "0"), 2, ["--max-megapixels", "0"]),
    "NaN pixels at most": (nothing, segment("--max-megapixels", "nan"), 2, ["--max-megapixels"]),
    "a support to save nowhere": (
        nothing, segment("--save-support", "gone/s.safetensors"), 2, ["gone", "no such folder"]
    ),
    "NaN in the weights": (own_model(weights_with_nan), segment(*MINE), 1, ["weights", "NaN"]),
    "NaN in a saved support": (
        nan_in_support, segment(support=("nan.safetensors",)), 1, ["nan.safetensors", "NaN"]
    ),
    "a damaged segment.json": (
        damaged_call, segment(), 2, ["segment.json", "damaged", "--out", "--overwrite"]
    ),
    "threshold": (nothing, segment("--threshold", "1.5"), 2, ["threshold", "1.5"]),
    "device": (nothing, segment("--device", "cuda:99"), 2, ["cuda:99", "cpu"]),
    "unknown protocol": (nothing, ["evaluate", "model", "--protocol", "best"], 2, ["'best'"]),
    "unknown data": (nothing, ["evaluate", "model", "--data", "ade20k"], 2, ["'ade20k'"]),
    "no root": (nothing, ["evaluate", "model", "--data", "coco20i"], 2, ["--root"]),
    "fold out of range": (nothing, ["evaluate", "model", "--fold", "9"], 2, ["fold 9"]),
    "no shots": (nothing, ["evaluate", "model", "--shots", "0"], 2, ["shots 0"]),
    "no size": (nothing, ["evaluate", "model", "--image-size", "0"], 2, ["size 0", "at least"]),
    "an unfit size": (nothing, ["evaluate", "model", "--image-size", "71"], 2, ["71", "14"]),
    "nothing to compare": (nothing, ["evaluate", "--compare", "a.json", "b.json"], 2, ["a.json"]),
    "a foreign result": (nothing, ["evaluate", "--compare", "a.png", "a.png"], 1, ["a.png"]),
    "shots of a video": (
        nothing, ["evaluate", "--data", "davis17", "--shots", "5"], 2, ["davis17", "--shots"]
    ),
    "memory of episodes": (nothing, ["evaluate", "--memory", "2"], 2, ["--memory"]),
    "videos without out": (nothing, ["evaluate", "model", "--data", "davis17"], 2, ["--out"]),
    "distill without images": (nothing, distill("--images"), 2, ["--images"]),
    "distill without a model": (
        nothing, ["distill", "--out", "out"], 2, ["--model", "--encoder-weights"]
    ),
    "distill from missing images": (nothing, distill("--images", "gone"), 2, ["gone", "no such"]),
    "distill without a teacher": (
        nothing, ["distill", "--model", "model", "--images", "queries", "--out", "out"], 2,
        ["--teacher-checkpoint"],
    ),
    "a picture as a teacher": (
        nothing, distill("--teacher-checkpoint", "a.png"), 1, ["a.png", "an image, not weights"]
    ),
    "a size of no patch": (nothing, distill("--image-sizes", "30"), 2, ["14 pixels", "30"]),
    "no share held out": (nothing, distill("--held-out", "0"), 2, ["held_out", "0"]),
    "distill on random features": (
        nothing,
        ["distill", "distill-dinov2-s", "--images", "queries", "--teacher-checkpoint", "sam.pth",
         "--out", "out"], 2, ["random weights", "--encoder-weights"],
    ),
    "a recipe of the other stage": (
        nothing, ["train", "distill-dinov2-s", "--out", "out"], 2,
        ["'distill-dinov2-s'", "fsdino distill", "fsdino-tiny"],
    ),
    "a recipe of the first stage": (
        nothing, ["distill", "dinov2-s-coco20i", "--out", "out"], 2,
        ["'dinov2-s-coco20i'", "fsdino train", "distill-dinov2-s"],
    ),
    "unknown recipe": (nothing, ["train", "nope", "--out", "out"], 2, ["'nope'", "YAML"]),
    "unknown workload": (nothing, ["benchmark", "--workloads", "W5"], 2, ["'W5'", "W6"]),
    "unknown model of info": (nothing, ["info", "nope"], 2, ["'nope'"]),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, monkeypatch, capsys, workplace):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no rubbish."""
    prepare, arguments, code, words = BAD_INPUT[case]
    prepare(monkeypatch)
    before = set(visible_and_hidden(workplace))
    assert cli.main(arguments) == code
    line = error_line(capsys)
    for word in words:
        assert word in line
    assert not Path("executed").exists()
    written = set(visible_and_hidden(workplace)) - before
    if case == "corrupt query":  # the nine others are there, whole
        assert len([name for name in written if name.startswith("out/masks/")]) == 9
    else:
        assert written == set()


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no write permission")],
)
def test_unwritable_results_keep_the_others(number, words, monkeypatch, capsys, workplace):
    """When the third result cannot be written, two are whole and nothing is half-written."""
    real, files = os.fsync, []

    def fails(descriptor: int) -> None:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            files.append(descriptor)
        if len(files) > 5:  # segment.json, two masks and two overlays
            raise OSError(number, os.strerror(number))
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fails)
        assert cli.main(segment()) == 1
    line = error_line(capsys)
    assert words in line
    assert "2 of 10 queries are done and kept in out" in line
    assert visible_and_hidden(workplace / "out") == [
        "masks/0.png", "masks/1.png", "overlays/0.jpg", "overlays/1.jpg",
        "results.jsonl", "segment.json",
    ]  # fmt: skip
    assert cli.main([*segment(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["resumed"] == 2


def test_an_unwritable_folder_is_one_line(capsys, monkeypatch):
    """No permission to create --out."""

    def denied(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    assert cli.main(segment()) == 1
    line = error_line(capsys)
    assert "cannot create out: Permission denied" in line
    assert "--out" in line


INTERRUPT = """
import os, signal, pathlib
from fsdino import images
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
read, count = images.read_image, []
def patched(image, name):
    if isinstance(image, pathlib.Path):
        count.append(image)
        if len(count) == 10:
            os.kill(os.getpid(), signal.SIGINT)
    return read(image, name)
images.read_image = patched
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_ctrl_c_keeps_what_is_done(workplace, capsys):
    """A real SIGINT: one line with the way on, whole files only; the same call does the rest."""
    finished = subprocess.run(
        command(*segment(), code=INTERRUPT),
        env=environment(),
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 130, finished.stderr
    last = finished.stderr.splitlines()[-1]
    assert last == (
        "fsdino: interrupted: 8 of 10 queries are done and kept in out; "
        "the same command does the rest"
    )
    assert "Traceback" not in finished.stderr
    names = visible_and_hidden(workplace / "out")
    assert len(names) == 2 + 2 * 8
    assert not any(Path(name).name.startswith(".") for name in names)
    assert cli.main([*segment(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["resumed"], len(found["queries"])) == (8, 10)


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


def test_segment_answers_in_json_alone(capsys):
    """stdout is one JSON object whose masks are those of the Python interface."""
    assert cli.main(segment("--threshold", "0.4", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    model = fsdino.load("model")
    support = model.encode_support(["a.png"], ["mask.png"])
    assert found["model"] == model.fingerprint()
    assert len(found["queries"]) == 10
    for row in found["queries"]:
        expected = model.segment(row["query"], support, threshold=0.4).mask
        with Image.open(row["mask"]) as mask:
            assert np.array_equal(np.array(mask), np.where(expected, 255, 0))
        assert row["foreground"] == pytest.approx(expected.mean(), abs=1e-6)


def test_segment_says_what_was_left_out(capsys):
    """Files of a query folder that are no images are counted, with reasons, also in JSON."""
    Path("queries/sub").mkdir()
    Image.fromarray(picture(20, 20)).save("queries/sub/0.jfif", format="JPEG")
    Path("queries/sub/notes.txt").write_text("hello")
    assert cli.main(segment("--json")) == 0
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert len(found["queries"]) == 11
    assert found["left_out"] == [{"file": "queries/sub/notes.txt", "reason": "text"}]
    assert "1 of 12 files left out: queries/sub/notes.txt (text)" in err
    assert cli.main(segment()) == 0
    assert "11 masks and overlays in out, 11 of them from before; 1 files left out" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_pixel_limit_can_be_raised(capsys, monkeypatch):
    """And lowered; the setting of the process stays what it was."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # two thousand is more than the limit
    Image.fromarray(picture(100, 40, 3)).save("b.png")
    assert cli.main(segment("--query", "b.png")) == 1
    assert "--max-megapixels" in error_line(capsys)
    assert cli.main(segment("--query", "b.png", "--max-megapixels", "0.004")) == 0
    assert cli.main(segment("--query", "a.png", "--max-megapixels", "0.002")) == 1
    assert "limit of 2000 pixels" in error_line(capsys)
    assert Image.MAX_IMAGE_PIXELS == 1500


def test_segment_refuses_a_folder_in_use(capsys, workplace):
    """A second call says who is there, changes nothing, and works once the first has ended."""
    holder = subprocess.Popen(
        command(code=HOLD),
        env=environment(), cwd=workplace, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    before = visible_and_hidden(workplace)
    for more in ((), ("--overwrite",)):
        assert cli.main(segment(*more, "--save-support", "new.safetensors")) == 2
        line = error_line(capsys)
        assert f"--out out is in use by process {holder.pid} on " in line
        assert "pass another --out" in line
        assert visible_and_hidden(workplace) == before
    holder.communicate("")
    assert cli.main(segment("--overwrite")) == 0
    assert "segment.lock" not in os.listdir("out")


HOLD = """
import pathlib
from fsdino.commands.segment.output import Output
output = Output(pathlib.Path("out"), {})
print("held", flush=True)
sys.stdin.read()
sys.exit(0)
"""


def test_two_calls_that_save_a_support_to_one_file(capsys):
    """The second is refused before it has written anything."""
    with supports.saving(Path("kept.safetensors")):
        assert cli.main(segment("--save-support", "kept.safetensors")) == 2
    assert f"kept.safetensors is in use by process {os.getpid()}" in error_line(capsys)
    assert not Path("out").exists()
    assert cli.main(segment("--save-support", "kept.safetensors")) == 0
    assert not Path("kept.safetensors.lock").exists()


def test_segment_prints_a_table(capsys):
    """For people: queries with their share of foreground, and where the masks are."""
    assert cli.main(segment("--query", "b.png", "queries/0.png")) == 0
    out = capsys.readouterr().out
    assert "b.png" in out
    assert "2 masks and overlays in out" in out


def test_each_supports_quality_is_told_and_stored(capsys):
    """With two decimals, by name; the number of the Python interface in JSON and in the file."""
    model = fsdino.load("model")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = [
            model.encode_support(image, "mask.png", quality=True).quality
            for image in ("a.png", "b.png")
        ]
    query = ("--query", "b.png")
    assert cli.main(segment(*query, "--save-support", "kept.safetensors")) == 0
    assert f"quality of the support: {expected[0]:.2f}" in capsys.readouterr().out
    assert Support.load("kept.safetensors").quality == pytest.approx(expected[0])
    named = segment(*query, "--out", "both", support=("x=kept.safetensors",))
    named += ["--support", "y=b.png", "mask.png", "--support", "z=model.safetensors"]
    assert cli.main(named) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == [
        f"quality of support '{name}': {value:.2f}"
        for name, value in zip("xy", expected, strict=True)
    ]
    assert lines[2] == "quality of support 'z': not known"
    assert cli.main([*named, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["quality"] == {
        "x": pytest.approx(expected[0]), "y": pytest.approx(expected[1]), "z": None
    }  # fmt: skip


def test_a_poor_support_is_warned_of_in_the_command_lines_way(capsys, monkeypatch):
    """Once for each support, also for a saved one, without Python's own warning."""
    monkeypatch.setattr(segmenter, "LEAST_QUALITY", 1.01)
    assert cli.main(segment("--query", "b.png", "--save-support", "kept.safetensors")) == 0
    [line, _progress] = capsys.readouterr().err.splitlines()
    assert line.startswith("fsdino: warning: the support finds itself with an IoU of 0.")
    assert "more examples" in line
    arguments = ["--support", "x=a.png", "mask.png", "--support", "y=kept.safetensors"]
    assert cli.main(["segment", *arguments, "--model", "model", "--check-support", "--json"]) == 0
    out, err = capsys.readouterr()
    assert len(json.loads(out)["quality"]) == 2
    assert [line.split(" finds")[0] for line in err.splitlines()] == [
        "fsdino: warning: support 'x'", "fsdino: warning: support 'y'"
    ]  # fmt: skip


def test_check_support_does_only_this(capsys, workplace):
    """Neither queries nor a folder are needed, nothing is written but what is to be saved."""
    before = visible_and_hidden(workplace)
    check = ["segment", "--model", "model", "--device", "cpu", "--check-support"]
    pair = ["--support", "a.png", "mask.png"]
    assert cli.main([*check, *pair]) == 0
    [line] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"quality of the support: 0\.\d\d", line)
    assert cli.main([*check, *pair, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert f"{found['quality']['foreground']:.2f}" == line[-4:]
    assert found["model"] == fsdino.load("model").fingerprint()
    assert cli.main([*check, "--support", "model.safetensors"]) == 0
    assert capsys.readouterr().out == "quality of the support: not known\n"
    assert visible_and_hidden(workplace) == before
    assert cli.main([*check, "--support", "other.safetensors"]) == 2
    assert "another model" in error_line(capsys)
    assert cli.main([*check, *pair, "--save-support", "new.safetensors"]) == 0
    assert f"{Support.load('new.safetensors').quality:.2f}" == line[-4:]


def test_results_need_a_folder(capsys):
    assert cli.main(["segment", "--support", "a.png", "mask.png", "--query", "queries"]) == 2
    assert "no --out given" in error_line(capsys)


def test_saved_supports_give_the_same_masks(capsys):
    """--save-support writes what --support takes; it also works beside others, with names."""
    query = ("--query", "b.png")
    assert cli.main(segment(*query, "--save-support", "kept.safetensors")) == 0
    assert cli.main(segment(*query, "--out", "again", support=("kept.safetensors",))) == 0
    assert Path("out/masks/b.png").read_bytes() == Path("again/masks/b.png").read_bytes()
    capsys.readouterr()
    named = segment(*query, "--json", "--out", "both", support=("x=kept.safetensors",))
    assert cli.main([*named, "--support", "y=b.png", "mask.png"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert set(found["queries"][0]["classes"]) == set(found["support"]) == {"x", "y"}


def test_another_call_is_refused_and_overwrite_allows_it(capsys):
    """Results of different thresholds do not mix in a folder."""
    query = ("--query", "b.png")
    assert cli.main(segment(*query)) == 0
    capsys.readouterr()
    assert cli.main(segment(*query, "--threshold", "0.3")) == 2
    line = error_line(capsys)
    assert "threshold" in line
    assert "--overwrite" in line
    assert cli.main(segment(*query, "--threshold", "0.3", "--overwrite")) == 0


def test_tiles_are_used(capsys, monkeypatch):
    """--tiles reaches the model."""
    used = []
    original = Segmenter.segment

    def spying(self: Segmenter, query: Any, support: Any, **options: Any) -> Any:
        used.append(options.get("tiles"))
        return original(self, query, support, **options)

    monkeypatch.setattr(Segmenter, "segment", spying)
    assert cli.main(segment("--query", "b.png", "--tiles")) == 0
    assert used[-1] is True


@pytest.fixture
def small_dinov2(monkeypatch: pytest.MonkeyPatch) -> FSDINO:
    """The model that dinov2-s is, on an encoder of four blocks, whose weights are dinov2.pth."""
    encoder = tiny_model(5).encoder
    torch.save(encoder.vit.state_dict(), "dinov2.pth")
    real = ModelConfig.__post_init__

    def shrunk(self: ModelConfig) -> None:
        if self.encoder == "vit_small_patch14_dinov2.lvd142m":
            object.__setattr__(self, "encoder_args", SMALL)
        real(self)

    monkeypatch.setattr(ModelConfig, "__post_init__", shrunk)
    config = ModelConfig("vit_small_patch14_dinov2.lvd142m", variant="training_free", image_size=70)
    return zoo.assemble(config, encoder).eval()


def test_dinov2_weights_without_training(small_dinov2: FSDINO, monkeypatch: pytest.MonkeyPatch):
    """--model dinov2-s with Meta's weights is the training-free model on exactly those weights."""
    offline(monkeypatch)
    arguments = ["segment", "--support", "a.png", "mask.png", "--query", "b.png", "--out", "out"]
    arguments += ["--model", "dinov2-s", "--weights", "dinov2.pth"]
    assert cli.main([*arguments, "--image-size", "70", "--device", "cpu"]) == 0
    support = small_dinov2.encode_support(["a.png"], ["mask.png"])
    with Image.open("out/masks/b.png") as mask:
        assert np.array_equal(np.array(mask) > 0, small_dinov2.segment("b.png", support).mask)


@pytest.fixture
def recipe(workplace: Path) -> str:
    """A run of four short steps."""
    model = {
        **tiny_config().to_dict(),
        "encoder": "vit_tiny_patch16_224",
        "encoder_args": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 4,
                         "num_heads": 2},
        "image_size": 32,
    }  # fmt: skip
    settings = {
        "model": {k: list(v) if isinstance(v, tuple) else v for k, v in model.items()},
        "images_per_step": 4,
        "steps": 100,
        "fold": 3,
        "workers": 0,
        "train_encoder": True,
        "validation_episodes": 2,
    }
    (workplace / "recipe.yaml").write_text(yaml.safe_dump(settings))
    return "recipe.yaml"


def test_train_runs_resumes_and_gives_a_model(recipe, capsys, workplace):
    """Options override the recipe; the parts are listed; the result can be loaded."""
    arguments = ["train", recipe, "--out", "run", "--steps", "3", "--checkpoint-every", "2"]
    assert cli.main(arguments) == 0
    captured = capsys.readouterr()
    assert "3/3 steps" in captured.err
    assert "loss" in captured.err
    for part in ("encoder", "adapter", "decoder"):
        assert part in captured.out
    assert yaml.safe_load(Path("run/config.yaml").read_text())["steps"] == 3
    assert fsdino.load("run/model").config.image_size == 32
    assert cli.main(arguments) == 2
    assert "--resume" in error_line(capsys)
    assert cli.main([*arguments, "--resume"]) == 0


def test_interrupted_training_says_how_to_go_on(recipe, capsys, monkeypatch):
    """Ctrl-C names the step that is kept and the option that continues."""
    from fsdino.training.meta import train as meta

    original = meta.Trainer._step

    def interrupted(self: Any, step: int, batch: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, batch)

    monkeypatch.setattr(meta.Trainer, "_step", interrupted)
    arguments = ["train", recipe, "--out", "run", "--steps", "4", "--checkpoint-every", "2"]
    assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume goes on"
    )
    monkeypatch.setattr(meta.Trainer, "_step", original)
    assert cli.main([*arguments, "--resume"]) == 0
    assert "resuming run at step 2" in capsys.readouterr().err


def test_train_options_are_settings_of_a_run():
    """Every option of `fsdino train` changes the setting of the same name."""
    options = {field.name for field in dataclasses.fields(Train)}
    settings = {field.name for field in dataclasses.fields(TrainConfig)}
    of_their_own = {"recipe", "out", "resume", "variant", "without", "adapter", "decoder"}
    assert options - of_their_own - {"no_validation"} <= settings


def test_train_options_switch_parts_and_override(recipe):
    """Zero is a value, too; parts of the prompts and what learns are chosen by name."""
    command = Train(
        recipe=recipe, out=Path("run"), fold=0, seed=0, workers=0, without=("svp", "4d"),
        adapter="trained", decoder="frozen", variant="comp", shots=(1, 5), images_per_step=12,
        episodes_per_batch="3", root=Path("data"), skip_bad=True,
    )  # fmt: skip
    config = command.configure()
    assert (config.fold, config.shots, config.episodes_per_batch) == (0, (1, 5), 3)
    assert (config.root, config.skip_bad, config.steps) == ("data", True, 100)
    assert config.train_adapter and not config.train_decoder and config.train_encoder
    model = config.model
    assert (model.variant, model.visual_prompt, model.correlation_prompt) == ("comp", False, False)
    assert model.cosine_prompt and model.contrastive
    unchanged = Train(recipe=recipe, out=Path("run")).configure()
    assert unchanged == TrainConfig.from_yaml(Path(recipe))


def test_training_on_random_features_is_refused(recipe, capsys, caplog):
    """A run of days on a recipe without the weights that it needs would find nothing."""
    assert cli.main(["train", "dinov2-b-coco20i", "--root", "data", "--out", "run"]) == 2
    assert "random weights: pass --encoder-weights" in error_line(capsys)
    assert not Path("run").exists()
    command = Train(recipe="dinov2-b-coco20i", out=Path("run"), encoder_weights=Path("b.pth"))
    assert command.configure().encoder_weights == "b.pth"
    assert "the adapter is frozen and has random weights" in caplog.text
    caplog.clear()
    command = Train(recipe="dinov2-b-coco20i", out=Path("run"), start_from="model")
    assert command.configure().start_from == "model" and not caplog.text


def test_ctrl_c_writes_a_checkpoint_and_says_so(recipe, capsys, monkeypatch):
    """The signal itself: the step that was going on is kept, though no checkpoint was due."""
    from fsdino.training.meta import train as meta

    original = meta.Trainer._step

    def interrupted(self: Any, number: int, step: Any) -> float:
        if number == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, number, step)

    monkeypatch.setattr(meta.Trainer, "_step", interrupted)
    arguments = ["train", recipe, "--out", "run", "--steps", "4"]
    assert cli.main(arguments) == 130
    lines = capsys.readouterr().err.splitlines()
    assert "fsdino: stopping after this step; Ctrl-C again stops at once" in lines
    assert lines[-1] == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume goes on"
    )


TERMINATED = """
import os, signal, time
from fsdino.training.meta import train as meta

signalled = [signal.NAME]
original = meta.Trainer._step

def terminated(self, number, step):
    if number == 1 and signalled:
        os.killpg(0, signalled.pop())
        time.sleep(0.5)
    return original(self, number, step)

meta.Trainer._step = terminated
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_to_all_processes_writes_a_checkpoint(recipe, workplace, name):
    """torchrun, clusters and terminals send it to a whole group; the step needs the workers."""
    code = TERMINATED.replace("NAME", name)
    done = subprocess.run(
        command("train", recipe, "--out", "run", "--workers", "2", code=code),
        env=environment(),
        cwd=workplace,
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,
        timeout=300,
    )
    assert done.stderr.splitlines()[-1] == (
        "fsdino: interrupted: step 2 is kept in run; the same command with --resume goes on"
    )
    assert done.returncode == 130


TINY_RUNS = ("fsdino-tiny-base", "fsdino-tiny-invented", "fsdino-tiny")


def test_shipped_recipes_are_found_by_name_and_can_be_read():
    """`fsdino train NAME` needs no path; a stage-1 recipe fits those of stage 2."""
    names = {path.stem for path in RECIPES.glob("*.yaml")}
    sizes = {"s": "small", "b": "base", "l": "large"}
    benchmarks = {f"dinov2-{size}-{data}" for size in sizes for data in ("pascal5i", "coco20i")}
    distilled = (f"distill-dinov2-{size}" for size in sizes)
    assert names == {*TINY_RUNS, "fsdino-photo", *benchmarks, *distilled}
    for size, long in sizes.items():
        first = stage_one(f"distill-dinov2-{size}")
        assert first.model.encoder == f"vit_{long}_patch14_dinov2.lvd142m"
        assert (first.image_sizes, first.teacher, first.percent) == ((126, 252, 518), "vit_h", 1)
        for data in ("pascal5i", "coco20i"):
            second = stage_two(f"dinov2-{size}-{data}")
            assert (second.model, second.data) == (first.model, data)  # it takes that adapter


def test_three_runs_give_the_bundled_model():
    """Each run goes on from the one before, as their heads say; none sees the fold of the demo."""
    before = None
    for name in TINY_RUNS:
        head = (RECIPES / f"{name}.yaml").read_text().split("\nmodel:")[0].splitlines()
        commands = [line.split(" train ")[1] for line in head if line.startswith("# torchrun")]
        runs = [tyro.cli(Train, args=command.split()) for command in commands]
        assert [run.recipe for run in runs] == list(TINY_RUNS)
        config = stage_two(name)
        assert config.start_from == before and config.fold == drawings.FOLD
        assert config.model == stage_two(TINY_RUNS[0]).model
        before = str(runs[TINY_RUNS.index(name)].out / "model")


def stage_one(name: str) -> DistillConfig:
    """A recipe that ships for `fsdino distill`."""
    return DistillConfig.from_yaml(find_recipe(name, "distill"))


def stage_two(name: str) -> TrainConfig:
    """A recipe that ships for `fsdino train`."""
    return TrainConfig.from_yaml(find_recipe(name, "train"))


def test_commands_in_recipes_are_those_that_run_them():
    """What the head of a recipe says can be pasted: both stages, with files that fit together."""
    for name in (path.stem for path in RECIPES.glob("*dinov2-*.yaml")):
        text = (RECIPES / f"{name}.yaml").read_text()
        head = " ".join(line[1:].strip(" \\") for line in text.splitlines() if line[:4] == "#   ")
        distill, *train = head.split("fsdino train ")
        words = distill.split()
        first = tyro.cli(Distill, args=words[2:])
        assert words[:2] == ["fsdino", "distill"] and first.recipe.startswith("distill-")
        first.configure()
        assert train or first.recipe == name
        for arguments in train:
            second = tyro.cli(Train, args=arguments.split())
            assert second.recipe == name
            assert second.adapter_weights == first.out / ADAPTER_FILE
            assert second.configure().encoder_weights == str(first.encoder_weights)


def test_distill_gives_what_train_takes(capsys):
    """stdout is one JSON object; both stages, one after the other, by commands alone."""
    assert cli.main(distill("--json", "--percent", "100")) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert [stage["image_size"] for stage in result["stages"]] == [28, 70]
    assert result["images"] + result["held_out"] == 10
    for words in ("teacher's embeddings of 10 images: at most", "10/10 images", "held-out cosine"):
        assert words in captured.err
    recipe = {"model": tiny_config().to_dict(), "encoder_from": "model", "fold": 3, "workers": 0,
              "images_per_step": 4, "validation_episodes": 2}  # fmt: skip
    Path("stage2.yaml").write_text(yaml.safe_dump(recipe))
    arguments = ["train", "stage2.yaml", "--out", "run", "--steps", "1", "--device", "cpu"]
    assert cli.main([*arguments, "--adapter-weights", result["adapter"]]) == 0
    adapter = safetensors.torch.load_file(result["adapter"])
    trained = fsdino.load("run/model").state_dict()
    assert all(torch.equal(trained[f"adapter.{name}"], value) for name, value in adapter.items())


def test_interrupted_distillation_says_how_to_go_on(capsys, monkeypatch):
    """Ctrl-C names the step that is kept; --resume ends with the table."""
    from fsdino.training.distillation import distill as module

    original = module.Distillation._step

    def interrupted(self: Any, step: int, pairs: Any) -> float:
        if step == 3:
            raise KeyboardInterrupt
        return original(self, step, pairs)

    arguments = distill("--checkpoint-every", "1", "--no-cache")
    with monkeypatch.context() as patch:
        patch.setattr(module.Distillation, "_step", interrupted)
        assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: step 3 is kept in out; the same command with --resume goes on"
    )
    assert cli.main(arguments) == 2
    assert "--resume" in error_line(capsys)
    assert cli.main([*arguments, "--resume"]) == 0
    captured = capsys.readouterr()
    assert "resuming out at step 3" in captured.err
    for word in ("held-out MSE", "held-out cosine", "out/adapter.safetensors"):
        assert word in captured.out


def test_distill_options_are_settings_of_a_run():
    """Every option of `fsdino distill` changes the setting of the same name."""
    options = {field.name for field in dataclasses.fields(Distill)}
    settings = {field.name for field in dataclasses.fields(DistillConfig)}
    others = {"recipe", "out", "resume", "as_json", "encoder", "no_cache"}
    assert options - others <= settings


def test_distill_from_a_recipe(capsys):
    """Options change what the recipe says, except for its model."""
    recipe = {"model": tiny_config().to_dict(), "images": ["queries"], "percent": 50.0,
              "teacher_checkpoint": "sam.pth", "encoder_from": "model"}  # fmt: skip
    Path("stage1.yaml").write_text(yaml.safe_dump(recipe))
    config = Distill(recipe="stage1.yaml", out=Path("out"), percent=25.0, no_cache=True)
    expected = DistillConfig(
        tiny_config(), ("queries",), "sam.pth", encoder_from="model", percent=25.0, use_cache=False
    )
    assert config.configure() == expected
    assert cli.main(["distill", "stage1.yaml", "--model", "model", "--out", "out"]) == 2
    assert "leave out --model" in error_line(capsys)


def evaluate(*arguments: str) -> list[str]:
    return ["evaluate", "model", "--device", "cpu", "--workers", "0", *arguments]


def test_evaluate_prints_a_table_and_goes_on(capsys):
    """Metrics and classes; the same command again does no episode twice and prints the same."""
    arguments = evaluate("--episodes", "24", "--shots", "2", "--fusion", "vote", "--out", "r.json")
    assert cli.main(arguments) == 0
    first = capsys.readouterr()
    assert "protocol hsnet-seeded, 24 episodes, generated lists" in first.out
    for word in ("mIoU", "FB-IoU", "Dice", "boundary IoU", "class"):
        assert word in first.out
    assert "24/24 episodes" in first.err and "mIoU" in first.err
    assert cli.main(arguments) == 0
    again = capsys.readouterr()
    assert again.out == first.out and "episodes/s" not in again.err


def test_a_second_evaluation_into_one_result_is_refused(capsys):
    """Exit code 2, and who holds it; afterwards the same command works."""
    arguments = evaluate("--episodes", "2", "--out", "r.json")
    with journal.lock(Path("r.json")):
        assert cli.main(arguments) == cli.main([*arguments, "--overwrite"]) == 2
        for line in capsys.readouterr().err.splitlines():
            assert f"result r.json is in use by process {os.getpid()} on " in line
            assert line.endswith("wait for its end or stop it, or pass another --out")
    assert not Path("r.json").exists()
    assert cli.main(arguments) == 0 and Path("r.json").exists()


def test_an_interrupted_evaluation_exits_130_and_goes_on(capsys, monkeypatch):
    """What is done is kept, and no lock is left."""
    arguments = evaluate("--episodes", "4", "--batch-size", "1", "--out", "r.json")
    append, done = journal.Journal.append, []

    def interrupted(self: Any, rows: Any) -> None:
        append(self, rows)
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(journal.Journal, "append", interrupted)
        assert cli.main(arguments) == 130
    assert error_line(capsys) == (
        "fsdino: interrupted: 2 episodes are done and kept beside r.json; the same command does "
        "the rest"
    )
    assert sorted(path.name for path in Path().glob("r.*")) == ["r.part0.jsonl"]
    assert cli.main(arguments) == 0


def test_evaluate_says_what_the_model_was_selected_on(capsys):
    """A model that was chosen by the held-out classes is not shown as if it had not been."""
    model = tiny_model()
    for chosen in ("base classes", "novel classes of the fold"):
        model.provenance = {"data": "procedural", "fold": 0, "selected_on": chosen}
        model.save_pretrained("model")
        assert cli.main(evaluate("--episodes", "1", "--out", f"{chosen[:4]}.json")) == 0
        said = "was selected on the novel classes of the fold" in capsys.readouterr().out
        assert said == (chosen != "base classes")
        result = json.loads(Path(f"{chosen[:4]}.json").read_text())
        assert result["training"]["selected_on"] == chosen


def test_evaluate_answers_in_json_alone(capsys):
    """Several seeds in one result; progress and notes go to stderr."""
    assert cli.main(evaluate("--episodes", "3", "--seeds", "4", "5", "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["seed"], found["episodes"]) == ([4, 5], 3)
    assert found["protocol"] == "joint-seeded" and found["dataset"] == "procedural"


def test_evaluate_baselines(capsys):
    """The model's encoder alone, by prototypes and by 4D matching: results of other models."""
    hashes = set()
    for more in ([], ["--matcher", "prototype"], ["--matcher", "correspondence"]):
        assert cli.main(evaluate("--episodes", "2", "--json", *more)) == 0
        found = json.loads(capsys.readouterr().out)
        hashes.add(found["model_hash"])
        assert found["variant"] == ("training_free" if more else "full")
    assert len(hashes) == 3


def test_evaluate_dinov2_by_name(
    small_dinov2: FSDINO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """A name with --weights takes the place of a model, as in `segment`."""
    offline(monkeypatch)
    arguments = ["evaluate", "dinov2-s", "--workers", "0", "--weights", "dinov2.pth",
                 "--image-size", "70", "--episodes", "2", "--device", "cpu", "--json"]  # fmt: skip
    assert cli.main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["model"], found["variant"], found["image_size"]) == (
        "dinov2-s", "training_free", 70,
    )  # fmt: skip
    assert found["model_hash"] == small_dinov2.fingerprint()


def test_models_are_listed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """A table and addresses to copy, or JSON with all that Python says."""
    offline(monkeypatch)
    assert cli.main(["models", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(json.dumps([dataclasses.asdict(m) for m in fsdino.list_models()]))
    assert cli.main(["models"]) == 0
    shown = capsys.readouterr().out
    lines = shown.splitlines()
    for model in fsdino.list_models():
        here = "yes" if model.present else "no"
        [row] = [line.split() for line in lines if line.split()[:2] == [model.name, here]]
        assert f"{model.size / 1e6:,.0f}" in row and model.licence in row
        assert any(line.startswith(model.name) and line.endswith(model.source) for line in lines)


def test_models_are_downloaded(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """By their name, from a hub: then they are here, and a second call fetches nothing."""
    monkeypatch.setenv("HF_HUB_CACHE", "cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with fake_hub.serve(b"weights") as server:
        monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
        for _ in range(2):
            assert cli.main(["models", "--download", "dinov2-g", "--json"]) == 0
            found = json.loads(capsys.readouterr().out)
            assert found["present"] and Path(found["file"]).read_bytes() == b"weights"
        assert server.asked == [("HEAD", None), ("GET", None)]
    assert cli.main(["models", "--download", "fsdino-tiny"]) == 0
    assert "fsdino-tiny is here" in capsys.readouterr().out


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


def test_evaluate_compares(capsys):
    """A table with an interval for every line; the same as JSON."""
    for name, threshold in (("a", "0.5"), ("b", "0.3")):
        out = ("--out", f"{name}.json", "--threshold", threshold)
        assert cli.main(evaluate("--episodes", "48", *out)) == 0
    capsys.readouterr()
    assert cli.main(["evaluate", "--compare", "a.json", "b.json"]) == 0
    table = capsys.readouterr().out
    assert "mIoU" in table and "95 % interval" in table and " ± " in table
    assert cli.main(["evaluate", "--compare", "a.json", "b.json", "--json"]) == 0
    [miou, *_] = json.loads(capsys.readouterr().out)
    assert miou["name"] == "mIoU" and miou["difference"] == miou["second"] - miou["first"]


def test_evaluate_davis(capsys, tmp_path):
    """J&F of each sequence, and where the masks are."""
    data_sets.write_davis(tmp_path / "DAVIS")
    assert cli.main(evaluate("--data", "davis17", "--root", "DAVIS", "--out", "d.json")) == 0
    out = capsys.readouterr().out
    assert "J&F" in out and "bear" in out and "dogs" in out
    assert sorted(path.name for path in Path("d/masks").iterdir()) == ["bear", "dogs"]


def test_data_check_says_what_is_there_and_what_to_fetch(capsys, tmp_path):
    """Every part with its state, counts, damaged files; exit code 1 in one line when incomplete."""
    data_sets.write_voc(tmp_path / "voc", tmp_path / "lists")
    call = ["data", "check", "pascal5i", "--root", "voc", "--splits", "lists"]
    assert cli.main(call) == 0
    out = capsys.readouterr().out
    assert "there      JPEGImages" in out and "fold 1: bus 3, car 3, cat 3, chair 3, cow 3" in out
    assert "not there  SegmentationClass" in out and "get VOCtrainval_11-May-2012.tar" in out
    assert "72 images read with their masks, 0 cannot be used" in out
    Path("voc/JPEGImages/2007_000020.jpg").write_bytes(b"")
    assert cli.main(call) == 1
    captured = capsys.readouterr()
    assert captured.out.count("JPEGImages/2007_000020.jpg: ") == 1
    assert "72 images read (71 of them with a mask), 1 cannot be used" in captured.out
    assert "error: pascal5i is not complete: 1 images cannot be used" in captured.err
    assert cli.main([*call, "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found["bad"]) == ["JPEGImages/2007_000020.jpg"] and found["passed"] is False
    assert cli.main(["data", "check", "coco20i", "--root", "queries"]) == 1
    assert "http://images.cocodataset.org/zips/val2014.zip" in error_line(capsys)
    assert cli.main(["data", "check", "nope", "--root", "voc"]) == 2
    assert "no data set 'nope'" in error_line(capsys)


def test_data_prepare_writes_lists(capsys, tmp_path):
    """What was made, and where, so that it can be passed on as --splits."""
    data_sets.write_voc(tmp_path / "voc", tmp_path / "lists")
    call = ["data", "prepare", "pascal5i", "--root", "voc", "--out", "made"]
    assert cli.main(call) == 0
    assert "made/index.json" in capsys.readouterr().out
    assert Path("made/pascal/trn/fold3.txt").read_text().count("__") == 15
    assert cli.main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"lists": "made", "index": "made/index.json"}
    assert cli.main(["data", "prepare", "folder", "--root", "voc"]) == 0
    assert "nothing to prepare" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["data check", "data prepare"])
def test_data_commands_explain_themselves(name, capsys):
    """--help of the commands below a command, too."""
    assert cli.main([*name.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert f"usage: fsdino {name}" in out and "--root" in out and "{None}" not in out


@pytest.fixture
def mini(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(workloads.WORKLOADS, "mini", MINI)


def test_benchmark_as_table_and_json(mini, capsys):
    """Every backend beside the baseline."""
    arguments = ["benchmark", "--workloads", "mini", "--repeats", "2", "--device", "cpu"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("eager", "reference", "mini, float32, cpu"))
    assert cli.main([*arguments, "--json"]) == 0
    [found] = json.loads(capsys.readouterr().out)["workloads"]
    assert [len(timing["seconds"]) for timing in found["timings"]] == [2] * len(found["timings"])


def test_benchmark_fails_on_wrong_results(mini, capsys, monkeypatch):
    """No time is printed for them, and the exit code says so."""
    monkeypatch.setattr(eager, "chain", lambda inputs: torch.ones(1, 16, 7, 7))
    arguments = ["benchmark", "--workloads", "mini", "--repeats", "1", "--device", "cpu"]
    assert cli.main(arguments) == 1
    captured = capsys.readouterr()
    [row] = [line for line in captured.out.splitlines() if line.split()[:1] == ["eager"]]
    assert row.split() == ["eager", "check", "failed", "–", "–", "–"]
    assert "wrong results, so not timed: eager on mini" in captured.err


def test_info(capsys, monkeypatch):
    """Ops and backends, and a model's configuration and parts, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["info", "model"]) == 0
    out = capsys.readouterr().out
    for op in contract.OPS:
        lines = [line.split() for line in out.splitlines() if line.split()[:1] == [op]]
        assert lines and all("runs" in line for line in lines)  # one for each table
    assert "cuda: no, it runs on NVIDIA GPUs, not on cpu\n" in out
    assert "correlation_channels" in out
    assert fsdino.load("model").fingerprint() in out
    assert cli.main(["info", "model", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"]["parameters"]["decoder"]["trained"] > 0


@pytest.fixture
def stub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An extension that compiles in a moment, in an empty cache."""
    (tmp_path / "stub").mkdir()
    stub_extension.use(monkeypatch, tmp_path / "stub")


def test_build(stub, capsys):
    """It tells where the result is and how it was made; once built, it is found again."""
    assert cli.main(["build"]) == 0
    captured = capsys.readouterr()
    assert "C++ kernels, compiled in " in captured.out
    assert f" s: {native.extension().path}\n" in captured.out
    assert "fsdino: compile: " in captured.err
    assert cli.main(["build", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert Path(found["path"]).is_file()
    assert found["build_info"] == {"compiler": "stub"}
    assert stub_extension.times_compiled() == 1
    assert cli.main(["build", "--force"]) == 0
    assert stub_extension.times_compiled() == 2


def test_build_fails_in_one_line(stub, capsys, monkeypatch, tmp_path):
    """Without a compiler there is one line and exit code 1."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    assert cli.main(["build"]) == 1
    assert "no C++ compiler found" in error_line(capsys)


def test_info_tells_the_whole_reason(stub, capsys):
    """Which file was found, what it was built for, and what is installed."""
    library = native.PACKAGE / "_C.so"
    library.write_bytes(b"fsdino-extension torch=2.14.0 sources=0 end")
    assert cli.main(["info"]) == 0
    reason = f"{library} was built for torch 2.14.0, you have {torch.__version__}"
    assert f"C++ kernels, not used: {reason}\n" in capsys.readouterr().out


@pytest.fixture
def two_photographs(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = {name: fsdino.samples()[name] for name in ("coins", "more-coins")}
    monkeypatch.setattr(demo, "samples", lambda: chosen)


def test_demo_goes_on_without_a_compiler(
    stub, mini, two_photographs, capsys, monkeypatch, tmp_path
):
    """What could not be built is said in one line."""
    stub_extension.without_compiler(monkeypatch, tmp_path)
    arguments = ["demo", "--out", "demo", "--model", "model", "--drawn-model", "model"]
    arguments += ["--episodes", "1", "--pictures", "1", "--workload", "mini", "--repeats", "1"]
    assert cli.main(arguments) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "no C++ compiler" in line]
    assert len(lines) == 1
    assert lines[0].startswith("fsdino: warning: the C++ kernels cannot be used, the slower")


def test_demo(mini, two_photographs, capsys, monkeypatch):
    """The report, the table, and the numbers as JSON."""
    monkeypatch.setattr(build, "build_if_possible", lambda: None)
    arguments = ["demo", "--out", "demo", "--model", "other", "--drawn-model", "model"]
    arguments += ["--episodes", "2", "--pictures", "1", "--workload", "mini", "--repeats", "1"]
    assert cli.main(arguments) == 0
    out = capsys.readouterr().out
    assert "training-free" in out
    assert "everything is" in out and "more-coins" in out
    assert "Drawings, model: " in out
    assert "reference" in out
    assert "demo/report.html" in out
    assert Path("demo/report.html").read_text().startswith("<!doctype html>")
    assert cli.main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("demo/demo.json").read_text())


@pytest.mark.parametrize(("given", "expected"), [("", "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_demo_does_not_fight_for_the_processor(given, expected, monkeypatch):
    """Its threads sleep while they wait, unless the user says otherwise; set before torch."""

    monkeypatch.setenv("OMP_WAIT_POLICY", given)  # so that it is as before afterwards
    if not given:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    options.wait_without_spinning()
    assert os.environ.get("OMP_WAIT_POLICY", "") == given  # too late, and so left alone
    monkeypatch.delitem(sys.modules, "torch")
    options.wait_without_spinning()
    assert os.environ["OMP_WAIT_POLICY"] == expected


@pytest.mark.parametrize(
    ("home", "arguments"),
    [
        (demo_command, ["demo", "--out", "demo", "--model", "nonsense"]),
        (segment_command, ["segment", "--support", "a.png", "b.png", "--dtype", "int3"]),
        (evaluate_command, ["evaluate", "fsdino-tiny", "--dtype", "int3"]),
    ],
    ids=["demo", "segment", "evaluate"],
)
def test_commands_that_segment_let_threads_sleep(home, arguments, monkeypatch, capsys):
    """Before anything is loaded: beside another program, spinning makes them many times slower."""
    calls = []
    monkeypatch.setattr(home, "wait_without_spinning", lambda: calls.append(1))
    assert cli.main(arguments) == 2
    assert calls == [1]


def test_demo_is_interrupted_in_one_line(capsys, monkeypatch):
    """Ctrl-C at any moment of the demo."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(build, "build_if_possible", lambda: None)
    monkeypatch.setattr(demo, "photograph_answers", interrupted)
    arguments = ["demo", "--out", "demo", "--model", "model", "--drawn-model", "model"]
    assert cli.main(arguments) == 130
    assert error_line(capsys).startswith("fsdino: interrupted: ")


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
