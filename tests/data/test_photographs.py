"""Episodes from photographs: exact masks, bounded sizes, other scales, and clear errors."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from data_sets import disc_photograph, write_photographs
from fsdino.data.episodes import NO_CLASS, Sample
from fsdino.data.photographs import PhotographEpisodes, Photographs, _draw_scale
from fsdino.errors import DataError, UsageError


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Photographs:
    """Three, of which one has something red."""
    return Photographs(write_photographs(tmp_path_factory.mktemp("photographs") / "folder"))


def redness(sample: Sample) -> np.ndarray:
    """How much redder than green the pixels are."""
    return sample.image[..., 0].astype(int) - sample.image[..., 1]


def red(sample: Sample) -> np.ndarray | None:
    """Where an image is red; None for images without colour, and where the red is not marked."""
    if np.ptp(sample.image, axis=2).max() < 20:
        return None
    excess = redness(sample)
    marked, rest = np.median(excess[sample.mask]), np.median(excess[~sample.mask])
    return None if marked < rest + 40 else excess > (marked + rest) / 2


def test_an_episode_is_a_function_of_its_number(photographs: Photographs) -> None:
    """Of nothing that was made before; seeds and indices differ."""
    other = Photographs(photographs.folder)
    for index in (5, 0, 10**9):
        one = PhotographEpisodes(photographs, 2, 3, 64)[index]
        same = PhotographEpisodes(other, 2, 3, 64)[index]
        assert one.shots == 2 and one.class_id == NO_CLASS and one.index == index
        for a, b in zip((one.query, *one.supports), (same.query, *same.supports), strict=True):
            assert a.name == b.name
            assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    drawn = [PhotographEpisodes(photographs, 1, seed, 64)[i] for seed in (0, 1) for i in range(5)]
    samples = [s for episode in drawn for s in (episode.query, *episode.supports)]
    assert len({s.image.tobytes() for s in samples}) == len({s.name for s in samples}) == 20


def test_masks_lie_on_what_they_mark(photographs: Photographs) -> None:
    """The red disc is red wherever it is shown: in place, pasted, several times."""
    episodes = PhotographEpisodes(photographs, 1, 0, 96)
    overlaps = []
    for index in range(80):
        episode = episodes[index]
        for sample in (episode.query, *episode.supports):
            expected = red(sample)
            if expected is not None and sample.mask.mean() > 0.02:
                union = (expected | sample.mask).sum()
                overlaps.append(float((expected & sample.mask).sum() / union))
    assert len(overlaps) > 25
    # Blur, compression and soft edges move the colour's edge by a pixel or two.
    assert np.median(overlaps) > 0.93 and min(overlaps) > 0.6


def test_targets_cover_what_was_promised(photographs: Photographs) -> None:
    """From 0.3 to 60 % of every image, and both ends are met."""
    shares = []
    for shots, side in ((1, 64), (4, 97)):
        episodes = PhotographEpisodes(photographs, shots, 1, side)
        for index in range(40):
            episode = episodes[index]
            for sample in (episode.query, *episode.supports):
                assert sample.image.shape == (side, side, 3)
                shares.append(float(sample.mask.mean()))
    assert min(shares) >= 0.003 and max(shares) <= 0.6
    assert min(shares) < 0.03 and max(shares) > 0.3


def test_scales_differ() -> None:
    """By a fifth or more where there is room, and else as far as the room allows."""
    for seed in range(50):
        rng = np.random.default_rng(seed)
        others = [1.3, 2.0]
        scale = _draw_scale(rng, (1.0, 4.0), others)
        assert 1 <= scale <= 4
        assert all(abs(math.log(scale / other)) >= 0.2 for other in others)
        assert 1 <= _draw_scale(rng, (1.0, 1.1), others) <= 1.1


def test_views_differ_in_size(tmp_path: Path) -> None:
    """The disc's diameter changes from the support to the query."""
    image = disc_photograph((210, 30, 30), 0)[0]
    for name, pixels in (("red", image), ("plain", np.full((64, 64, 3), 90, np.uint8))):
        PIL.Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    episodes = PhotographEpisodes(Photographs(tmp_path), 1, 2, 64)
    ratios = []
    for index in range(200):
        episode = episodes[index]
        masks = [sample.mask for sample in (episode.query, *episode.supports)]
        if all(map(is_one_disc, masks)):
            ratios.append(abs(math.log(masks[0].sum() / masks[1].sum())) / 2)
    # Tilting takes a part of what the scales differ by where the disc is far from the anchor.
    assert len(ratios) >= 10 and min(ratios) > 0.1 and np.median(ratios) > 0.2


