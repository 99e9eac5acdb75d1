"""Exported folders that cannot be run are refused in one line, with the remedy."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from fsdino import files
from fsdino.errors import CheckpointError, DataError, FsdinoError, UsageError
from fsdino.export.folder import DESCRIPTION, RUNTIMES
from fsdino.export.runtimes import Graphs, _sized
from fsdino.export.segmenter import ExportedSegmenter

runtimes = pytest.mark.parametrize("runtime", RUNTIMES)


@pytest.fixture
def folder(tiny_export, tmp_path) -> Path:
    """A copy, to be damaged."""
    return Path(shutil.copytree(tiny_export.folder, tmp_path / "export"))


def describe(folder: Path, **changes: object) -> None:
    """Change export.json, and take the hashes of the files as they are now."""
    path = folder / DESCRIPTION
    content = json.loads(path.read_text())
    content["sha256"] |= {p.name: files.sha256(p) for p in folder.glob("*.onnx")}
    path.write_text(json.dumps({**content, **changes}))


def change(folder: Path, name: str, edit) -> None:
    """Edit a graph, with a description that has its new hash."""
    model = onnx.load(folder / name)
    edit(model)
    onnx.save(model, folder / name)
    describe(folder)


def refusal(folder: Path, runtime: str, kind: type[FsdinoError] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        Graphs(folder, runtime)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@runtimes
def test_what_the_graphs_give_has_the_described_types(tiny_export, runtime) -> None:
    graphs = Graphs(tiny_export.folder, runtime)
    found = graphs.support(
        {
            "image": np.full((2, 30, 40, 3), 128, np.uint8),
            "mask": np.tile(np.eye(30, 40, dtype=np.uint8), (2, 1, 1)),
            "sizes": np.array([[30, 40], [20, 25]]),
            "places": np.array([[0, 0, 1], [1, 0, 1]], np.float32),
        }
    )
    slots = graphs.exported.graphs["support"].outputs
    assert [*found] == [slot.name for slot in slots]
    for slot in slots:
        assert found[slot.name].dtype == slot.dtype
        lengths = {"shots": 2, "views": 2}
        assert found[slot.name].shape == tuple(lengths.get(dim, dim) for dim in slot.dims)


@runtimes
def test_an_edited_graph(folder, runtime) -> None:
    with (folder / "query.onnx").open("ab") as file:
        file.write(b"\0")
    assert "query.onnx is not as it was written" in refusal(folder, runtime)


@runtimes
def test_metadata_that_disagree(folder, runtime) -> None:
    """The threshold of the description is another one than that of the files."""
    describe(folder, threshold=0.25)
    message = refusal(folder, runtime)
    assert "support.onnx and export.json disagree in fsdino.threshold" in message


@runtimes
def test_a_description_of_other_inputs(folder, runtime) -> None:
    content = json.loads((folder / DESCRIPTION).read_text())
    content["graphs"]["query"]["inputs"][0]["dims"] = ["height", "width", 4]
    describe(folder, graphs=content["graphs"])
    message = refusal(folder, runtime)
    assert "query.onnx has other inputs than export.json says (image" in message
    assert "3]" in message and "4])" in message


@runtimes
def test_a_graph_with_other_axes(folder, runtime) -> None:
    """A fixed width in the place of any."""

    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 64

    change(folder, "query.onnx", fix)
    assert "query.onnx has other inputs than export.json says (image" in refusal(folder, runtime)


@runtimes
def test_a_graph_without_an_output(folder, runtime) -> None:
    change(folder, "query.onnx", lambda model: model.graph.output.pop())
    message = refusal(folder, runtime)
    assert "query.onnx has other outputs than export.json says (1, not 2)" in message


@runtimes
def test_missing_weights(folder, runtime) -> None:
    model = onnx.load(folder / "query.onnx")
    apart = {"save_as_external_data": True, "location": "weights.data"}
    onnx.save(model, folder / "query.onnx", **apart)
    content = json.loads((folder / DESCRIPTION).read_text())
    hashes = content["sha256"] | {"weights.data": files.sha256(folder / "weights.data")}
    hashes["query.onnx"] = files.sha256(folder / "query.onnx")
    (folder / DESCRIPTION).write_text(json.dumps({**content, "sha256": hashes}))
    Graphs(folder, runtime)
    (folder / "weights.data").unlink()
    message = refusal(folder, runtime)
    assert "weights.data is missing: copy the whole folder" in message


@runtimes
def test_an_operation_that_the_runtime_does_not_know(folder, runtime) -> None:
    def later(model: onnx.ModelProto) -> None:
        if runtime == "onnx":
            model.opset_import[0].version = 99
        else:  # opens files of any opset
            model.graph.node[0].op_type = "Frobnicate"

    change(folder, "support.onnx", later)
    message = refusal(folder, runtime, UsageError)
    name, words = ("onnxruntime", "Opset 99") if runtime == "onnx" else ("OpenVINO", "Frobnicate")
    assert words in message
    assert message.startswith(f"{name} cannot read {folder / 'support.onnx'} (")
    assert f"update {name}, or export the model again" in message


@runtimes
def test_other_folders(folder, runtime, tmp_path) -> None:
    (tmp_path / "photos").mkdir()
    assert "photos is not an exported model" in refusal(tmp_path / "photos", runtime, UsageError)
    describe(folder, kind="pt2")
    message = refusal(folder, runtime, UsageError)
    assert f"format pt2, which the runtime {runtime} does not read" in message


def test_an_unknown_runtime(folder) -> None:
    assert "unknown runtime 'tvm': choose onnx, openvino" in refusal(folder, "tvm", UsageError)


@pytest.mark.parametrize(
    ("runtime", "package", "words"),
    [
        ("onnx", "onnxruntime", "pip install 'fsdino[export]'"),
        ("openvino", "openvino", "pip install 'fsdino[openvino]'"),
    ],
)
def test_a_missing_package(tiny_export, runtime, package, words, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    assert words in refusal(tiny_export.folder, runtime, UsageError)


def test_maps_of_the_models_own_size(folder) -> None:
    """Without an image's size there are no masks of it."""
    for name in ("support.onnx", "query.onnx"):

        def own(model: onnx.ModelProto) -> None:
            [entry] = [e for e in model.metadata_props if e.key == "fsdino.output"]
            entry.value = "model"

        change(folder, name, own)
    describe(folder, output="model")
    with pytest.raises(UsageError, match="export the model with --output image"):
        ExportedSegmenter(folder)


