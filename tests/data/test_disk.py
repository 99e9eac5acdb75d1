"""Files of data sets: labels from any image file that holds them, keys of what is cached."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_sets import VOC_COLOURS, save_labels, stacked
from fsdino.data.disk import content_key, file_key, read_gray, read_labels
from fsdino.errors import DataError


@pytest.mark.parametrize("mode", ["palette", "gray", "16 colours", "rgb gray", "16 bit"])
def test_labels_from_any_png_that_holds_them(mode: str, tmp_path: Path) -> None:
    """Copies differ in the PNG's type, not in the labels."""
    labels, path = stacked([0, 3, 15]), tmp_path / "labels.png"
    if mode == "palette":
        save_labels(path, labels, VOC_COLOURS)
    elif mode == "gray":
        save_labels(path, labels)
    elif mode == "16 colours":
        save_labels(path, labels, VOC_COLOURS[:48])
        assert path.read_bytes()[24] == 4  # bits in a pixel
    elif mode == "rgb gray":
        Image.fromarray(np.repeat(labels[:, :, None], 3, axis=2)).save(path)
    else:
        Image.fromarray(labels.astype(np.uint16)).save(path)
    assert np.array_equal(read_labels(path, labels.shape), labels)


def test_pictures_are_no_labels(tmp_path: Path) -> None:
    """Colours instead of labels would be read as classes that nobody marked."""
    path = tmp_path / "labels.png"
    Image.new("RGB", (4, 4), (128, 0, 0)).save(path)
    with pytest.raises(DataError, match="RGB image has no class labels"):
        read_labels(path)
    Image.fromarray(np.full((4, 4), 300, np.uint16)).save(path)
    with pytest.raises(DataError, match="no class labels"):
        read_labels(path)
    with pytest.raises(DataError, match=r"nothing\.png.*fsdino data check"):
        read_gray(tmp_path / "nothing.png", (4, 4))


def test_keys_of_files_follow_their_content(tmp_path: Path) -> None:
    """What was derived from files must not be used for others."""
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(bytes(300_000))
    other.write_bytes(bytes(299_999) + b"x")
    assert content_key(one) != content_key(other)
    assert file_key([one]) != file_key([other]) != file_key([one, other])
    copied = tmp_path / "copied"
    copied.write_bytes(bytes(300_000))
    assert content_key(one) == content_key(copied)
