"""The demo's document says what the results say."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.bench.compare import Comparison, Timing
from fsdino.commands.demo import page
from fsdino.commands.demo.drawings import Answer, Fate, Score, WayAnswer
from fsdino.commands.demo.run import Results, Settings
from fsdino.data import procedural
from fsdino.data.episodes import Episode, Sample
from fsdino.evaluation.photographs import PhotographAnswer
from fsdino.sample_photographs import Sample as Photograph
from tiny_models import box_mask, picture, tiny_model

EVERYTHING = "everything is foreground"


def episode(index: int) -> Episode:
    samples = [
        Sample(picture(28, 28, 10 * index + k), box_mask(28, 28), f"s{k}", 72) for k in range(6)
    ]
    return Episode(samples[0], tuple(samples[1:]), 72, f"class <{index}>", index)


def photograph(name: str, query: str, seed: int) -> Photograph:
    image, mask = Image.fromarray(picture(20, 30, seed)), Image.fromarray(box_mask(20, 30))
    texts = f"a <{name}>", "all of it", query, f"by {name}", "CC0-1.0", "a source", ""
    return Photograph(name, image, mask.convert("L"), Path(name), Path(name), *texts)


def photo_answer(support: str, query: str, **iou: float) -> PhotographAnswer:
    one, other = photograph(support, query, 1), photograph(query, support, 2)
    values = {name.replace("_", "-"): value for name, value in iou.items()}
    masks = dict.fromkeys(values, box_mask(20, 30))
    return PhotographAnswer(one, other, masks, {**values, EVERYTHING: 0.125}, 0.625, 0.25, 1.5)


def way(index: int, **changes: object) -> WayAnswer:
    fates = [Fate("background", 0.1, 0.2, 0.3)]
    fates += [Fate(f"class <{i}>", 0.3, 0.4, 0.6) for i in range(3)]
    answer = WayAnswer(
        episode(index), episode(index), np.full((28, 28), index), index + 1, 0.75, 0.5, fates, 0.0
    )
    return dataclasses.replace(answer, **changes)


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
    photographs = [
        photo_answer("cup", "mug", fsdino_photo=0.5, training_free=0.25),
        photo_answer("mug", "cup", fsdino_photo=0.7, training_free=0.35),
    ]
    timings = (Timing("eager", 0.1, (0.5,)), Timing("slow", 0.2, (1.0,)), Timing("bad", 7.0, ()))
    return Results(
        Settings(pictures=2, command="fsdino demo --out <here>"),
        tiny_model(),
        photographs,
        tiny_model(1),
        answers,
        {key: Score(61.25 + n, 70.0 + n) for n, key in enumerate(keys)},
        [way(i) for i in range(3)],
        Comparison("W6", "float32", "cpu", timings, {"gpu": "it needs a <GPU>"}),
        3.25,
        42.0,
    )


def test_the_page_names_fsdino(results):
    """Where a browser and a reader look first."""
    document = page.render(results)
    [title] = re.findall(r"<title>(.*?)</title>", document)
    [heading] = re.findall(r"<h1>(.*?)</h1>", document)
    assert "fsdino" in title and "fsdino" in heading


def test_the_numbers_are_on_the_page(results):
    """Of photographs, with means and times; of drawings; of kernels, with their ratio."""
    document = page.render(results)
    for number in ("<b>0.60</b>", "<b>0.30</b>", "IoU 0.50", "IoU 0.35", "IoU 0.12", "0.12</b>"):
        assert number in document
    for number in ("1.5\N{NO-BREAK SPACE}s", "250\N{NO-BREAK SPACE}ms", ">3.2 s<", ">42 s<"):
        assert number in document
    for number in (">61.2<", "500 ms", "1000 ms", ">0.50<", "IoU 0.11"):
        assert number in document
    assert (
        document.count("Quality <b>0.62</b>") == 2
        and document.count('<td class="number wide">0.62</td>') == 2
    )
    assert "fsdino demo --out &lt;here&gt;" in document
    assert "class &lt;1&gt;" in document


def test_photographs_lead(results):
    """Then drawings, then kernels; at the end the command for the reader's own photograph."""
    document = page.render(results)
    headings = re.findall(r"<h2>(.*?)</h2>", document)
    assert headings[0] == "Photographs" and headings[1].startswith("Drawings")
    assert headings[2].startswith("How fast") and headings[-1] == "Your own photograph"
    last = re.findall(r"<pre>(.*?)</pre>", document)[-1]
    assert last == "fsdino segment --support PHOTO.jpg MASK.png --query FOLDER --out found"
    assert document.rstrip().endswith("</pre>\n</main>\n</body>\n</html>")
    other = dataclasses.replace(results, settings=Settings(model="my models/x"), photographs=[
        photo_answer("cup", "mug", **{"my models/x": 0.5})])  # fmt: skip
    last = re.findall(r"<pre>(.*?)</pre>", page.render(other))[-1]
    assert last.endswith("--out found --model &#39;my models/x&#39;")


def test_a_support_without_a_quality(results):
    """Its place is kept, without a number."""
    first, *others = results.photographs
    first = dataclasses.replace(first, quality=None)
    document = page.render(dataclasses.replace(results, photographs=[first, *others]))
    assert document.count("Quality <b>–</b>") == 1 and document.count(">–</td>") >= 1


def test_photographs_name_author_and_licence(results):
    """Of support and query, and what both show, as text."""
    document = page.render(results)
    assert "cup: by cup (CC0-1.0); mug: by mug (CC0-1.0)" in document
    assert "A &lt;cup&gt; → a &lt;mug&gt;" in document


