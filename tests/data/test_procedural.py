"""The drawn episodes: frozen, reproducible, fold-clean, and hard where they should be."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from fsdino.data import procedural
from fsdino.data.episodes import Episode
from fsdino.data.procedural import (
    CLASSES,
    FOLDS,
    OBJECT_CLASSES,
    VERSION,
    ProceduralEpisodes,
    Split,
    fingerprint,
    render_sample,
)
from fsdino.data.shapes import NEUTRAL_SHAPES, SHAPES
from fsdino.data.textures import NEUTRAL_TEXTURES, TEXTURES
from fsdino.errors import UsageError

FROZEN = {"1": "9c39103459c1fed6ed436bd7ae63c179729857290c431184f68aba3828c1e6c6"}


def pixels(episode: Episode) -> list[bytes]:
    samples = (episode.query, *episode.supports)
    return [part.tobytes() for s in samples for part in (s.image, s.mask)]


def philox(*key: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def scene(rng: np.random.Generator, class_id: int) -> procedural._Scene:
    """Draw a scene of one of the set's classes."""
    kind = OBJECT_CLASSES[class_id]
    return procedural._scene(rng, kind, procedural._FOLDS[kind.fold])


def test_pictures_are_those_of_the_recorded_version() -> None:
    """Recorded results name a version; its pictures must never change under that name."""
    assert fingerprint() == FROZEN[VERSION]


def test_an_episode_depends_on_its_key_alone() -> None:
    """Workers read episodes in any order, from objects of their own, of any length."""
    forward = ProceduralEpisodes(1, "train", 2, seed=5, episodes=40, image_size=48)
    backward = ProceduralEpisodes(1, "train", 2, seed=5, episodes=400, image_size=48)
    np.random.seed(1)
    first = [pixels(forward[i]) for i in range(6)]
    np.random.seed(2)
    assert [pixels(backward[i]) for i in reversed(range(6))][::-1] == first


@pytest.mark.parametrize("change", ["seed", "split", "fold", "index"])
def test_every_part_of_the_key_matters(change: str) -> None:
    """Streams that coincide would leak validation episodes into training."""
    split: Split = "base_val" if change == "split" else "train"
    episodes = ProceduralEpisodes(int(change == "fold"), split, 1, int(change == "seed"))
    other = episodes[int(change == "index")]
    assert pixels(other)[0] != pixels(ProceduralEpisodes(0, "train", 1, 0)[0])[0]


def test_more_shots_extend_fewer_shots() -> None:
    """1-shot and 5-shot scores are compared on equal queries and growing support sets."""
    one = ProceduralEpisodes(3, "val", 1, image_size=40)
    five = ProceduralEpisodes(3, "val", 5, image_size=40)
    for index in (0, 7, 30):
        assert pixels(one[index]) == pixels(five[index])[:4]
        assert len(five[index].supports) == 5


def test_all_pictures_of_an_episode_differ_and_have_unique_names() -> None:
    """A support equal to the query would give the answer away."""
    episodes = ProceduralEpisodes(2, "val", 5, image_size=32)
    samples = [s for i in range(8) for s in (episodes[i].query, *episodes[i].supports)]
    assert len({s.image.tobytes() for s in samples}) == len(samples)
    assert len({s.name for s in samples}) == len(samples)


def test_splits_divide_the_classes_by_fold() -> None:
    """Training must never draw a held-out class."""
    seen = []
    for fold in range(FOLDS):
        held_out = ProceduralEpisodes(fold, "val").classes
        assert held_out == tuple(range(24 * fold, 24 * fold + 24))
        seen += held_out
        for split in ("train", "base_val"):
            base = ProceduralEpisodes(fold, split).classes  # type: ignore[arg-type]
            assert sorted(base + held_out) == list(range(CLASSES))
    assert sorted(seen) == list(range(CLASSES)) and CLASSES >= 96


def test_classes_take_turns() -> None:
    """A class never drawn would count as zero in mIoU."""
    episodes = ProceduralEpisodes(1, "val", image_size=32)
    rounds = [[episodes[i].class_id for i in range(s, s + 24)] for s in (0, 24)]
    assert all(sorted(drawn) == list(episodes.classes) for drawn in rounds)
    assert rounds[0] != rounds[1]
    names = episodes.class_names
    assert len(set(names.values())) == 24 and episodes[3].class_name == names[episodes[3].class_id]


