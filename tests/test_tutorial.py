"""docs/tutorial.md: its notebook has its code, runs, prints what it says and draws its pictures."""

from __future__ import annotations

import base64
import io
import os
import re
import sys
from pathlib import Path
from typing import Any

import make_tutorial
import nbclient
import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = make_tutorial.NOTEBOOK
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def test_the_notebook_is_the_page():
    """A change of either without the other: run `python docs/make_tutorial.py`."""
    assert NOTEBOOK.read_text(encoding="utf-8") == make_tutorial.notebook()
    read = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(read)
    code = [cell for cell in read.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert len(code) >= 8


@pytest.fixture(scope="module")
def cells(tmp_path_factory) -> list[Any]:
    """The code cells, run by a kernel that finds fsdino as this process does."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("PYTHONPATH", path)
        changed.setenv("PATH", programs)
        changed.setenv("IPYTHONDIR", str(tmp_path_factory.mktemp("ipython")))
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        place = {"metadata": {"path": str(tmp_path_factory.mktemp("notebook"))}}
        nbclient.NotebookClient(notebook, timeout=120, resources=place).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell: Any) -> str:
    return "".join(
        output.text
        for output in cell.outputs
        if output.output_type == "stream" and output.name == "stdout"
    )


def shown(cell: Any) -> list[Image.Image]:
    pictures = [output for output in cell.outputs if output.output_type == "display_data"]
    data = [base64.b64decode(output.data["image/png"]) for output in pictures]
    return [Image.open(io.BytesIO(content)) for content in data]


@pytest.mark.slow
def test_it_prints_what_the_page_says(cells):
    """In the comments beside `print`, but for the last digits of measured numbers."""
    promised = []
    for cell in cells:
        said = re.findall(r"^print\(.*\)  # (.+)$", cell.source, re.MULTILINE)
        lines = printed(cell).splitlines()
        for promise in said:
            line = lines.pop(0)
            assert NUMBER.sub("0", line) == NUMBER.sub("0", promise)
            numbers = [[*map(float, NUMBER.findall(text))] for text in (line, promise)]
            assert numbers[0] == pytest.approx(numbers[1], rel=0.02, abs=0.02)
        promised += said
    assert len(promised) >= 8
    assert "8 masks and overlays in found" in printed(cells[-1])


@pytest.mark.slow
def test_the_pictures_are_those_of_the_page(cells):
    """Drawn again they look the same: run `python docs/make_tutorial.py` where they do not."""
    drawn = [picture for cell in cells for picture in shown(cell)]
    names = make_tutorial.pictures()
    assert len(drawn) == len(names) >= 5
    for name, picture in zip(names, drawn, strict=True):
        file = make_tutorial.PAGE.with_name(name)
        assert file.stat().st_size < 50_000
        picture.convert("RGB").save(again := io.BytesIO(), "JPEG")
        with Image.open(file) as kept, Image.open(again) as expected:
            assert kept.size == expected.size
            difference = np.abs(np.asarray(kept, np.int16) - np.asarray(expected))
        assert difference.mean() < 1, name
