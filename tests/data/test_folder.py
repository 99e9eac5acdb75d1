"""A user's own folder of classes as episodes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import picture, save_jpeg
from fsdino.data.catalog import open_episodes
from fsdino.data.folder import Folder
from fsdino.errors import DataError, UsageError


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Classes of ten images, 40 x 30 pixels; class dog's are marked on the left half."""
    for name in ("dog", "cat"):
        for i in range(10):
            save_jpeg(tmp_path / name / f"{i}.jpg", i, 30, 40)
            mask = np.zeros((30, 40), np.uint8)
            mask[:, : 20 if name == "dog" else 40] = 255
            Image.fromarray(mask).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_folders_are_classes_by_name(photos: Path) -> None:
    """Hidden folders, files beside them and folders without images are not classes."""
    (photos / ".git").mkdir()
    (photos / "empty").mkdir()
    (photos / "notes.txt").write_text("about")
    episodes = open_episodes("folder", root=photos, shots=3, episodes=20)
    assert dict(episodes.class_names) == {0: "cat", 1: "dog"} and episodes.fold is None
    provenance = episodes.provenance
    assert (provenance.sampling, provenance.lists, provenance.mask_source) == (
        "seeded", "derived", "published",
    )  # fmt: skip
    for i in range(20):
        episode = episodes[i]
        assert episode.query.name.startswith(f"{episode.class_name}/")
        assert len({s.name for s in (episode.query, *episode.supports)}) == 4
        assert episode.query.mask.mean() == (0.5 if episode.class_name == "dog" else 1.0)


def test_every_fifth_image_is_kept_out_of_training(photos: Path) -> None:
    """Validation on trained images praises whatever was learnt by heart."""
    source = Folder(photos)
    train, base = (source.lists(None, split).by_class for split in ("train", "base_val"))
    assert base[1] == ("dog/4.jpg", "dog/9.jpg")
    assert len(train[1]) == 8 and not set(train[1]) & set(base[1])
    assert len(source.lists(None, "val").by_class[1]) == 10


def test_a_turned_photograph_keeps_its_mask(photos: Path) -> None:
    """Masks are painted on the picture as it is shown."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 40, 30)).save(photos / "dog" / "0.jpg", exif=exif)
    assert Folder(photos).read("dog/0.jpg", 1, query=True).image.shape == (30, 40, 3)


def test_a_photograph_turned_by_180_degrees(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing decides which way up its mask is: a warning, once a folder."""
    exif = Image.Exif()
    exif[0x0112] = 3
    for name in ("dog/0.jpg", "dog/1.jpg"):
        Image.fromarray(picture(0, 30, 40)).save(photos / name, exif=exif)
        Folder(photos).read(name, 1, query=True)
    assert caplog.text.count("orientation of its photograph is 3") == 1


def test_what_is_missing_or_bad_is_named(photos: Path, tmp_path: Path) -> None:
    """One's own data have one's own mistakes."""
    source = Folder(photos)
    Image.new("L", (40, 31), 255).save(photos / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png.*40 × 31"):
        source.read("dog/0.jpg", 1, query=True)
    Image.new("L", (40, 30), 0).save(photos / "dog" / "0.png")
    with pytest.raises(DataError, match=r"0\.png"):
        source.read("dog/0.jpg", 1, query=True)
    (photos / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"1 images have no mask, such as .*dog.1\.jpg: add 1\.png"):
        open_episodes("folder", root=photos)
    for path in (photos / "dog").glob("*.jpg"):
        path.unlink()
    save_jpeg(photos / "dog" / "0.jpg", 0, 30, 40)
    with pytest.raises(DataError, match="class 1 has 1 images, an episode needs two"):
        open_episodes("folder", root=photos)
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="no image found"):
        Folder(tmp_path / "nothing").lists(None, "val")
    with pytest.raises(UsageError, match="no folder there"):
        open_episodes("folder", root=tmp_path / "nothing")