def test_folds_share_no_texture_and_no_shape() -> None:
    """A held-out class must be new in every part, by name, by parameters and by appearance."""
    textures = [texture for pool in (*TEXTURES, NEUTRAL_TEXTURES) for texture in pool]
    shapes = [shape for pool in (*SHAPES, NEUTRAL_SHAPES) for shape in pool]
    for pool in (textures, shapes):
        assert len({item.name for item in pool}) == len(pool)
        assert len({(item.family.__name__, item.params) for item in pool}) == len(pool)
    axis = np.linspace(-1, 1, 64, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for one, other in combinations([texture(u, v) for texture in textures], 2):
        assert np.abs(one - other).mean() > 0.05
    angle = np.linspace(0, 2 * np.pi, 32, endpoint=False)
    towards = np.stack([np.cos(angle), np.sin(angle)])
    for here, there in combinations([(s.outline() @ towards).max(axis=0) for s in shapes], 2):
        assert np.abs(here - there).max() > 0.02


def test_textures_stay_in_range_and_single_precision() -> None:
    """Blends outside 0..1 leave the palette; double precision halves the speed."""
    axis = np.linspace(-45, 45, 128, dtype=np.float32)
    u, v = np.meshgrid(axis, axis)
    for texture in (t for pool in (*TEXTURES, NEUTRAL_TEXTURES) for t in pool):
        blend = texture(u, v)
        assert blend.dtype == np.float32 and blend.shape == u.shape
        assert blend.min() >= 0 and blend.max() <= 1


@pytest.mark.parametrize("class_id", [0, 21, 30, 55, 71, 72, 95])
def test_a_scene_wears_only_its_folds_and_neutral_textures(class_id: int) -> None:
    """Clutter and distractors must not show a held-out texture to training either."""
    fold = OBJECT_CLASSES[class_id].fold
    allowed = {t.name for t in (*TEXTURES[fold], *NEUTRAL_TEXTURES)}
    worn = set()
    for key in range(12):
        layers = scene(philox(key), class_id).layers
        worn |= {layer.texture.name for layer in layers}
        target = [layer.texture for layer in layers if layer.label in (1, 2)]
        assert set(target) == set(OBJECT_CLASSES[class_id].textures)
    assert worn <= allowed and len(worn) > 6


def test_a_quarter_of_the_classes_differ_by_arrangement_only() -> None:
    """Only where the parts lie tells twins apart, so that spatial correspondence can matter."""
    paired = 0
    for kind in OBJECT_CLASSES:
        same_parts = [
            other
            for other in OBJECT_CLASSES
            if other is not kind and (other.first, other.second) == (kind.first, kind.second)
        ]
        assert [other.class_id for other in same_parts] == [kind.twin] * len(same_parts)
        if kind.twin is None:
            continue
        paired += 1
        twin = OBJECT_CLASSES[kind.twin]
        assert twin.twin == kind.class_id and twin.fold == kind.fold
        mine, theirs = kind.arrangement, twin.arrangement
        assert mine.direction is not None and theirs.direction is not None
        assert abs((mine.direction - theirs.direction + 180) % 360 - 180) >= 90
        assert (mine.scales, mine.turn, mine.behind) == (theirs.scales, theirs.turn, theirs.behind)
    assert paired == CLASSES // 4


def test_classes_without_a_twin_differ_in_their_textures() -> None:
    """Two classes with equal texture pairs and no twin entry would be accidental twins."""
    for kind, other in combinations(OBJECT_CLASSES, 2):
        if kind.twin != other.class_id:
            assert set(kind.textures) != set(other.textures)
        assert kind.name != other.name


@pytest.mark.parametrize("class_id", [0, 5, 95])
def test_distractors_are_other_classes_of_the_fold_and_often_the_twin(class_id: int) -> None:
    """A target alone in its picture could be found without looking at the support."""
    kind = OBJECT_CLASSES[class_id]
    fold = procedural._FOLDS[kind.fold]
    drawn = [
        [other.class_id for other in procedural._distractors(philox(9, key), kind, fold)]
        for key in range(200)
    ]
    assert {len(chosen) for chosen in drawn} == {1, 2, 3}
    for chosen in drawn:
        assert class_id not in chosen and len(set(chosen)) == len(chosen)
        assert {OBJECT_CLASSES[other].fold for other in chosen} == {kind.fold}
    with_twin = np.mean([kind.twin in chosen for chosen in drawn])
    assert with_twin == 0 if kind.twin is None else 0.35 < with_twin < 0.65
    others = [c for chosen in drawn for c in chosen if c != kind.twin]
    sharing = np.mean([bool(set(OBJECT_CLASSES[c].textures) & set(kind.textures)) for c in others])
    assert sharing > 0.5


def test_distractors_are_in_the_picture_and_outside_the_mask() -> None:
    """Painting everything but the distractors must change pixels, none of them in the mask."""
    for key in range(6):
        picture = scene(philox(key), 40)
        textured = [layer for layer in picture.layers if layer.texture in TEXTURES[1]]
        shown = [layer for layer in textured if layer.label == 3 and layer.shadow > 0.3]
        assert len(shown) in (2, 4, 6)
        canvas = procedural._Canvas(64)
        for layer in picture.layers:
            canvas.paint(layer)
        without = procedural._Canvas(64)
        for layer in picture.layers:
            if not any(layer is distractor for distractor in shown):
                without.paint(layer)
        changed = (canvas.planes != without.planes).any(axis=0)[:64, :64]
        assert changed.mean() > 0.02
        assert (canvas.visible <= without.visible).all()


@pytest.mark.parametrize("size", [32, 33, 57, 112, 225])
def test_any_size_shows_the_same_scene(size: int) -> None:
    """A model trained at one size is asked at another; the masks must describe one scene."""
    for class_id in (3, 77):
        sample = render_sample(class_id, (8,), size)
        assert sample.image.shape == (size, size, 3) and sample.image.dtype == np.uint8
        assert sample.mask.shape == (size, size) and sample.mask.dtype == np.bool_
        reference = render_sample(class_id, (8,), 448)
        centres = ((np.arange(size) + 0.5) / size * 448).astype(int)
        expected = reference.mask[np.ix_(centres, centres)]
        iou = (expected & sample.mask).sum() / (expected | sample.mask).sum()
        assert iou > 0.85  # at 32 pixels every second pixel of an object is a rim pixel
        colours = reference.image[np.ix_(centres, centres)].mean(axis=(0, 1))
        assert np.abs(colours - sample.image.mean(axis=(0, 1))).max() < 6


def test_objects_are_visible_but_never_most_of_the_picture() -> None:
    """Empty masks make episodes without an answer, huge ones make any answer right."""
    for class_id in range(CLASSES):
        share = render_sample(class_id, (1, 2), 40).mask.mean()
        assert 0.03 < share < 0.42


def test_colour_does_not_name_the_class() -> None:
    """Instances of a class must come in several palettes, and twins in the same ones."""
    for kind in OBJECT_CLASSES[:24]:
        rng = philox(kind.class_id)
        palettes = [procedural._palette_of(rng, kind) for _ in range(600)]
        counts = np.bincount(palettes, minlength=8)
        assert counts.min() > 15  # each is expected 37.5 times
        assert counts.max() < 400  # the favourite is expected 337.5 times
        if kind.twin is not None:
            rng = philox(kind.class_id)
            twin = OBJECT_CLASSES[kind.twin]
            assert [procedural._palette_of(rng, twin) for _ in range(600)] == palettes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fold": 4}, "fold 4"),
        ({"fold": -1}, "fold -1"),
        ({"split": "test"}, "split 'test'"),
        ({"shots": 0}, "shots 0"),
        ({"seed": -1}, "seed -1"),
        ({"episodes": 0}, "episodes 0"),
        ({"image_size": 31}, "image_size 31"),
    ],
)
def test_arguments_out_of_range_are_named(arguments: dict[str, object], message: str) -> None:
    """A wrong fold that silently works trains on the classes it is tested on."""
    with pytest.raises(UsageError, match=message):
        ProceduralEpisodes(**({"fold": 0, "split": "val"} | arguments))  # type: ignore[arg-type]


