"""The demo's page says what the results say."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from fsdino.apps import demo_report
from fsdino.apps.benchmark import Comparison, Timing
from fsdino.apps.demo import Answer, Results, Score, Settings, WayAnswer
from fsdino.data.episodes import Episode, Sample
from tiny_models import box_mask, picture, tiny_model


def episode(index: int) -> Episode:
    samples = [
        Sample(picture(28, 28, 10 * index + k), box_mask(28, 28), f"s{k}", 72) for k in range(6)
    ]
    return Episode(samples[0], tuple(samples[1:]), 72, f"class <{index}>", index)


@pytest.fixture(scope="module")
def results() -> Results:
    keys = [(method, shots) for method in ("FS-DINO", "training-free") for shots in (1, 5)]
    answers = [
        Answer(
            episode(i),
            episode(i),
            {key: box_mask(28, 28) for key in keys},
            {key: 0.1 * i + 0.01 * n for n, key in enumerate(keys)},
        )
        for i in range(3)
    ]
    ways = [WayAnswer(episode(i), episode(i), np.full((28, 28), i), i + 1, 0.25) for i in range(3)]
    timings = (Timing("eager", 0.1, (0.5,)), Timing("slow", 0.2, (1.0,)), Timing("bad", 7.0, ()))
    return Results(
        Settings(pictures=2, command="fsdino demo --out <here>"),
        tiny_model(),
        answers,
        {key: Score(61.25 + n, 70.0 + n) for n, key in enumerate(keys)},
        ways,
        0.0123,
        Comparison("W6", "float32", "cpu", timings, {"gpu": "it needs a <GPU>"}),
        42.0,
    )


def test_the_numbers_are_on_the_page(results):
    """Scores, the time of a query, the command, and the times of the kernels with their ratio."""
    page = demo_report.render(results)
    for number in ("61.2\N{NO-BREAK SPACE}%", "12 ms", "500 ms", "1000 ms", ">0.50<", "IoU 0.11"):
        assert number in page
    assert "fsdino demo --out &lt;here&gt;" in page
    assert "class &lt;1&gt;" in page


def test_failed_checks_have_no_time(results):
    """A wrong kernel is named as such; one that cannot run says why."""
    page = demo_report.render(results)
    [row] = re.findall(r"<tr><td>bad</td>.*?</tr>", page)
    assert "FAILED" in row
    assert "ms" not in row
    assert "it needs a &lt;GPU&gt;" in page


def test_so_many_pictures_as_asked(results):
    """Of two episodes: 1 + 4 pictures with one shot, 5 + 4 with five; 4 for each of the ways."""
    page = demo_report.render(results)
    assert page.count("<img ") == 2 * 5 + 2 * 9 + 3 * 4


def test_the_bundled_model_is_not_sold_for_photographs(results):
    """The page says that its pictures are generated, and what to use instead."""
    page = demo_report.render(results)
    assert "say nothing about photographs" in page
    assert "load DINOv2 weights" in page
    other = dataclasses.replace(results, settings=Settings(model="runs/mine"))
    assert "load DINOv2 weights" not in demo_report.render(other)


def test_what_is_outside_of_a_mask_is_dimmed():
    """The regions keep their brightness, so that they are seen at once."""
    image = np.full((20, 20, 3), 200, np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    shown = np.array(demo_report._shown(image, mask)).astype(int)
    assert shown[~mask].max() < 130
    assert shown[mask].max() >= 200
    half = mask[::2, ::2]
    enlarged = np.array(demo_report._shown(image, half)).astype(int)
    assert enlarged[~half.repeat(2, 0).repeat(2, 1)].max() < 130
