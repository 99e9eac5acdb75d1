"""What benchmarks/exported.py makes of maps, and which nodes it quantises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

exported = pytest.importorskip("exported")  # needs the extra export

import onnx  # noqa: E402
from onnx import TensorProto, helper  # noqa: E402
from photo_pairs import Pair, Photograph  # noqa: E402


def pair(mask: list[list[int]], ignored: list[list[int]] | None = None) -> Pair:
    size = np.shape(mask)
    image = np.zeros((*size, 3), np.uint8)
    left_out = None if ignored is None else np.array(ignored, bool)
    query = Photograph(image, np.array(mask, bool), left_out)
    return Pair("one", (query,), query, "a.jpg", frozenset({"a.jpg"}))


def test_iou_is_of_the_scored_pixels() -> None:
    maps = [np.array([[0.9, 0.6, 0.1], [0.5, 0.2, 0.9]], np.float32)]
    assert exported.mean_iou(maps, [pair([[1, 0, 0], [1, 1, 1]])], 0.5) == 3 / 5
    last = [[0, 1, 0], [0, 1, 1]]
    assert exported.mean_iou(maps, [pair([[1, 0, 0], [1, 1, 1]], last)], 0.5) == 1


def test_differences_count_pixels_beyond_the_threshold() -> None:
    exact = [np.array([0.2, 0.5004, 0.9], np.float32), np.array([0.4, 0.6], np.float32)]
    maps = [np.array([0.2, 0.4999, 0.9], np.float32), np.array([0.6, 0.6], np.float32)]
    found = exported.differences(maps, exact, 0.5)
    assert found == {
        "largest": pytest.approx(0.2), "median": pytest.approx(0.1, abs=0.001), "above_1e-4": 2,
        "flipped": 1,
    }  # fmt: skip


def test_only_nodes_with_weights_are_quantised(tmp_path: Path) -> None:
    weight = helper.make_tensor("weight", TensorProto.FLOAT, [2, 2], [1.0, 0.0, 0.0, 1.0])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 2]) for name in "xyz"]
    nodes = [
        helper.make_node("MatMul", ["x", "weight"], ["m"], "encoder"),
        helper.make_node("MatMul", ["m", "y"], ["n"], "correlation"),
        helper.make_node("Add", ["n", "weight"], ["z"], "sum"),
    ]
    graph = helper.make_graph(nodes, "g", ends[:2], ends[2:], [weight])
    onnx.save(helper.make_model(graph), tmp_path / "graph.onnx")
    assert exported.encoder_nodes(tmp_path / "graph.onnx") == ["encoder"]
