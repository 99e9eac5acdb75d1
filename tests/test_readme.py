"""The README: what it says to run runs, and its picture shows what the default model does."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import readme_picture
from PIL import Image

import fsdino
from fsdino.evaluation import photographs

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PICTURE = re.compile(r"!\[([^\]]+)\]\(([^)]+)\)")


@pytest.mark.parametrize("document", ["README.md", "docs/usage.md"])
def test_the_first_python_block_runs(document, tmp_path, monkeypatch):
    """As written, without a file of the reader's; the mask that it finds is the object's."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / document).read_text(encoding="utf-8")
    block = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[0]
    names: dict[str, object] = {}
    exec(compile(block, document, "exec"), names)
    result = names["result"]
    truth = np.asarray(fsdino.samples()["teacup"].mask) == 255
    both, either = (result.mask & truth).sum(), (result.mask | truth).sum()
    assert both / either > truth.mean() + 0.2
    with Image.open("found.jpg") as image:
        assert image.size == fsdino.samples()["teacup"].image.size


def test_the_picture_has_an_absolute_address():
    """Of a file in here, at the project's own address: the package index has no other files."""
    with open(ROOT / "pyproject.toml", "rb") as file:
        source = tomllib.load(file)["project"]["urls"]["Source"]
    raw = source.replace("https://github.com/", "https://raw.githubusercontent.com/") + "/main/"
    pictures = PICTURE.findall(README)
    assert pictures
    for words, address in pictures:
        assert words and address.startswith(raw)
        assert (ROOT / address.removeprefix(raw)).is_file()
    assert README.index(pictures[0][1]) < README.index("\n## ")


def test_it_is_short():
    """A reader sees what it is and how to begin; tables of results are in docs/numbers.md."""
    assert len(README.splitlines()) <= 120


def test_its_links_are_absolute():
    """The package index shows the README without the repository's other files."""
    addresses = [
        *re.findall(r"\]\(([^)]+)\)", README),
        *re.findall(r"^\[\w+\]: (\S+)$", README, re.M),
    ]
    assert len(addresses) > 10 and all(address.startswith("https://") for address in addresses)


def test_the_picture_shows_what_the_model_does():
    """Its comment holds the model's fingerprint and each IoU; a stale one must be drawn again."""
    assert readme_picture.FILE.stat().st_size < 400_000
    with Image.open(readme_picture.FILE) as image:
        facts = json.loads(image.info["comment"])
    model, samples = fsdino.load(readme_picture.MODEL), fsdino.samples()
    assert facts["fingerprint"] == model.fingerprint(), facts["command"]
    chosen = readme_picture.chosen()
    assert {f"{name}-in-{sample.query}" for name, sample in chosen.items()} == facts["iou"].keys()
    answer = photographs.answer({"it": model}, samples["coins"], samples["more-coins"])
    expected = pytest.approx(facts["iou"]["coins-in-more-coins"], abs=0.02)
    assert answer.iou["it"] == expected, facts["command"]
