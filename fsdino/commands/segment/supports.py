"""Supports as a command line names them: `IMAGE MASK ...`, a marked image, a saved file, names."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsdino.commands.segment.mark_options import ImageMarks, arguments
from fsdino.errors import UsageError, listed, shown_path
from fsdino.locks import Lock

if TYPE_CHECKING:
    from fsdino.data.labelled import Labelled
    from fsdino.images import Flags, ImageLike
    from fsdino.masks import MaskRule
    from fsdino.models.segmenting import Segmenting
    from fsdino.models.supports import Support

UNNAMED = "foreground"
SAVED_SUFFIX = ".safetensors"
MAX_CLASSES = 255  # labels are written as 8-bit palette PNGs

_NAMED = re.compile(r"(?P<name>[^=/\\]+)=(?P<file>.+)")


@dataclass(frozen=True)
class SupportFiles:
    """The files that show one class.

    Attributes:
        name: of the class.
        files: image and mask of each shot, one after the other; or one saved support.
        labelled: instead of files, images and masks that a folder or an annotation file has.
        rule: which pixels of mask files are foreground; None where they say so themselves.
        marked: further shots, images with marks in the place of masks.
    """

    name: str
    files: tuple[Path, ...]
    labelled: Labelled | None = None
    rule: MaskRule | None = None
    marked: tuple[tuple[Path, ImageMarks], ...] = ()

    @property
    def saved(self) -> bool:
        """Whether it is one file written by `Support.save`."""
        return len(self.files) == 1

    def digest(self) -> str:
        """Hash of the files' contents: the same support gives the same hash anywhere."""
        digest = hashlib.sha256()
        parts: list[bytes | Path] = [*self.files]
        parts += [] if self.rule is None else [repr(self.rule).encode()]
        if self.labelled is not None:
            for image, mask in zip(self.labelled.images, self.labelled.masks, strict=True):
                parts += [image, mask if isinstance(mask, Path) else mask.tobytes()]
        for file, marks in self.marked:
            parts += [file, *marks.digest_parts()]
        for part in parts:
            content = part.read_bytes() if isinstance(part, Path) else part
            digest.update(hashlib.sha256(content).digest())
        return digest.hexdigest()[:16]

    def encode(self, model: Segmenting[Any]) -> Support:
        """The support as `model` sees it, with its quality.

        A file that was saved without a quality gives None for it.

        Raises:
            UsageError: a mask of another size than its image, a mark outside of its image, a
                support of another model.
            DataError: an unreadable image, a mask without foreground, a mark that finds nothing.
            CheckpointError: a damaged support file.
        """
        from fsdino.models.supports import Support

        if self.saved:
            return Support.load(self.files[0])
        images: Sequence[Path] = self.files[0::2]
        masks: Sequence[Path | Flags] = self.files[1::2]
        if self.labelled is not None:
            images, masks = self.labelled.images, self.labelled.masks
        return encode_marked(
            model,
            [*images, *(file for file, _ in self.marked)],
            [*masks, *(None for _ in self.marked)],
            [*(None for _ in masks), *(marks for _, marks in self.marked)],
            self.rule,
        )


def encode_marked(
    model: Segmenting[Any],
    images: Sequence[ImageLike],
    masks: Sequence[Path | Flags | None],
    marks: Sequence[ImageMarks | None],
    rule: MaskRule | None,
) -> Support:
    """A support with its quality; `warning` says what is wrong with it, with its name.

    Args:
        model: what encodes it.
        images: one or more.
        masks: of each image; None where it has marks.
        marks: of each image; None where it has a mask.
        rule: which pixels of mask files are foreground; None where they say so themselves.

    Raises:
        UsageError, DataError: as in `Segmenting.encode_support`.
    """
    from fsdino.masks import MaskRule

    files = [mask for mask in masks if mask is not None]
    if rule is None or not files or not all(isinstance(mask, Path) for mask in files):
        rule = MaskRule()
    return model.encode_support(
        images,
        masks,
        **arguments(marks),
        quality=True,
        warn=False,
        mask_threshold=rule.threshold,
        mask_value=rule.value,
        invert_mask=rule.invert,
    )


def mask_rule(threshold: float | None, value: str | None, invert: bool) -> MaskRule | None:
    """The rule of --mask-threshold, --mask-value and --invert-mask; None where none is given."""
    from fsdino.masks import MaskRule

    given = threshold is not None or value is not None or invert
    return MaskRule(threshold, value, invert) if given else None


def parse(
    groups: Sequence[Sequence[str]],
    rule: MaskRule | None = None,
    marks: Sequence[ImageMarks | None] = (),
) -> list[SupportFiles]:
    """Read the values of a repeatable `--support`, one class each.

    Each is `IMAGE MASK [IMAGE MASK ...]` or `FILE.safetensors`; `NAME=` before the first file
    names the class, which several classes need. A folder of labelled images, or an annotation file,
    has the classes that `read_labelled` finds. Of a group with marks, the last image has no mask;
    groups of one name are then shots of one class.

    Args:
        groups: the values.
        rule: which pixels of mask files are foreground.
        marks: of each group; empty where none has any.

    Raises:
        UsageError: no support, marks for an image that has a mask, an image without a mask, a
            missing file, a folder in a file's place, a name that is missing or used twice, a folder
            without labelled images.
        DataError: labels that cannot be read.
    """
    if not any(groups):
        raise UsageError("no support given: pass --support IMAGE MASK, or a saved one")
    given = marks or [None] * len(groups)
    found = _joined(
        [s for group, mark in zip(groups, given, strict=True) for s in _group(group, mark)]
    )
    check_names([support.name for support in found])
    return [replace(support, rule=rule) for support in found]