@runtimes
def test_a_call_that_fails(tiny_export, runtime) -> None:
    """What a runtime says of a call becomes an error of that image."""
    graphs = Graphs(tiny_export.folder, runtime)
    inputs = {
        slot.name: np.zeros([1 if isinstance(d, str) else d for d in slot.dims], slot.dtype)
        for slot in graphs.exported.graphs["query"].inputs
    }
    inputs["fit_mean"] = inputs["fit_mean"][..., :-1]
    with pytest.raises(
        DataError, match=r"cannot run query.onnx on 1 x 1 pixels \(.*\): "
    ) as caught:
        graphs.query(inputs)
    assert len(str(caught.value).splitlines()) == 1


def test_runtimes_take_as_many_threads_as_pytorch(tiny_export, monkeypatch) -> None:
    """Processes beside each other have a share of the cores each."""
    import onnxruntime

    taken: list[int] = []
    real = onnxruntime.InferenceSession

    def session(path, options, **rest):
        taken.append(options.intra_op_num_threads)
        return real(path, options, **rest)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        Graphs(tiny_export.folder)
    finally:
        torch.set_num_threads(before)
    assert taken == [3, 3]


def test_only_images_change_their_sizes_within_a_compiled_graph() -> None:
    """OpenVINO's maps may be wrong where other lengths grow, but not with models this small."""
    assert _sized("image", (480, 640, 3)) == (-1, -1, 3)
    assert _sized("image", (5, 480, 640, 3)) == (5, -1, -1, 3)
    assert _sized("mask", (5, 480, 640)) == (5, -1, -1)
    assert _sized("fit_tokens", (1, 2, 3, 8, 4, 4)) == (1, 2, 3, 8, 4, 4)
