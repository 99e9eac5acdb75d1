"""Overlays: what is drawn where, in which colours."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from fsdino import images, overlay
from fsdino.errors import UsageError
from pictures import disc, one_line, picture


def test_overlay_of_a_mask() -> None:
    """Outside the picture is untouched, inside it is blended, and the outline is the colour."""
    pixels = picture(40, 60)
    mask = np.zeros((40, 60), bool)
    mask[10:30, 0:20] = True
    result = np.array(overlay.overlay(pixels, mask, colors=[(200, 0, 100)], alpha=0.25))
    assert np.array_equal(result[~mask], pixels[~mask])
    outline = mask.copy()
    outline[11:29, 0:19] = False  # the image's own border, x = 0, gets no line
    assert (result[outline] == (200, 0, 100)).all()
    inside = mask & ~outline
    expected = pixels[inside] * 0.75 + np.array([200, 0, 100]) * 0.25
    assert np.abs(result[inside] - expected).max() <= 0.5
    assert np.array_equal(pixels, picture(40, 60))


def test_overlay_outline_grows_with_the_image() -> None:
    """At 12 megapixels the line is wide enough to be seen, and still inside the region."""
    pixels, mask = picture(3000, 4000), disc(3000, 4000)
    result = np.array(overlay.overlay(pixels, mask))
    line = (result == overlay.COLORS[0]).all(axis=2)
    assert not (line & ~mask).any()
    row = line[int(0.4 * 3000)]  # through the middle of the disc
    assert row.sum() == 2 * 10  # 4000 / 400 on either side
    assert np.array_equal(result[~mask], pixels[~mask])


def test_overlay_of_labels() -> None:
    """Neighbouring labels have their own colours and a line between them; numbers may be high."""
    values = np.zeros((30, 30), np.int64)
    values[5:25, 5:15], values[5:25, 15:25] = 1, 40
    result = np.array(overlay.overlay(picture(30, 30), values, alpha=1))
    assert (result[values == 1] == overlay.label_color(1)).all()
    assert (result[values == 40] == overlay.label_color(40)).all()
    line = np.array(overlay.overlay(0 * picture(30, 30), values, alpha=0))
    assert (line[10, 14] == overlay.label_color(1)).all()
    assert (line[10, 15] == overlay.label_color(40)).all()
    assert not line[10, 10].any()


def test_label_colors_differ() -> None:
    """Up to twenty classes are told apart in one picture, and the palette has the same colours."""
    colors = np.array([overlay.label_color(label) for label in range(1, 21)]).astype(int)
    for first, second in itertools.combinations(colors, 2):
        assert np.abs(first - second).sum() >= 60
    table = np.array(overlay.palette()).reshape(256, 3)
    assert not table[0].any()
    assert np.array_equal(table[1:21], colors)


def test_overlay_refuses_what_it_cannot_mean() -> None:
    """Other sizes, negative labels, alpha outside its range, no colours."""
    pixels, mask = picture(6, 8), disc(6, 8)
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: overlay.overlay(pixels, mask.T), "[8, 6]"),
        (lambda: overlay.overlay(pixels / 255, mask), "uint8"),
        (lambda: overlay.overlay(pixels, mask.astype(float)), "float64"),
        (lambda: overlay.overlay(pixels, mask.astype(int) - 1), "negative"),
        (lambda: overlay.overlay(pixels, mask, alpha=1.5), "alpha"),
        (lambda: overlay.overlay(pixels, mask, colors=[]), "colours"),
        (lambda: overlay.label_color(0), "labels start at 1"),
    ]
    for call, part in calls:
        with pytest.raises(UsageError) as error:
            call()
        one_line(error, part)


def test_overlay_of_what_is_blended_in_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pixel once, at every height: the image and the colour in the given shares."""
    monkeypatch.setattr(images, "BAND", 15)
    image = np.random.default_rng(0).integers(0, 256, (10, 5, 3), dtype=np.uint8)
    found = np.array(overlay.overlay(image, np.ones((10, 5), np.bool_), [(10, 20, 30)], alpha=0.25))
    np.testing.assert_allclose(found, image * 0.75 + np.array([2.5, 5, 7.5]), atol=0.501)


def test_supports_and_truth_keep_their_colours():
    """But for two lines along the mask's edge, whose inner one has the label's colour."""
    image = picture(80, 80)
    mask = np.zeros((80, 80), dtype=bool)
    mask[20:60, 20:60] = True
    shown = np.array(overlay.marked(image, np.where(mask, 2, 0)))
    same = (shown == image).all(axis=2)
    assert same[24:56, 24:56].all()
    assert same[:16].all() and same[64:].all() and same[:, :16].all() and same[:, 64:].all()
    assert (shown[20, 20:60] == overlay.label_color(2)).all()
    assert (shown[19, 20:60] == 255).all()


def test_mask_image() -> None:
    """Black and white for one class, a palette in the overlays' colours for several."""
    one = overlay.mask_image(np.array([[0, 1]], np.uint8), 1)
    assert one.mode == "L" and np.asarray(one).tolist() == [[0, 255]]
    several = overlay.mask_image(np.array([[0, 2]], np.uint8), 3)
    assert several.mode == "P" and np.asarray(several).tolist() == [[0, 2]]
    assert np.asarray(several.convert("RGB")).tolist() == [
        [[0, 0, 0], list(overlay.label_color(2))]
    ]


def test_encode_overlay() -> None:
    """JPEG cannot have more than 65,500 pixels a side."""
    assert overlay.encode_overlay(Image.new("RGB", (8, 8)))[0] == "jpg"
    kind, content = overlay.encode_overlay(Image.new("RGB", (65_501, 1)))
    assert kind == "png" and content.startswith(b"\x89PNG")


def test_shrunk() -> None:
    """Large pictures keep their shape; no side becomes 0."""
    assert overlay.shrunk(Image.new("RGB", (100, 50)), 100).size == (100, 50)
    assert overlay.shrunk(Image.new("RGB", (200, 50)), 100).size == (100, 25)
    assert overlay.shrunk(Image.new("RGB", (1, 900)), 100).size == (1, 100)


def test_a_legend_names_the_labels_that_are_there() -> None:
    """One row for each, with its colour; what lies outside stays, and so do small pictures."""
    labels = np.zeros((300, 400), np.uint8)
    labels[200:220, 200:220], labels[250:260, 300:310] = 1, 3
    picture = Image.new("RGB", (400, 300), (90, 90, 90))
    before = np.asarray(picture).copy()
    drawn = np.asarray(overlay.with_legend(picture, labels, ("cat", "dog", "c\now")))
    colors = [overlay.label_color(label) for label in (1, 2, 3)]
    found = [(drawn == color).all(axis=2) for color in colors]
    assert [bool(flags.any()) for flags in found] == [True, False, True]
    assert np.argwhere(found[0])[:, 0].max() < np.argwhere(found[2])[:, 0].min()
    assert (drawn < 80).all(axis=2).any()  # letters, with soft edges
    assert (drawn[100:] == before[100:]).all() and (drawn[:, 150:] == before[:, 150:]).all()
    tiny = Image.new("RGB", (3, 2), (9, 9, 9))
    overlay.with_legend(tiny, np.ones((2, 3), np.uint8), ("cat", "dog"))
    assert (np.asarray(tiny) == 9).all()
