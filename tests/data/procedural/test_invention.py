"""Invented classes: new each time, by the set's own rules, and nothing of the held-out fold."""

from __future__ import annotations

import numpy as np
import pytest

from fsdino.data.episodes import NO_CLASS
from fsdino.data.procedural import invention
from fsdino.data.procedural.invention import InventedEpisodes, invented_fold
from fsdino.data.procedural.scenes import draw_scene
from fsdino.data.procedural.shapes import SHAPES, Shape
from fsdino.data.procedural.textures import NEUTRAL_TEXTURES, TEXTURES, Texture
from fsdino.errors import UsageError


def test_an_episode_is_a_function_of_its_number() -> None:
    """Workers and resumed runs must draw the same; the query must not depend on K."""
    one, three = InventedEpisodes(3, 1, 0, 48), InventedEpisodes(3, 3, 0, 48)
    for index in (0, 7, 10**9):
        first, again, more = one[index], one[index], three[index]
        assert np.array_equal(first.query.image, again.query.image)
        assert np.array_equal(first.query.image, more.query.image)
        assert np.array_equal(first.supports[0].mask, more.supports[0].mask)
        assert more.shots == 3 and more.class_id == NO_CLASS
        assert len({s.name for s in (more.query, *more.supports)}) == 4
    pictures = [one[i].query.image for i in range(5)] + [
        InventedEpisodes(3, 1, 1, 48)[0].query.image
    ]
    pictures.append(InventedEpisodes(2, 1, 0, 48)[0].query.image)
    assert len({picture.tobytes() for picture in pictures}) == 7


def test_size_changes_no_scene() -> None:
    """Training mixes sizes; the masks must describe one scene."""
    small, large = InventedEpisodes(3, 1, 0, 56)[4].query, InventedEpisodes(3, 1, 0, 224)[4].query
    shrunk = large.mask.reshape(56, 4, 56, 4).mean((1, 3)) > 0.5
    assert (shrunk & small.mask).sum() / (shrunk | small.mask).sum() > 0.9


@pytest.mark.parametrize("held_out", range(4))
def test_nothing_comes_from_the_held_out_fold(
    monkeypatch: pytest.MonkeyPatch, held_out: int
) -> None:
    """Its textures and shapes are replaced by ones that cannot be drawn."""

    def broken(*_: object) -> None:
        raise AssertionError("held out")

    for name, table, kind in (("TEXTURES", TEXTURES, Texture), ("SHAPES", SHAPES, Shape)):
        spoilt = list(table)
        spoilt[held_out] = tuple(kind(f"held out {i}", broken, (i,)) for i in range(8))
        monkeypatch.setattr(invention, name, tuple(spoilt))
    episodes = InventedEpisodes(held_out, 1, 0, 32)
    for index in range(30):
        assert episodes[index].query.mask.any()
    with pytest.raises(AssertionError, match="held out"):
        for index in range(30):
            InventedEpisodes((held_out + 1) % 4, 1, 0, 32)[index]


def test_a_fold_follows_the_sets_rules() -> None:
    """Twins, distractors and clutter are those of an invented fold, and neutral ones."""
    fold = invented_fold(3, (0, 5))
    assert len(fold.classes) == 24 and len(set(fold.textures)) == 8
    assert sum(kind.twin is not None for kind in fold.classes) == 6
    rng, worn = np.random.default_rng(0), set()
    for kind in fold.classes:
        layers = draw_scene(rng, kind, fold).layers
        assert {layer.texture for layer in layers if layer.label < 3} == set(kind.textures)
        worn |= {layer.texture for layer in layers}
    assert worn <= {*fold.textures, *NEUTRAL_TEXTURES} and worn >= set(fold.textures)
    u, v = np.meshgrid(*2 * [np.linspace(-1, 1, 64, dtype=np.float32)])
    for texture in fold.textures:
        blend = texture(u, v)
        assert blend.dtype == np.float32 and blend.shape == u.shape
        assert blend.min() >= 0 and blend.max() <= 1 and np.ptp(blend) > 0.2


def test_targets_are_well_visible() -> None:
    """Outlines without an inside would make masks that nobody can learn."""
    episodes = InventedEpisodes(3, 1, 0, 40)
    shares = np.array([episodes[index].query.mask.mean() for index in range(100)])
    assert shares.min() > 0.03 and shares.max() < 0.42


@pytest.mark.parametrize("held_out", [-1, 4])
def test_unknown_folds_are_refused(held_out: int) -> None:
    with pytest.raises(UsageError, match=r"held_out .*: choose one of 0\.\.3"):
        InventedEpisodes(held_out, 1, 0, 112)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((0, 0, 112), "shots 0: use at least 1"),
        ((1, -1, 112), "seed -1: use at least 0"),
        ((1, 0, 31), "image_size 31: use at least 32 pixels"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: tuple[int, int, int], found: str) -> None:
    with pytest.raises(UsageError, match=found):
        InventedEpisodes(3, *arguments)
