"""`fsdino export`: what it writes, what it replaces, and what it refuses."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch._inductor

import fsdino
from fsdino import cli, resizing
from fsdino.export.folder import Exported
from tiny_models import PATCH, tiny_model

SIZE = (2 * PATCH, 3 * PATCH)  # of the exports


@pytest.fixture(scope="module")
def model():
    return tiny_model(variant="training_free", matcher="prototype")


@pytest.fixture(scope="module")
def folders(model, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A saved model, and its export."""
    saved, out = tmp_path_factory.mktemp("model"), tmp_path_factory.mktemp("export") / "onnx"
    model.save_pretrained(saved)
    size = "x".join(map(str, SIZE))
    assert cli.main(["export", str(saved), "--size", size, "--out", str(out)]) == 0
    return saved, out


def test_the_graphs_give_what_the_model_gives(folders, model, monkeypatch) -> None:
    _, out = folders
    monkeypatch.setattr(model, "_prepare", lambda array: resizing.to_tensor(array, SIZE))
    shown, asked = (fsdino.samples()[name] for name in ("coins", "more-coins"))
    image, query = (np.asarray(sample.image.convert("RGB")) for sample in (shown, asked))
    mask = np.asarray(shown.mask) > 0
    support, found = (
        onnxruntime.InferenceSession(out / f"{name}.onnx") for name in ("support", "query")
    )
    sizes = np.array([mask.shape], np.int64)
    given = {"image": image[None], "mask": mask[None].astype(np.uint8), "sizes": sizes}
    names = [value.name for value in support.get_outputs()]
    tensors = dict(zip(names, support.run(None, given), strict=True))
    assert {"foreground", "background", "correlation", "masks"} == set(names)
    rest = {v.name: tensors[v.name][None] for v in found.get_inputs() if v.name != "image"}
    probability, score = found.run(None, {"image": query, **rest})
    expected = model.segment(asked.image, model.encode_support(shown.image, shown.mask))
    assert np.abs(probability - expected.probabilities).max() < 1e-4
    assert score == pytest.approx(expected.scores, abs=1e-4)


def test_the_files_say_what_they_are(folders, model) -> None:
    saved, out = folders
    described = Exported.read(out)
    assert described.model == str(saved) and described.size == SIZE
    assert described.fingerprint == model.fingerprint()
    for name in ("support", "query"):
        graph = onnx.load(out / f"{name}.onnx")
        assert {p.key: p.value for p in graph.metadata_props} == described.metadata(name)
        assert {entry.version for entry in graph.opset_import if not entry.domain} == {20}
    dims = [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dims == ["height", "width", 3]


def test_an_export_is_replaced_where_that_is_asked_for(folders, tmp_path, capsys) -> None:
    saved, out = folders
    shutil.copytree(out, tmp_path, dirs_exist_ok=True)
    first = ["export", str(saved), "--size", "28", "--out", str(tmp_path)]
    for name in ("notes.txt", "mine.onnx"):
        (tmp_path / name).write_text("keep")
    capsys.readouterr()
    assert cli.main(first) == 2
    assert "holds an exported model" in capsys.readouterr().err
    assert cli.main([*first, "--format", "pt2", "--overwrite", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "pt2"
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}
    graphs = {"support.pt2", "query.pt2"}
    assert files == {*graphs, "export.json", "README.md", "notes.txt", "mine.onnx"}
    extra = {"fsdino.fingerprint": ""}
    torch.export.load(tmp_path / "query.pt2", extra_files=extra)
    assert extra["fsdino.fingerprint"] == Exported.read(tmp_path).fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no --out given"),
        (["--out", "new", "--size", "4y"], "--size must be pixels, such as 448 or 480x640"),
        (["--out", "new", "--size", "30"], "size must be multiples of 14 pixels"),
        (
            ["--out", "new", "--size", "9996"],
            "multiples of 14 pixels, from 14 to 4096",
        ),
        (["--out", "new", "--format", "tf"], "format must be one of aoti, onnx, pt2"),
        (["--out", "new", "--output", "both"], "output must be one of image, model"),
        (
            ["--out", "new", "--kernels", "fsdino"],
            "kernels fsdino are for the formats pt2 and",
        ),
        (["--out", "."], "holds other files: export into a new or empty folder"),
    ],
)
def test_mistakes(folders, arguments, message, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").touch()
    assert cli.main(["export", str(folders[0]), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not Path("new").exists()


def test_a_missing_package(folders, tmp_path, monkeypatch, capsys) -> None:
    find = importlib.util.find_spec

    def without_onnx(name, *rest):
        return None if name == "onnx" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", without_onnx)
    assert cli.main(["export", str(folders[0]), "--out", str(tmp_path / "new")]) == 2
    assert "pip install 'fsdino[export]'" in capsys.readouterr().err


def test_an_older_pytorch_writes_no_packages(folders, tmp_path, monkeypatch, capsys) -> None:
    """It is refused before the model is loaded and traced."""
    monkeypatch.setattr(torch._inductor, "config", SimpleNamespace(cpp=object()))
    out = tmp_path / "new"
    assert cli.main(["export", str(folders[0]), "--format", "aoti", "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert "update PyTorch to 2.13 or newer" in error and error.count("\n") == 1
    assert not out.exists()
