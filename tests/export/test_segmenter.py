"""Exported models give what their PyTorch models give, through the same methods."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import fsdino
from fsdino import cli, resizing
from fsdino.errors import DataError, UsageError
from fsdino.export.folder import RUNTIMES, Exported, GraphFile
from fsdino.export.graphs import QueryGraph, SupportGraph
from fsdino.export.segmenter import ExportedSegmenter
from fsdino.export.write import export_model
from fsdino.models import zoo
from fsdino.models.config import ModelConfig
from fsdino.models.segmentation import Segmentation
from fsdino.models.segmenter import Segmenter
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, randomise, tiny_model

# Of probabilities: to the threshold, and between runtimes. Random networks amplify the rounding of
# float32: OpenVINO comes to 1.7e-4 with five shots, where PyTorch's own rounding is 5e-5.
NEAR = 1e-3
CLOSE = {"onnx": 1e-4, "openvino": 2e-4}
SHOTS = ("coins", "teacup", "post-mill", "log-mill", "espresso-cup")  # of five sizes
PHOTOGRAPHS = Path(fsdino.__file__).parent / "photographs"


@pytest.fixture(scope="module", params=RUNTIMES)
def exported(request, tiny_export):
    return ExportedSegmenter(tiny_export.folder, request.param)


@pytest.fixture(scope="module", params=RUNTIMES)
def full(request, tiny_full_export):
    return ExportedSegmenter(tiny_full_export.folder, request.param)


@pytest.fixture
def close(request) -> float:
    """How near a runtime's probabilities come to those of PyTorch."""
    parameters = request.node.callspec.params
    return CLOSE[parameters.get("exported") or parameters["full"]]


def shown(model, *names: str, **options) -> Support:
    """A support of some of the photographs."""
    samples = [fsdino.samples()[name] for name in names]
    images, masks = [s.image for s in samples], [s.mask for s in samples]
    return model.encode_support(images, masks, warn=False, **options)


def assert_alike(found: Segmentation, expected: Segmentation, close: float) -> None:
    assert found.names == expected.names and found.threshold == expected.threshold
    assert np.abs(found.probabilities - expected.probabilities).max() <= close
    clear = np.abs(expected.probabilities - expected.threshold) > NEAR
    sides = (found.probabilities >= found.threshold) == (
        expected.probabilities >= expected.threshold
    )
    assert sides[clear].all()
    assert np.allclose(found.scores, expected.scores, atol=close)
    assert np.ptp(expected.probabilities) > 0.01  # not one value everywhere


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_maps_are_those_of_pytorch(exported, tiny_export, shots, close) -> None:
    """Photographs of several sizes show a class; queries have their own sizes."""
    model = tiny_export.model
    own, other = (shown(m, *SHOTS[:shots], quality=True) for m in (exported, model))
    assert own.quality == pytest.approx(other.quality, abs=1e-3)
    queries = [fsdino.samples()[name].image for name in ("more-coins", "espresso-cup")]
    for found, expected in zip(
        exported.segment(queries, own), model.segment(queries, other), strict=True
    ):
        assert_alike(found, expected, close)


def test_full_models_are_those_of_pytorch(full, tiny_full_export, close) -> None:
    model = tiny_full_export.model
    query = fsdino.samples()["more-coins"].image
    supports = [shown(m, "coins", "teacup", quality=True) for m in (full, model)]
    assert supports[0].fit is None
    assert supports[0].quality == pytest.approx(supports[1].quality, abs=1e-3)
    assert_alike(full.segment(query, supports[0]), model.segment(query, supports[1]), close)


def test_a_box_whose_share_of_a_token_is_on_a_limit(exported, tiny_export, close) -> None:
    """A fifth of a token: rounding decided its side, and the score was half of PyTorch's."""
    shown, mask, query = picture(90, 120, 1), box_mask(90, 120), picture(100, 80, 2)
    shown[mask] //= 4
    query[30:70, 20:60] //= 4
    model = tiny_export.model
    own, other = (m.encode_support(shown, mask, warn=False) for m in (exported, model))
    assert torch.equal(own.fit.shots[0].sides, other.fit.shots[0].sides)
    assert_alike(exported.segment(query, own), model.segment(query, other), close)


def test_a_small_object_is_fitted_with_its_close_up(exported, tiny_export, close) -> None:
    image = fsdino.samples()["astronaut"].image
    mask = np.zeros((512, 512), bool)
    mask[100:150, 200:260] = True  # 1.1 %
    supports = [m.encode_support(image, mask, warn=False) for m in (exported, tiny_export.model)]
    assert [len(support.fit.shots) for support in supports] == [2, 2]
    assert torch.allclose(*(s.fit.shots[1].tokens for s in supports), atol=1e-3)
    query = fsdino.samples()["photographer"].image
    assert_alike(
        exported.segment(query, supports[0]), tiny_export.model.segment(query, supports[1]), close
    )