def check_names(names: Sequence[str]) -> None:
    """Refuse classes that cannot be told apart, or that are too many.

    Raises:
        UsageError: several of which one has no name, a name twice, more than 255.
    """
    if len(names) > 1 and UNNAMED in names:
        raise UsageError("several supports need names: --support NAME=IMAGE MASK")
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"support {name!r} is given twice: pass all its images after one --support"
            )
    if len(names) > MAX_CLASSES:
        raise UsageError(f"{len(names)} supports: at most {MAX_CLASSES} fit one label image")


def quality(name: str, support: Support) -> str:
    """How well a support finds itself, in a line."""
    found = "not known" if support.quality is None else f"{support.quality:.2f}"
    return f"quality of {_called(name)}: {found}"


def warning(name: str, support: Support) -> str | None:
    """What is to be said of a support that hardly finds itself, in a line; else None."""
    from fsdino.models.segmenting import doubt

    words = doubt(support)
    return None if words is None else f"{_called(name)} {words}"


def _called(name: str) -> str:
    return "the support" if name == UNNAMED else f"support {name!r}"


def check_saving(path: Path, supports: Sequence[SupportFiles]) -> None:
    """Find out early that a support cannot be saved.

    Raises:
        UsageError: several classes, another suffix than .safetensors, a folder, or none to put it.
    """
    if len(supports) > 1:
        raise UsageError("--save-support saves one class: encode each in a separate call")
    if path.suffix != SAVED_SUFFIX:
        raise UsageError(f"--save-support {path}: the name must end in {SAVED_SUFFIX}")
    if path.is_dir():
        raise UsageError(f"--save-support {path}: a file is needed, this is a folder")
    if not path.parent.is_dir():
        raise UsageError(f"--save-support {path}: no such folder; create {path.parent} first")


def saving(path: Path) -> Lock:
    """Have a --save-support to oneself: of two calls at a time, the second is refused.

    Raises:
        UsageError: another process is writing it.
        FsdinoError: its folder cannot be written.
    """
    lock = path.with_name(f"{path.name}.lock")
    return Lock(lock, f"--save-support {path}", "pass another file")


def _joined(supports: Sequence[SupportFiles]) -> list[SupportFiles]:
    """Supports of one name are shots of one class, where they have marked images."""
    found: list[SupportFiles] = []
    for support in supports:
        for place, first in enumerate(found):
            files = not any(s.saved or s.labelled for s in (first, support))
            if first.name == support.name and files and (first.marked or support.marked):
                found[place] = replace(
                    first, files=first.files + support.files, marked=first.marked + support.marked
                )
                break
        else:
            found.append(support)
    return found


def _group(values: Sequence[str], marks: ImageMarks | None = None) -> list[SupportFiles]:
    if not values:
        raise UsageError("--support needs IMAGE MASK, or a saved support")
    name, first = UNNAMED, values[0]
    named = _NAMED.fullmatch(first)
    if named and not Path(first).exists():
        name, first = named["name"], named["file"]
    files = tuple(Path(value) for value in (first, *values[1:]))
    if len(files) == 1 and (files[0].is_dir() or files[0].suffix.lower() == ".json"):
        if marks is not None:
            raise UsageError(f"support {files[0]}: a mark belongs to one image, not to {files[0]}")
        return _labelled(None if name == UNNAMED else name, files[0])
    for file in files:
        _check(file)
    if marks is not None:
        return [_marked(name, files, marks)]
    one_saved = len(files) == 1 and files[0].suffix == SAVED_SUFFIX
    if not one_saved and any(file.suffix == SAVED_SUFFIX for file in files):
        raise UsageError(f"support {name!r}: a saved support stands alone, without other files")
    if not one_saved and len(files) % 2:
        raise UsageError(_unpaired(files))
    return [SupportFiles(name, files)]


def _unpaired(files: Sequence[Path]) -> str:
    """What is wrong with files of which one has no mask."""
    if len(files) > 1:
        what = f"--support has {len(files)} files, which are not pairs of image and mask"
        return f"{what}: pass one mask after each image"
    from fsdino.image_files import why_not_image

    file, reason = shown_path(files[0]), why_not_image(files[0])
    if reason is not None:
        return (
            f"support {file}: {reason}: pass an image and its mask, or a folder or a JSON file of "
            "labelled images"
        )
    return (
        f"support {file} has no mask: pass one after it, or mark the object with --box, --point or "
        "--scribble"
    )


def _marked(name: str, files: tuple[Path, ...], marks: ImageMarks) -> SupportFiles:
    """A group whose last image has marks."""
    if any(file.suffix == SAVED_SUFFIX for file in files):
        raise UsageError(f"support {name!r}: a saved support takes no marks; pass an image")
    if len(files) % 2 == 0:
        raise UsageError(
            f"support {name!r}: {files[-2]} has a mask, {files[-1]}, and marks: pass one of them"
        )
    return SupportFiles(name, files[:-1], marked=((files[-1], marks),))


def _labelled(name: str | None, path: Path) -> list[SupportFiles]:
    """The classes in a folder of labelled images, or in an annotation file."""
    from fsdino.data.labelled import read_labelled

    found = read_labelled(path)
    if name is not None and len(found) > 1:
        raise UsageError(
            f"support {name!r}: {path} has {len(found)} classes ({listed(found)}): leave out "
            f"{name}="
        )
    return [SupportFiles(name or own, (), labelled) for own, labelled in found.items()]


def _check(file: Path) -> None:
    if file.is_dir():
        raise UsageError(f"support {file}: a file is needed, this is a folder")
    if not file.is_file():
        raise UsageError(f"support {file}: no such file")
