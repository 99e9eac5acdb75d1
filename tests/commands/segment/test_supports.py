"""How a command line names supports: pairs, saved files, and names for several classes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fsdino.commands.segment import supports
from fsdino.commands.segment.mark_options import ImageMarks
from fsdino.commands.segment.supports import SupportFiles
from fsdino.errors import DataError, UsageError
from fsdino.masks import MaskRule
from fsdino.models.segmenting import LEAST_QUALITY, LEAST_QUALITY_OF_SEVERAL
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four empty files in the working folder, and what may be an archive."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a.png", "b=c.jpg", "s.safetensors"):
        Path(name).touch()
    Path("a.zip").write_bytes(b"PK\x03\x04")


def test_pairs_of_one_class():
    """Images and masks alternate; a single class needs no name."""
    [found] = supports.parse([["a.jpg", "a.png", "b=c.jpg", "a.png"]])
    assert found == SupportFiles(
        "foreground", (Path("a.jpg"), Path("a.png"), Path("b=c.jpg"), Path("a.png"))
    )
    assert not found.saved


def test_names_of_several_classes():
    """NAME= stands before the first file of each class, which may be a saved support."""
    found = supports.parse([["cat=a.jpg", "a.png"], ["big dog=s.safetensors"]])
    assert [support.name for support in found] == ["cat", "big dog"]
    assert [support.saved for support in found] == [False, True]


def test_a_file_with_an_equals_sign_is_a_file():
    """What exists under the whole value is not split into a name and a file."""
    [found] = supports.parse([["b=c.jpg", "a.png"]])
    assert (found.name, found.files[0]) == ("foreground", Path("b=c.jpg"))


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([], "no support given"),
        ([[]], "no support given"),
        ([["cat=a.jpg", "a.png"], []], "--support needs IMAGE MASK"),
        ([["a.jpg"]], "support a.jpg has no mask: pass one after it, or mark the object"),
        ([["cat=a.zip"]], "support a.zip: an archive: pass an image and its mask, or a folder"),
        ([["a.jpg", "a.png", "a.jpg"]], "has 3 files, which are not pairs of image and mask"),
        ([["a.jpg", "gone.png"]], "gone.png: no such file"),
        ([["a.jpg", "."]], ".: a file is needed, this is a folder"),
        ([["s.safetensors", "a.png"]], "stands alone"),
        ([["a.jpg", "a.png"], ["cat=a.jpg", "a.png"]], "need names"),
        ([["cat=a.jpg", "a.png"], ["cat=a.jpg", "a.png"]], "'cat' is given twice"),
        ([[f"{i}=a.jpg", "a.png"] for i in range(256)], "at most 255"),
    ],
)
def test_mistakes_are_named(groups: list[list[str]], words: str):
    """Each way to get the option wrong has a message of its own."""
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        supports.parse(groups)


def test_the_digest_follows_the_contents():
    """A copy of a support elsewhere is the same support; an edited mask is not."""
    Path("copy.jpg").write_bytes(b"image")
    Path("a.jpg").write_bytes(b"image")
    pair = SupportFiles("x", (Path("a.jpg"), Path("a.png")))
    copy = SupportFiles("y", (Path("copy.jpg"), Path("a.png")))
    assert pair.digest() == copy.digest()
    Path("a.png").write_bytes(b"mask")
    assert pair.digest() != SupportFiles("x", (Path("a.jpg"), Path("s.safetensors"))).digest()


def test_encode_reads_pairs_and_saved_supports():
    """Both forms give the support that the Python interface gives."""
    model = tiny_model()
    image, mask = picture(60, 80), box_mask(60, 80)
    Image.fromarray(image).save("x.png")
    Image.fromarray(mask).save("m.png")
    expected = model.encode_support([image], [mask])
    expected.save("s.safetensors")
    pair = SupportFiles("x", (Path("x.png"), Path("m.png"))).encode(model)
    saved = SupportFiles("x", (Path("s.safetensors"),)).encode(model)
    for found in (pair, saved):
        assert isinstance(found, Support)
        assert found.foreground.equal(expected.foreground)
        assert found.image_sizes == ((60, 80),)


def test_quality_in_a_line():
    """Two decimals, the name where there is one; a warning below the limit alone."""
    support = tiny_model().encode_support(picture(60, 80), box_mask(60, 80))
    assert supports.quality("cat", support) == "quality of support 'cat': not known"
    assert supports.warning("cat", support) is None
    poor, good = (replace(support, quality=value) for value in (0.126, LEAST_QUALITY))
    assert supports.quality("foreground", poor) == "quality of the support: 0.13"
    assert str(supports.warning("cat", poor)).startswith(
        "support 'cat' finds itself with an IoU of 0.13 only: "
    )
    assert supports.warning("cat", good) is None
    two = tiny_model().encode_support([picture(60, 80)] * 2, [box_mask(60, 80)] * 2)
    assert supports.warning("cat", replace(two, quality=LEAST_QUALITY_OF_SEVERAL)) is None
    assert supports.warning("cat", replace(two, quality=0.49)) is not None


def test_saving_is_checked_before_the_work():
    """A --save-support that cannot succeed is refused at once."""
    one = supports.parse([["a.jpg", "a.png"]])
    supports.check_saving(Path("new.safetensors"), one)
    with pytest.raises(UsageError, match="saves one class"):
        supports.check_saving(Path("new.safetensors"), one * 2)
    with pytest.raises(UsageError, match=r"must end in \.safetensors"):
        supports.check_saving(Path("new.pt"), one)
    Path("folder.safetensors").mkdir()
    with pytest.raises(UsageError, match="this is a folder"):
        supports.check_saving(Path("folder.safetensors"), one)


def labelled_folder() -> None:
    """cat/ and dog/ with two photographs each, and a LabelMe file of one class."""
    for name in ("cat", "dog"):
        Path("labelled", name).mkdir(parents=True)
        for k in range(2):
            Image.fromarray(picture(60, 80, seed=k)).save(f"labelled/{name}/{k}.jpg")
            Image.fromarray(box_mask(60, 80)).save(f"labelled/{name}/{k}.png")
    shape = {"label": "cow", "points": [[10, 10], [50, 10], [50, 40], [10, 40]]}
    data = {"imagePath": "0.jpg", "shapes": [shape]}
    Path("labelled/cat/0.json").write_text(json.dumps(data), encoding="utf-8")


def test_a_folder_of_labelled_images():
    """Its classes are supports, as if their files had been named."""
    labelled_folder()
    Path("labelled/cat/0.json").rename("x.json")
    both = supports.parse([["labelled"]])
    assert [support.name for support in both] == ["cat", "dog"]
    [one] = supports.parse([["cow=labelled/cat"]])
    files = tuple(Path("labelled/cat", name) for name in ("0.jpg", "0.png", "1.jpg", "1.png"))
    named = SupportFiles("cow", files)
    assert one.name == "cow" and not one.saved and one.digest() == named.digest()
    model = tiny_model()
    assert one.encode(model).same_as(named.encode(model))
    with pytest.raises(UsageError, match=r"has 2 classes \(cat, dog\): leave out x="):
        supports.parse([["x=labelled"]])
    with pytest.raises(UsageError, match="need names"):
        supports.parse([["labelled/cat"], ["dog=labelled/dog"]])
    Path("empty").mkdir()
    with pytest.raises(UsageError, match="empty: no labelled image found"):
        supports.parse([["empty"]])


def test_an_annotation_file():
    """Its class names the support; another mask has another digest."""
    labelled_folder()
    [cow] = supports.parse([["labelled/cat/0.json"]])
    assert (cow.name, cow.encode(tiny_model()).shots) == ("cow", 1)
    text = Path("labelled/cat/0.json").read_text(encoding="utf-8")
    Path("labelled/cat/0.json").write_text(text.replace("50", "60"), encoding="utf-8")
    assert supports.parse([["labelled/cat/0.json"]])[0].digest() != cow.digest()


def test_a_rule_for_masks():
    """Reaches the model, and makes another support of the same files."""
    Image.fromarray(picture(60, 80)).save("x.png")
    Image.fromarray(box_mask(60, 80).astype(np.uint8) * 3 + 4).save("m.png")
    plain, by_value = (
        supports.parse([["x.png", "m.png"]], r)[0] for r in (None, MaskRule(None, "7"))
    )
    assert plain.digest() != by_value.digest()
    model = tiny_model()
    expected = model.encode_support(picture(60, 80), box_mask(60, 80))
    assert by_value.encode(model).same_as(expected)
    with pytest.raises(DataError, match="--mask-value 7"):
        plain.encode(model)
    inverse = model.encode_support("x.png", "m.png", mask_value=4, invert_mask=True)
    assert inverse.same_as(expected)


# ------------------------------------------------------------------------- marks instead of masks


def test_marked_images_are_shots_of_their_class():
    """The last image of a group has its marks; groups of one name are one class."""
    box, points = ImageMarks(boxes=((1, 2, 3, 4),)), ImageMarks(points=((5, 6),), labels=(1,))
    groups = [["cat=a.jpg"], ["dog=a.jpg", "a.png"], ["cat=a.jpg", "a.png", "b=c.jpg"]]
    cat, dog = supports.parse(groups, marks=[box, None, points])
    assert cat == SupportFiles(
        "cat",
        (Path("a.jpg"), Path("a.png")),
        marked=((Path("a.jpg"), box), (Path("b=c.jpg"), points)),
    )
    assert dog == SupportFiles("dog", (Path("a.jpg"), Path("a.png")))
    other = supports.parse([["cat=a.jpg"]], marks=[ImageMarks(boxes=((1, 2, 3, 5),))])[0]
    assert other.digest() != supports.parse([["cat=a.jpg"]], marks=[box])[0].digest()


@pytest.mark.parametrize(
    ("group", "words"),
    [
        (["a.jpg", "a.png"], "a.jpg has a mask, a.png, and marks: pass one of them"),
        (["s.safetensors"], "a saved support takes no marks"),
        (["."], "a mark belongs to one image"),
    ],
)
def test_marks_of_what_has_a_mask(group: list[str], words: str):
    with pytest.raises(UsageError, match=words):
        supports.parse([group], marks=[ImageMarks(boxes=((1, 2, 3, 4),))])


def test_marked_images_are_encoded_with_their_marks():
    model = tiny_model()
    image, mask = picture(60, 80), box_mask(60, 80)
    Image.fromarray(image).save("x.png")
    Image.fromarray(mask).save("m.png")
    scribble = np.zeros((60, 80), np.uint8)
    scribble[20:40, 30:50], scribble[:, :4] = 1, 2
    Image.fromarray(scribble).save("s.png")
    found = supports.parse(
        [["x.png", "m.png", "x.png"], ["x.png"]],
        marks=[ImageMarks(scribble=Path("s.png")), ImageMarks(boxes=((20, 10, 60, 50),))],
    )[0].encode(model)
    expected = model.encode_support(
        [image] * 3,
        [mask, None, None],
        boxes=[None, None, (20, 10, 60, 50)],
        scribbles=[None, scribble, None],
    )
    assert found.same_as(expected)