def hsnet() -> Segmenter:
    """HSNet as the paper has it, with random weights, and a map that is not flat."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.assemble(ModelConfig("resnet50", image_size=64, variant="hsnet")).eval()
    randomise(model.after, 0)
    return model


def photo() -> Segmenter:
    """The default model, with images resized to the size of the export below."""
    model = fsdino.load("fsdino-photo")
    model._prepare = lambda array: resizing.to_tensor(array, (128, 128))
    return model


MODELS = {"fsdino-photo": photo, "hsnet": hsnet}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_larger_models(name, tmp_path) -> None:
    model = MODELS[name]()
    export_model(model, tmp_path / name, size=(128, 128) if name == "fsdino-photo" else None)
    queries = [fsdino.samples()[name].image for name in ("more-coins", "espresso-cup")]
    for runtime in RUNTIMES:
        exported = ExportedSegmenter(tmp_path / name, runtime)
        for shots in (1, 5):
            own, other = (shown(m, *SHOTS[:shots]) for m in (exported, model))
            for query in queries:
                assert_alike(exported.segment(query, own), model.segment(query, other), 1e-4)


CLASSES = {"coins": ("coins",), "cup": ("teacup", "espresso-cup"), "mill": ("post-mill",)}


def classes(model) -> Mapping[str, Support]:
    """Three, of which two have equal numbers of shots."""
    return {name: shown(model, *names) for name, names in CLASSES.items()}


def test_classes_beside_each_other(exported, tiny_export, monkeypatch, close) -> None:
    """Each has the others' objects as background; those of equal shape share a call."""
    graphs, calls = exported._graphs, []
    ask = graphs.query
    monkeypatch.setattr(
        graphs, "query", lambda inputs: calls.append(len(inputs["fit_bias"])) or ask(inputs)
    )
    query = fsdino.samples()["log-mill"].image
    found = exported.segment(query, classes(exported))
    assert calls == [2, 1]
    expected = tiny_export.model.segment(query, classes(tiny_export.model))
    assert_alike(found, expected, close)
    alone = exported.segment(query, {"coins": shown(exported, "coins")})
    assert np.abs(alone.probabilities[0] - found.probabilities[0]).max() > 10 * close


def test_classes_of_full_models(full, tiny_full_export, close) -> None:
    query, model = fsdino.samples()["log-mill"].image, tiny_full_export.model
    assert_alike(full.segment(query, classes(full)), model.segment(query, classes(model)), close)


