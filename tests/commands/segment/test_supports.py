"""How a command line names supports: pairs, saved files, and names for several classes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fsdino.commands.segment import supports
from fsdino.commands.segment.supports import SupportFiles
from fsdino.errors import UsageError
from fsdino.models.segmenter import LEAST_QUALITY, LEAST_QUALITY_OF_SEVERAL
from fsdino.models.supports import Support
from tiny_models import box_mask, picture, tiny_model


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four empty files in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "a.png", "b=c.jpg", "s.safetensors"):
        Path(name).touch()


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
        ([["a.jpg"]], "1 files are not pairs"),
        ([["a.jpg", "a.png", "a.jpg"]], "3 files are not pairs"),
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
