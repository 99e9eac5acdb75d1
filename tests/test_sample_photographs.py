"""The photographs that are installed with the package: fsdino.samples()."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

import fsdino
from fsdino import sample_photographs
from fsdino.errors import DataError
from tiny_models import tiny_model

FOLDER = Path(fsdino.__file__).with_name("photographs")
TESTS = Path(__file__).with_name("photographs")


def test_samples_are_photographs_with_masks() -> None:
    """Each is small and complete, names its origin, and is a support for another one."""
    samples = fsdino.samples()
    assert len(samples) >= 4
    for name, sample in samples.items():
        assert sample.name == name
        assert sample.image.mode == "RGB" and sample.mask.mode == "L"
        assert sample.image.size == sample.mask.size and max(sample.image.size) <= 512
        counts = np.array(sample.mask.histogram())
        assert counts[1:255].sum() == 0
        assert 0.003 < counts[255] / counts.sum() < 0.6
        assert re.search(r"CC0|public domain|no known copyright", sample.licence, re.IGNORECASE)
        for text in (sample.author, sample.source, sample.shows, sample.covers):
            assert text
        query = samples[sample.query]
        assert query.image_file != sample.image_file
        assert np.asarray(query.image).tobytes() != np.asarray(sample.image).tobytes()
    used = {file for s in samples.values() for file in (s.image_file, s.mask_file)}
    assert used | {FOLDER / "samples.json"} == set(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 450_000


def test_what_is_shipped_measures_nothing() -> None:
    """No sample is one of the held-out photographs."""
    held_out = [np.asarray(Image.open(file).convert("RGB")) for file in
                sorted((TESTS / "held_out").glob("*.jpg"))]  # fmt: skip
    for sample in fsdino.samples().values():
        image = np.asarray(sample.image)
        assert not any(np.array_equal(image, other) for other in held_out)


def test_the_coins_are_two_parts_of_one_photograph() -> None:
    """As the tests' own file has them: 12 and 12 coins, and no pixel in both."""
    samples = fsdino.samples()
    parts = [samples["coins"], samples["more-coins"]]
    with Image.open(TESTS / "coins.png") as image, Image.open(TESTS / "coins_mask.png") as mask:
        assert np.array_equal(np.vstack([np.asarray(p.image)[..., 0] for p in parts]), image)
        assert np.array_equal(np.vstack([np.asarray(p.mask) for p in parts]), mask)
    assert [ndimage.label(np.asarray(p.mask))[1] for p in parts] == [12, 12]


def test_a_sample_is_a_support() -> None:
    """Image and mask go into a model as they are, and so do the files."""
    samples = fsdino.samples()
    sample = samples["teacup"]
    model = tiny_model()
    support = model.encode_support(sample.image, sample.mask)
    found = model.segment(samples[sample.query].image, support)
    assert found.mask.shape == samples[sample.query].image.size[::-1]
    again = model.encode_support(sample.image_file, sample.mask_file)
    np.testing.assert_array_equal(
        found.probability, model.segment(samples[sample.query].image, again).probability
    )


def test_each_call_reads_anew() -> None:
    """What one caller draws on a photograph does not reach the next."""
    image = fsdino.samples()["coins"].image
    before = image.copy()
    image.paste((255, 0, 0), (0, 0, 50, 50))
    assert np.array_equal(fsdino.samples()["coins"].image, before)


def _cut(folder: Path) -> None:
    content = (folder / "teacup.jpg").read_bytes()
    (folder / "teacup.jpg").write_bytes(content[:2000])


def _shrink(folder: Path) -> None:
    Image.new("L", (8, 8), 255).save(folder / "teacup_mask.png")


def _forget(folder: Path) -> None:
    listing = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    del listing["samples"]["teacup"]["licence"]
    (folder / "samples.json").write_text(json.dumps(listing), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "samples.json").unlink(), "samples.json cannot be read"),
        (lambda folder: (folder / "samples.json").write_text("{"), "samples.json is damaged"),
        (lambda folder: (folder / "samples.json").write_text("{}"), "it names no samples"),
        (lambda folder: (folder / "teacup.jpg").unlink(), "'teacup' cannot be read"),
        (lambda folder: (folder / "teacup_mask.png").unlink(), "'teacup' cannot be read"),
        (_cut, "'teacup' cannot be read"),
        (_shrink, "'teacup' cannot be read"),
        (_forget, "'teacup' is not complete"),
    ],
)
def test_damaged_installation(
    damage: Callable[[Path], object],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One line that names the file or the sample, and says to install again."""
    folder = tmp_path / "photographs"
    shutil.copytree(FOLDER, folder)
    damage(folder)
    monkeypatch.setattr(sample_photographs, "_FOLDER", folder)
    with pytest.raises(DataError, match=re.escape(reason)) as caught:
        fsdino.samples()
    assert str(caught.value).endswith(": install fsdino again")
    assert "\n" not in str(caught.value)


def test_a_notebook_shows_a_sample() -> None:
    """One line of text, and the photograph with its mask drawn over it."""
    cup = fsdino.samples()["espresso-cup"]
    assert repr(cup) == "Sample(espresso-cup: the cup, with handle and coffee, 341x512)"
    shown = np.asarray(Image.open(io.BytesIO(cup._repr_png_())), np.int64)
    changed = np.abs(shown - np.asarray(cup.image)).sum(axis=2) > 0
    inside = np.asarray(cup.mask) == 255
    assert changed[inside].mean() > 0.99 and not changed[~inside].any()