class InPython:
    """The graphs of a model as they are before they are exported."""

    def __init__(self, model: Segmenter, size: tuple[int, int]) -> None:
        self.modules = {"support": SupportGraph(model, size), "query": QueryGraph(model, size)}
        graphs = {
            name: GraphFile(f"{name}.onnx", tuple(graph.inputs), tuple(graph.outputs))
            for name, graph in self.modules.items()
        }
        self.exported = Exported(
            "onnx", "plain", "tiny", model.fingerprint(), "", model.config.threshold, size,
            model.fits, "image", graphs, {}, {},
        )  # fmt: skip

    def run(self, name: str, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        graph = self.modules[name]
        found = graph(*(torch.from_numpy(inputs[slot.name]) for slot in graph.inputs))
        return {slot.name: t.numpy() for slot, t in zip(graph.outputs, found, strict=True)}

    def support(self, inputs):
        return self.run("support", inputs)

    def query(self, inputs):
        return self.run("query", inputs)


def test_supports_of_several_levels() -> None:
    """HSNet's have three, each with names of its own in the graphs."""
    model = hsnet()
    exported = ExportedSegmenter.of(InPython(model, (64, 64)))
    supports = [shown(m, "coins", "teacup") for m in (exported, model)]
    assert repr(supports[0]) == repr(supports[1])
    query = fsdino.samples()["more-coins"].image
    assert_alike(exported.segment(query, supports[0]), model.segment(query, supports[1]), 1e-5)
    assert_alike(exported.segment(query, supports[1]), model.segment(query, supports[1]), 1e-5)


def test_tiles_and_streams(exported, tiny_export, close) -> None:
    samples = fsdino.samples()
    own, other = shown(exported, "teacup"), shown(tiny_export.model, "teacup")
    queries = [samples["espresso-cup"].image, "nowhere.png", samples["coins"].image]
    found = [*exported.segment_iter(queries, own, tiles=True, errors="yield")]
    expected = [*tiny_export.model.segment_iter(queries, other, tiles=True, errors="yield")]
    assert_alike(found[0], expected[0], close)
    assert_alike(found[2], expected[2], close)
    assert str(found[1]) == str(expected[1])


def test_support_files_go_both_ways(exported, tiny_export, tmp_path, close) -> None:
    model, query = tiny_export.model, fsdino.samples()["more-coins"].image
    expected = model.segment(query, shown(model, "coins", "teacup"))
    for maker, user in ((exported, model), (model, exported)):
        shown(maker, "coins", "teacup").save(tmp_path / "support.safetensors")
        support = Support.load(tmp_path / "support.safetensors")
        assert_alike(user.segment(query, support), expected, close)


def test_supports_of_another_model_or_grid_are_refused(exported, tiny_export) -> None:
    own = shown(exported, "coins")
    other = shown(tiny_model(1), "coins")
    with pytest.raises(UsageError, match="made by another model"):
        exported.segment([], other)
    wide = tiny_export.model.encode_list([torch.rand(3, 64, 96)])
    grid = tiny_export.model._support(wide, [np.eye(64, 96, dtype=bool)])
    assert grid.model_fingerprint == own.model_fingerprint
    with pytest.raises(
        DataError, match=r"grids of 4x6 tokens, this export of 64x64 pixels has 4x4"
    ):
        exported.segment(fsdino.samples()["coins"].image, grid)


def test_marks_are_refused(exported) -> None:
    with pytest.raises(UsageError, match=r"boxes, which exported models cannot read: pass a mask"):
        exported.encode_support(fsdino.samples()["coins"].image, boxes=(10, 10, 90, 90))


def test_maps_that_are_not_finite_are_refused(exported, monkeypatch) -> None:
    support = shown(exported, "coins")
    ask = exported._graphs.query

    def broken(inputs):
        return {**ask(inputs), "probability": np.full((1, 150, 384), np.nan, np.float32)}

    monkeypatch.setattr(exported._graphs, "query", broken)
    with pytest.raises(DataError, match=r"support 'foreground' is not finite"):
        exported.segment(fsdino.samples()["coins"].image, support)


# ------------------------------------------------------------------------------------- the command


def command(*arguments: str, out: str) -> list[str]:
    support = [str(PHOTOGRAPHS / name) for name in ("coins.png", "coins_mask.png")]
    queries = [str(PHOTOGRAPHS / name) for name in ("more-coins.png", "teacup.jpg")]
    return ["segment", "--support", *support, "--query", *queries, "--out", out, *arguments]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_the_command_writes_the_same_files(
    runtime, tiny_export, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_export.model.save_pretrained("model")
    folder = str(tiny_export.folder)
    save = ["--format", "png,coco", "--save-support", "saved.safetensors"]
    assert cli.main(command("--model", "model", "--format", "png,coco", out="expected")) == 0
    expected = capsys.readouterr().out
    assert cli.main(command("--runtime", runtime, folder, *save, out="found")) == 0
    found = capsys.readouterr().out
    assert found.splitlines()[0] == expected.splitlines()[0]  # the quality
    names = [
        sorted(str(path.relative_to(out)) for path in Path(out).rglob("*") if path.is_file())
        for out in ("expected", "found")
    ]
    assert names[0] == names[1]
    rows = [
        [json.loads(line) for line in Path(out, "results.jsonl").read_text().splitlines()]
        for out in ("expected", "found")
    ]
    for one, other in zip(*rows, strict=True):
        assert one.keys() == other.keys() and one["query"] == other["query"]
        assert one["foreground"] == pytest.approx(other["foreground"], abs=1e-3)
        assert one["scores"]["foreground"] == pytest.approx(other["scores"]["foreground"], abs=1e-3)
    call = json.loads(Path("found/segment.json").read_text())
    assert (call["runtime"], call["image_size"]) == (runtime, [64, 64])
    assert cli.main(command("--model", "model", out="found")) == 2  # not its results
    assert "differs in" in capsys.readouterr().err


REFUSED = {
    "model": (["--model", "fsdino-tiny"], "--model is for models of PyTorch"),
    "weights": (["--weights", "w.pth"], "--weights is for models of PyTorch"),
    "image size": (["--image-size", "64"], "--image-size is for models of PyTorch"),
    "device": (["--device", "cuda"], "--device is for models of PyTorch"),
    "dtype": (["--dtype", "bfloat16"], "--dtype is for models of PyTorch"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_of_pytorch_are_refused(case, tmp_path, capsys) -> None:
    options, words = REFUSED[case]
    arguments = command("--runtime", "onnx", str(tmp_path), *options, out=str(tmp_path / "out"))
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("values", [["onnx"], ["tvm", "DIR"], ["onnx", "DIR", "DIR"]])
def test_a_runtime_and_a_folder_are_needed(values, tmp_path, capsys) -> None:
    assert cli.main(command("--runtime", *values, out=str(tmp_path / "out"))) == 2
    error = capsys.readouterr().err
    assert f"--runtime {' '.join(values)}: pass onnx or openvino, and a folder" in error


def test_marks_of_the_command_are_refused(tmp_path, capsys) -> None:
    image = str(PHOTOGRAPHS / "coins.png")
    arguments = ["segment", "--support", image, "--box", "10,10,90,90", "--query", image]
    arguments += ["--runtime", "onnx", str(tmp_path), "--out", str(tmp_path / "out")]
    assert cli.main(arguments) == 2
    assert "pass a mask beside --runtime" in capsys.readouterr().err


def test_a_runtime_that_has_run_often_takes_another_number_of_shots(exported, tiny_export) -> None:
    one, two = (shown(tiny_export.model, *SHOTS[:count]) for count in (1, 2))
    query = fsdino.samples()["coins"].image
    expected = tiny_export.model.segment(query, two).probabilities
    for _ in range(12):
        exported.segment(query, one)
    assert np.abs(exported.segment(query, two).probabilities - expected).max() < NEAR