def test_indices_end_where_len_says() -> None:
    """Iteration protocols and samplers rely on IndexError."""
    episodes = ProceduralEpisodes(0, "val", episodes=3, image_size=32)
    assert len(list(episodes)) == len(episodes) == 3  # type: ignore[call-overload]
    for index in (3, -1):
        with pytest.raises(IndexError, match=str(index)):
            episodes[index]


def test_keys_name_what_will_be_drawn() -> None:
    """The episode hash is over keys; a key that names other pictures would vouch for nothing."""
    episodes = ProceduralEpisodes(3, "val", 2, seed=4, episodes=30, image_size=32)
    for index in (0, 29):
        episode, key = episodes[index], episodes.key(index)
        assert (key.class_id, key.query) == (episode.class_id, episode.query.name)
        assert key.supports == tuple(support.name for support in episode.supports)
    for index in (30, -1):
        with pytest.raises(IndexError, match=str(index)):
            episodes.key(index)


def test_provenance_names_generator_and_fold() -> None:
    """A result on drawn pictures must not pass for one on another fold, split or version."""
    found = ProceduralEpisodes(2, "base_val", image_size=32).provenance
    assert (found.dataset, found.fold, found.split) == ("procedural", 2, "base_val")
    assert (found.lists, found.mask_source) == ("generated", "generated")
    assert found.lists_hash == FROZEN[VERSION]


def test_render_sample_refuses_unknown_classes_and_negative_keys() -> None:
    """Errors must name the argument, not come from inside the random generator."""
    with pytest.raises(UsageError, match="class_id 96"):
        render_sample(96, (0,))
    with pytest.raises(UsageError, match="key"):
        render_sample(0, (-1,))
    with pytest.raises(UsageError, match="image_size"):
        render_sample(0, (0,), 8)