def test_a_training_free_model_has_one_column(results):
    """And the page says that nothing was trained; otherwise, what the other column is."""
    document = page.render(results)
    assert "is the same encoder without what was trained on top" in document
    alone = dataclasses.replace(
        results,
        model=tiny_model(variant="training_free"),
        photographs=[photo_answer("cup", "mug", fsdino_photo=0.5)],
    )
    document = page.render(alone)
    assert "no part of it was trained" in document
    [photographs] = re.findall(r"<h2>Photographs</h2>(.*?)<h2>", document, re.DOTALL)
    assert "training-free" not in photographs
    assert photographs.count("<img ") == 4


def test_failed_checks_have_no_time(results):
    """A wrong kernel is named as such; one that cannot run says why."""
    document = page.render(results)
    [row] = re.findall(r"<tr><td>bad</td>.*?</tr>", document)
    assert "FAILED" in row
    assert "ms" not in row
    assert "it needs a &lt;GPU&gt;" in document


def test_so_many_pictures_as_asked(results):
    """5 a photograph; of two episodes 1 + 4 with one shot, 5 + 4 with five; 4 for each way."""
    document = page.render(results)
    assert document.count("<img ") == 2 * 5 + 2 * 5 + 2 * 9 + 3 * 4


def test_the_model_of_drawings_is_not_sold_for_photographs(results):
    """The page says that these pictures are generated, and what their model is for."""
    document = page.render(results)
    assert "says nothing about photographs" in document
    assert "fsdino-tiny is a small model that was trained on such drawings" in document
    other = dataclasses.replace(
        results, settings=dataclasses.replace(results.settings, drawn_model="runs/mine")
    )
    assert "runs/mine segments them" in page.render(other)
    assert "trained on such drawings" not in page.render(other)


@pytest.mark.parametrize(
    ("iou", "shares", "words"),
    [
        (0.8, (0.05, 0.9, 0.05), ["90% of the pixels of the class &lt;0&gt; got its label."]),
        (0.3, (0.1, 0.3, 0.6), ["60% went to the class &lt;1&gt;", "(mean 0.90, its own 0.70)"]),
        (0.3, (0.6, 0.3, 0.1), ["60% went to no class", "(mean 0.20)", "threshold of 0.5"]),
        (0.3, (0.0, 1.0, 0.0), ["but so did pixels around it, 2.5 times as many as it has"]),
    ],
    ids=["found", "another class", "no class", "too much"],
)
def test_a_missed_class_says_why(iou, shares, words, results):
    """Where its pixels went, by which probabilities, and what it gets alone."""
    fates = [
        Fate("background", shares[0], 0.2, 0.3),
        Fate("class <0>", shares[1], 0.8, 0.8),
        Fate("class <1>", shares[2], 0.7, 0.9),
    ]
    missed = way(0, iou=iou, alone=0.625, fates=fates, spill=2.5)
    document = page.render(dataclasses.replace(results, ways=[missed]))
    assert all(word in document for word in words)
    assert ("Missed: " in document) == (iou < 0.5) == ("Asked for alone" in document)
    assert iou > 0.5 or "with IoU 0.62." in document


def test_a_missed_class_names_what_it_shares(results):
    """The texture that two classes of drawings have in common, by the generator's own table."""
    kinds = procedural.OBJECT_CLASSES
    first, second = next(
        (a, b) for a in kinds for b in kinds
        if a is not b and len({t.name for t in a.textures} & {t.name for t in b.textures}) == 1
    )  # fmt: skip
    [shared] = {t.name for t in first.textures} & {t.name for t in second.textures}
    fates = [Fate("background", 0, 0, 0), Fate(first.name, 0.2, 0.8, 0.8)]
    fates.append(Fate(second.name, 0.8, 0.7, 0.9))
    document = page.render(dataclasses.replace(results, ways=[way(0, iou=0.1, fates=fates)]))
    assert f"both classes have a {shared} part" in document


def test_what_is_outside_of_a_mask_is_dimmed():
    """The regions keep their brightness, so that they are seen at once."""
    image = np.full((20, 20, 3), 200, np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    shown = np.array(page._shown(image, mask)).astype(int)
    assert shown[~mask].max() < 130
    assert shown[mask].max() >= 200
    half = mask[::2, ::2]
    enlarged = np.array(page._shown(image, half)).astype(int)
    assert enlarged[~half.repeat(2, 0).repeat(2, 1)].max() < 130


def test_texts_are_escaped_wherever_they_stand(results):
    """Names of models, classes and files are texts, whatever they look like."""
    evil = "<script>alert(1)</script>"
    answers = [
        dataclasses.replace(a, masks={evil: box_mask(20, 30)}, iou={evil: 0.5, EVERYTHING: 0.1})
        for a in results.photographs
    ]
    settings = Settings(model=evil, drawn_model=evil, command=f"fsdino demo --out {evil}")
    kernels = dataclasses.replace(results.kernels, missing={evil: evil}, workload=evil)
    fates = [Fate(evil, 0.1 * i, 0.4, 0.6) for i in range(4)]
    document = page.render(
        dataclasses.replace(
            results,
            settings=settings,
            photographs=answers,
            kernels=kernels,
            ways=[way(0, iou=0.1, fates=fates)],
        )
    )
    assert "<script" not in document
    assert document.count("&lt;script&gt;") >= 10
