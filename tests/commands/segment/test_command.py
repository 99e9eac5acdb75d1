"""`fsdino segment`: bad input, interruptions, what is printed and what is kept."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
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
from PIL import Image

import fsdino
from command_line import (
    Prepare,
    command,
    environment,
    error_line,
    nothing,
    offline,
    segment,
    visible_and_hidden,
)
from fsdino import cli
from fsdino.commands.segment import supports
from fsdino.models import segmenting
from fsdino.models.fsdino import FSDINO
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "workplace")


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
    mask = support.masks[0][0] * torch.nan
    dataclasses.replace(support, masks=((mask,),)).save("nan.safetensors")


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
    "unknown format": (nothing, segment("--format", "png,svg"), 2, ["'svg'", "labelme"]),
    "unknown split": (nothing, segment("--split", "sam"), 2, ["--split", "watershed"]),
    "least area": (nothing, segment("--min-area", "0"), 2, ["--min-area", "at least 1"]),
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
    "a floating type": (
        nothing, segment("--dtype", "float8"), 2, ["'float8'", "float32, float16, bfloat16"]
    ),
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
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_line(case, assert_refused):
    """Each mistake names the thing and the remedy, exits with its code, and leaves no files; a
    pickle that would create one is not executed."""
    assert_refused(BAD_INPUT[case])


def test_a_corrupt_query_leaves_the_others(monkeypatch, capsys, workplace):
    """One line names it; the nine other results are whole."""
    truncated("queries/3.png")(monkeypatch)
    assert cli.main(segment()) == 1
    line = error_line(capsys)
    assert "3.png" in line and "truncated" in line
    written = visible_and_hidden(workplace / "out")
    assert len([name for name in written if name.startswith("masks/")]) == 9


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
import os, signal
from fsdino.commands.segment.output import Output
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
write, count = Output.write, []
def patched(self, *arguments):
    count.append(self)
    if len(count) == 9:
        os.kill(os.getpid(), signal.SIGINT)
    return write(self, *arguments)
Output.write = patched
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


def test_formats_of_other_tools(capsys):
    """The options reach the files, the JSON names them, and the same command resumes."""
    call = segment("--format", "coco,yolo", "--split", "watershed", "--min-area", "9", "--json")
    for resumed in (0, 10):
        assert cli.main(call) == 0
        found = json.loads(capsys.readouterr().out)
        assert (found["formats"], found["resumed"]) == (["coco", "yolo"], resumed)
        for row in found["queries"]:
            assert [Path(name).parent.name for name in row["annotations"]] == ["coco", "yolo"]
            assert all(Path(name).is_file() for name in row["annotations"])
    model = fsdino.load("model")
    support = model.encode_support(["a.png"], ["mask.png"])
    names = [row["query"] for row in found["queries"]]
    results = [(Path(name).name, model.segment(name, support)) for name in names]
    expected = fsdino.export_coco(results, split="watershed", min_area=9)
    assert json.loads(Path("out/annotations.json").read_text()) == expected
    assert Path("out/classes.txt").read_text() == "foreground\n"
    assert cli.main([part for part in call if part != "--json"]) == 0
    assert "beside them: annotations.json, yolo/ with classes.txt\n" in capsys.readouterr().out


def test_segment_says_what_was_left_out(capsys):
    """Files of a query folder that are not images are counted, with reasons, also in JSON."""
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
    assert "11 masks and overlays in out, 11 of them from before; 1 file left out" in " ".join(
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
    assert "b.png" in out and " queries/0.png " in out  # names as in annotations.json
    assert "2 masks and overlays in out" in out
    assert cli.main(segment("--query", "b.png")) == 0
    assert "1 mask and overlay in out" in capsys.readouterr().out


def test_the_table_has_a_column_for_each_class(capsys):
    """The share of each class, as results.jsonl has it."""
    two = ("--support", "cat=a.png", "mask.png", "--support", "dog=b.png", "mask.png")
    assert cli.main(["segment", "--model", "model", *two, "--query", "b.png", "--out", "out"]) == 0
    header, _, line = [row.split() for row in capsys.readouterr().out.splitlines()[3:6]]
    assert header == ["query", "cat", "%", "dog", "%", "seconds"]
    row = json.loads(Path("out/results.jsonl").read_text())
    assert line[1:3] == [f"{100 * row['classes'][name]:.1f}" for name in ("cat", "dog")]


def test_a_call_of_which_nothing_can_be_read(capsys):
    """Says so, without a table or other results."""
    Path("empty.png").touch()
    assert cli.main(segment("--query", "empty.png")) == 1
    out, err = capsys.readouterr()
    assert "error: 1 of 1 queries failed: query (empty.png): " in err
    assert "others are in" not in err and "seconds" not in out


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
    monkeypatch.setattr(segmenting, "LEAST_QUALITY", 1.01)
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


def test_rules_for_masks(capsys):
    """Refused with the option that reads the mask; another option is another call."""
    labels = box_mask(50, 60).astype(np.uint8)
    labels[:5] = 2
    Image.fromarray(labels).save("mask.png")
    assert cli.main(segment("--query", "b.png")) == 1
    assert "--mask-value 2" in error_line(capsys)
    assert cli.main(segment("--query", "b.png", "--mask-value", "1")) == 0
    assert cli.main(segment("--query", "b.png", "--mask-value", "2")) == 2
    assert "it differs in support" in error_line(capsys)
    assert cli.main(segment("--query", "b.png", "--mask-threshold", "128")) == 2
    assert "must lie between 0 and 1" in error_line(capsys)
    assert cli.main(segment("--query", "b.png", "--invert-mask", "--overwrite")) == 1
    assert "--mask-value" in error_line(capsys)


def test_labelled_folder_as_supports(capsys):
    """As many classes as it has folders, all in one label image."""
    for name in ("cat", "dog"):
        Path("labelled", name).mkdir(parents=True)
        shutil.copy("a.png", f"labelled/{name}/a.png")
        shutil.copy("mask.png", f"labelled/{name}/a_mask.png")
    assert cli.main(segment("--query", "b.png", "--json", support=("labelled",))) == 0
    found = json.loads(capsys.readouterr().out)
    assert [*found["support"]] == ["cat", "dog"]
    assert [*found["queries"][0]["classes"]] == ["cat", "dog"]


def test_dinov2_weights_without_training(small_dinov2: FSDINO, monkeypatch: pytest.MonkeyPatch):
    """--model dinov2-s with Meta's weights is the training-free model on exactly those weights."""
    offline(monkeypatch)
    arguments = ["segment", "--support", "a.png", "mask.png", "--query", "b.png", "--out", "out"]
    arguments += ["--model", "dinov2-s", "--weights", "dinov2.pth"]
    assert cli.main([*arguments, "--image-size", "70", "--device", "cpu"]) == 0
    support = small_dinov2.encode_support(["a.png"], ["mask.png"])
    with Image.open("out/masks/b.png") as mask:
        assert np.array_equal(np.array(mask) > 0, small_dinov2.segment("b.png", support).mask)