def is_one_disc(mask: np.ndarray) -> bool:
    """Whether a mask is a single blob away from the border: it fills pi / 4 of its box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if rows[0] == 0 or columns[0] == 0 or rows[-1] == len(mask) - 1:
        return False
    box = (np.ptp(rows) + 1) * (np.ptp(columns) + 1)
    return columns[-1] < mask.shape[1] - 1 and 0.65 < mask.sum() / box < 0.9


def test_photographs_are_kept_small(tmp_path: Path) -> None:
    """And gray ones, ones with transparency and turned ones are read like any image."""
    PIL.Image.new("L", (1600, 400), 90).save(tmp_path / "wide.jpg")
    PIL.Image.new("RGBA", (40, 60), (10, 20, 30, 255)).save(tmp_path / "small.png")
    exif = PIL.Image.Exif()
    exif[274] = 6
    PIL.Image.new("RGB", (80, 40)).save(tmp_path / "turned.jpg", exif=exif)
    read = Photographs(tmp_path)
    shapes = dict(zip(read.names, (image.shape for image in read.images), strict=True))
    assert shapes == {
        "wide.jpg": (192, 768, 3),
        "small.png": (60, 40, 3),
        "turned.jpg": (80, 40, 3),
    }


def test_the_digest_tells_photographs_apart(tmp_path: Path) -> None:
    """A run must not go on with others; a folder that moved is the same."""
    one = write_photographs(tmp_path / "one")
    before = Photographs(one).digest
    moved = one.rename(tmp_path / "moved")
    assert Photographs(moved).digest == before
    image = disc_photograph((211, 30, 30), 3)[0]
    PIL.Image.fromarray(image).save(moved / "red.png")
    changed = Photographs(moved).digest
    (moved / "red.png").rename(moved / "blue.png")
    assert len({before, changed, Photographs(moved).digest}) == 3


def test_folders_without_photographs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        Photographs(tmp_path / "missing")
    with pytest.raises(UsageError, match=r"photographs: 0 image files in .*at least 2"):
        Photographs(tmp_path)
    PIL.Image.new("RGB", (64, 64)).save(tmp_path / "one.png")
    with pytest.raises(UsageError, match="photographs: 1 image files in"):
        Photographs(tmp_path)


def test_bad_photographs_are_named(tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "folder")
    (folder / "broken.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"photograph .*broken\.jpg"):
        Photographs(folder)
    PIL.Image.new("RGB", (640, 31)).save(folder / "broken.jpg")
    with pytest.raises(DataError, match=r"broken\.jpg: 640 x 31 pixels; .*at least 32: remove it"):
        Photographs(folder)


def test_plain_photographs_are_refused(tmp_path: Path) -> None:
    for name in "ab":
        PIL.Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / f"{name}.png")
    episodes = PhotographEpisodes(Photographs(tmp_path), 1, 0, 64)
    with pytest.raises(DataError, match=r"no region stands out in the 2 images .*give photo"):
        episodes[0]


def test_one_photograph_with_regions_suffices(tmp_path: Path) -> None:
    """The others are backgrounds, then, and nothing is pasted beside the target."""
    PIL.Image.fromarray(disc_photograph((210, 30, 30), 0)[0]).save(tmp_path / "red.png")
    PIL.Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "plain.png")
    episodes = PhotographEpisodes(Photographs(tmp_path), 1, 0, 64)
    for index in range(12):
        assert 0.003 <= episodes[index].query.mask.mean() <= 0.6


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((0, 0, 112), "shots 0: use at least 1"),
        ((1, -1, 112), "seed -1: use at least 0"),
        ((1, 0, 31), "image_size 31: use at least 32 pixels"),
    ],
)
def test_numbers_out_of_range_are_refused(
    photographs: Photographs, arguments: tuple[int, int, int], found: str
) -> None:
    with pytest.raises(UsageError, match=found):
        PhotographEpisodes(photographs, *arguments)
